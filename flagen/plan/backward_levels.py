"""What the backward of the chunk kernels is planned in: gradients by name, what is done with them, and on which level
of a program's loops that is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from flagen.plan.chunk_kernel import ChunkKernelPlan
from flagen.plan.key_kernel import KeyKernelPlan
from flagen.plan.tiles import Head, Tile, Value, tiles_in
from flagen.spec.model import Dims

Level = Literal["keys", "own keys", "block", "head", "shared"]
KEYS: Level = "keys"
BLOCK: Level = "block"
HEAD: Level = "head"
SHARED: Level = "shared"
LEVELS: tuple[Level, ...] = (KEYS, BLOCK, HEAD, SHARED)
"""In the order in which the gradients of each are complete."""

ROLES = ("q", "w", "y", "k")
"""The rows whose vectors lie along the keys."""

OUTPUT_GRADIENT, READ_GRADIENT, R_GRADIENT = "o_gradient", "read_gradient", "R_gradient"
DECAY_GRADIENT = "log_decay_gradient"
OUTPUT, COLUMN_SCALE_GRADIENT = "o", "column_scale_gradient"


def vector_gradient(rows: ChunkKernelPlan | KeyKernelPlan, role: str) -> str:
    """What the gradient of the vectors of `role` is called; the same vectors have one."""
    same = (other for other in (*ROLES, "v") if rows.vector(other) == rows.vector(role))
    return f"{next(same)}_gradient"


def scale_gradient(role: str) -> str:
    """What the gradient of that which scales the rows of `role` is called."""
    return f"{role}_scale_gradient"


def number_gradient(name: str) -> str:
    """What the gradient of a number is called that states are mixed, read or written by."""
    return f"{name}_gradient"


@dataclass(frozen=True)
class Gradient:
    """The gradient of `name` along `axis`, over `dims`; `called` is its own name."""

    name: str
    axis: str
    dims: Dims
    level: Level
    called: str


@dataclass(frozen=True)
class Add:
    """Add `value` to a gradient."""

    target: Gradient
    value: Tile


@dataclass(frozen=True)
class Fold:
    """Add the gradient of a token's number, as its micro-steps read it, to that of the token."""

    target: Gradient
    source: Gradient


@dataclass(frozen=True)
class Store:
    """Store a gradient, which is complete."""

    target: Gradient


Action = Add | Fold | Store


@dataclass(frozen=True)
class Levels:
    """The level of every name: the one on which all that it depends on is known."""

    of_names: Mapping[str, Level]
    keys: Dims
    value: str

    def __call__(self, tile: Tile) -> Level:
        parts = tuple(tiles_in(tile))
        found = [self.of_names.get(part.name, SHARED) for part in parts if isinstance(part, Value)]
        along = (*((KEYS, key) for key in self.keys), (BLOCK, self.value))
        found += [level for level, dim in along if any(dim in part.dims for part in parts)]
        if any(isinstance(part, Head) for part in parts):
            found.append(HEAD)
        return min(found, key=LEVELS.index, default=SHARED)
