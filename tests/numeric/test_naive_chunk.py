"""Rung 2: the derived chunk form is the recurrence, values and gradients, in float64."""

from __future__ import annotations

import pytest
import torch

from tests.numeric import shapes
from tests.numeric.problems import (
    SLOTTED,
    Shape,
    assert_close,
    evaluate,
    form,
    make,
    named_results,
    with_form,
)
from tests.tiers import ladder, represents, tiered, variants

NAMES = with_form("naive_chunk")

# None is the package's own choice. Every shape meets a chunk that ends inside it, on its end, or beyond it.
CASES = [
    (shapes.EMPTY, 16),
    (shapes.ONE_TOKEN, 1),
    (shapes.ONE_TOKEN, None),
    (shapes.GROUPS_OF_4, 1),
    (shapes.GROUPS_OF_4, 16),
    (shapes.BELOW_A_CHUNK, 64),
    (shapes.ONE_CHUNK, 16),
    (shapes.ONE_CHUNK, 64),
    (shapes.ABOVE_A_CHUNK, 24),
    (shapes.ABOVE_A_CHUNK, 64),
    (shapes.MANY_CHUNKS, None),
    (shapes.MANY_CHUNKS, 64),
    (shapes.WIDE_KEY, 7),
    (shapes.WIDEST_KEY, 16),
    (shapes.WIDEST_VALUE, 2),
    (shapes.PACKED, 16),
    (shapes.PACKED_32, 64),
    (shapes.PACKED_EMPTY, None),
]


FEW = ((shapes.ABOVE_A_CHUNK, 24), (shapes.PACKED, 16))


@tiered(
    ("name", "shape", "chunk_size"),
    [(name, *case) for name in NAMES for case in CASES],
    lambda name, *case: represents(name) or case in FEW,
)
def test_is_the_recurrence(name, shape, chunk_size):
    problem = make(name, shape)
    size = {} if chunk_size is None else {"chunk_size": chunk_size}
    expected = evaluate(form("naive_recurrent", name), problem)
    assert_close(expected, evaluate(form("naive_chunk", name), problem, **size), 1e-9)


@pytest.mark.parametrize("name", [name for name in SLOTTED if name in NAMES])
def test_many_slots(name):
    problem = make(name, shapes.MANY_SLOTS)
    expected = evaluate(form("naive_recurrent", name), problem)
    assert_close(expected, evaluate(form("naive_chunk", name), problem, chunk_size=16), 1e-9)


@ladder(NAMES, [Shape(T=7, groups=2), Shape(lengths=(0, 3, 4))])
def test_starts_from_zero(name, shape):
    problem = make(name, shape, state=False)
    expected = evaluate(form("naive_recurrent", name), problem)
    assert_close(expected, evaluate(form("naive_chunk", name), problem, chunk_size=4), 1e-9)


@variants(NAMES)
def test_gradients_are_the_derivatives(name):
    problem = make(name, Shape(T=3, K=2, V=3, M=2, groups=2))
    leaves = problem.leaves

    def run(*values):
        swapped = problem.with_leaves(dict(zip(leaves, values, strict=True)))
        results = named_results(name, *swapped.call(form("naive_chunk", name), chunk_size=2))
        return tuple(results.values())

    assert torch.autograd.gradcheck(run, [x.requires_grad_() for x in leaves.values()])
