"""What the programs of a kernel have in registers: tiles by name, and where the programs stand."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import NamedTuple

from flagen.kernel.elementary import Elementary
from flagen.kernel.elements import Element, Infinity, Poison
from flagen.kernel.ir import Space
from flagen.kernel.sizes import Illegal, Sizes
from flagen.spec.model import Dims

Data = list[Element]


class Lanes(NamedTuple):
    """A tile in registers: for each program an element at each point of its dims, the last of which runs fastest."""

    dims: Dims
    data: Data


@dataclass
class Registers:
    """What programs have in registers that run in step: they differ in their heads, and in what they compute.

    order: that of a tile's axes.
    block_of: the dim of which a program has a block.
    numbers: params that are numbers, by name.
    programs: how many there are.
    at: where all of them stand.
    heads: where each of them stands.
    chunk: the tokens that lie along the axis of tokens.
    turns: of which block of a dim a loop has its turn.
    """

    order: Dims
    block_of: str | None
    sizes: Sizes
    functions: Elementary
    numbers: Mapping[str, Element]
    programs: int = 1
    at: dict[Space, int] = field(default_factory=dict)
    heads: dict[Space, tuple[int, ...]] = field(default_factory=dict)
    chunk: range | None = None
    values: dict[str, Lanes] = field(default_factory=dict)
    turns: dict[str, int] = field(default_factory=dict)
    _sorted: dict[Dims, Dims] = field(default_factory=dict)

    def first(self, dim: str) -> int:
        """The index of a program's first lane along a dim, or the chunk's first token."""
        match dim:
            case "token":
                return self.tokens.start
            case "row":
                return self.tokens.start * self.steps
        block = self.at["block"] if dim == self.block_of else self.turns.get(dim, 0)
        return block * self.sizes.blocks[dim]

    def end(self, dim: str) -> int:
        """That behind the last one which is no padding."""
        match dim:
            case "token":
                return self.tokens.stop
            case "row":
                return self.tokens.stop * self.steps
        return self.sizes.of(dim)

    @property
    def steps(self) -> int:
        """The micro-steps of a token."""
        return next(iter(self.sizes.steps.values()), 1)

    @property
    def sequence(self) -> range:
        """The tokens of the sequence."""
        return range(*self.sizes.borders[self.at["sequence"] :][:2])

    @property
    def tokens(self) -> range:
        if self.chunk is None:
            raise Illegal("no chunk here")
        return self.chunk

    def sorted(self, dims: Dims) -> Dims:
        if dims not in self._sorted:
            self._sorted[dims] = tuple(dim for dim in self.order if dim in dims)
        return self._sorted[dims]

    def lanes(self, dims: Dims) -> int:
        """How many lanes a program has."""
        return math.prod([self.sizes.blocks[dim] for dim in dims])

    def points(self, dims: Dims) -> Iterator[tuple[int, ...]]:
        """Those lanes, by their places along each dim."""
        return itertools.product(*(range(self.sizes.blocks[dim]) for dim in dims))

    def places(self, dims: Dims, over: Dims, programs: int = 0) -> tuple[int, ...]:
        """For each lane over `over`, of all programs, that of a tile over `dims`."""
        extents = (("", programs or self.programs), *((dim, self.sizes.blocks[dim]) for dim in over))
        return _spread(extents, ("", *dims))

    def named(self, name: str) -> Lanes:
        found = self.values.get(name)
        if found is None:
            raise Illegal(f"{name} has no value")
        return found

    def everywhere(self, x: Element) -> Lanes:
        """The same number in every program."""
        return Lanes((), [x] * self.programs)

    def each(self, lanes: Lanes) -> Iterator[Lanes]:
        """What each program has of a tile."""
        size = len(lanes.data) // self.programs
        for start in range(0, len(lanes.data), size):
            yield Lanes(lanes.dims, lanes.data[start : start + size])

    def lines(self, lanes: Lanes, along: str) -> list[Data]:
        """The lines of a program's matrix along one of its axes, in the order of the other."""
        if len(lanes.dims) != 2 or along not in lanes.dims:
            raise Illegal(f"no matrix with {along}: a tile over {lanes.dims}")
        width = self.sizes.blocks[lanes.dims[1]]
        if lanes.dims[1] == along:
            return [lanes.data[at : at + width] for at in range(0, len(lanes.data), width)]
        return [lanes.data[at::width] for at in range(width)]

    def rows(self, lanes: Lanes, axis: str) -> list[Data]:
        """The rows of a program's tile along its first axis."""
        if lanes.dims[:1] != (axis,):
            raise Illegal(f"rows along {axis} of a tile over {lanes.dims}")
        width = len(lanes.data) // self.sizes.blocks[axis]
        return [lanes.data[at : at + width] for at in range(0, len(lanes.data), width)]


@cache
def _spread(over: tuple[tuple[str, int], ...], dims: Dims) -> tuple[int, ...]:
    """For each lane over `over`, that of a tile over `dims`, in their own order."""
    extent = dict(over)
    strides = {dim: math.prod(extent[d] for d in dims[place + 1 :]) for place, dim in enumerate(dims)}
    steps = [strides.get(dim, 0) for dim in extent]
    points = itertools.product(*(range(size) for size in extent.values()))
    return tuple([sum([at * step for at, step in zip(point, steps, strict=True)]) for point in points])


def whole(x: Element) -> int:
    """A number that counts."""
    if isinstance(x, Poison | Infinity) or x != int(x):
        raise Illegal(f"{x} is taken for a whole number")
    return int(x)
