"""Rungs 3 and 4 for elementwise scans: the kernels, forward and backward, are the recurrence."""

from __future__ import annotations

import math

import pytest
import torch

from tests.numeric.problems import assert_close
from tests.numeric.scans import COMMITTED, NAMES, Shape, evaluate, form, make, named_results
from tests.tiers import ladder, variants

pytestmark = [pytest.mark.usefixtures("kernels"), pytest.mark.usefixtures("poisoned_memory")]

SHAPES = [
    Shape(T=0, B=2),
    Shape(T=1, B=2, H=2),
    Shape(T=15, sizes=(20, 5), groups=4),
    Shape(T=64, sizes=(16, 16)),
    Shape(T=65, sizes=(60, 3), groups=2),
    Shape(T=100, sizes=(7, 4)),
    Shape(lengths=(0, 1, 7, 0, 33, 0), groups=2),
    Shape(lengths=(0, 0), groups=2),
]


@ladder(NAMES, SHAPES, few=(SHAPES[4], SHAPES[6]))
def test_in_float32(name, shape):
    problem = make(name, shape).to(torch.float32)
    expected = evaluate(form("naive_recurrent", name), problem.to(torch.float64))
    assert_close(expected, evaluate(form("chunk", name), problem), 1e-5, gradients=1e-4)


@pytest.mark.parametrize("chunk_size", [16, 64])
@variants(NAMES, also=("two_matrices",))
def test_any_chunk_size(name, chunk_size):
    problem = make(name, Shape(T=70, sizes=(6, 3), groups=2)).to(torch.float32)
    expected = evaluate(form("naive_recurrent", name), problem.to(torch.float64))
    assert_close(expected, evaluate(form("chunk", name), problem, chunk_size=chunk_size), 1e-5, gradients=1e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@variants(NAMES, also=("logs",))
def test_in_half_precision(name, dtype):
    problem = make(name, Shape(T=40, sizes=(20, 5), groups=2)).to(dtype)
    expected = evaluate(form("naive_recurrent", name), problem.to(torch.float64))
    assert_close(expected, evaluate(form("chunk", name), problem), 5e-3, gradients=8e-3)


@pytest.mark.parametrize("shape", [Shape(T=40, groups=2), Shape(lengths=(0, 3, 40))], ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_starts_from_init(name, shape):
    problem = make(name, shape, state=False).to(torch.float32)
    expected = evaluate(form("naive_recurrent", name), problem.to(torch.float64))
    assert_close(expected, evaluate(form("chunk", name), problem), 1e-5, gradients=1e-4)


@pytest.mark.parametrize("name", COMMITTED)
def test_several_blocks_of_channels(name):
    """More channels than a program has: gradients that lack their dim are sums over programs."""
    problem = make(name, Shape(T=20, sizes=(100, 16))).to(torch.float32)
    expected = evaluate(form("naive_recurrent", name), problem.to(torch.float64))
    assert_close(expected, evaluate(form("chunk", name), problem), 1e-5, gradients=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_split_and_resume(name):
    problem = make(name, Shape(T=50, groups=2)).to(torch.float32)
    whole, finals = problem.call(form("chunk", name))
    inputs = {key for key, x in problem.tensors.items() if x.ndim > 2 and x.shape[1] == 50}
    first = problem.map(lambda key, x: x[:, :21] if key in inputs else x)
    o, states = first.call(form("chunk", name))
    rest = problem.map(lambda key, x: x[:, 21:] if key in inputs else x)
    again, ends = rest.call(form("chunk", name), initial_state=states if len(states) > 1 else states[0])
    expected = named_results(problem, whole, finals)
    assert_close(expected, named_results(problem, torch.cat([o, again], 1), ends), 1e-5)


@variants(NAMES, also=("two_matrices", "logs"))
def test_only_what_is_asked_for(name):
    """Gradients of each argument on its own, of o alone and of the final states alone."""
    problem = make(name, Shape(T=18, sizes=(5, 3), groups=2)).to(torch.float32)
    everything = evaluate(form("chunk", name), problem)
    for wanted in (*problem.tensors, "initial 0"):
        alone = evaluate(form("chunk", name), problem, wrt=[wanted])
        assert torch.equal(alone[f"d {wanted}"], everything[f"d {wanted}"])
    for only in ("o", "final 0"):
        expected = _one_cotangent(form("naive_recurrent", name), problem.to(torch.float64), only)
        assert_close(expected, _one_cotangent(form("chunk", name), problem, only), 1e-4)


def _one_cotangent(function, problem, only):
    problem = problem.map(lambda _, x: x.detach().clone().requires_grad_())
    o, finals = problem.call(function)
    result = o if only == "o" else finals[0]
    leaves = {**problem.tensors, "initial 0": problem.states[0]}
    found = torch.autograd.grad(result.double().sum(), list(leaves.values()), allow_unused=True, materialize_grads=True)
    return {f"d {name}": x for name, x in zip(leaves, found, strict=True)}


def test_hard_resets_are_exact():
    problem = make("hgrn", Shape(T=70)).to(torch.float32)
    g = problem.tensors["g"].clone()
    g[:, 7], g[:, 20:23], g[:, 32], g[:, 50] = -math.inf, -math.inf, -math.inf, 0
    problem = problem.map(lambda name, x: g if name == "g" else x)
    expected = evaluate(form("naive_recurrent", "hgrn"), problem.to(torch.float64))
    assert_close(expected, evaluate(form("chunk", "hgrn"), problem), 1e-6, gradients=1e-5)


def test_keys_of_no_weight():
    problem = make("rwkv4", Shape(T=70)).to(torch.float32)
    k = problem.tensors["k"].clone()
    k[:, 3], k[:, 16:20], k[:, 31:33], k[:, 69] = -math.inf, -math.inf, -math.inf, -math.inf
    problem = problem.map(lambda name, x: k if name == "k" else x)
    expected = evaluate(form("naive_recurrent", "rwkv4"), problem.to(torch.float64))
    assert_close(expected, evaluate(form("chunk", "rwkv4"), problem), 1e-5, gradients=1e-4)


def test_nothing_yet():
    """k = -inf from the start: the running log-sum-exp stays -inf, and its slopes are zero where PyTorch's are NaN."""
    problem = make("logs", Shape(T=40), state=False).to(torch.float32)
    k, v = (problem.tensors[name].clone() for name in "kv")
    k[:, :18], v[:, :18] = -math.inf, -math.inf
    problem = problem.map(lambda name, x: {"k": k, "v": v}.get(name, x))
    for function in (form("naive_chunk", "logs"), form("chunk", "logs")):
        _, (z, y, _) = problem.map(lambda n, x: x[:, :18]).call(function)
        assert (z == -math.inf).all() and (y == -math.inf).all()


@pytest.mark.parametrize("name", COMMITTED)
def test_is_one_operator_to_torch_compile(name):
    problem = make(name, Shape(T=20)).to(torch.float32)
    compiled = torch.compile(form("chunk", name), fullgraph=True, backend="aot_eager")
    assert_close(evaluate(form("chunk", name), problem), evaluate(compiled, problem), 1e-6)


@pytest.mark.parametrize("name", COMMITTED)
def test_float64_runs_in_pytorch(name):
    problem = make(name, Shape(T=20))
    expected = evaluate(form("naive_recurrent", name), problem)
    assert_close(expected, evaluate(form("chunk", name), problem), 1e-9)


def test_rejects_other_chunk_sizes():
    with pytest.raises(ValueError, match="chunk_size: expected 16, 32 or 64, got 48"):
        make("hgrn", Shape(T=3)).call(form("chunk", "hgrn"), chunk_size=48)
