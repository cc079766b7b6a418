"""Lowers expressions to tiles, the way a recurrent kernel evaluates them: doing little on a whole state.

A tile's axes go by name. Hence a transpose is nothing, an outer product is a product, and a contraction is a product
that is summed. Lowering uses that freedom to keep work off the state, the one large tile of a kernel: factors join the
vector they scale, factors that a sum does not run over leave it, and a contraction never builds an outer product that
it would only sum away again.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

from flagen.diagnostics import InternalError, Span
from flagen.plan.tiles import (
    MAX_DIMS,
    Along,
    Arithmetic,
    Constant,
    Function,
    Head,
    Lane,
    MatMul,
    Negative,
    Normalize,
    Paired,
    Product,
    Rotated,
    Size,
    StateTile,
    Sum,
    Tile,
    Value,
    Widened,
    is_static,
    operands,
)
from flagen.spec.model import (
    Binary,
    Call,
    Contract,
    Dims,
    Expr,
    Index,
    Name,
    Negate,
    Number,
    Outer,
    Over,
    Pairs,
    Reduce,
    Rotate,
    RowMap,
    Solution,
    StateRead,
    Transpose,
    walk,
)
from flagen.spec.ranges import interval_of


class TooManyDims(Exception):
    """An intermediate of an expression has more dims than a tile."""

    def __init__(self, dims: Dims, span: Span) -> None:
        super().__init__(f"[{', '.join(dims)}]")
        self.dims = dims
        self.span = span


class NoTile(Exception):
    """An expression that no tile is evaluated as; says why."""

    def __init__(self, reason: str, span: Span) -> None:
        super().__init__(reason)
        self.reason = reason
        self.span = span


@dataclass(frozen=True)
class Lowering:
    """Lowers expressions over `order`: every dim of the spec, in the order that the axes of tiles take."""

    order: Dims

    def __call__(self, expr: Expr) -> Tile:
        """`expr` as a tile.

        Raises:
            TooManyDims: it cannot be evaluated on tiles of `MAX_DIMS` axes.
            NoTile: it is the solution of a system of equations, or channels turn that are not the last ones.
        """
        match expr:
            case Number(value):
                return Constant(value)
            case Name(name, "size"):
                return Size(name)
            case Name(_, "head"):
                return Head()
            case Name(name, ("input" | "param" | "derived" | "local") as kind, dims):
                return Value(name, kind, self._sorted(dims, expr.span))
            case StateRead(name, previous, dims):
                return StateTile(name, previous, self._sorted(dims, expr.span))
            case Negate(value):
                return _negative(self(value))
            case Transpose(value):
                return self(value)
            case Binary("*", left, right) | Outer(left, right):
                return self._product((self(left), self(right)), expr.span)
            case Binary("**", base, exponent):
                return self._power(self(base), self(exponent), expr.span)
            case Binary(("+" | "-" | "/") as op, left, right):
                return self._arithmetic(op, self(left), self(right), expr.span)
            case Contract(left, right):
                return self._sum_of_product((self(left), self(right)), expr.dim, expr.span)
            case Call(function, args):
                if all(isinstance(part, Number | Negate | Binary | Call) for part in walk(expr)):
                    return Constant(interval_of(expr, {}).high)  # The range of a constant is that one number.
                lowered = tuple(map(self, args))
                return Function(function, lowered, self._union(lowered, expr.span))
            case Reduce():
                return self._reduce(expr)
            case RowMap(function, value):
                row = self(value)
                return Normalize(function, row, row.dims)
            case Rotate(value, angle, half):
                return self._rotated(self(value), self(angle), half, expr)
            case Over(value, source, target):
                return self._renamed(self(value), source, target, expr.span)
            case Pairs(left, right, dim):
                return Paired(self(left), self(right), (dim,))
            case Index(dim):
                return Widened(Lane(dim, (dim,)), (dim,))
            case Solution():
                reason = "solves a system of equations for every token, which takes all of a state at once"
                raise NoTile(reason, expr.span)
        raise InternalError(f"no tile for {expr!r}")

    def _rotated(self, value: Tile, angle: Tile, half: bool, expr: Rotate) -> Tile:
        channel, (pair,) = expr.dim, angle.dims
        if value.dims[-1] != channel:
            raise NoTile(f"turns channels of {channel}, which are not the last ones of a tile", expr.span)
        return Rotated(value, angle, Size(channel), Size(pair), half, value.dims)

    def _renamed(self, value: Tile, source: str, target: str, span: Span) -> Tile:
        """`value` with its lanes as they are: where axes would change places there is no tile."""
        renamed = tuple(target if dim == source else dim for dim in value.dims)
        if renamed != self._sorted(renamed, span):
            raise TooManyDims(renamed, span)
        return Along(value, renamed)

    # A product is flat, so that its factors can be grouped and moved.

    def _product(self, tiles: Iterable[Tile], span: Span) -> Tile:
        """The product of `tiles`: factors over the same dims are multiplied first, and a scalar joins a vector rather
        than a matrix, so that a state's tile is multiplied as seldom as possible. Of two vectors a scalar joins the one
        over the later dim: that is usually the dim of which a program owns only a block."""
        factors = [factor for tile in tiles for factor in _factors(tile)]
        dims = self._union(factors, span)
        if len(dims) < MAX_DIMS:
            return _multiplied(factors, dims)
        groups: dict[Dims, list[Tile]] = {}
        for factor in factors:
            groups.setdefault(factor.dims, []).append(factor)
        vectors = [group for group in groups if len(group) == 1]
        if () in groups and vectors:
            last = max(vectors, key=lambda over: self.order.index(over[0]))
            groups[last] = groups.pop(()) + groups[last]
        return _multiplied([_multiplied(group, over) for over, group in groups.items()], dims)

    def _arithmetic(self, op: Literal["+", "-", "/"], left: Tile, right: Tile, span: Span) -> Tile:
        return Arithmetic(op, left, right, self._union((left, right), span))

    def _power(self, base: Tile, exponent: Tile, span: Span) -> Tile:
        """`base ** exponent` by the cheapest function that computes it."""
        dims = self._union((base, exponent), span)
        if is_static(base) and is_static(exponent):
            return Arithmetic("**", base, exponent, dims)
        if isinstance(exponent, Constant):
            if exponent.value == 1:
                return base
            if named := {2.0: "square", 0.5: "sqrt", -0.5: "rsqrt"}.get(float(exponent.value)):
                return Function(named, (base,), dims)
            if exponent.value == -1:
                return Arithmetic("/", Constant(Fraction(1)), base, dims)
        if isinstance(base, Constant) and base.value > 0:
            if base.value == 2:
                return Function("exp2", (exponent,), dims)
            log = Constant(math.log(base.value))
            return Function("exp", (self._product((log, exponent), span),), dims)
        return Function("power", (base, exponent), dims)

    def _reduce(self, expr: Reduce) -> Tile:
        value = self(expr.value)
        over = expr.value.dims if expr.dim is None else (expr.dim,)
        if expr.function == "norm":
            value = Function("square", (value,), value.dims)
        for dim in over:
            value = self._sum_of_product((value,), dim, expr.span)
        match expr.function:
            case "sum":
                return value
            case "norm":
                return Function("sqrt", (value,), value.dims)
            case "mean":
                return self._arithmetic("/", value, self._product(map(Size, over), expr.span), expr.span)
        raise InternalError(f"no tile for the reduction {expr.function}")

    def _sum_of_product(self, tiles: Iterable[Tile], dim: str, span: Span) -> Tile:
        """The product of `tiles` summed over `dim`; what the sum does not run over is left outside."""
        factors = [factor for tile in tiles for factor in _factors(tile)]
        outside = [factor for factor in factors if dim not in factor.dims]
        inside = [factor for factor in factors if dim in factor.dims]
        for i, factor in enumerate(inside):
            rest = inside[:i] + inside[i + 1 :]
            # Every term gets a copy of the rest: names may be copied; expressions could double and redouble.
            if len(factor.dims) == MAX_DIMS and _has_outer_product(factor) and not any(map(operands, rest)):
                return self._product((*outside, self._distributed(factor, rest, dim, span)), span)
        return self._product((*outside, self._summed(inside, dim, span)), span)

    def _distributed(self, factor: Tile, rest: list[Tile], dim: str, span: Span) -> Tile:
        """`factor`, a sum with an outer product in it, times `rest`, summed over `dim` term by term."""
        match factor:
            case Negative(value):
                return _negative(self._sum_of_product((value, *rest), dim, span))
            case Arithmetic(("+" | "-") as op, left, right):
                first, second = (self._sum_of_product((term, *rest), dim, span) for term in (left, right))
                return self._arithmetic(op, first, second, span)
        raise InternalError(f"nothing to distribute in {factor!r}")

    def _summed(self, factors: list[Tile], dim: str, span: Span) -> Tile:
        every = self._names(factors)
        if len(every) <= MAX_DIMS:
            value = self._product(factors, span)
            return Sum(value, dim, tuple(d for d in value.dims if d != dim))
        kept = tuple(d for d in every if d != dim)
        if len(kept) > MAX_DIMS:
            raise TooManyDims(every, span)
        first, second = kept
        left = [factor for factor in factors if second not in factor.dims]
        right = [factor for factor in factors if second in factor.dims]
        return MatMul(self._product(left, span), self._product(right, span), dim, (first, second))

    def _names(self, tiles: Iterable[Tile]) -> Dims:
        named = {dim for tile in tiles for dim in tile.dims}
        return tuple(dim for dim in self.order if dim in named)

    def _union(self, tiles: Iterable[Tile], span: Span) -> Dims:
        return self._sorted(self._names(tiles), span)

    def _sorted(self, dims: Dims, span: Span) -> Dims:
        if len(dims) > MAX_DIMS:
            raise TooManyDims(dims, span)
        return tuple(dim for dim in self.order if dim in dims)


def _factors(tile: Tile) -> Iterator[Tile]:
    """The factors of a product, however it is grouped; anything else is its own factor."""
    if isinstance(tile, Product):
        for factor in tile.factors:
            yield from _factors(factor)
    else:
        yield tile


def _multiplied(factors: list[Tile], dims: Dims) -> Tile:
    return factors[0] if len(factors) == 1 else Product(tuple(factors), dims)


def _negative(tile: Tile) -> Tile:
    match tile:
        case Constant(value):
            return Constant(-value)
        case Negative(value):
            return value
    return Negative(tile, tile.dims)


def _has_outer_product(tile: Tile) -> bool:
    """Whether a matrix is a sum with a term that is a product of vectors."""
    match tile:
        case Negative(value):
            return _has_outer_product(value) or _is_outer_product(value)
        case Arithmetic("+" | "-", left, right):
            # A scalar term is spread over the sum's dim, and would have to be counted as often as that is long.
            spread = left.dims != right.dims
            return not spread and any(_is_outer_product(term) or _has_outer_product(term) for term in (left, right))
    return False


def _is_outer_product(tile: Tile) -> bool:
    return isinstance(tile, Product) and all(len(factor.dims) < MAX_DIMS for factor in _factors(tile))
