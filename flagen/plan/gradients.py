"""Expressions transposed: from the gradient of a tile to the gradients of the names it is evaluated from.

A gradient is a tile like any other, made of the tile's own names and of the name of the gradient that comes in, so that
kernels print it as they print everything. Derivatives are those that PyTorch takes, at kinks too: nothing flows through
`relu` or `abs` at zero, two equal tensors share the gradient of their `minimum`, a bound that is a number takes none.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

from flagen.diagnostics import InternalError
from flagen.functions import FUNCTIONS, operation
from flagen.plan.tiles import (
    Along,
    Arithmetic,
    Constant,
    Function,
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
    Size,
    StateTile,
    Sum,
    Tile,
    Value,
    Widened,
    operands,
    tiles_in,
)
from flagen.spec.formulas import formula
from flagen.spec.model import Binary, Call, Dims, Expr, Name, Negate, Number

Leaf = Value | StateTile
ONE, HALF = Constant(Fraction(1)), Constant(Fraction(1, 2))
_SMALL = Constant(1e-30)
"""Takes the place of a norm of zero, of which the gradient is zero; squares of smaller numbers vanish in float32."""


@dataclass(frozen=True)
class Transposition:
    """Takes gradients back through tiles whose axes come in the order `order`.

    fixed: names that no gradient is wanted of.
    numbers: those of them that are Python numbers, not tensors: PyTorch treats a bound differently that is one.
    cut: the dim of which a tile has a block only, and a sum over it is that of the block.
    """

    order: Dims
    fixed: frozenset[str] = frozenset()
    numbers: frozenset[str] = frozenset()
    cut: str | None = None

    def __call__(self, tile: Tile, gradient: Tile) -> tuple[tuple[Leaf, Tile], ...]:
        """The gradient of each name in `tile`, over that name's dims, in the order the names are met.

        `gradient` is the one of `tile`; a dim that it lacks is one along which it is the same.
        """
        found: dict[Leaf, Tile] = {}
        for leaf, part in self._parts(tile, gradient):
            found[leaf] = self.plus(found[leaf], part) if leaf in found else part
        return tuple(found.items())

    def reaches(self, tile: Tile) -> bool:
        """Whether a gradient is wanted of anything in `tile`."""
        return any(self._is_wanted(part) for part in tiles_in(tile))

    def derivative(self, tile: Tile, place: int) -> Tile:
        """The derivative of a function of numbers by its operand at `place`."""
        return self._share(tile, place, ONE)

    # ------------------------------------------------------------------------------------------------------- the walk

    def _parts(self, tile: Tile, gradient: Tile) -> Iterator[tuple[Leaf, Tile]]:
        """The gradient that each mention of a name contributes."""
        if isinstance(tile, Value | StateTile):
            if self._is_wanted(tile):
                yield tile, gradient
            return
        if isinstance(tile, Function) and (definition := self._definition(tile)) is not None:
            yield from self._parts(definition, gradient)
            return
        for place, operand in enumerate(operands(tile)):
            if not self.reaches(operand):
                continue
            share = self._share(tile, place, gradient)
            if not isinstance(tile, MatMul | Rotated | Along | Paired):
                for dim in tile.dims:
                    if dim not in operand.dims:
                        share = self.summed(share, dim)
            yield from self._parts(operand, share)

    def _share(self, tile: Tile, place: int, gradient: Tile) -> Tile:
        """What the operand at `place` gets of the gradient of `tile`, before sums over the dims that it lacks."""
        match tile:
            case Negative():
                return self.negative(gradient)
            case Product(factors):
                return self.times(gradient, *factors[:place], *factors[place + 1 :])
            case Arithmetic("+"):
                return gradient
            case Arithmetic("-"):
                return gradient if place == 0 else self.negative(gradient)
            case Arithmetic("/", _, right):
                if place == 0:
                    return self.over(gradient, right)
                return self.negative(self.over(self.times(gradient, tile), right))
            case Function("maximum" | "minimum", args) if self._is_number(args[1 - place]):
                return self.times(gradient, self._reached(tile, place))
            case Function("sqrt", (value,)) if _is_sum_of_squares(value):
                return self.times(gradient, self.over(HALF, Function("maximum", (tile, _SMALL), tile.dims)))
            case Function("power", (base, Constant(exponent))) if exponent != 0:
                lower = Function("power", (base, Constant(exponent - 1)), tile.dims)
                return self.times(gradient, self.times(Constant(exponent), lower))
            case Function():
                return self.times(gradient, self._slope(tile, place))
            case Sum():
                return gradient
            case MatMul(left, right, dim):
                return self._share_of_product(gradient, right if place == 0 else left, dim)
            case Normalize(function, value):
                return self._share_of_row(function, value, tile, gradient)
            case Rotated():
                return self._share_of_rotation(tile, place, gradient)
            case Paired(left, right):
                return self._share_of_pairs(tile, (left, right), place, gradient)
            case Along(value, dims):
                return self._renamed(gradient, dict(zip(dims, value.dims, strict=True)))
            case Widened():
                return gradient
            case Masked(_, dim):
                return Masked(gradient, dim, 0.0, self._dims((gradient, Value(dim, "local", (dim,)))))
            case Once():
                return Once(gradient, gradient.dims)
        raise InternalError(f"no gradient through {tile!r}")

    def _definition(self, tile: Function) -> Tile | None:
        """What `tile` is in terms of other functions, where the table of functions says so."""
        row = FUNCTIONS.get(tile.name)
        if row is None or not row.definition:
            return None
        return self._filled(formula(row.definition), dict(zip(row.arguments, tile.args, strict=True)))

    def _slope(self, tile: Function, place: int) -> Tile:
        """The derivative of `tile` by the argument at `place`."""
        found = operation(tile.name)
        if found is None or not found.slopes:
            raise InternalError(f"no derivative for the function {tile.name}")
        values: dict[str, Tile] = {**dict(zip(found.arguments, tile.args, strict=True)), "y": tile}
        return self._filled(formula(found.slopes[place]), values)

    def _filled(self, pattern: Expr, values: Mapping[str, Tile]) -> Tile:
        """A formula of the table of functions, of tiles."""
        match pattern:
            case Name(name):
                return values[name]
            case Number(value):
                return Constant(value)
            case Negate(value):
                return self.negative(self._filled(value, values))
            case Binary("**", base, Number(Fraction(numerator=2, denominator=1))):
                squared = self._filled(base, values)
                return Function("square", (squared,), squared.dims)
            case Binary("+" | "-" | "*" | "/" as op, left, right):
                sides = self._filled(left, values), self._filled(right, values)
                return self._joined(op, *sides)
            case Call(function, args):
                filled = tuple(self._filled(arg, values) for arg in args)
                return Function(function, filled, filled[0].dims if len(filled) == 1 else self._dims(filled))
        raise InternalError(f"no tile for the formula {pattern!r}")

    def _joined(self, op: Literal["+", "-", "*", "/"], left: Tile, right: Tile) -> Tile:
        match op:
            case "+":
                return self.plus(left, right)
            case "-":
                return self.minus(left, right)
            case "*":
                return self.times(left, right)
            case "/":
                return self.over(left, right)

    def _reached(self, tile: Function, place: int) -> Tile:
        """One where a tensor is within its bound, a number, and zero beyond it."""
        value, bound = tile.args[place], tile.args[1 - place]
        beyond = (bound, value) if tile.name == "maximum" else (value, bound)
        return self.minus(ONE, self._step(self.minus(*beyond)))

    def _step(self, tile: Tile) -> Tile:
        """One where `tile` is above zero, else zero."""
        return Function("relu", (Function("sign", (tile,), tile.dims),), tile.dims)

    def _share_of_product(self, gradient: Tile, other: Tile, dim: str) -> Tile:
        """The gradient of one matrix of a product summed over `dim`: the gradient times the other one."""
        (kept,) = (d for d in other.dims if d != dim)
        if len(gradient.dims) < 2:
            return self.summed(self.times(gradient, other), kept)
        dims = self._sorted({*gradient.dims, dim} - {kept})
        left, right = (gradient, other) if dims[1] == dim else (other, gradient)
        return MatMul(left, right, kept, dims)

    def _share_of_row(self, function: str, value: Tile, row: Tile, gradient: Tile) -> Tile:
        """Through a row map: `row` is what it made of `value`."""
        along = _along(row)
        inner = self.summed(self.times(gradient, row), along)
        centered = self.minus(gradient, self.times(row, inner) if function == "l2norm" else inner)
        if function == "softmax":
            return self.times(row, centered)
        squares = self.summed(Function("square", (value,), value.dims), along)
        norm = self.plus(squares, Constant(1e-6))
        return self.times(Function("rsqrt", (norm,), norm.dims), centered)

    def _share_of_rotation(self, tile: Rotated, place: int, gradient: Tile) -> Tile:
        """Of a value the gradient turned back, of the angles what `OfAngles` says; summed over what they lack."""
        if tile.channel not in gradient.dims:
            gradient = self.times(gradient, Masked(ONE, tile.channel, 0.0, (tile.channel,)))
        own = {*tile.dims, *gradient.dims} - {tile.channel}
        if place == 0:
            back = self.negative(tile.angle)
            share: Tile = Rotated(gradient, back, tile.size, tile.pairs, tile.half, self._dims((gradient, tile)))
        else:
            dims = self._sorted(own | {tile.pair})
            share = OfAngles(gradient, tile, tile.size, tile.pairs, tile.half, tile.pair, dims)
        for dim in self._sorted(own):
            if dim not in operands(tile)[place].dims and dim in tile.dims:
                share = self.summed(share, dim)
        return share

    def _share_of_pairs(self, tile: Paired, sides: tuple[Tile, Tile], place: int, gradient: Tile) -> Tile:
        """Of one side the gradient of all its pairs, times the other side; summed over what the side lacks."""
        own, other = sides[place], sides[1 - place]
        if tile.dims[-1] not in gradient.dims:
            gradient = self.times(gradient, Masked(ONE, tile.dims[-1], 0.0, (tile.dims[-1],)))
        rows = {*gradient.dims, *other.dims} - {tile.dims[-1], other.dims[-1]}
        share: Tile = OfPairs(gradient, other, place == 0, self._sorted(rows | {own.dims[-1]}))
        for dim in self._sorted(rows):
            if dim not in own.dims:
                share = self.summed(share, dim)
        return share

    def _renamed(self, tile: Tile, names: Mapping[str, str]) -> Tile:
        dims = tuple(names.get(dim, dim) for dim in tile.dims)
        if dims == tile.dims:
            return tile
        if dims != self._sorted({*dims}):
            raise InternalError(f"axes of a tile over {tile.dims} change places where they become {dims}")
        return Along(tile, dims)

    def _is_wanted(self, tile: Tile) -> bool:
        return isinstance(tile, StateTile) or (isinstance(tile, Value) and tile.name not in self.fixed)

    def _is_number(self, tile: Tile) -> bool:
        """Whether `tile` is a Python number wherever PyTorch evaluates it."""
        known = Constant | Size | Negative | Product | Arithmetic | Function
        return all(
            isinstance(part, known) or (isinstance(part, Value) and part.name in self.numbers)
            for part in tiles_in(tile)
        )

    # ---------------------------------------------------------------------------------------------------- arithmetic

    def times(self, *tiles: Tile) -> Tile:
        """The product of `tiles`, with its sign in front."""
        negative = False
        factors: list[Tile] = []
        for tile in tiles:
            if isinstance(tile, Negative):
                negative, tile = not negative, tile.value
            factors += tile.factors if isinstance(tile, Product) else (tile,)
        factors = [factor for factor in factors if factor != ONE] or [ONE]
        # Numbers and vectors first: a matrix is then multiplied once.
        factors.sort(key=lambda factor: len(factor.dims))
        product = factors[0] if len(factors) == 1 else self._grouped(factors)
        return self.negative(product) if negative else product

    def _grouped(self, factors: list[Tile]) -> Tile:
        dims = self._dims(factors)
        small = [factor for factor in factors if factor.dims != dims]
        if len(small) < 2 or len(small) == len(factors) or len(dims) < 2:
            return Product(tuple(factors), dims)
        by_dims: dict[Dims, list[Tile]] = {}
        for factor in small:
            by_dims.setdefault(factor.dims or small[-1].dims, []).append(factor)
        groups = [part[0] if len(part) == 1 else Product(tuple(part), self._dims(part)) for part in by_dims.values()]
        return Product((*groups, *(factor for factor in factors if factor.dims == dims)), dims)

    def over(self, left: Tile, right: Tile) -> Tile:
        return Arithmetic("/", left, right, self._dims((left, right)))

    def plus(self, left: Tile, right: Tile) -> Tile:
        if isinstance(right, Negative):
            return self.minus(left, right.value)
        return Arithmetic("+", left, right, self._dims((left, right)))

    def minus(self, left: Tile, right: Tile) -> Tile:
        return Arithmetic("-", left, right, self._dims((left, right)))

    def negative(self, tile: Tile) -> Tile:
        return tile.value if isinstance(tile, Negative) else Negative(tile, tile.dims)

    def summed(self, tile: Tile, dim: str) -> Tile:
        """`tile` summed over `dim`; what the sum does not run over stays outside."""
        if isinstance(tile, Negative):
            return self.negative(self.summed(tile.value, dim))
        factors = tile.factors if isinstance(tile, Product) else (tile,)
        inside = [factor for factor in factors if dim in factor.dims]
        outside = [factor for factor in factors if dim not in factor.dims]
        if not inside and dim != self.cut:
            return self.times(*outside, Size(dim))
        inside = inside or [Masked(ONE, dim, 0.0, (dim,))]
        value = self.times(*inside)
        return self.times(*outside, Sum(value, dim, tuple(d for d in value.dims if d != dim)))

    def _dims(self, tiles: Iterable[Tile]) -> Dims:
        return self._sorted({dim for tile in tiles for dim in tile.dims})

    def _sorted(self, dims: set[str]) -> Dims:
        return tuple(dim for dim in self.order if dim in dims)


def _along(row: Tile) -> str:
    """The dim that a row map runs along: the last, where a chunk's rows are another."""
    return row.dims[-1]


def _is_sum_of_squares(tile: Tile) -> bool:
    """Whether `tile` is what the language's `norm` takes the root of."""
    while isinstance(tile, Sum):
        tile = tile.value
    return isinstance(tile, Masked | Function) and _is_square(tile)


def _is_square(tile: Tile) -> bool:
    while isinstance(tile, Masked):
        tile = tile.value
    return isinstance(tile, Function) and tile.name == "square"
