"""Rebuilding expressions."""

from __future__ import annotations

from collections.abc import Callable

from flagen.spec.model import (
    Binary,
    Call,
    Contract,
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
)


def map_children(expr: Expr, change: Callable[[Expr], Expr]) -> Expr:
    """`expr` with `change` applied to each direct operand."""
    match expr:
        case Number() | Name() | StateRead() | Index():
            return expr
        case Negate(value, span):
            return Negate(change(value), span)
        case Binary(op, left, right, span):
            return Binary(op, change(left), change(right), span)
        case Contract(left, right, span):
            return Contract(change(left), change(right), span)
        case Transpose(value, span):
            return Transpose(change(value), span)
        case Outer(left, right, span):
            return Outer(change(left), change(right), span)
        case Call(function, args, span):
            return Call(function, tuple(change(arg) for arg in args), span)
        case Reduce(function, value, dim, span):
            return Reduce(function, change(value), dim, span)
        case RowMap(function, value, span):
            return RowMap(function, change(value), span)
        case Rotate(value, angle, half, span):
            return Rotate(change(value), change(angle), half, span)
        case Over(value, source, target, span):
            return Over(change(value), source, target, span)
        case Pairs(left, right, dim, span):
            return Pairs(change(left), change(right), dim, span)
        case Solution(matrix, right, shift, span):
            return Solution(change(matrix), change(right), None if shift is None else change(shift), span)
