"""The backward of the recurrent kernels, interpreted, against autograd through the recurrence in float64."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Collection
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from tests.numeric import shapes
from tests.numeric.problems import NAMES, Problem, Shape, cotangent, form, make, package, spec_of
from tests.numeric.test_chunk_backward import arguments, assert_gradients, expected_gradients
from tests.numeric.test_extremes import GATED, at_20, at_high, at_low, extreme, levels, mixed

FLOAT32, LOW, LOW_GATES = 1e-4, 8e-3, 2e-2

# A segment has 64 tokens.
SMALL = (
    Shape(T=9, K=16, V=20, B=2, H=2, groups=2, n=3),
    Shape(T=3, K=60, V=12, n=1),
    shapes.PACKED,
)
TWO_SEGMENTS = Shape(lengths=(66, 1), K=16, V=12)


def backward(name: str) -> Callable[..., tuple[Tensor | None, ...]]:
    module = importlib.import_module(f"{package(name).__name__}.fused_recurrent_backward")
    return getattr(module, f"fused_recurrent_backward_{name}")


def gradients(problem: Problem, *, without: Collection[str] = (), **keywords: object) -> dict[str, Tensor | None]:
    """The gradient of each tensor, under those of both outputs that `evaluate` takes, but for the outputs `without`."""
    outputs = dict(zip(("o", "final_state"), problem.call(form("naive_recurrent", problem.name)), strict=True))
    given = [None if key in without else cotangent(key, x).to(x.dtype) for key, x in outputs.items()]

    def call(*args: object, output_final_state: bool, **kwargs: object) -> tuple[Tensor | None, ...]:
        return backward(problem.name)(*given, *args, **kwargs)

    return dict(zip(arguments(problem.name), problem.call(call, **keywords), strict=True))


def check(problem: Problem, bound: float, gates: float | None = None, without: Collection[str] = ()) -> None:
    got = gradients(problem, without=without)
    for name, x in {**problem.tensors, "initial_state": problem.initial_state}.items():
        assert x is None or got[name].dtype == x.dtype
    assert_gradients(expected_gradients(problem, without), got, bound, gates)


@pytest.mark.parametrize("shape", [*SMALL, TWO_SEGMENTS], ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_float32(name, shape):
    check(make(name, shape).to(torch.float32), FLOAT32)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_low_precision(name, dtype):
    check(make(name, Shape(T=7, K=100, V=24, groups=2, n=1)).to(dtype), LOW, LOW_GATES)


# ------------------------------------------------------------------------------------------------------------- extremes


@pytest.mark.parametrize("place", [at_low, at_high, at_20, mixed])
@pytest.mark.parametrize("name", GATED)
def test_gates_at_their_ends(name, place):
    check(extreme(name, place).to(torch.float32), FLOAT32)
