"""The arrays of a call."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from flagen.kernel.elements import POISON
from flagen.kernel.ir import Array
from flagen.kernel.registers import Data
from flagen.kernel.sizes import Sizes


@dataclass
class Memory:
    """Arrays by name: their elements, row by row. What is not here is not given.

    asked: the arguments whose gradients are asked for.
    fresh: arrays that nobody has written.
    """

    sizes: Sizes
    arrays: dict[str, Data]
    asked: frozenset[str] = frozenset()
    fresh: set[str] = field(default_factory=set)

    def allocate(self, array: Array, block_of: str | None) -> Data:
        """Room for an array that nobody has written."""
        rows = math.prod(self.sizes.extents(array, block_of))
        room: Data = [POISON] * (rows * math.prod(map(self.sizes.of, array.dims)))
        self.arrays[array.name] = room
        self.fresh.add(array.name)
        return room


def is_own(array: Array) -> bool:
    """Whether each program uses its part of the array again and again, for itself."""
    return "place" in array.spaces or ("micro_step" in array.spaces and "token" not in array.spaces)
