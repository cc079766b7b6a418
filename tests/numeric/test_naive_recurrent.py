"""Rung 1: the generated recurrence is the one written by hand, values and gradients, in float64."""

from __future__ import annotations

import pytest

from tests.numeric.problems import NAMES, SLOTTED, Shape, assert_close, evaluate, form, make
from tests.numeric.references import REFERENCES
from tests.numeric.shapes import MANY_SLOTS, SHAPES

CASES = [(name, shape) for name in NAMES for shape in SHAPES] + [(name, MANY_SLOTS) for name in SLOTTED]


@pytest.mark.parametrize(("name", "shape"), CASES, ids=str)
def test_is_the_recurrence(name, shape):
    problem = make(name, shape)
    assert_close(evaluate(REFERENCES[name], problem), evaluate(form("naive_recurrent", name), problem), 1e-12)


@pytest.mark.parametrize("shape", [Shape(T=7, groups=2), Shape(lengths=(0, 3, 4))], ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_starts_from_zero(name, shape):
    problem = make(name, shape, state=False)
    assert_close(evaluate(REFERENCES[name], problem), evaluate(form("naive_recurrent", name), problem), 1e-12)
