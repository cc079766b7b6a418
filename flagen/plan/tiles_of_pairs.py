"""Tiles along whose last axis lanes go in pairs: channels that are turned together, and all pairs of two vectors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from flagen.spec.model import Dims

if TYPE_CHECKING:
    from flagen.plan.tiles import Tile


@dataclass(frozen=True)
class Rotated:
    """`value` with each pair of its last dim's channels turned by an angle; pairs without one stay. Pairs are
    neighbours, or with `half` as far apart as half the channels.

    size, pairs: how many channels there are, and how many angles.
    """

    value: Tile
    angle: Tile
    size: Tile
    pairs: Tile
    half: bool
    dims: Dims

    @property
    def channel(self) -> str:
        return self.value.dims[-1]

    @property
    def pair(self) -> str:
        return self.angle.dims[-1]


@dataclass(frozen=True)
class OfAngles:
    """The gradient of angles over the dim `pair`: of each pair (x, y), `turned` by one, with its gradient (dx, dy), it
    is x dy - y dx."""

    gradient: Tile
    turned: Tile
    size: Tile
    pairs: Tile
    half: bool
    pair: str
    dims: Dims


@dataclass(frozen=True)
class Paired:
    """Each lane of `left` along its last dim times each of `right`: along the last of `dims` are all pairs of them,
    those of one lane of `left` beside one another. Lanes that pad either make pairs that pad."""

    left: Tile
    right: Tile
    dims: Dims


@dataclass(frozen=True)
class OfPairs:
    """The gradient of one side of pairs: `gradient`, that of the pairs, times the `other` side, summed over the lanes
    of that. `second` tells that the other side is the second one."""

    gradient: Tile
    other: Tile
    second: bool
    dims: Dims

    @property
    def pairs(self) -> str:
        return self.gradient.dims[-1]

    @property
    def side(self) -> str:
        return self.dims[-1]
