"""Pairs of channels, in exact arithmetic: turned, and the gradients of their angles; and all pairs of two vectors."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import reduce

from flagen.kernel.elements import ZERO, Element, add, multiply, negative
from flagen.kernel.registers import Data, Lanes
from flagen.kernel.sizes import Illegal, Sizes
from flagen.plan.tiles import Spread, Tile
from flagen.spec.model import Dims


@dataclass(frozen=True)
class Pairs:
    """The pairs along the last dim of a tile, `channel`, that have an angle along `pair`: neighbours, or with `half` as
    far apart as half the channels. Lanes beyond the ends have no partner, and no angle."""

    sizes: Sizes
    channel: str
    pair: str
    half: bool

    def turned(self, apply: Callable[[str, tuple[Element, ...]], Element], value: Lanes, angle: Lanes) -> Data:
        """Each row of a program's tile with its pairs turned; `apply` knows functions."""
        found: Data = []
        for x, phi in zip(self._rows(value, self.channel), self._rows(angle, self.pair), strict=True):
            row = list(x)
            for (i, j), by in zip(self._places(), phi, strict=False):
                cos, sin = apply("cos", (by,)), apply("sin", (by,))
                row[i] = add(multiply(x[i], cos), negative(multiply(x[j], sin)))
                row[j] = add(multiply(x[i], sin), multiply(x[j], cos))
            found += row
        return found

    def twisted(self, gradient: Lanes, turned: Lanes) -> Data:
        """For each row x dy - y dx of its pairs, and zero beyond the last one."""
        found: Data = []
        for dx, x in zip(self._rows(gradient, self.channel), self._rows(turned, self.channel), strict=True):
            row: Data = [ZERO] * self.sizes.blocks[self.pair]
            for place, (i, j) in enumerate(self._places()):
                row[place] = add(multiply(x[i], dx[j]), negative(multiply(x[j], dx[i])))
            found += row
        return found

    def _rows(self, lanes: Lanes, dim: str) -> list[Data]:
        """The vectors along the last dim of a program's tile, which has all of it."""
        width = self.sizes.blocks[dim]
        if lanes.dims[-1:] != (dim,) or width < self.sizes.of(dim):
            raise Illegal(f"pairs along {dim} of a tile over {lanes.dims} with {width} lanes of it")
        return [lanes.data[at : at + width] for at in range(0, len(lanes.data), width)]

    def _places(self) -> list[tuple[int, int]]:
        """Which channels make each pair."""
        between, pairs = self.sizes.of(self.channel) // 2, range(self.sizes.of(self.pair))
        return [(place, place + between) if self.half else (2 * place, 2 * place + 1) for place in pairs]


def of_last(rows: Dims, *tiles: Tile) -> tuple[Tile, ...]:
    """Tiles for each of the `rows`, as vectors along the last dim of each."""
    return tuple(Spread(tile, (*rows, tile.dims[-1])) for tile in tiles)


def paired(sizes: Sizes, left: Lanes, right: Lanes) -> Data:
    """Each lane of a row times each of another one, row by row."""
    rows = zip(_vectors(sizes, left), _vectors(sizes, right), strict=True)
    return [multiply(x, y) for one, other in rows for x in one for y in other]


def side_of_pairs(sizes: Sizes, second: bool, gradient: Lanes, other: Lanes) -> Data:
    """The gradient of one side of pairs, row by row: that of the first, where the other side is the `second` one."""
    found: Data = []
    for row, y in zip(_vectors(sizes, gradient), _vectors(sizes, other), strict=True):
        inner = len(y) if second else len(row) // len(y)
        lines = [row[at : at + inner] for at in range(0, len(row), inner)]
        for line in lines if second else zip(*lines, strict=True):
            found.append(reduce(add, map(multiply, line, y)))
    return found


def _vectors(sizes: Sizes, lanes: Lanes) -> list[Data]:
    width = sizes.blocks[lanes.dims[-1]]
    return [lanes.data[at : at + width] for at in range(0, len(lanes.data), width)]
