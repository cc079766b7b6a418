"""Expressions over the rows of a chunk: what varies from token to token gets one axis more, its row in the chunk.

A row vector is kept as `scale * vector`, with one scale per row. The scales stay out of the matrix products, whose
operands are then the inputs themselves, in their own dtype; they multiply the results, in float32.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction

from flagen.plan.padding import PaddingRules, is_finite
from flagen.plan.split import crossed_dims
from flagen.plan.tiles import (
    Along,
    Arithmetic,
    Constant,
    Function,
    Head,
    Lane,
    Masked,
    Negative,
    Normalize,
    Paired,
    Product,
    Rotated,
    Size,
    Sum,
    Tile,
    Value,
    Widened,
    operands,
)
from flagen.spec.model import Dims

TOKEN, ROW = "token", "row"
"""Axes of a chunk: its tokens, and its rows where a token has several."""

WRITTEN, MEMBER = "written row", "member of a group"
"""Axes beside them: the rows of a chunk as the columns of scores, and the value heads of a key head."""

BETWEEN = "row between"
"""The rows of a chunk again, where matrices of scores are multiplied: what a product of two is summed over."""


L2NORM_EPSILON = Fraction(1, 10**6)
"""What `l2norm` adds to the sum of squares."""


class TooWide(Exception):
    """A tile over rows has more axes than a kernel can hold."""


@dataclass(frozen=True)
class Operand:
    """Row vectors `scale * vector`; without a `scale` just `vector`."""

    vector: Tile
    scale: Tile | None


@dataclass(frozen=True)
class RowAxis:
    """Gives tiles the axis `axis`. `order` is the order of axes in a kernel, `fixed` the names that are the same for
    all tokens; `splits_norms` tells whether the scale of a row may be a sum over its channels."""

    axis: str
    order: Dims
    fixed: frozenset[str]
    splits_norms: bool = True

    def __call__(self, tile: Tile) -> Tile:
        """`tile` for every row of a chunk.

        Raises:
            TooWide: it has too many axes then.
        """
        match tile:
            case Constant() | Size() | Head():
                return tile
            case Value(name, kind, dims):
                return Value(name, kind, self._sorted(dims if name in self.fixed else (*dims, self.axis)))
            case Negative(value):
                inner = self(value)
                return Negative(inner, inner.dims)
            case Product(factors):
                return self.product(*map(self, factors))
            case Arithmetic(op, left, right):
                sides = self(left), self(right)
                return Arithmetic(op, *sides, self._dims(sides))
            case Function(name, args):
                every = tuple(map(self, args))
                return Function(name, every, self._dims(every))
            case Sum(value, dim):
                inner = self(value)
                return Sum(inner, dim, tuple(d for d in inner.dims if d != dim))
            case Masked(value, dim, fill):
                inner = self(value)
                return Masked(inner, dim, fill, inner.dims)
            case Normalize(function, value):
                inner = self(value)
                if self.axis not in inner.dims:
                    raise TooWide(f"`{function}` of what no token changes")
                return Normalize(function, inner, inner.dims)
            case Rotated(value, angle, size, pairs, half):
                turned, by = self(value), self(angle)
                dims = tuple(dict.fromkeys((*turned.dims, *(dim for dim in by.dims if dim == self.axis))))
                return Rotated(turned, by, size, pairs, half, self._sorted(dims))
            case Paired(left, right, (pairs,)):
                sides = self(left), self(right)
                rows = {dim for side in sides for dim in side.dims if dim == self.axis}
                return Paired(*sides, self._sorted((*rows, pairs)))
            case Along(value, dims):
                inner = self(value)
                names = dict(zip(value.dims, dims, strict=True))
                renamed = tuple(names.get(dim, dim) for dim in inner.dims)
                if renamed != self._sorted(renamed):
                    raise TooWide("axes of a tile that change places")
                return Along(inner, renamed)
            case Widened(Lane()):
                return tile
        raise TooWide("a product of matrices in a token")

    def operand(self, tile: Tile) -> Operand:
        """`tile`, a vector for each row, with the numbers split off that scale a whole row."""
        negative, factors = self._factors(self(tile))
        scales = [factor for factor in factors if set(factor.dims) <= {self.axis}]
        vectors = [factor for factor in factors if factor not in scales]
        if not vectors:
            raise TooWide("a row that is the same for every channel")
        if negative:
            scales = [_negated(scales[0]), *scales[1:]] if scales else [Constant(Fraction(-1))]
        return Operand(self.product(*vectors), self.product(*scales) if scales else None)

    def _factors(self, tile: Tile) -> tuple[bool, list[Tile]]:
        """The sign and the factors of a product, however it is grouped; a norm and a divisor are factors, too."""
        match tile:
            case Negative(value):
                negative, factors = self._factors(value)
                return not negative, factors
            case Product(parts):
                signs, groups = zip(*map(self._factors, parts), strict=True)
                return sum(signs) % 2 == 1, [factor for group in groups for factor in group]
            case Paired(left, right, dims):
                signs, sides = zip(*map(self._factors, (left, right)), strict=True)
                scales = [[each for each in side if set(each.dims) <= {self.axis}] for side in sides]
                vectors = [self.product(*(x for x in s if x not in n)) for s, n in zip(sides, scales, strict=True)]
                return signs[0] != signs[1], [*scales[0], *scales[1], Paired(vectors[0], vectors[1], dims)]
            case Arithmetic("/", left, right) if self._divides_rows(left, right):
                negative, factors = self._factors(left)
                return negative, [*factors, Arithmetic("/", Constant(Fraction(1)), right, right.dims)]
            case Along(value, dims) if len(value.dims) > 1:
                negative, factors = self._factors(value)
                names = dict(zip(value.dims, dims, strict=True))
                return negative, [self._called(factor, names) for factor in factors]
            case Normalize("l2norm", value) if self.splits_norms:
                negative, factors = self._factors(value)
                return negative, [*factors, self._reciprocal_norm(value)]
        return False, [tile]

    def _called(self, factor: Tile, names: Mapping[str, str]) -> Tile:
        """A factor of a vector that has another name for its dim; numbers of rows have none."""
        dims = tuple(names.get(dim, dim) for dim in factor.dims)
        return factor if dims == factor.dims else Along(factor, dims)

    def _divides_rows(self, left: Tile, right: Tile) -> bool:
        """Whether `right` is a number for each row, and `left` its vectors."""
        numbers = set(right.dims) <= {self.axis} < set(left.dims)
        return numbers and (self.splits_norms or not any(crossed_dims(right)))

    def _reciprocal_norm(self, value: Tile) -> Tile:
        (channel,) = set(value.dims) - {self.axis}
        square = Sum(Function("square", (value,), value.dims), channel, (self.axis,))
        kept = Arithmetic("+", square, Constant(L2NORM_EPSILON), (self.axis,))
        return Function("rsqrt", (kept,), (self.axis,))

    def product(self, *factors: Tile) -> Tile:
        return factors[0] if len(factors) == 1 else Product(factors, self._dims(factors))

    def _dims(self, tiles: tuple[Tile, ...]) -> Dims:
        return self._sorted(tuple(dict.fromkeys(dim for tile in tiles for dim in tile.dims)))

    def _sorted(self, dims: Dims) -> Dims:
        if len(dims) > 2:
            raise TooWide(f"a tile over [{', '.join(dims)}] of a chunk")
        return tuple(dim for dim in self.order if dim in dims)


def cleared(rules: PaddingRules, order: Dims, tile: Tile, *lanes: str) -> Tile:
    """`tile` with zeros in the lanes that pad any of `lanes`, where those are not certain; its axes are in `order`."""
    for lane in lanes:
        if rules.padding(tile, frozenset((lane,))) != 0.0:
            tile = Masked(tile, lane, 0.0, tuple(dim for dim in order if dim in (lane, *tile.dims)))
    return tile


def finite(rules: PaddingRules, tile: Tile, lane: str) -> Tile:
    """`tile` with finite numbers in the lanes that pad `lane`: they are to be multiplied by zeros."""
    if lane not in tile.dims or is_finite(rules.padding(tile, frozenset((lane,)))):
        return tile
    return Masked(tile, lane, 0.0, tile.dims)


def _negated(tile: Tile) -> Tile:
    return tile.value if isinstance(tile, Negative) else Negative(tile, tile.dims)


def values_in(tile: Tile) -> Iterator[Value]:
    """Every name that `tile` reads."""
    if isinstance(tile, Value):
        yield tile
    for part in operands(tile):
        yield from values_in(part)
