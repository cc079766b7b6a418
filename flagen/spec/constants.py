"""Constant subexpressions: each must have a finite value, and one that exact arithmetic can compute in no time."""

from __future__ import annotations

import math

from flagen.spec.limits import MAX_POWER
from flagen.spec.model import Binary, Expr, Number, children
from flagen.spec.ranges import interval_of


def constant_problem(expr: Expr) -> str | None:
    """What keeps the outermost operation of `expr` from having a value, so far as its constants tell; or None."""
    match expr:
        case Binary("/", _, right) if _is_constant(right) and _value(right) == 0:
            return "this divides by zero"
        case Binary("**", _, right) if _is_constant(right) and abs(_value(right)) > MAX_POWER:
            return f"a constant exponent is at most {MAX_POWER} in magnitude"
    if not _is_constant(expr):
        return None
    if not math.isfinite(_value(expr)):
        return "this constant has no finite value"
    if isinstance(expr, Binary) and expr.op == "**" and _value(expr) == 0 != _value(expr.left):
        return "this constant is too small to tell from zero"
    return None


def _is_constant(expr: Expr) -> bool:
    return isinstance(expr, Number) or (bool(children(expr)) and all(map(_is_constant, children(expr))))


def _value(expr: Expr) -> float:
    interval = interval_of(expr, {})
    return interval.high if math.isfinite(interval.low) else interval.low
