"""Rung 2 for elementwise scans: all tokens of a chunk at once are the recurrence, values and gradients, in float64."""

from __future__ import annotations

import math

import pytest
import torch

from tests.numeric.problems import assert_close
from tests.numeric.scans import COMMITTED, NAMES, Shape, evaluate, form, make

CASES = [
    (Shape(T=0, B=2), 16),
    (Shape(T=1, B=2, H=2), 1),
    (Shape(T=1, groups=2), 64),
    (Shape(T=15, groups=4), 1),
    (Shape(T=63, groups=2), 16),
    (Shape(T=64, H=2), 64),
    (Shape(T=65, B=2), 24),
    (Shape(lengths=(0, 1, 7, 24, 0, 17, 0), H=2, groups=2), 16),
    (Shape(lengths=(0, 0), groups=2), 64),
]


@pytest.mark.parametrize(("shape", "chunk_size"), CASES, ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_is_the_recurrence(name, shape, chunk_size):
    problem = make(name, shape)
    expected = evaluate(form("naive_recurrent", name), problem)
    assert_close(expected, evaluate(form("naive_chunk", name), problem, chunk_size=chunk_size), 1e-9)


@pytest.mark.parametrize("shape", [Shape(T=7, groups=2), Shape(lengths=(0, 3, 4))], ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_starts_from_init(name, shape):
    problem = make(name, shape, state=False)
    expected = evaluate(form("naive_recurrent", name), problem)
    assert_close(expected, evaluate(form("naive_chunk", name), problem, chunk_size=4), 1e-9)


@pytest.mark.parametrize("name", NAMES)
def test_gradients_are_the_derivatives(name):
    problem = make(name, Shape(T=3, sizes=(2, 3), groups=2))
    leaves = [*problem.tensors, *(f"initial {place}" for place in range(len(problem.states)))]
    values = [*problem.tensors.values(), *problem.states]

    def run(*given):
        o, finals = problem.map(lambda key, _: given[leaves.index(key)]).call(form("naive_chunk", name), chunk_size=2)
        return (o, *finals)

    assert torch.autograd.gradcheck(run, [x.requires_grad_() for x in values])


def test_hard_resets_are_exact():
    problem = make("hgrn", Shape(T=40))
    g = problem.tensors["g"].clone()
    g[:, 7], g[:, 20:23], g[:, 30] = -math.inf, -math.inf, 0
    problem = problem.map(lambda name, x: g if name == "g" else x)
    expected = evaluate(form("naive_recurrent", "hgrn"), problem)
    assert_close(expected, evaluate(form("naive_chunk", "hgrn"), problem, chunk_size=16), 1e-12)


def test_keys_of_no_weight():
    """k = -inf: nothing is written, and the gradients stay those of the recurrence, none of them NaN."""
    problem = make("rwkv4", Shape(T=40))
    k = problem.tensors["k"].clone()
    k[:, 3], k[:, 16:20], k[:, 39] = -math.inf, -math.inf, -math.inf
    problem = problem.map(lambda name, x: k if name == "k" else x)
    expected = evaluate(form("naive_recurrent", "rwkv4"), problem)
    assert all(x.isfinite().all() for x in expected.values())
    assert_close(expected, evaluate(form("naive_chunk", "rwkv4"), problem, chunk_size=16), 1e-9)


@pytest.mark.parametrize("name", COMMITTED)
def test_rejects_a_chunk_of_nothing(name):
    with pytest.raises(ValueError, match="chunk_size: expected a positive int, got 0"):
        make(name, Shape(T=3)).call(form("naive_chunk", name), chunk_size=0)
