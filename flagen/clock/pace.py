"""What a program of a kernel costs an SM."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

from flagen.clock.sass import Code, Instruction, Loop, Unit, loops_in
from flagen.clock.warp import Warp, tensor_cycles

Turns = Callable[[Loop], float]
"""How many turns a program makes of a loop, on the average, each time that it comes to it."""

MANY = 4
"""Turns after which each is as long as the one before."""

_REGISTERS, _SHARED_MEMORY, _WARPS, _PROGRAMS = 65536, 227 * 1024, 64, 32
_OWN_SHARED_MEMORY = 1024
"""What a program's shared memory takes beside what it asks for."""


@dataclass(frozen=True)
class Pace:
    """Cycles of an SM that a program takes.

    latency: from its start to its end where it is alone: the chain of what waits for what.
    issue: for which a scheduler issues for it.
    tensor: for which it keeps the matrix units, or the shared memory that feeds them.
    resident: how many programs fit an SM at a time.
    walks: it makes many turns of a loop, and not a few.
    waited: of `latency`, the cycles in which its warps waited, by what they waited for.
    """

    latency: float
    issue: float
    tensor: float
    resident: int
    walks: bool = False
    waited: Mapping[Unit, float] = field(default_factory=dict, compare=False)


def pace(code: Code, turns: Turns, *, warps: int, registers: int, shared_memory: int) -> Pace:
    """What a program costs that makes so many turns of the loops in its code, has so many warps, registers a thread,
    and bytes of shared memory."""
    warp = Warp(warps)
    _run(warp, code, turns)
    return Pace(
        warp.now,
        sum(times * warps / 4 for _, times in executed(code, turns)),
        sum(times * tensor_cycles(each, warps) for each, times in executed(code, turns)),
        resident(registers, shared_memory, warps),
        any(turns(loop) > MANY for loop in loops_in(code)),
        warp.waited,
    )


def _run(warp: Warp, code: Code, turns: Turns) -> None:
    for part in code:
        if isinstance(part, Instruction):
            warp.run((part,))
            continue
        left = turns(part)
        for _ in range(min(math.ceil(left), MANY)):
            before = warp.clock
            _run(warp, part.body, turns)
            left -= 1
        if left:
            # More turns are like the last one, or of that there is less than a whole.
            warp.again(left, before)


def executed(code: Code, turns: Turns, times: float = 1.0) -> Iterator[tuple[Instruction, float]]:
    """Every instruction, and how often a program executes it."""
    for part in code:
        if isinstance(part, Loop):
            yield from executed(part.body, turns, times * turns(part))
        else:
            yield part, times


def resident(registers: int, shared_memory: int, warps: int) -> int:
    """How many programs fit an SM: the registers of a warp are handed out eight for each thread at a time."""
    by_registers = _REGISTERS // (-(-registers // 8) * 8 * 32 * warps)
    by_memory = _SHARED_MEMORY // (shared_memory + _OWN_SHARED_MEMORY) if shared_memory else _PROGRAMS
    return min(by_registers, by_memory, _WARPS // warps, _PROGRAMS)
