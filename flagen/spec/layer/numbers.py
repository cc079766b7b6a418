"""What a layer's numbers come to, for one config: plain arithmetic, bounded, and never Python's own evaluation."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from flagen.diagnostics import Span
from flagen.spec.layer.expressions import bind
from flagen.spec.layer.model import Binary, Call, Compare, Constant, Expr, IfElse, Logic, Name, Several, Unary, Value
from flagen.spec.layer.printer import to_text
from flagen.spec.layer.vocabulary import NUMBER_FUNCTIONS

LARGEST = 2**53
"""Beyond it, whole numbers are none that a size has, and are not exact as floats."""

_LARGEST_POWER = 64

CONSTANTS: dict[str, float] = {"inf": math.inf, "pi": math.pi}


class NoValue(Exception):
    """A number that has no value: its place, what is wrong, what to do about it."""

    def __init__(self, span: Span, message: str, hint: str = "", name: str = "") -> None:
        super().__init__(message)
        self.name = name
        """The name whose value it is, where it is one's."""
        self.span = span
        self.message = message
        self.hint = hint


_ARITHMETIC: dict[str, Callable[[float, float], float]] = {
    "+": operator.add,
    "-": operator.sub,
    "*": operator.mul,
    "/": operator.truediv,
    "//": operator.floordiv,
    "%": operator.mod,
}
_ORDER: dict[str, Callable[[float, float], bool]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}


@dataclass(frozen=True)
class Numbers:
    """The values of config and dims, and what can be computed from them."""

    values: Mapping[str, Constant]

    def of(self, expr: Expr) -> Constant:
        """The value of an expression over config and dims. Raises NoValue where it has none."""
        match expr:
            case Value(value):
                return value
            case Name(name):
                if name in self.values:
                    return self.values[name]
                if name in CONSTANTS:
                    return CONSTANTS[name]
                raise NoValue(expr.span, f"`{name}` has no value when a layer is constructed")
            case Unary("not", value):
                return not self.of(value)
            case Unary(_, value):
                return -self.number(value)
            case Binary(op, left, right):
                return arithmetic(op, self.number(left), self.number(right), expr.span)
            case Compare(op, left, right):
                return self.compared(op, left, right)
            case Logic(op, values):
                return self.logic(op, values)
            case IfElse(condition, then, otherwise):
                return self.of(then if self.of(condition) else otherwise)
            case Several(items):
                return tuple(self.single(item) for item in items)
            case Call(name, _, args, keywords):
                return self.called(name, args, keywords, expr.span)

    def number(self, expr: Expr) -> int | float:
        value = self.of(expr)
        if isinstance(value, int | float):
            return value
        raise _misfit(expr, value, "number")

    def size(self, expr: Expr) -> int:
        """A size of a tensor: a positive integer."""
        value = self.of(expr)
        if isinstance(value, int) and not isinstance(value, bool) and value > 0:
            return value
        raise _misfit(expr, value, "size")

    def single(self, expr: Expr) -> int | float | str | bool | None:
        value = self.of(expr)
        if isinstance(value, tuple):
            raise NoValue(expr.span, f"`{shortened(expr)}` is several values in place of one")
        return value

    def compared(self, op: str, left: Expr, right: Expr) -> bool:
        if op in _ORDER:
            return _ORDER[op](self.number(left), self.number(right))
        a, b = self.of(left), self.of(right)
        match op:
            case "==":
                return a == b
            case "!=":
                return a != b
            case _:
                return (a is None) == (op == "is")

    def logic(self, op: str, values: tuple[Expr, ...]) -> Constant:
        value: Constant = None
        for operand in values:
            value = self.of(operand)
            if bool(value) == (op == "or"):
                break
        return value

    def called(
        self, name: str, args: tuple[Expr, ...], keywords: tuple[tuple[str, Expr], ...], span: Span
    ) -> int | float | str | bool | None:
        if name not in NUMBER_FUNCTIONS:
            raise NoValue(span, f"`{name}(...)` is no number")
        given, _ = NUMBER_FUNCTIONS[name]
        if given is None:
            numbers = [self.number(arg) for arg in args]
            return max(numbers) if name == "max" else min(numbers)
        bound, _ = bind(args, keywords, given)
        if name == "item":
            return self._item(bound["values"], bound["i"])
        return function(name, self.number(bound["x"]), span)

    def _item(self, values: Expr, place: Expr) -> int | float | str | bool | None:
        several, index = self.of(values), self.of(place)
        if not isinstance(several, tuple):
            raise NoValue(values.span, f"`{shortened(values)}` is {shown(several)}, and not several values")
        if isinstance(index, bool) or not isinstance(index, int) or not 0 <= index < len(several):
            raise NoValue(place.span, f"there are {len(several)} values, and none is the one at {shown(index)}")
        return several[index]


def _misfit(expr: Expr, value: Constant, wanted: str) -> NoValue:
    hint = "`integer(x)` and `x // y` are whole numbers" if isinstance(value, float) else ""
    if value is None:
        hint = "what may be None has a value to fall back on: `num_v_heads or num_heads`"
    name = expr.name if isinstance(expr, Name) else ""
    return NoValue(expr.span, f"`{shortened(expr)}` is {shown(value)}, and no {wanted}", hint, name)


def arithmetic(op: str, left: float, right: float, span: Span) -> float:
    """`left op right`. Raises NoValue where that is no number, or none that a layer has."""
    if op in ("/", "//", "%") and right == 0:
        raise NoValue(span, "this divides by zero")
    try:
        value = _power(left, right, span) if op == "**" else _ARITHMETIC[op](left, right)
    except OverflowError:
        raise NoValue(span, "this number is too large") from None
    if isinstance(value, int) and abs(value) > LARGEST:
        raise NoValue(span, "this number is too large")
    if isinstance(value, float) and math.isnan(value):
        raise NoValue(span, "this is no number")
    return value


def _power(left: float, right: float, span: Span) -> float:
    if left == 0 and right < 0:
        raise NoValue(span, "this divides by zero")
    if left < 0 and not float(right).is_integer():
        raise NoValue(span, "a negative number has no such power")
    if isinstance(left, int) and isinstance(right, int) and right >= 0:
        if abs(left) > 1 and right > _LARGEST_POWER:
            raise NoValue(span, "this number is too large")
        return int(left**right)
    return float(float(left) ** float(right))


def function(name: str, x: float, span: Span) -> float:
    """A function of one number. Raises NoValue where it has no value there."""
    try:
        match name:
            case "integer":
                if not math.isclose(x, round(x), rel_tol=1e-5):
                    raise NoValue(span, f"{x:g} is no whole number")
                return round(x)
            case "round":
                return round(x)
            case "floor":
                return math.floor(x)
            case "ceil":
                return math.ceil(x)
            case "abs":
                return abs(x)
            case "sqrt":
                return math.sqrt(x)
            case "exp":
                return math.exp(x)
            case _:
                return math.log(x)
    except (ValueError, OverflowError):
        raise NoValue(span, f"`{name}` of {x:g} is no number") from None


def shown(value: object) -> str:
    return "several values" if isinstance(value, tuple) else f"{value!r}"[:40]


def shortened(expr: Expr) -> str:
    text = to_text(expr)
    return text if len(text) <= 40 else f"{text[:36]}..."
