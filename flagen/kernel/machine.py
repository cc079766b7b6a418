"""Launches kernels at the sizes of a call, and remembers what it has found out about them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from gmpy2 import mpq

from flagen.kernel.elementary import Elementary
from flagen.kernel.evaluate import Executable
from flagen.kernel.ir import Kernel, Loop, statements_in
from flagen.kernel.memory import Memory
from flagen.kernel.registers import Data, Registers
from flagen.kernel.sizes import Sizes


class Machine:
    """Runs kernels at some sizes, with the params that are numbers."""

    def __init__(self, sizes: Sizes, functions: Elementary, numbers: Mapping[str, mpq]) -> None:
        self.sizes, self.functions, self.numbers = sizes, functions, numbers
        # By the identity of kernels, which stays theirs while they are here.
        self._executables: dict[int, tuple[Kernel, Executable]] = {}
        self._launched: dict[tuple[object, ...], tuple[object, Mapping[str, Data]]] = {}

    def again(self) -> Machine:
        """One that knows what this one knows, and keeps to itself what it finds out."""
        machine = Machine(self.sizes, self.functions, self.numbers)
        machine._executables, machine._launched = dict(self._executables), dict(self._launched)
        return machine

    def launch(self, kernel: Kernel, memory: Memory) -> None:
        """Run a kernel over its grid, unless it ran before and found the same arrays.

        Raises:
            Illegal: a program does what none may.
        """
        executable = self._executable(kernel)
        stored = executable.stored
        named = [array.name for array in kernel.arrays if array.name in memory.arrays]
        found = tuple(None if name in memory.fresh else memory.arrays[name] for name in named)
        known = (id(kernel), *named, *map(id, found))
        if known not in self._launched:
            # What an earlier launch left is not written over: others may find it, too.
            memory.arrays |= {name: list(memory.arrays[name]) for name in named if name in stored}
            executable.run(memory)
            self._launched[known] = (kernel, *found), {name: memory.arrays[name] for name in named if name in stored}
        memory.arrays |= self._launched[known][1]
        memory.fresh -= stored

    def _executable(self, kernel: Kernel) -> Executable:
        if id(kernel) not in self._executables:
            sizes = _tiled(self.sizes, kernel)
            heads = sizes.H if kernel.of_key_heads else sizes.HV
            registers = Registers(kernel.order, kernel.block_of, sizes, self.functions, self.numbers, programs=heads)
            self._executables[id(kernel)] = kernel, Executable(kernel, registers)
        return self._executables[id(kernel)][1]


def _tiled(sizes: Sizes, kernel: Kernel) -> Sizes:
    """The sizes of tiles of a kernel, which has some dims block by block, and others whole."""
    turns = {s.dim for s in statements_in(kernel.body) if isinstance(s, Loop) and s.over == "block" and not s.whole}
    turns |= set() if kernel.whole or kernel.block_of is None else {kernel.block_of}
    cut = {dim: block for dim, block in sizes.cut.items() if dim in turns}
    return replace(sizes, blocks={**sizes.blocks, **cut}, cut=cut)
