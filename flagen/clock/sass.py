"""SASS as nvdisasm prints it with line information and encodings.

The upper half of an instruction's encoding has what the hardware is told of its timing: cycles until the next one may
issue, a barrier that is set when its result is there, another for when its operands are read, and the barriers that it
waits for itself. There are six of them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise
from typing import Literal

Unit = Literal[
    "wgmma",
    "mma",
    "global load",
    "global store",
    "async copy",
    "shared load",
    "shared store",
    "local memory",
    "special function",
    "shuffle",
    "atomic",
    "barrier",
    "warp group",
    "synchronization",
    "conversion",
    "arithmetic",
    "uniform",
    "control",
]
"""What executes an instruction."""

Frame = tuple[str, int]
"""A file, and a line of it."""

_UNITS: dict[str, Unit] = {
    "HGMMA": "wgmma",
    "HMMA": "mma",
    "IMMA": "mma",
    "LDG": "global load",
    "STG": "global store",
    "LDGSTS": "async copy",
    "LDS": "shared load",
    "LDSM": "shared load",
    "STS": "shared store",
    "STSM": "shared store",
    "LDL": "local memory",
    "STL": "local memory",
    "MUFU": "special function",
    "SHFL": "shuffle",
    "RED": "atomic",
    "ATOM": "atomic",
    "ATOMG": "atomic",
    "ATOMS": "atomic",
    "BAR": "barrier",
    "WARPGROUP": "warp group",
    "WARPGROUPSET": "warp group",
    "WARPSYNC": "warp group",
    "FENCE": "synchronization",
    "MEMBAR": "synchronization",
    "DEPBAR": "synchronization",
    "LDGDEPBAR": "synchronization",
    "SYNCS": "synchronization",
    "F2FP": "conversion",
    "HADD2": "conversion",
    "HMUL2": "conversion",
    "HFMA2": "conversion",
    "R2UR": "uniform",
    **dict.fromkeys(("BRA", "BSSY", "BSYNC", "EXIT", "CALL", "RET", "NOP", "YIELD"), "control"),
}

_INSTRUCTION = re.compile(r"\s+/\*([0-9a-f]{4,})\*/\s+(.*?)\s*;\s+/\* 0x[0-9a-f]{16} \*/")
_CONTROL = re.compile(r"\s+/\* 0x([0-9a-f]{16}) \*/")
_LABEL = re.compile(r"(\.L_x_\d+):")
_LINE = re.compile(r'\s*//## File "([^"]+)", line (\d+)( inlined at)?')
_JUMP = re.compile(r"`\((\.L_x_\d+)\)")
_BARRIERS = range(6)


@dataclass(frozen=True)
class Instruction:
    """An instruction, and its timing.

    stall: cycles until the warp's next one may issue.
    sets, reads: the barrier set when its result is there, and when its operands are read.
    waits: the barriers that it waits for.
    frames: the lines that it comes from: of a function, and of where that was inlined, and so on outwards.
    target: the address that it jumps to.
    """

    address: int
    opcode: str
    operands: str
    stall: int
    sets: int | None
    reads: int | None
    waits: tuple[int, ...]
    frames: tuple[Frame, ...] = ()
    target: int | None = None

    @cached_property
    def name(self) -> str:
        return self.opcode.split(".")[0]

    @cached_property
    def unit(self) -> Unit:
        if self.name in _UNITS:
            return _UNITS[self.name]
        return "uniform" if self.name.startswith("U") else "arithmetic"


@dataclass(frozen=True)
class Loop:
    """A loop: what is in it, other loops among that."""

    body: tuple[Instruction | Loop, ...]

    @cached_property
    def back(self) -> Instruction:
        """The jump back to its start."""
        last = self.body[-1]
        return last.back if isinstance(last, Loop) else last


Code = tuple[Instruction | Loop, ...]
"""A kernel, in the order of addresses."""


def loops_in(code: Code) -> Iterator[Loop]:
    """Every loop, those inside of others behind these."""
    for part in code:
        if isinstance(part, Loop):
            yield part
            yield from loops_in(part.body)


def instructions_in(code: Code) -> Iterator[Instruction]:
    """Every instruction, once."""
    for part in code:
        if isinstance(part, Loop):
            yield from instructions_in(part.body)
        else:
            yield part


def read(disassembly: str) -> Code:
    """The code of a kernel, without what lies behind its end: subroutines, and a jump to itself.

    Raises:
        ValueError: it is no disassembly with encodings.
    """
    instructions = _instructions(disassembly)
    exits = [place for place, each in enumerate(instructions) if each.name == "EXIT"]
    if not exits:
        raise ValueError("no SASS with encodings, or none that ends: print it with `nvdisasm -c -gi -hex`")
    end = instructions[exits[-1]].address
    # Part of a loop may lie behind the last EXIT.
    back = [
        i for i, each in enumerate(instructions) if each.target is not None and each.target < min(end, each.address)
    ]
    return _nested(instructions[: max(exits[-1], *back, 0) + 1])


def _instructions(disassembly: str) -> list[Instruction]:
    found: list[Instruction] = []
    labels: dict[str, int] = {}
    jumps: dict[int, str] = {}
    waiting: list[str] = []
    frames: list[Frame] = []
    new_frames = True
    lines = disassembly.splitlines()
    for line, after in pairwise(lines):
        if label := _LABEL.match(line):
            waiting.append(label[1])
        elif where := _LINE.match(line):
            frames = [] if new_frames else frames
            frames.append((where[1], int(where[2])))
            new_frames = False
        elif (code := _INSTRUCTION.match(line)) and (control := _CONTROL.match(after)):
            new_frames = True
            address = int(code[1], 16)
            labels |= dict.fromkeys(waiting, address)
            waiting.clear()
            if jump := _JUMP.search(code[2]):
                jumps[len(found)] = jump[1]
            found.append(_instruction(address, code[2], int(control[1], 16) >> 41, tuple(frames)))
    return [replace(each, target=labels.get(jumps[i])) if i in jumps else each for i, each in enumerate(found)]


def _instruction(address: int, text: str, control: int, frames: tuple[Frame, ...]) -> Instruction:
    words = text.split(None, 2 if text.startswith("@") else 1)
    opcode, operands = (*words[text.startswith("@") :], "")[:2]
    sets, reads, waits = control >> 5 & 7, control >> 8 & 7, control >> 11 & 63
    return Instruction(
        address,
        opcode,
        operands,
        stall=control & 15,
        sets=sets if sets in _BARRIERS else None,
        reads=reads if reads in _BARRIERS else None,
        waits=tuple(barrier for barrier in _BARRIERS if waits >> barrier & 1),
        frames=frames,
    )


def _nested(instructions: Sequence[Instruction]) -> Code:
    """Loops are what a jump back encloses; those that begin at one place are one."""
    ends: dict[int, int] = {}
    for place, each in enumerate(instructions):
        if each.target is not None and each.target <= each.address:
            ends[each.target] = place
    return _parts(instructions, 0, len(instructions), ends)


def _parts(instructions: Sequence[Instruction], first: int, end: int, ends: Mapping[int, int]) -> Code:
    """The instructions from `first` to before `end`, loops within as one each; `first` itself begins none."""
    parts: list[Instruction | Loop] = []
    while first < end:
        here = instructions[first]
        last = ends.get(here.address)
        if last is None or last >= end:
            parts.append(here)
            first += 1
        else:
            parts.append(Loop((here, *_parts(instructions, first + 1, last + 1, ends))))
            first = last + 1
    return tuple(parts)
