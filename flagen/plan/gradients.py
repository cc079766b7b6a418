"""Expressions transposed: from the gradient of a tile to the gradients of the names it is evaluated from.

A gradient is a tile like any other, made of the tile's own names and of the name of the gradient that comes in, so that
kernels print it as they print everything. Derivatives are those that PyTorch takes, at kinks too: nothing flows through
`relu` or `abs` at zero, two equal tensors share the gradient of their `minimum`, a bound that is a number takes none.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction

from flagen.diagnostics import InternalError
from flagen.plan.tiles import (
    Arithmetic,
    Constant,
    Function,
    Masked,
    MatMul,
    Negative,
    Normalize,
    Once,
    Product,
    Size,
    StateTile,
    Sum,
    Tile,
    Value,
    operands,
    tiles_in,
)
from flagen.spec.model import Dims

Leaf = Value | StateTile
ZERO, ONE, TWO, HALF = (Constant(Fraction(number, 2)) for number in (0, 2, 4, 1))
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

    # ------------------------------------------------------------------------------------------------------- the walk

    def _parts(self, tile: Tile, gradient: Tile) -> Iterator[tuple[Leaf, Tile]]:
        """The gradient that each mention of a name contributes."""
        if isinstance(tile, Value | StateTile):
            if self._is_wanted(tile):
                yield tile, gradient
            return
        for place, operand in enumerate(operands(tile)):
            if not self.reaches(operand):
                continue
            share = self._share(tile, place, gradient)
            if not isinstance(tile, MatMul):
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
            case Function("clamp", (value, low, high), dims):
                raised = Function("maximum", (value, low), self._dims((value, low)))
                return self._share_of_clamp(raised, high, dims, place, gradient)
            case Function("sqrt", (value,)) if _is_sum_of_squares(value):
                return self.times(gradient, self.over(HALF, Function("maximum", (tile, _SMALL), tile.dims)))
            case Function(name):
                if name not in _SLOPES:
                    raise InternalError(f"no derivative for the function {name}")
                return self.times(gradient, _SLOPES[name](self, tile)[place])
            case Sum():
                return gradient
            case MatMul(left, right, dim):
                return self._share_of_product(gradient, right if place == 0 else left, dim)
            case Normalize(function, value, dims):
                return self._share_of_row(function, value, tile, gradient)
            case Masked(_, dim):
                return Masked(gradient, dim, 0.0, self._dims((gradient, Value(dim, "local", (dim,)))))
            case Once():
                return Once(gradient, gradient.dims)
        raise InternalError(f"no gradient through {tile!r}")

    def _share_of_clamp(self, raised: Function, high: Tile, dims: Dims, place: int, gradient: Tile) -> Tile:
        """`clamp` is the lower of the upper bound and what the lower bound raises."""
        whole = Function("minimum", (raised, high), dims)
        if place == 2:
            return self._share(whole, 1, gradient)
        return self._share(raised, place, self._share(whole, 0, gradient))

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


# ------------------------------------------------------------------------------------------------------------- slopes

Slopes = Callable[[Transposition, Function], tuple[Tile, ...]]
"""From a function's tile to its derivative by each argument."""


def _apply(name: str, tile: Tile) -> Tile:
    return Function(name, (tile,), tile.dims)


def _power(t: Transposition, y: Function) -> tuple[Tile, Tile]:
    base, exponent = y.args
    if isinstance(exponent, Constant) and exponent.value != 0:
        lower = Constant(exponent.value - 1)
        return t.times(exponent, Function("power", (base, lower), y.dims)), ZERO
    return Function("power_slope", y.args, y.dims), Function("exponent_slope", y.args, y.dims)


def _extremum(sign: int) -> Slopes:
    """Of two tensors: all to the one that is taken, half to each of equals."""

    def slopes(t: Transposition, y: Function) -> tuple[Tile, Tile]:
        left, right = y.args if sign > 0 else reversed(y.args)
        above = _apply("sign", t.minus(left, right))
        return t.times(HALF, t.plus(ONE, above)), t.times(HALF, t.minus(ONE, above))

    return slopes


def _silu(t: Transposition, y: Function) -> tuple[Tile]:
    (x,) = y.args
    s = _apply("sigmoid", x)
    return (t.times(s, t.plus(ONE, t.times(x, t.minus(ONE, s)))),)


def _logaddexp(t: Transposition, y: Function) -> tuple[Tile, Tile]:
    left, right = y.args
    return Function("part_of", (left, right), y.dims), Function("part_of", (right, left), y.dims)


_SLOPES: Mapping[str, Slopes] = {
    "exp": lambda t, y: (y,),
    "exp2": lambda t, y: (t.times(Constant(math.log(2)), y),),
    "log": lambda t, y: (t.over(ONE, y.args[0]),),
    "log1p": lambda t, y: (t.over(ONE, t.plus(ONE, y.args[0])),),
    "expm1": lambda t, y: (t.plus(y, ONE),),
    "sqrt": lambda t, y: (t.over(HALF, y),),
    "rsqrt": lambda t, y: (t.negative(t.times(HALF, y, _apply("square", y))),),
    "square": lambda t, y: (t.times(TWO, y.args[0]),),
    "power": _power,
    "abs": lambda t, y: (_apply("sign", y.args[0]),),
    "sign": lambda t, y: (ZERO,),
    "sigmoid": lambda t, y: (t.times(y, t.minus(ONE, y)),),
    "logsigmoid": lambda t, y: (_apply("sigmoid", t.negative(y.args[0])),),
    "softplus": lambda t, y: (_apply("sigmoid", y.args[0]),),
    "tanh": lambda t, y: (t.minus(ONE, _apply("square", y)),),
    "silu": _silu,
    "relu": lambda t, y: (_apply("relu", _apply("sign", y.args[0])),),
    "maximum": _extremum(1),
    "minimum": _extremum(-1),
    "logaddexp": _logaddexp,
}
"""The derivatives of the language's functions, and of those that stand for `**`."""
