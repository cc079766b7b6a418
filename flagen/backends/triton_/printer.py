"""Tiles as Triton source: the one place where a planned expression becomes text."""

from __future__ import annotations

import math
from fractions import Fraction

from flagen.backends.printed import ATOM, SIGN, SUM, Printed, product
from flagen.backends.triton_.axes import Axes
from flagen.backends.triton_.device import FUNCTIONS
from flagen.diagnostics import InternalError
from flagen.functions import operation
from flagen.plan.tiles import (
    Along,
    Arithmetic,
    AtLeast,
    Both,
    Call,
    Compare,
    Constant,
    Coordinate,
    Cumulative,
    Dot,
    Edge,
    Either,
    Function,
    Head,
    InSequence,
    Lane,
    Masked,
    MatMul,
    Negative,
    Normalize,
    OfAngles,
    OfPairs,
    Once,
    Paired,
    Product,
    Rotated,
    Rounded,
    Scan,
    Select,
    Shifted,
    Size,
    Spread,
    StateTile,
    Sum,
    Tile,
    Value,
    Whole,
    Widened,
    is_static,
    operands,
)
from flagen.printing import CHOICE, COMPARE, joined, negative
from flagen.spec.model import Dims

SCANS = {
    ("affine", False): "_affine_scan",
    ("affine", True): "_back_scan",
    ("logaddexp", False): "_logaddexp_scan",
    ("maximum", False): "_maximum_scan",
    ("phase", False): "_phase_scan",
}
"""The functions of kernels that scan."""


