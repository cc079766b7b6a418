"""Constant subexpressions: each must have a finite value, and one that exact arithmetic can compute in no time."""

from __future__ import annotations

import math

from flagen.spec.limits import MAX_POWER
from flagen.spec.model import Binary, Call, Expr, Negate, Number, Outer, children
from flagen.spec.ranges import interval_of


class Constants:
    """The values of an expression's constant parts, each computed once. Parts are checked before what they are in."""

    def __init__(self) -> None:
        self._values: dict[int, tuple[Expr, float]] = {}
        """By identity, beside the part itself, which so stays the only one of its identity."""

    def problem(self, expr: Expr) -> str | None:
        """What keeps the outermost operation of `expr` from having a value, so far as its constants tell; or None."""
        parts = [self._value(part) for part in children(expr)]
        match expr:
            case Binary("/") if parts[1] == 0:
                return "this divides by zero"
            case Binary("**") if parts[1] is not None and abs(parts[1]) > MAX_POWER:
                return f"a constant exponent is at most {MAX_POWER} in magnitude"
        known = [part for part in parts if part is not None]
        if not known or len(known) < len(parts):
            return None
        value = _result(expr, known)
        if not math.isfinite(value):
            return "this constant has no finite value"
        if isinstance(expr, Binary) and expr.op == "**" and value == 0 != known[0]:
            return "this constant is too small to tell from zero"
        self._values[id(expr)] = expr, value
        return None

    def _value(self, expr: Expr) -> float | None:
        if isinstance(expr, Number):
            return float(expr.value)
        return self._values[id(expr)][1] if id(expr) in self._values else None


def _result(expr: Expr, parts: list[float]) -> float:
    numbers = [Number(part) for part in parts]
    match expr:
        case Negate():
            return -parts[0]
        case Outer():
            return parts[0] * parts[1]
        case Binary(op):
            interval = interval_of(Binary(op, numbers[0], numbers[1]), {})
        case Call(function):
            interval = interval_of(Call(function, tuple(numbers)), {})
        case _:
            raise AssertionError(f"{type(expr).__name__} of scalars")
    return interval.high if math.isfinite(interval.low) else interval.low
