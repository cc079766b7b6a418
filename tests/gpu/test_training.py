"""Rung 5: chunk_* in a training step, through autograd, in each mode of keeping arrays for the gradient."""

from __future__ import annotations

import inspect

import pytest
import torch

from tests.numeric.problems import NAMES, Problem, Shape, assert_close, evaluate, form, make, package
from tests.numeric.test_autograd import under_autocast
from tests.numeric.test_chunk_backward import assert_gradients

OPERATORS = [name for name in NAMES if hasattr(package(name), f"chunk_{name}")]
FORWARD = {torch.float32: 1e-5, torch.bfloat16: 5e-3, torch.float16: 5e-3}
GRADIENTS = {torch.float32: 1e-4, torch.bfloat16: 8e-3, torch.float16: 8e-3}
GATES = {torch.float32: 1e-4, torch.bfloat16: 2e-2, torch.float16: 2e-2}

SHAPES = (
    Shape(T=1024, B=2, H=2, groups=2, K=128, V=128),
    Shape(T=333, B=2, H=2, groups=4, K=100, V=60, n=3),
    Shape(T=200, H=2, K=256, V=256, n=1),
    Shape(lengths=(0, 1, 300, 700, 0, 63, 0), H=2, groups=2, K=64, V=128, offsets=torch.int32),
    Shape(T=0, B=2, H=2),
)


def modes(name: str) -> list[dict[str, bool]]:
    """What a call may be told to keep; nothing where the PyTorch form gives the gradients."""
    if "save_states" not in inspect.signature(form("chunk", name)).parameters:
        return [{}]
    return [{"save_states": False}, {"save_states": True}]


every_mode = pytest.mark.parametrize(
    ("name", "mode"), [pytest.param(name, mode, id=f"{name}-{mode}") for name in OPERATORS for mode in modes(name)]
)


def check(expected: dict[str, torch.Tensor], got: dict[str, torch.Tensor], dtype: torch.dtype) -> None:
    results = [{key: x for key, x in found.items() if not key.startswith("d ")} for found in (expected, got)]
    gradients = [{key[2:]: x for key, x in found.items() if key.startswith("d ")} for found in (expected, got)]
    assert_close(*results, FORWARD[dtype])
    assert_gradients(*gradients, GRADIENTS[dtype], GATES[dtype])


def step(problem: Problem, mode: dict[str, bool]) -> dict[str, torch.Tensor]:
    return evaluate(form("chunk", problem.name), problem, **mode)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", FORWARD, ids=str)
@every_mode
def test_is_the_chunk_form(name, mode, dtype, shape):
    """In float64, where the chunk form is the recurrence to 1e-9 (rung 2), and takes less than an hour."""
    problem = make(name, shape).to(dtype).to("cuda")
    check(evaluate(form("naive_chunk", name), problem.to(torch.float64)), step(problem, mode), dtype)


@every_mode
def test_no_gradient_depends_on_the_run(name, mode):
    """The same bits twice: sums have one order."""
    problem = make(name, SHAPES[0]).to(torch.bfloat16).to("cuda")
    one, other = step(problem, mode), step(problem, mode)
    assert all(torch.equal(one[key], other[key]) for key in one)


@pytest.mark.parametrize("shape", SHAPES[:4:3], ids=str)
@every_mode
def test_compiled(name, mode, shape):
    torch.compiler.reset()
    problem = make(name, shape).to(torch.bfloat16).to("cuda")
    compiled = torch.compile(form("chunk", name), fullgraph=True)
    check(
        evaluate(form("naive_chunk", name), problem.to(torch.float64)),
        evaluate(compiled, problem, **mode),
        torch.bfloat16,
    )


@every_mode
def test_under_autocast(name, mode):
    """Projections around the operator run in bf16; it is given float32, and stays there."""
    problem = make(name, SHAPES[1]).to(torch.float32).to("cuda")
    got = evaluate(under_autocast(form("chunk", name), "cuda"), problem, **mode)
    check(evaluate(form("naive_chunk", name), problem.to(torch.float64)), got, torch.float32)
