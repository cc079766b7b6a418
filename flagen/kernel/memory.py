"""What launches of kernels have in common: arrays, and what is known of kernels by now."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from gmpy2 import mpq

from flagen.kernel.device import DEVICE
from flagen.kernel.elementary import Elementary
from flagen.kernel.elements import POISON
from flagen.kernel.ir import Array, Kernel, Loop, statements_in
from flagen.kernel.registers import Data, Registers
from flagen.kernel.sizes import Sizes


@dataclass
class Memory:
    """Arrays by name: their elements, row by row. What is not here is not given."""

    sizes: Sizes
    arrays: dict[str, Data]
    numbers: Mapping[str, mpq]
    functions: Elementary
    asked: frozenset[str] = frozenset()
    """The arguments whose gradients are asked for."""
    registers: dict[int, tuple[Kernel, Registers]] = field(default_factory=dict)
    """Those of kernels by identity, which know by now how to evaluate their tiles."""
    launched: dict[tuple[object, ...], tuple[object, Mapping[str, Data]]] = field(default_factory=dict)
    """What launches left behind, by the kernel and what it found; and what it found, which stays so."""
    fresh: set[str] = field(default_factory=set)
    """Arrays that nobody has written."""

    def registers_of(self, kernel: Kernel) -> Registers:
        """The registers of a kernel, whatever it is launched for."""
        if id(kernel) not in self.registers:
            sizes = _tiled(self.sizes, kernel)
            found = Registers(kernel.order, kernel.block_of, sizes, self.functions, self.numbers, DEVICE)
            self.registers[id(kernel)] = kernel, found
        return self.registers[id(kernel)][1]

    def allocate(self, array: Array, block_of: str | None) -> Data:
        """Room for an array that nobody has written."""
        rows = math.prod(self.sizes.extents(array, block_of))
        room: Data = [POISON] * (rows * math.prod(map(self.sizes.of, array.dims)))
        self.arrays[array.name] = room
        self.fresh.add(array.name)
        return room


def _tiled(sizes: Sizes, kernel: Kernel) -> Sizes:
    """The sizes of tiles of a kernel, which has some dims block by block, and others whole."""
    turns = {s.dim for s in statements_in(kernel.body) if isinstance(s, Loop) and s.over == "block" and not s.whole}
    turns |= set() if kernel.whole or kernel.block_of is None else {kernel.block_of}
    cut = {dim: block for dim, block in sizes.cut.items() if dim in turns}
    return replace(sizes, blocks={**sizes.blocks, **cut}, cut=cut)
