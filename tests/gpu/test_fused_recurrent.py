"""Rung 5: the recurrent kernel, compiled, at the shapes of real models."""

from __future__ import annotations

import pytest
import torch

from tests.numeric.problems import NAMES, Problem, Shape, assert_close, evaluate, form, make

BOUNDS = {torch.float32: 1e-5, torch.bfloat16: 5e-3, torch.float16: 5e-3}

SHAPES = (
    Shape(T=1024, B=2, H=4, groups=2, K=128, V=128),
    Shape(T=4096, H=2, K=64, V=64),
    Shape(T=257, B=2, H=2, groups=4, K=100, V=60, n=3),
    Shape(T=200, H=2, K=256, V=256),
    Shape(T=1, B=64, H=16, K=128, V=128),
    Shape(lengths=(0, 1, 300, 1500, 0, 63, 0), H=4, groups=2, K=128, V=128, offsets=torch.int32),
    Shape(T=0, B=2, H=2),
)


def check(problem: Problem, bound: float, **bounds: float) -> None:
    wrt = None if bounds else ()
    expected = evaluate(form("naive_recurrent", problem.name), problem.to(torch.float64), wrt=wrt)
    assert_close(expected, evaluate(form("fused_recurrent", problem.name), problem, wrt=wrt), bound, **bounds)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", BOUNDS, ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_is_the_recurrence(name, dtype, shape):
    check(make(name, shape).to(dtype).to("cuda"), BOUNDS[dtype])


@pytest.mark.parametrize("name", NAMES)
def test_gradients(name):
    shape = Shape(T=130, B=2, H=2, groups=2, K=64, V=32)
    check(make(name, shape).to(torch.float32).to("cuda"), 1e-5, gradients=1e-4)
