"""Systems of equations where they are hard: matrices of large condition numbers in float32, right sides of any size and
of none, sequences that are packed or cut, and steps that are too few."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from generated.shared import solves
from tests.margins import beyond
from tests.numeric.problems import (
    Problem,
    Shape,
    as_state,
    assert_close,
    cotangent,
    evaluate,
    form,
    make,
    named_results,
    rms_ratio,
)

NAME = "mesa_net"
K = 16
LOST = 4
"""How many times what the recurrence loses in float32, by elimination, the steps may lose."""
RECURRENT, CHUNK = form("naive_recurrent", NAME), form("naive_chunk", NAME)


def alike(T: int, K: int = K, lamb: float = 0.25, lengths: tuple[int, ...] | None = None) -> Problem:
    """Keys that have most in common, written as they are, and hardly forgotten; little on the diagonal."""
    problem = make(NAME, Shape(T=T, K=K, V=8, H=1, groups=2, lengths=lengths), state=lengths is not None)
    k, g = problem.tensors["k"], problem.tensors["g"]
    common = normalize(cotangent("common", k[:1, :1]), dim=-1)
    return problem.with_tensors(
        k=normalize(k + 10 * common, dim=-1),
        q=normalize(problem.tensors["q"], dim=-1),
        g=torch.full_like(g, -1e-3),
        beta=torch.ones_like(problem.tensors["beta"]),
        lamb=torch.full_like(problem.tensors["lamb"], lamb),
    )


def spread(T: int, K: int) -> Problem:
    """Keys of which each channel has less than the one before, down to 0.03 of the first: eigenvalues of any size."""
    problem, k = alike(T, K), make(NAME, Shape(T=T, K=K, V=8, H=1, groups=2)).tensors["k"]
    return problem.with_tensors(k=normalize(k * torch.logspace(0, -1.5, K, dtype=k.dtype), dim=-1))


def condition_number(problem: Problem) -> float:
    """The largest of the last token's matrices."""
    _, (A, _) = problem.call(RECURRENT)
    return torch.linalg.cond(A + torch.diag_embed(problem.tensors["lamb"])).max().item()


HARD = {
    "alike": (alike(T=300), {}, (500, 2000)),
    "spread": (spread(T=300, K=64), {"max_iterations": 60}, (80, 200)),
}
"""Keys, the steps that they need where these are not the usual ones, and how large their condition numbers are."""


@pytest.mark.parametrize("keys", HARD)
@pytest.mark.parametrize("kind", ["naive_chunk", "chunk"])
def test_large_condition_numbers(kernels, kind, keys):
    """In float32 no more is lost than a few times what the recurrence loses."""
    problem, steps, (least, most) = HARD[keys]
    assert least < condition_number(problem) < most
    single = problem.to(torch.float32)
    expected = evaluate(RECURRENT, single.to(torch.float64))
    lost = evaluate(RECURRENT, single)
    found = evaluate(form(kind, NAME), single, chunk_size=64, **steps)
    for name, exact in expected.items():
        bound = LOST * max(rms_ratio(exact, lost[name]), 1e-6)
        failure = beyond(name, rms_ratio(exact, found[name]), bound)
        assert not failure, failure


def test_enough_steps_are_exact():
    """As many as channels, in float64, but for rounding; some more where keys are alike."""
    for problem, steps in ((make(NAME, Shape(T=40, K=K, groups=2)), K), (alike(T=300), 40)):
        expected = evaluate(RECURRENT, problem)
        assert_close(expected, evaluate(CHUNK, problem, max_iterations=steps, chunk_size=32), 1e-9)


def test_too_few_steps_say_so_by_their_error():
    """Each few of them divide it, and its gradients are those of neither."""
    problem = make(NAME, Shape(T=40, K=K))
    exact = evaluate(RECURRENT, problem)
    errors = [rms_ratio(exact["o"], evaluate(CHUNK, problem, max_iterations=n, wrt=())["o"]) for n in (1, 3, 6, 12)]
    assert all(after < before / 4 for before, after in pairwise(errors)), errors


