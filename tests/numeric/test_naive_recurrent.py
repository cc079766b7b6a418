"""Rung 1: the generated recurrence is the one written by hand, values and gradients, in float64."""

from __future__ import annotations

import pytest

from tests.numeric.problems import NAMES, SLOTTED, Shape, assert_close, evaluate, form, make
from tests.numeric.references import REFERENCES
from tests.numeric.shapes import FEW, MANY_SLOTS, SHAPES
from tests.tiers import ladder


@ladder(NAMES, SHAPES, few=FEW)
def test_is_the_recurrence(name, shape):
    problem = make(name, shape)
    assert_close(evaluate(REFERENCES[name], problem), evaluate(form("naive_recurrent", name), problem), 1e-12)


@pytest.mark.parametrize("name", SLOTTED)
def test_many_slots(name):
    problem = make(name, MANY_SLOTS)
    assert_close(evaluate(REFERENCES[name], problem), evaluate(form("naive_recurrent", name), problem), 1e-12)


@ladder(NAMES, [Shape(T=7, groups=2), Shape(lengths=(0, 3, 4))])
def test_starts_from_zero(name, shape):
    problem = make(name, shape, state=False)
    assert_close(evaluate(REFERENCES[name], problem), evaluate(form("naive_recurrent", name), problem), 1e-12)
