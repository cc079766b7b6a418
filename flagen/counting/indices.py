"""Expressions that say which elements a tile is: whole numbers and truths of lanes, as tensors whose axes are those of
programs, then the tile's dims."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import reduce

import torch
from torch import Tensor

from flagen.counting.launching import NotCountedError
from flagen.counting.located import Expressions, Located
from flagen.kernel.ir import Access, Add, Bind, Choose, Fill, Let, Load, Scale, Statement, statements_in
from flagen.plan.tiles import (
    Arithmetic,
    Both,
    Call,
    Compare,
    Coordinate,
    Either,
    InSequence,
    Lane,
    Product,
    Select,
    Size,
    Spread,
    Tile,
    Value,
    Whole,
    tiles_in,
)
from flagen.spec.model import Dims

COUNTED = ("level", "below", "member")
"""Loops whose turns have a name among values."""

_OPERATIONS: Mapping[str, Callable[[Tensor, Tensor], Tensor]] = {
    "+": operator.add,
    "-": operator.sub,
    "//": operator.floordiv,
    "%": operator.mod,
    "==": operator.eq,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}


def names_of_indices(body: Iterable[Statement]) -> frozenset[str]:
    """The names that accesses depend on, directly or through one another.

    Raises:
        NotCountedError: one of them is no whole number that is given a name once.
    """
    statements = tuple(statements_in(body))
    lets = {s.target: s.value for s in statements if isinstance(s, Let)}
    others = {name for s in statements for name in _changed(s)}
    accesses = (s.source if isinstance(s, Load) else getattr(s, "target", None) for s in statements)
    waiting = [name for access in accesses if isinstance(access, Access) for tile in access.tiles for name in _in(tile)]
    found = set[str]()
    while waiting:
        name = waiting.pop()
        if name in found or name in COUNTED:
            continue
        if name not in lets or name in others:
            raise NotCountedError(f"{name} decides what is loaded or stored")
        found.add(name)
        waiting += _in(lets[name])
    return frozenset(found)


def _changed(statement: Statement) -> tuple[str, ...]:
    """The names that a statement gives values, if it does not merely evaluate a tile."""
    match statement:
        case Load(target) | Fill(target) | Add(target) | Scale(target) | Choose(_, target):
            return (target,)
        case Bind(targets):
            return targets
    return ()


def _in(tile: Tile) -> list[str]:
    return [part.name for part in tiles_in(tile) if isinstance(part, Value)]


@dataclass(frozen=True)
class Indices:
    """Evaluates them for programs where these stand, with the names that have values."""

    programs: Located
    values: Mapping[str, Tensor]

    def of(self, access: Access) -> Expressions:
        """The expressions in an access, over all of its tile."""
        over = tuple(dim for dim in self.programs.launch.kernel.order if dim in access.dims)
        places = {dim: self._over(tile, over) for dim, tile in access.places}
        ends = {dim: self._over(tile, over) for dim, tile in access.ends}
        return places, ends, None if access.where is None else self._over(access.where, over)

    def evaluated(self, tile: Tile) -> Tensor:
        """A tile over its own dims.

        Raises:
            NotCountedError: it is of numbers that are not whole.
        """
        match tile:
            case Whole(value):
                return torch.tensor([value])
            case Size(name):
                return torch.tensor([self.programs.word(name)])
            case Value(name):
                return self.values[name]
            case Lane(axis):
                return self.programs.indices(axis)
            case Coordinate(of):
                return self.programs.coordinate(of)
            case InSequence(place, ago):
                return self.programs.in_sequence(place, ago)
            case Product(factors, dims):
                return reduce(operator.mul, [self._over(factor, dims) for factor in factors])
            case Arithmetic(op, left, right, dims) | Compare(op, left, right, dims) if op in _OPERATIONS:
                return _OPERATIONS[op](self._over(left, dims), self._over(right, dims))
            case Both(left, right, dims):
                return self._over(left, dims) & self._over(right, dims)
            case Either(left, right, dims):
                return self._over(left, dims) | self._over(right, dims)
            case Select(where, value, other, dims):
                return torch.where(self._over(where, dims), self._over(value, dims), self._over(other, dims))
            case Spread(value, dims):
                return self._over(value, dims)
            case Call("seen_across_cut", (rows, level)):
                return _seen_across_cut(self.evaluated(rows), self.evaluated(level))
        raise NotCountedError(f"a {type(tile).__name__} decides what is loaded or stored")

    def _over(self, tile: Tile, dims: Dims) -> Tensor:
        found, own = self.evaluated(tile), tile.dims
        lanes = dict(zip(own, found.shape[1:], strict=True))
        return found.reshape(len(found), *[lanes.get(dim, 1) for dim in dims])


def _seen_across_cut(row: Tensor, level: Tensor) -> Tensor:
    """A row of an upper half sees those of its lower half."""
    half = 1 << int(level)
    block, column = row[:, :, None] // half, row[:, None, :] // half
    return (block % 2 == 1) & (column == block - 1)
