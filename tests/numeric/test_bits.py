"""Kernels give a sequence the same bits whatever runs beside it, and wherever its chunks let it be cut.

Results and final states, not gradients. PyTorch promises no such thing of the products that its forms are made of.
"""

from __future__ import annotations

import re
import sys
from dataclasses import replace
from itertools import pairwise
from types import ModuleType

import pytest
import torch
from torch import Tensor

from tests.numeric.problems import (
    NAMES,
    Problem,
    Shape,
    as_state,
    assert_close,
    evaluate,
    form,
    forms,
    make,
    named_results,
    package,
    spec_of,
)
from tests.plans import adds_up_rows, has_inference, is_whole, makes_rows, writes_ahead
from tests.tiers import interpreted, tiered, variants

pytestmark = interpreted

SHAPE = Shape(T=37, K=16, V=12, B=2, groups=2)
OTHER = 19
"""The length of what is packed before the sequence."""
CHUNK = 16

WHOLE = [case for case in forms("chunk") if is_whole(case[1]) and not (adds_up_rows(case[1]) or makes_rows(case[1]))]
CHUNKED = [(*case, dtype) for case in WHOLE for dtype in (torch.float32, torch.bfloat16)]
CASES = [*CHUNKED, *((*case, torch.float32) for case in forms("fused_recurrent"))]


OTHER_BITS_BOUND = {torch.float32: 1e-6, torch.bfloat16: 3e-3}
"""Of pieces where the last row of each is written by the next one, and no chunk's products have it; and of stages that
serve gradients beside others that serve none."""

SEEN = ("gated_delta_product", "kda", "gsa", "hgrn")
"""Whose bits are looked at each time: micro-steps, a decay of each key, stages, channels without a matrix."""


def tokens(problem: Problem, sequence: int, start: int, end: int) -> dict[str, Tensor]:
    """The arguments of a call of one sequence, from `start` to `end`."""
    rows = {decl.name: SHAPE.n if decl.per == "step" else 1 for decl in spec_of(problem.name).inputs}
    return {
        name: x[sequence : sequence + 1, start * rows[name] : end * rows[name]] if name in rows else x
        for name, x in problem.tensors.items()
    }


def packed(problem: Problem) -> Problem:
    """The start of the first sequence, then the whole of the second."""
    first, second = tokens(problem, 0, 0, OTHER), tokens(problem, 1, 0, SHAPE.T)
    inputs = {decl.name for decl in spec_of(problem.name).inputs}
    both = {name: torch.cat((x, second[name]), dim=1) if name in inputs else x for name, x in first.items()}
    return replace(problem, tensors=both, cu_seqlens=torch.tensor([0, OTHER, OTHER + SHAPE.T]))


def cuts(alone: Problem) -> tuple[int, ...]:
    """Where the sequence may be cut: at multiples of the chunk size, and in mini-batches where one begins."""
    edges = (CHUNK, 2 * CHUNK)
    if size := alone.scalars.get("mini_batch_size"):
        before = int(alone.leaves["position_initial"][0, 0])
        edges = tuple(next(t for t in range(edge, SHAPE.T) if (before + t) % size == 0) for edge in edges)
    return (0, *edges, SHAPE.T)


def beside_nan(x: Tensor) -> Tensor:
    """What the sequence runs beside is NaN."""
    return torch.cat((torch.full_like(x[:1], torch.nan), x[1:]))


@tiered(("kind", "name", "dtype"), CASES, lambda _, name, dtype: name in SEEN and dtype == torch.float32)
def test_a_sequence_has_its_bits(kind, name, dtype):
    function, sizes = form(kind, name), {"chunk_size": CHUNK} if kind == "chunk" else {}
    problem = make(name, SHAPE).to(dtype)
    inputs = {decl.name for decl in spec_of(name).inputs}
    problem = problem.map(lambda name, x: beside_nan(x) if name in inputs or name not in problem.tensors else x)
    states = (problem.initial_state,) if isinstance(problem.initial_state, Tensor) else problem.initial_state
    second = as_state(tuple(x[1:] for x in states))
    alone = replace(problem, tensors=tokens(problem, 1, 0, SHAPE.T), initial_state=second)
    expected = evaluate(function, alone, wrt=(), **sizes)

    # What is wanted beside a result has no part in it, either.
    batched = evaluate(function, problem, **sizes)
    if has_inference(name) and kind == "chunk":  # Of rows that pass between kernels, or are turned where they are read.
        assert_close(expected, {result: batched[result][1:] for result in expected}, OTHER_BITS_BOUND[dtype])
        batched = evaluate(function, problem, wrt=(), **sizes)
    beside = evaluate(function, packed(problem), wrt=(), **sizes)
    state, outputs = second, []
    for start, end in pairwise(cuts(alone)):
        piece = replace(problem, tensors=tokens(problem, 1, start, end), initial_state=state)
        o, state = piece.call(function, **sizes)
        outputs.append(o)
    cut = named_results(name, torch.cat(outputs, dim=1), state)

    for result, x in expected.items():
        assert torch.equal(batched[result][1:], x), f"{result}: in a batch"
        assert torch.equal(beside[result][:, OTHER:] if result == "o" else beside[result][1:], x), f"{result}: packed"
        if writes_ahead(name) and kind == "chunk":
            assert_close({result: cut[result]}, {result: x}, OTHER_BITS_BOUND[dtype])
        else:
            assert torch.equal(cut[result], x), f"{result}: cut in three"


def choosing(name: str) -> list[ModuleType]:
    """The modules of a package that choose by the number of programs how to launch the outputs."""
    package(name)
    found = [m for path, m in sys.modules.items() if re.fullmatch(rf"generated\.{name}\.(.*\.)?chunk", path)]
    return [module for module in found if hasattr(module, "launches")]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@variants([name for name in NAMES if choosing(name)])
def test_how_outputs_are_launched_changes_no_bit(name, dtype, monkeypatch):
    """A walk over few sequences leaves the outputs to a kernel of their own."""
    problem, results = make(name, SHAPE).to(dtype), []
    for splits in (False, True):
        for module in choosing(name):
            monkeypatch.setattr(module.launches, "splits", lambda *_, splits=splits: splits)
        results.append(evaluate(form("chunk", name), problem, wrt=(), chunk_size=CHUNK))
    assert all(torch.equal(x, results[1][result]) for result, x in results[0].items())
