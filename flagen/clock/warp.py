"""One warp of a program that has an SM to itself: how long it takes over a stretch of code, and what it waits for.

A scheduler issues in order. It has every fourth warp of the program, and all of them take the same way, so that an
instruction takes as many cycles as there are of them. Cycles are those of an SM; latencies are those of sm_90.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field

from flagen.clock.sass import Instruction, Unit

LATENCY: dict[str, int] = {
    "LDG": 560,
    "LDGSTS": 640,
    "LDS": 32,
    "LDSM": 34,
    "STS": 24,
    "STSM": 26,
    "STG": 20,
    "SHFL": 26,
    "MUFU": 26,
    "S2R": 24,
    "LDC": 40,
    "ULDC": 12,
    "R2UR": 14,
    "ATOMS": 60,
    "RED": 30,
    "F2F": 20,
    "I2F": 20,
    "F2I": 20,
    "VOTE": 12,
    "WARPSYNC": 10,
}
"""Cycles to a result that one waits for by a barrier: measured by others, or fitted as `launch` says."""

FROM_MEMORY: tuple[Unit, ...] = ("global load", "async copy")
"""What brings elements from memory."""

_OTHERWISE = 24
_OPERANDS_READ = 20
_PROGRAM_BARRIER, _FENCE = 28, 18
_MMA, _WGMMA = 33, 40
_MMA_PIPE = 6.5
_SHARED_BYTES = 128
"""What shared memory gives to an SM in a cycle."""


@dataclass
class Warp:
    """A warp that has run some code, at a time.

    warps: how many the program has.
    waited: cycles that went by before an instruction could issue, by what it waited for.
    """

    warps: int
    now: float = 0.0
    waited: dict[Unit, float] = field(default_factory=lambda: defaultdict(float))
    _barriers: list[float] = field(default_factory=lambda: [0.0] * 6)
    _setters: list[Unit] = field(default_factory=lambda: ["control"] * 6)
    _wgmma: float = 0.0
    _mma: float = 0.0
    _shared: float = 0.0
    _copies: float = 0.0
    _groups: list[float] = field(default_factory=list)

    @property
    def per_scheduler(self) -> int:
        return max(1, self.warps // 4)

    def run(self, code: Iterable[Instruction]) -> float:
        """Run a stretch of code behind what it has run; how many cycles later it is."""
        before = self.now
        for each in code:
            for barrier in each.waits:
                self._wait(self._barriers[barrier], self._setters[barrier])
            self._execute(each)
            self.now += max(each.stall, self.per_scheduler)
        return self.now - before

    @property
    def clock(self) -> tuple[float, dict[Unit, float]]:
        """Its time, and what it has waited so far."""
        return self.now, dict(self.waited)

    def again(self, times: float, since: tuple[float, dict[Unit, float]]) -> None:
        """Let as much time pass as since its clock showed that, so many times; a negative number takes time back."""
        start, waited = since
        later = times * (self.now - start)
        for unit in self.waited:
            self.waited[unit] += times * (self.waited[unit] - waited.get(unit, 0.0))
        self.now += later
        self._barriers = [at + later for at in self._barriers]
        self._groups = [at + later for at in self._groups]
        self._wgmma, self._mma = self._wgmma + later, self._mma + later
        self._shared, self._copies = self._shared + later, self._copies + later

    def _wait(self, until: float, why: Unit) -> None:
        if until > self.now:
            self.waited[why] += until - self.now
            self.now = until

    def _execute(self, each: Instruction) -> None:
        """What an instruction does to the pipes, and when its barriers will be there."""
        match each.name:
            case "HGMMA":
                self._wgmma = max(self.now, self._wgmma) + tensor_cycles(each, self.warps)
                self._set(each, self._wgmma + _WGMMA)
            case "HMMA" | "IMMA":
                start = max(self.now, self._mma)
                self._mma = start + tensor_cycles(each, self.warps)
                self._wait(start, "mma")
                self._set(each, self.now + _MMA)
            case "WARPGROUP" if each.opcode.startswith("WARPGROUP.DEPBAR"):
                if _number(each) == 0:
                    self._wait(self._wgmma + _WGMMA, "wgmma")
            case "BAR":
                self._wait(self.now + _PROGRAM_BARRIER, "barrier")
            case "FENCE":
                self._wait(self.now + _FENCE, "synchronization")
            case "LDGSTS":
                self._copies = max(self._copies, self.now + LATENCY["LDGSTS"])
            case "LDGDEPBAR":
                self._groups.append(self._copies)
            case "DEPBAR":
                left = _number(each)
                self._wait(max(self._groups[:-left] if left else self._groups, default=0.0), "async copy")
            case _:
                latency = LATENCY.get(each.name, _OTHERWISE)
                self._set(each, self._through_shared_memory(each) + latency, self.now + min(latency, _OPERANDS_READ))

    def _through_shared_memory(self, each: Instruction) -> float:
        """When what goes through shared memory is through; now for all else."""
        if each.unit not in ("shared load", "shared store"):
            return self.now
        words = 4 if each.name in ("LDSM", "STSM") or ".128" in each.opcode else 2 if ".64" in each.opcode else 1
        # Of each of the SM's four schedulers, 32 lanes of so many words.
        cycles = 4 * self.per_scheduler * words * 32 * 4 / _SHARED_BYTES
        self._shared = max(self.now, self._shared) + cycles
        return self._shared

    def _set(self, each: Instruction, result: float, operands: float = 0.0) -> None:
        for barrier, at in ((each.sets, result), (each.reads, operands)):
            if barrier is not None and at > self._barriers[barrier]:
                self._barriers[barrier], self._setters[barrier] = at, each.unit


def tensor_cycles(each: Instruction, warps: int) -> float:
    """How long an instruction of all warps of a program keeps an SM's matrix units, or the shared memory that feeds
    them; nothing where it is another."""
    groups = max(1, warps // 4)
    if each.unit == "mma":
        short = ".1688" in each.opcode and "TF32" not in each.opcode
        return _MMA_PIPE * groups * (0.5 if short else 1.0)
    if each.unit != "wgmma":
        return 0.0
    rows, columns, depth = wgmma_shape(each)
    size = 4 if "TF32" in each.opcode else 2
    # The left operand comes from registers, or, like the right one, from shared memory.
    left = 0 if re.match(r"R\d+, R\d+", each.operands) else rows * depth * size
    return groups * max(columns / 2, (left + columns * depth * size) / _SHARED_BYTES)


def matrix_flops(each: Instruction, warps: int) -> float:
    """The flops of an instruction of all warps of a program that is part of a product of matrices; else none."""
    if each.unit == "wgmma":
        return max(1, warps // 4) * 2.0 * math.prod(wgmma_shape(each))
    if each.unit != "mma":
        return 0.0
    # 16 rows, 8 columns, and what is left of the name: 1688 is 16x8x8, and 16816 is 16x8x16.
    found = re.search(r"\.168(\d+)", each.opcode)
    return warps * 2.0 * 16 * 8 * int(found[1]) if found else 0.0


def wgmma_shape(each: Instruction) -> tuple[int, int, int]:
    """Rows, columns and depth of a product that one warp group makes."""
    found = re.search(r"\.(\d+)x(\d+)x(\d+)", each.opcode)
    if found is None:
        raise ValueError(f"no shape in {each.opcode}")
    rows, columns, depth = map(int, found.groups())
    return rows, columns, depth


def _number(each: Instruction) -> int:
    """The last operand: how many groups may be under way."""
    found = re.search(r"0x([0-9a-f]+)\s*$", each.operands)
    return int(found[1], 16) if found else 0
