"""Rows over all pairs of two dims, which are products of two vectors."""

from __future__ import annotations

from collections.abc import Callable

from flagen.spec.model import Binary, Expr, Negate, Pairs


def factors_of(expr: Expr) -> tuple[Expr, Expr] | None:
    """The two sides of a row of pairs, numbers that scale it with the first of them; None of any other row."""
    match expr:
        case Pairs(left, right):
            return left, right
        case Binary("*", number, row) if not number.dims:
            return _with_first(factors_of(row), lambda left: Binary("*", number, left, expr.span))
        case Binary("*" | "/" as op, row, number) if not number.dims:
            return _with_first(factors_of(row), lambda left: Binary(op, left, number, expr.span))
        case Negate(value):
            return _with_first(factors_of(value), lambda left: Negate(left, expr.span))
    return None


def _with_first(factors: tuple[Expr, Expr] | None, change: Callable[[Expr], Expr]) -> tuple[Expr, Expr] | None:
    return None if factors is None else (change(factors[0]), factors[1])