@pytest.mark.parametrize("size", [0.0, 1e-30, 1e-12, 1e12, 1e30])
@pytest.mark.parametrize("kind", ["naive_chunk", "chunk"])
def test_right_sides_of_any_size(kernels, kind, size):
    """Of none the solution is 0, and its gradients are what they are beside others."""
    problem = make(NAME, Shape(T=20, K=K)).to(torch.float32)
    scales = torch.where(torch.arange(20) < 10, 1.0, size)[:, None, None]
    other = problem.with_tensors(q=problem.tensors["q"] * scales)
    chunk = form(kind, NAME)
    whole, found = (evaluate(chunk, each, chunk_size=16, wrt=())["o"] for each in (problem, other))
    assert found.isfinite().all()
    assert rms_ratio(whole[:, 10:] * size, found[:, 10:], floor=1e-40) < 1e-5
    assert torch.equal(whole[:, :10], found[:, :10])
    if size == 0:
        found, expected = (evaluate(each, other) for each in (chunk, RECURRENT))
        assert_close(expected, found, 1e-4)


def test_packed_and_cut():
    """With nothing to forget by, what is carried from piece to piece is all there is."""
    lengths = (31, 0, 1, 48)
    problem = alike(T=sum(lengths), lengths=lengths)
    expected = evaluate(RECURRENT, problem)
    assert_close(expected, evaluate(CHUNK, problem, chunk_size=16, max_iterations=40), 1e-9)
    outputs, state = [], as_state(tuple(x[-1:] for x in problem.initial_state or ()))
    for start, end in ((32, 41), (41, 42), (42, 80)):
        tensors = {n: x if n == "lamb" else x[:, start:end] for n, x in problem.tensors.items()}
        piece = Problem(NAME, tensors, {}, state, None)
        o, state = piece.call(CHUNK, chunk_size=16, max_iterations=40)
        outputs.append(o)
    last = {"o": expected["o"][:, 32:], **{n: x[-1:] for n, x in expected.items() if n.endswith("_final")}}
    assert_close(last, named_results(NAME, torch.cat(outputs, dim=1), state), 1e-9)


def test_gradients_are_of_the_exact_solution():
    """By a second system of the same matrices: of a random one, as automatic differentiation has them."""
    generator = torch.Generator().manual_seed(0)
    root = torch.randn(5, K, K, generator=generator, dtype=torch.float64)
    A, right, d = root @ root.mT / K, *torch.randn(2, 5, K, generator=generator, dtype=torch.float64)
    given = [x.requires_grad_() for x in (A, right, d.abs() + 0.5)]

    def applied(p: Tensor) -> Tensor:
        return torch.einsum("nij,nj->ni", given[0], p) + given[2] * p

    by_steps = solves.solution(applied, given[1], 60)
    direct = solves.direct(given[0], given[1], given[2])
    weight = cotangent("x", direct)
    for one, other in zip(*(torch.autograd.grad(x, given, weight) for x in (direct, by_steps)), strict=True):
        assert rms_ratio(one, other) < 1e-9
    squared = solves.solution(applied, given[1], 60).square().sum()
    (gradient,) = torch.autograd.grad(squared, right, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


def test_a_matrix_plus_a_number():
    A = torch.eye(3).expand(2, 4, 3, 3)
    right = torch.ones(2, 4, 3)
    assert torch.equal(solves.direct(A, right, 1.0), right / 2)
    assert torch.equal(solves.direct(A, right, torch.ones(2, 4, 1)), right / 2)
    assert torch.equal(solves.direct(A, right), right)
    with pytest.raises(torch.linalg.LinAlgError):
        solves.direct(torch.zeros_like(A), right)


@pytest.mark.parametrize("steps", [0, -1, 2.0, None])
def test_steps_that_are_no_number_of_them(steps):
    problem = make(NAME, Shape(T=3))
    with pytest.raises(ValueError, match="max_iterations: expected a positive int"):
        problem.call(CHUNK, max_iterations=steps)
