"""Planned expressions as text for a person: `flagen explain` shows them; nothing reads them back."""

from __future__ import annotations

from fractions import Fraction

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
)

_SUM, _PRODUCT, _SIGN, _ATOM = range(4)


def show(tile: Tile) -> str:
    """`tile` in the notation of the spec language, with `sum_K`, `where_K` and the like for what it lacks."""
    return _show(tile)[0]


def _show(tile: Tile) -> tuple[str, int]:
    match tile:
        case Constant(value):
            text = str(value) if isinstance(value, Fraction) and value.denominator == 1 else f"{float(value):g}"
            return text, _SIGN if value < 0 else _ATOM
        case Size(name) | Value(name):
            return name, _ATOM
        case Head():
            return "head", _ATOM
        case StateTile(name, previous):
            return f"{name}_prev" if previous else name, _ATOM
        case Negative(value):
            return f"-{_within(value, _SIGN)}", _SIGN
        case Product(factors):
            return " * ".join(
                _within(factor, _PRODUCT if i == 0 else _SIGN) for i, factor in enumerate(factors)
            ), _PRODUCT
        case Arithmetic(op, left, right):
            level = {"+": _SUM, "-": _SUM, "/": _PRODUCT, "**": _SIGN}[op]
            return f"{_within(left, level)} {op} {_within(right, level + 1)}", level
        case Function(name, args):
            return f"{name}({', '.join(map(show, args))})", _ATOM
        case Sum(value, dim):
            return f"sum_{dim}({show(value)})", _ATOM
        case MatMul(left, right, dim):
            return f"matmul_{dim}({show(left)}, {show(right)})", _ATOM
        case Normalize(function, value):
            return f"{function}({show(value)})", _ATOM
        case Masked(value, dim, fill):
            return f"where_{dim}({show(value)}, else {fill:g})", _ATOM
        case Once(value):
            return f"once({show(value)})", _ATOM


def _within(tile: Tile, level: int) -> str:
    text, binding = _show(tile)
    return text if binding >= level else f"({text})"