class Printer:
    """Prints tiles whose axes and masks go by the names in `axes`."""

    def __init__(self, axes: Axes) -> None:
        self.axes = axes

    def assigned(self, tile: Tile) -> str:
        """`tile` as the right-hand side of an assignment: a float32 tensor, even where it is a constant."""
        return self._tensor(tile)

    def __call__(self, tile: Tile) -> str:
        """`tile` where it stands alone: as an argument, or as what is assigned or added."""
        return self.printed(tile).text

    def printed(self, tile: Tile) -> Printed:
        """`tile` as an operand, or a part of one."""
        return self._print(tile)

    def over(self, tile: Tile, dims: Dims) -> str:
        """`tile` as it is added to tiles over `dims`."""
        return self._spread(tile, dims, SUM)

    def _print(self, tile: Tile) -> Printed:
        match tile:
            case Constant(value):
                return literal(value)
            case Size(name) | Value(name):
                return Printed(name)
            case Head():
                return Printed("head")
            case StateTile(name, previous):
                return Printed(f"{name}_prev" if previous else name)
            case Negative(value):
                return negative(self._operand(value, tile.dims))
            case Product(factors, dims):
                return product(*(self._operand(factor, dims) for factor in factors))
            case Arithmetic(op, left, right, dims):
                return joined(op, self._operand(left, dims), self._operand(right, dims))
            case Function():
                return self._function(tile)
            case Sum(value, dim):
                return Printed(f"tl.sum({self(value)}, axis={value.dims.index(dim)})")
            case MatMul(left, right, dim):
                sides = self._transposed(left, dim, last=True), self._transposed(right, dim, last=False)
                return Printed(f'tl.dot({", ".join(sides)}, input_precision="ieee")')
            case Normalize(function, value):
                return Printed(f"{function}({self(value)})")
            case Rotated(value, angle, size, pairs, half, dims):
                by = (*(dim for dim in dims if dim != tile.channel), tile.pair)
                given = self._as_vectors(value, dims), self._as_vectors(angle, by), self(size), self(pairs)
                return Printed(f"{_rotation('rotate', half)}({', '.join(given)})")
            case OfAngles(gradient, turned, size, pairs, half, pair, dims):
                over = (*(dim for dim in dims if dim != pair), turned.dims[-1])
                given = self._as_vectors(gradient, over), self._as_vectors(turned, over), self(size), self(pairs)
                return Printed(f"{_rotation('of_angles', half)}({', '.join((*given, self.axes.lanes(pair)))})")
            case Paired(left, right, dims):
                both = (self._as_vectors(side, (*dims[:-1], side.dims[-1])) for side in (left, right))
                return Printed(f"all_pairs({', '.join(both)})")
            case OfPairs(gradient, other, second, dims):
                both = (self._as_vectors(each, (*dims[:-1], each.dims[-1])) for each in (gradient, other))
                return Printed(f"{'of_first' if second else 'of_second'}({', '.join(both)})")
            case Masked(value, dim, fill, dims):
                mask = self.axes.spread(self.axes.mask(dim), (dim,), dims)
                return Printed(f"tl.where({mask}, {self._spread(value, dims, SUM)}, {literal(fill).text})")
            case Once(value):
                return Printed(f"tl.where(block == 0, {self(value)}, 0.0)")
            case Spread(value, dims):
                return self._full(value, dims)
            case Scan(combine, _, _, _, axis, reverse, dims):
                parts = ", ".join(self._spread(part, dims, SUM) for part in operands(tile))
                return Printed(f"{SCANS[combine, reverse]}({parts}, {self._end(axis, dims, last=reverse)})")
            case Shifted(value, first, axis, reverse, dims):
                known, edge = "_row_after" if reverse else "_row_before", self._end(axis, dims, last=reverse)
                return Printed(f"{known}({self(value)}, {self._spread(first, dims, SUM)}, {edge})")
            case Edge(value, axis, reverse):
                return Printed(f"_only_row({self(value)}, {self._end(axis, value.dims, last=not reverse)})")
            case InSequence("token", ago):
                return Printed(self.axes.mask_ago(ago))
            case InSequence(place):
                return Printed(f"token == {'first' if place == 'start' else 'end'}_token", COMPARE)
            case Whole(value):
                return Printed(str(value), SIGN if value < 0 else ATOM)
            case Lane(axis):
                return Printed(self.axes.index(axis))
            case Coordinate(of):
                return self.coordinate(of)
            case Compare(op, left, right, dims):
                return joined(op, self._operand(left, dims), self._operand(right, dims))
            case Both(left, right, dims) | Either(left, right, dims):
                # Of tensors: `and` and `or` would ask for one truth.
                each = (self._operand(side, dims).within(COMPARE + 1) for side in (left, right))
                return Printed((" & " if isinstance(tile, Both) else " | ").join(each), COMPARE)
            case Select(where, value, other, dims):
                chosen = (self._spread(part, dims, CHOICE) for part in (where, value, other))
                return Printed(f"tl.where({', '.join(chosen)})")
            case Dot(left, right, dim, None) if tile.few_rows:
                sides = self._transposed(left, dim, last=True), self._transposed(right, dim, last=False)
                return Printed(f"dot_of_few_rows({', '.join(sides)}, PRECISION, TURNED)")
            case Dot(left, right, dim, onto):
                sides = self._transposed(left, dim, last=True), self._transposed(right, dim, last=False)
                added = () if onto is None else (self(onto),)
                return Printed(f"tl.dot({', '.join((*sides, *added))}, input_precision=PRECISION)")
            case Rounded(value):
                return Printed(f"{self.printed(value).atom}.to(dtype)")
            case Widened(value):
                return Printed(f"{self.printed(value).atom}.to(tl.float32)")
            case AtLeast(value, least):
                more = f"{literal(least).text}, propagate_nan=tl.PropagateNan.ALL"
                return Printed(f"tl.maximum({self(value)}, {more})")
            case Along(value):
                return self.printed(value)
            case Cumulative(value, axis, reverse, dims):
                back = ", reverse=True" if reverse else ""
                return Printed(f"tl.cumsum({self(value)}, axis={dims.index(axis)}{back})")
            case Call(function, args):
                return Printed(f"{function}({', '.join(map(self, args))})")
        raise InternalError(f"the Triton printer does not know {type(tile).__name__}: {tile!r}")

    def coordinate(self, of: str) -> Printed:
        """Where the program stands."""
        return Printed({"block": "block", "chunk of sequence": "within", "chunks of sequence": "chunks"}[of])

    def _function(self, tile: Function) -> Printed:
        name, args = tile.name, tile.args
        if name == "square" and isinstance(_unwidened(args[0]), Value | StateTile):
            return product(self.printed(args[0]), self.printed(args[0]))
        known = operation(name)
        written = "" if known is None else known.triton or name
        if known is None or not (written.startswith("tl.") or written in FUNCTIONS["maps"]):
            raise InternalError(f"the Triton printer does not know the function {name}")
        bare = known.takes_numbers and not all(map(is_static, args))
        printed = (
            self._tensor(arg) if is_static(arg) and not bare else self._spread(arg, tile.dims, SUM) for arg in args
        )
        return Printed(f"{written}({', '.join(printed)})")

    def _full(self, tile: Tile, dims: Dims) -> Printed:
        """`tile` over all of `dims`, where the shape counts and not only what it broadcasts to."""
        text, shape = self._spread(tile, dims, SUM), self.axes.shape(dims)
        if not tile.dims:
            return Printed(f"tl.full({shape}, {text}, tl.float32)")
        return Printed(f"tl.broadcast_to({text}, {shape})")

    def _as_vectors(self, tile: Tile, dims: Dims) -> str:
        """`tile` over all of `dims`, of which the last one is that of the vectors."""
        if self.axes.sorted(dims) != dims:
            raise InternalError(f"vectors over {dims} lie over {self.axes.sorted(dims)} in a tile")
        return self(tile) if tile.dims == dims else self._full(tile, dims).text

    def _end(self, axis: str, dims: Dims, *, last: bool) -> str:
        """Which token of a chunk is the last one, or the first."""
        return self.axes.spread("is_last" if last else "is_first", (axis,), dims)

    def _tensor(self, tile: Tile) -> str:
        """`tile` where a tensor is wanted: numbers and sizes alone are Python numbers to the compiler."""
        return f"tl.full((), {self(tile)}, tl.float32)" if is_static(tile) else self(tile)

    def _transposed(self, tile: Tile, dim: str, *, last: bool) -> str:
        """A matrix with `dim` as its last axis, or as its first."""
        return self(tile) if (tile.dims[1] == dim) == last else f"tl.trans({self(tile)})"

    def _spread(self, tile: Tile, dims: Dims, level: int) -> str:
        """`tile` as an operand among tiles over `dims`, in parentheses where it binds less tightly than `level`."""
        return self._operand(tile, dims).within(level)

    def _operand(self, tile: Tile, dims: Dims) -> Printed:
        """`tile` among tiles over `dims`."""
        printed = self._print(tile)
        if tile.dims == dims or not tile.dims:
            return printed
        return Printed(self.axes.spread(printed.atom, tile.dims, dims))


def _rotation(function: str, half: bool) -> str:
    return f"{function}_half" if half else function


def _unwidened(tile: Tile) -> Tile:
    return tile.value if isinstance(tile, Widened) else tile


def literal(value: Fraction | float) -> Printed:
    """A number. Beside a float32 tensor Triton makes it a float32, whatever its size."""
    if math.isinf(value):
        return Printed(f'float("{"-" if value < 0 else ""}inf")')
    return Printed(repr(float(value)), SIGN if value < 0 else ATOM)
