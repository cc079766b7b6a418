"""Turns of loops, counted in the interpreter."""

from __future__ import annotations

import inspect
from collections.abc import Mapping

import pytest
import torch
import triton
import triton.language as tl

from flagen.triton_cpu.turns import Turns, counted_turns

pytestmark = pytest.mark.usefixtures("interpreter")


@triton.jit
def doubled(x, TIMES: tl.constexpr):
    for _ in tl.static_range(TIMES):
        x += x
    return x


@triton.jit(do_not_specialize=["n"])
def triangle_kernel(o, n):
    program = tl.program_id(0)
    total = 0.0
    for row in range(n + program):
        for _ in range(row):
            total += 1.0
        total = doubled(total, 2)
    tl.store(o + program, total)


@triton.jit
def other_kernel(o):
    tl.store(o, doubled(1.0, 3))


def by_line(function: object, counts: Mapping[tuple[str, int], Turns]) -> dict[int, tuple[int, int]]:
    """Entries and turns of the loops of a function, by how many lines they are below its `def`."""
    lines, first = inspect.getsourcelines(function.fn)
    start = first + next(i for i, line in enumerate(lines) if line.startswith("def "))
    return {
        line - start: (count.entries, count.turns)
        for (_, line), count in counts.items()
        if start < line < first + len(lines)
    }


def test_entries_and_turns_of_loops_within_loops() -> None:
    with counted_turns() as report:
        triangle_kernel[(2,)](torch.zeros(2), 3)
        other_kernel[(1,)](torch.zeros(1))
    counts = report["triangle_kernel"]
    # Three rows and four, of 0 to 2 and of 0 to 3 turns.
    assert by_line(triangle_kernel, counts) == {3: (2, 7), 4: (7, 3 + 6)}
    assert by_line(doubled, counts) == {1: (7, 14)}
    assert by_line(doubled, report["other_kernel"]) == {1: (1, 3)}


def test_a_loop_without_turns_has_none_each_time() -> None:
    assert Turns(entries=2).each == Turns().each == 0.0
    assert Turns(entries=2, turns=5).each == 2.5


def test_nothing_is_counted_outside() -> None:
    with counted_turns() as report:
        pass
    triangle_kernel[(1,)](torch.zeros(1), 2)
    assert not report
