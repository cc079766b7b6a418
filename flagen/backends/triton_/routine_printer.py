"""Routines as Triton: functions that kernels over the rows of chunks call."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from flagen.backends.triton_.chunk_printer import CHUNK_ROW, ChunkPrinter, arguments
from flagen.kernel.ir import Kernel, Routine
from flagen.kernel.passes import has_key_heads


class RoutinePrinter(ChunkPrinter):
    """Prints a routine that `kernel` applies."""

    def __init__(self, kernel: Kernel, routine: Routine) -> None:
        super().__init__(replace(kernel, run="chunk", block_of=None, body=routine.body))
        self.routine = routine
        self.rows[CHUNK_ROW] = "chunk_row"

    def parameters(self) -> list[str]:
        constants = (f"{name}: tl.constexpr" for name in self.routine.sizes)
        return [*arguments(self.routine, self.axes)[: -len(self.routine.sizes)], *constants]

    def lines(self) -> Iterator[str]:
        """The body."""
        if has_key_heads(self.kernel) and "key_head" not in self.routine.place:
            yield "key_head = value_head // (HV // H)"
        if self.kernel.steps:
            yield f"TOKENS: tl.constexpr = CHUNK // {self.kernel.steps}"
        yield from self._axes()
        yield from self._body(self.kernel.body)

    def _has_block(self, dim: str) -> bool:
        return dim in self.routine.lanes

    def _lanes_of(self, dim: str, start: str) -> Iterator[str]:
        given = dim in self.routine.lanes
        return (line for place, line in enumerate(super()._lanes_of(dim, start)) if place > 0 or not given)
