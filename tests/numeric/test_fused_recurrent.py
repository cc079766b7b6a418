"""Rungs 3 and 4: the recurrent kernel against the recurrence in float64 on the same rounded inputs."""

from __future__ import annotations

import pytest
import torch

from tests.numeric import shapes
from tests.numeric.problems import SLOTTED, Problem, Shape, assert_close, evaluate, form, make, with_form
from tests.tiers import ladder, variants

NAMES = with_form("fused_recurrent")

# Gradients in the large are test_fused_recurrent_backward's: here a call is differentiated at all.
DIFFERENTIATED = (Shape(T=5, K=16, V=20, groups=4, n=1), Shape(lengths=(0, 1, 4, 0), H=2, groups=2, n=3))


def check(problem: Problem, bound: float, **bounds: float) -> None:
    wrt = None if bounds else ()
    expected = evaluate(form("naive_recurrent", problem.name), problem.to(torch.float64), wrt=wrt)
    assert_close(expected, evaluate(form("fused_recurrent", problem.name), problem, wrt=wrt), bound, **bounds)


# `flagen build` proves of every variant that they are the recurrence; here is how they round, print and are launched.
@ladder(NAMES, shapes.SHAPES, few=(shapes.PACKED,))
def test_float32(name, shape):
    check(make(name, shape).to(torch.float32), 1e-5)


@pytest.mark.parametrize("name", [name for name in SLOTTED if name in NAMES])
def test_many_slots(name):
    problem = make(name, shapes.MANY_SLOTS)
    check(problem.to(torch.float32), 1e-5)
    check(problem.to(torch.bfloat16), 5e-3)


@shapes.in_low_precision(NAMES)
def test_low_precision(name, shape, dtype):
    check(make(name, shape).to(dtype), 5e-3)


@variants(NAMES)
def test_starts_from_zero(name):
    check(make(name, Shape(lengths=(0, 3, 4), groups=2), state=False).to(torch.float32), 1e-5)


@ladder(NAMES, DIFFERENTIATED)
def test_gradients(name, shape):
    check(make(name, shape).to(torch.float32), 1e-5, gradients=1e-4)


@variants(NAMES)
def test_float64(name):
    check(make(name, shapes.GROUPS_OF_4), 1e-12, gradients=1e-12)
