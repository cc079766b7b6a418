"""Tiles as Triton source: the one place where a planned expression becomes text."""

from __future__ import annotations

import math
from fractions import Fraction

from flagen.backends.triton_.axes import Axes
from flagen.backends.triton_.helpers import HELPERS
from flagen.diagnostics import InternalError
from flagen.plan.tiles import (
    Arithmetic,
    Constant,
    Function,
    Head,
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
    is_static,
)
from flagen.spec.model import Dims

_SUM, _PRODUCT, _SIGN, _POWER, ATOM = range(5)
"""How tightly Python's operators bind."""

_IN_CORE = {name: f"tl.{name}" for name in ("exp", "exp2", "log", "sqrt", "rsqrt", "abs", "sigmoid")}
_TAKE_NUMBERS = frozenset(("minimum", "maximum", "clamp", "logaddexp", "part_of"))
"""Helpers that take a Python number beside a tensor."""

Printed = tuple[str, int]
"""Source text, and how tightly its outermost operator binds."""


class Printer:
    """Prints tiles whose axes and masks go by the names in `axes`."""

    def __init__(self, axes: Axes) -> None:
        self.axes = axes

    def assigned(self, tile: Tile) -> str:
        """`tile` as the right-hand side of an assignment: a float32 tensor, even where it is a constant."""
        return self._tensor(tile)

    def __call__(self, tile: Tile) -> str:
        return self._print(tile)[0]

    def over(self, tile: Tile, dims: Dims) -> str:
        """`tile` as it is added to tiles over `dims`."""
        return self._spread(tile, dims, _SUM)

    def _print(self, tile: Tile) -> Printed:
        match tile:
            case Constant(value):
                return literal(value)
            case Size(name) | Value(name):
                return name, ATOM
            case Head():
                return "head", ATOM
            case StateTile(name, previous):
                return f"{name}_prev" if previous else name, ATOM
            case Negative(value):
                return f"-{self._spread(value, tile.dims, _SIGN)}", _SIGN
            case Product(factors, dims):
                return self._product(factors, dims)
            case Arithmetic("**", left, right, dims):
                return f"{self._spread(left, dims, ATOM)} ** {self._spread(right, dims, _SIGN)}", _POWER
            case Arithmetic(op, left, right, dims):
                level = _PRODUCT if op == "/" else _SUM
                return f"{self._spread(left, dims, level)} {op} {self._spread(right, dims, level + 1)}", level
            case Function():
                return self._function(tile)
            case Sum(value, dim):
                return f"tl.sum({self(value)}, axis={value.dims.index(dim)})", ATOM
            case MatMul(left, right, dim):
                sides = self._transposed(left, dim, last=True), self._transposed(right, dim, last=False)
                return f'tl.dot({", ".join(sides)}, input_precision="ieee")', ATOM
            case Normalize(function, value):
                return f"{function}({self(value)})", ATOM
            case Masked(value, dim, fill, dims):
                mask = self.axes.spread(self.axes.mask(dim), (dim,), dims)
                return f"tl.where({mask}, {self._spread(value, dims, _SUM)}, {literal(fill)[0]})", ATOM
            case Once(value):
                return f"tl.where(block == 0, {self(value)}, 0.0)", ATOM
        raise InternalError(f"the Triton printer does not know {type(tile).__name__}: {tile!r}")

    def _product(self, factors: tuple[Tile, ...], dims: Dims) -> Printed:
        first, *rest = factors
        text = " * ".join([self._spread(first, dims, _PRODUCT), *(self._spread(f, dims, _PRODUCT + 1) for f in rest)])
        return text, _PRODUCT

    def _function(self, tile: Function) -> Printed:
        name, args = tile.name, tile.args
        if name == "square" and isinstance(args[0], Value | StateTile):
            return f"{self(args[0])} * {self(args[0])}", _PRODUCT
        if name in _IN_CORE:
            return f"{_IN_CORE[name]}({self._tensor(args[0])})", ATOM
        helper = next((helper for helper in (name, f"_{name}") if helper in HELPERS), None)
        if helper is None:
            raise InternalError(f"the Triton printer does not know the function {name}")
        bare = name in _TAKE_NUMBERS and not all(map(is_static, args))
        printed = (
            self._tensor(arg) if is_static(arg) and not bare else self._spread(arg, tile.dims, _SUM) for arg in args
        )
        return f"{helper}({', '.join(printed)})", ATOM

    def _tensor(self, tile: Tile) -> str:
        """`tile` where a tensor is wanted: numbers and sizes alone are Python numbers to the compiler."""
        return f"tl.full((), {self(tile)}, tl.float32)" if is_static(tile) else self(tile)

    def _transposed(self, tile: Tile, dim: str, *, last: bool) -> str:
        """A matrix with `dim` as its last axis, or as its first."""
        return self(tile) if (tile.dims[1] == dim) == last else f"tl.trans({self(tile)})"

    def _spread(self, tile: Tile, dims: Dims, level: int) -> str:
        """`tile` as an operand among tiles over `dims`, in parentheses where it binds less tightly than `level`."""
        if tile.dims == dims or not tile.dims:
            return self._within(tile, level)
        return self.axes.spread(self._within(tile, ATOM), tile.dims, dims)

    def _within(self, tile: Tile, level: int) -> str:
        text, binding = self._print(tile)
        return text if binding >= level else f"({text})"


def literal(value: Fraction | float) -> Printed:
    """A number. Beside a float32 tensor Triton makes it a float32, whatever its size."""
    if math.isinf(value):
        return f'float("{"-" if value < 0 else ""}inf")', ATOM
    return repr(float(value)), _SIGN if value < 0 else ATOM
