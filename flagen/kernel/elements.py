"""The numbers that kernels are executed on: rationals, the infinities, and poison.

Poison is what nobody has written and what no number is; whatever is computed from it is poison. The lanes that pad a
tile may be infinite, as in floating point: the logarithm of the zeros there, say.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

from gmpy2 import mpq

from flagen.algebra.exact import Dual
from flagen.kernel.elementary import Elementary


class Poison:
    """What no number is."""

    def __repr__(self) -> str:
        return "poison"


class Infinity:
    """Beyond all numbers, on one side."""

    def __init__(self, sign: int) -> None:
        self.sign = sign

    def __repr__(self) -> str:
        return "infinity" if self.sign > 0 else "-infinity"


POISON, INFINITY, MINUS_INFINITY = Poison(), Infinity(1), Infinity(-1)
Element: TypeAlias = Any
"""A rational (of a library without types), an infinity, or poison."""

ZERO, ONE = mpq(0), mpq(1)


def _as_float(x: Element) -> float:
    """A float of the same kind: all that the kind of a result depends on, where an operand is infinite."""
    match x:
        case Poison():
            return math.nan
        case Infinity(sign=sign):
            return sign * math.inf
    return float((x > 0) - (x < 0))


def _kind(x: float) -> Element:
    """What has become of an operation with an infinite operand: a finite result is a whole number there."""
    if math.isnan(x):
        return POISON
    if math.isinf(x):
        return INFINITY if x > 0 else MINUS_INFINITY
    return mpq(int(x))


def add(x: Element, y: Element) -> Element:
    if isinstance(x, Poison | Infinity) or isinstance(y, Poison | Infinity):
        return _kind(_as_float(x) + _as_float(y))
    return x + y


def negative(x: Element) -> Element:
    return _kind(-_as_float(x)) if isinstance(x, Poison | Infinity) else -x


def subtract(x: Element, y: Element) -> Element:
    if isinstance(x, Poison | Infinity) or isinstance(y, Poison | Infinity):
        return _kind(_as_float(x) - _as_float(y))
    return x - y


def multiply(x: Element, y: Element) -> Element:
    if isinstance(x, Poison | Infinity) or isinstance(y, Poison | Infinity):
        return _kind(_as_float(x) * _as_float(y))
    return x * y


def divide(x: Element, y: Element) -> Element:
    if isinstance(x, Poison | Infinity) or isinstance(y, Poison | Infinity):
        return _kind(_as_float(x) / _as_float(y)) if _as_float(y) else _over_zero(x)
    return x / y if y else _over_zero(x)


def _over_zero(x: Element) -> Element:
    return _kind(_as_float(x) * math.inf)


def product(factors: Sequence[Element]) -> Element:
    result: Element = ONE
    for factor in factors:
        result = multiply(result, factor)
    return result


def apply(functions: Elementary, name: str, args: Sequence[Element]) -> Element:
    """A function of the language."""
    if any(isinstance(x, Poison) for x in args):
        return POISON
    if any(isinstance(x, Infinity) for x in args):
        return _at_infinity(functions, name, args)
    try:
        return functions(name, tuple(map(Dual, args))).value
    except ZeroDivisionError:
        return MINUS_INFINITY if name in ("log", "log1p") else INFINITY if name == "rsqrt" else POISON


def _at_infinity(functions: Elementary, name: str, args: Sequence[Element]) -> Element:
    match name, args:
        case (("maximum" | "minimum" | "clamp"), _):
            return _ordered(name, args)
        case "logaddexp", (x, y):
            return _ordered("maximum", args) if INFINITY in args else y if isinstance(x, Infinity) else x
        case (("relu" | "abs" | "sqrt" | "square" | "log" | "log1p" | "softplus" | "silu"), (Infinity(sign=1),)):
            return INFINITY
        case "abs" | "square", _:
            return INFINITY
        case "power", (x, y) if isinstance(x, Infinity) or isinstance(y, Infinity):
            return POISON
    limits = _LIMITS.get(name)
    if limits is None or not isinstance(args[0], Infinity):
        return POISON
    return limits[args[0].sign > 0]


def _ordered(name: str, args: Sequence[Element]) -> Element:
    """The largest of some numbers, the smallest, or one between two others."""

    def key(x: Element) -> tuple[int, mpq]:
        return (x.sign, ZERO) if isinstance(x, Infinity) else (0, x)

    if name == "clamp":
        return min(max(args[:2], key=key), args[2], key=key)
    return max(args, key=key) if name == "maximum" else min(args, key=key)


_LIMITS: Mapping[str, tuple[Element, Element]] = {
    "exp": (ZERO, INFINITY),
    "exp2": (ZERO, INFINITY),
    "expm1": (-ONE, INFINITY),
    "sigmoid": (ZERO, ONE),
    "logsigmoid": (MINUS_INFINITY, ZERO),
    "softplus": (ZERO, INFINITY),
    "tanh": (-ONE, ONE),
    "sign": (-ONE, ONE),
    "relu": (ZERO, INFINITY),
    "rsqrt": (POISON, ZERO),
}
"""What functions are at minus infinity, and at infinity."""

ARITHMETIC: Mapping[str, Callable[[Element, Element], Element]] = {"+": add, "-": subtract, "/": divide}
