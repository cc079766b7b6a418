"""Kernels that are data, as launches know them, and the files that they stand in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from flagen.backends.triton_.chunk_printer import ChunkPrinter
from flagen.backends.triton_.routine_printer import RoutinePrinter
from flagen.kernel.ir import Kernel, Program, Routine


class Launchable(Protocol):
    """A kernel as launches know it."""

    @property
    def kernel(self) -> str:
        """What the kernel is called."""
        ...

    def parameters(self) -> list[str]:
        """The parameters of the kernel: pointers, numbers, what it is compiled for."""
        ...


@dataclass(frozen=True)
class Launched:
    """A kernel of a program."""

    program: Program
    name: str

    @property
    def data(self) -> Kernel:
        return self.program.kernel(self.name)

    @property
    def kernel(self) -> str:
        return title_of(self.program, self.name)

    def parameters(self) -> list[str]:
        return ChunkPrinter(self.data).parameters()


def title_of(program: Program, name: str) -> str:
    """What the function of a kernel of the operators over chunks is called."""
    return "_".join(filter(None, (program.name.replace("chunk_backward_", "chunk_"), name, "kernel")))


def routine_context(kernel: Kernel, routine: Routine) -> Mapping[str, object]:
    """What the macro of `triton/_routine.py.j2` uses of a routine that a kernel applies."""
    printer = RoutinePrinter(kernel, routine)
    return {
        "title": routine.name,
        "docs": routine.docs,
        "parameters": printer.parameters(),
        "lines": list(printer.lines()),
        "carried": routine.carried,
    }
