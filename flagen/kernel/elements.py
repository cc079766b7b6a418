"""The numbers that kernels are executed on: rationals, the infinities, and poison.

Poison is what nobody has written and what no number is; whatever is computed from it is poison. The lanes that pad a
tile may be infinite, as in floating point: the logarithm of the zeros there, say.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping, Sequence
from functools import reduce
from typing import Any, TypeAlias

from gmpy2 import is_finite, mpq

from flagen.algebra.exact import Dual
from flagen.functions import operation
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


# Rationals know neither infinities nor poison, which are rare.


def add(x: Element, y: Element) -> Element:
    try:
        return x + y
    except TypeError:
        return _kind(_as_float(x) + _as_float(y))


def negative(x: Element) -> Element:
    try:
        return -x
    except TypeError:
        return _kind(-_as_float(x))


def subtract(x: Element, y: Element) -> Element:
    try:
        return x - y
    except TypeError:
        return _kind(_as_float(x) - _as_float(y))


def multiply(x: Element, y: Element) -> Element:
    try:
        return x * y
    except TypeError:
        return _kind(_as_float(x) * _as_float(y))


def divide(x: Element, y: Element) -> Element:
    try:
        return x / y
    except ZeroDivisionError:
        return _over_zero(x)
    except TypeError:
        return _kind(_as_float(x) / _as_float(y)) if _as_float(y) else _over_zero(x)


def _over_zero(x: Element) -> Element:
    return _kind(_as_float(x) * math.inf)


def product(factors: Sequence[Element]) -> Element:
    return reduce(multiply, factors, ONE)


def apply(functions: Elementary, name: str, args: Sequence[Element]) -> Element:
    """A function of the language, or of kernels."""
    if any(isinstance(x, Poison) for x in args):
        return POISON
    if any(isinstance(x, Infinity) for x in args):
        return _in_floating_point(name, args)
    try:
        value = functions(name, tuple(map(Dual, args))).value
    except ZeroDivisionError:
        return _in_floating_point(name, args)
    return value if is_finite(value) else _kind(float(value))


def _in_floating_point(name: str, args: Sequence[Element]) -> Element:
    """A function where an argument, or its value, is infinite. A finite value is one of the arguments, or whole."""
    row = operation(name)
    assert row is not None
    floats = [x.sign * math.inf if isinstance(x, Infinity) else float(x) for x in args]
    value = row.at(*floats)
    if value is None:
        return POISON
    same = next((x for x, rounded in zip(args, floats, strict=True) if rounded == value), None)
    return _kind(value) if same is None else same


def quotient(x: Element, y: Element) -> Element:
    """How often `y` goes into `x`, which are whole: Python and a GPU agree where none is negative."""
    return POISON if _is_signed(x, y) else mpq(x // y)


def remainder(x: Element, y: Element) -> Element:
    return POISON if _is_signed(x, y) else mpq(x % y)


def _is_signed(x: Element, y: Element) -> bool:
    return any(isinstance(z, Poison | Infinity) or z < 0 for z in (x, y))


ARITHMETIC: Mapping[str, Callable[[Element, Element], Element]] = {
    "+": add,
    "-": subtract,
    "/": divide,
    "//": quotient,
    "%": remainder,
}


def _compared(holds: Callable[[Any, Any], bool]) -> Callable[[Element, Element], Element]:
    def compare(x: Element, y: Element) -> Element:
        if isinstance(x, Poison) or isinstance(y, Poison):
            return POISON
        if isinstance(x, Infinity) or isinstance(y, Infinity):
            return holds(_as_float(x), _as_float(y))
        return holds(x, y)

    return compare


COMPARISONS: Mapping[str, Callable[[Element, Element], Element]] = {
    "==": _compared(operator.eq),
    "<": _compared(operator.lt),
    "<=": _compared(operator.le),
    ">": _compared(operator.gt),
    ">=": _compared(operator.ge),
}


def both(x: Element, y: Element) -> Element:
    return POISON if isinstance(x, Poison) or isinstance(y, Poison) else x and y


def either(x: Element, y: Element) -> Element:
    return POISON if isinstance(x, Poison) or isinstance(y, Poison) else x or y


def chosen(where: Element, value: Element, other: Element) -> Element:
    return POISON if isinstance(where, Poison) else value if where else other
