"""What a reader of a function's docstring has to know about the values that it is given, and what it gives for them."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Iterator

from flagen.backends.signature import range_note
from flagen.backends.solutions import solution_notes
from flagen.plan.chunk_backward import ChunkBackwardPlan
from flagen.plan.differences import differs_in_chunks, differs_in_segments
from flagen.plan.fused_backward import SEGMENT
from flagen.plan.model import Plan
from flagen.plan.reliance import Reliance, mixes_tokens, reliances_of_chunk, reliances_of_kernels

_WIDTH = 112  # Of a line in a function's docstring, under its indent.


def naive_chunk_notes(plan: Plan) -> str:
    """The notes of `naive_chunk`, as lines of its docstring."""
    return _joined((*_products(plan), *_ranges(plan, reliances_of_chunk(plan)), *solution_notes(plan)))


def chunk_notes(plan: Plan) -> str:
    """The notes of `chunk`, as lines of its docstring."""
    relied = (*reliances_of_chunk(plan), *reliances_of_kernels(plan))
    lost = _lost("a chunk", "1e-5", f"naive_chunk_{plan.spec.name}") if differs_in_chunks(plan) else ()
    return _joined((*_products(plan), *_ranges(plan, relied), *solution_notes(plan), *lost))


def fused_notes(plan: Plan) -> str:
    """The notes of `fused_recurrent`, as lines of its docstring."""
    within, instead = f"{SEGMENT} tokens", f"naive_recurrent_{plan.spec.name}"
    if isinstance(plan.chunk_backward, ChunkBackwardPlan):
        instead = f"chunk_{plan.spec.name}"
    return _joined(_lost(within, "1e-4", instead) if differs_in_segments(plan) else ())


def _lost(within: str, of_rate: str, instead: str) -> Iterator[str]:
    """What a running difference loses within so many tokens."""
    yield (
        f"Gradients of log decays are differences of larger sums within {within}, in float32: off by some 1e-6 of the "
        f"largest, also where a strong decay leaves next to nothing. A rate that multiplies large steps (log decays "
        f"beyond -10 a token), here or before the call, adds this up: its gradient is off by some {of_rate} of itself. "
        f"That of `{instead}` is not."
    )


def _products(plan: Plan) -> Iterator[str]:
    if mixes_tokens(plan):
        yield (
            "A NaN reaches all tokens of its chunk, the earlier ones too, for what a token must not see is multiplied "
            "by zero: padding has to be finite."
        )


def _ranges(plan: Plan, relied: Iterable[Reliance]) -> Iterator[str]:
    name = plan.spec.name
    for each in relied:
        within = " and ".join(f"{decl.name} {range_note(decl.range)[2:]}" for decl in each.declared)
        match each.use:
            case "log":
                yield (
                    f"The log of the decay is taken, which {within} lets exist. Outside of that results may be NaN, "
                    f"where those of `naive_recurrent_{name}` are right."
                )
            case "leaf":
                yield (
                    f"The kernels rely on {within}: blocks of rows decay from their middle. Outside of that results "
                    f"may be infinite or NaN, where those of `naive_chunk_{name}` are right."
                )
            case "inverse":
                yield (
                    f"The kernels rely on {within}: with that the inverse of a chunk has small entries. Outside of it "
                    f"16-bit results lose digits, and `naive_chunk_{name}` does not."
                )


def _joined(notes: Iterable[str]) -> str:
    return "\n\n".join(textwrap.fill(note, _WIDTH, break_on_hyphens=False) for note in notes)
