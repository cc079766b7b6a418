"""Closed intervals of values, and what arithmetic makes of them.

Sound up to the rounding of one operation. An infinite end is a limit that may be attained (a log decay of -inf), and
zero times infinity is zero: the product of a factor that is zero.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

_INFINITY = math.inf


@dataclass(frozen=True)
class Interval:
    """The closed range [low, high] of a value; infinite ends are legal values (log decays may be -inf)."""

    low: float = -math.inf
    high: float = math.inf

    def __str__(self) -> str:
        return f"[{self.low:g}, {self.high:g}]"


EVERYTHING = Interval()


def _hull(values: Iterable[float]) -> Interval:
    """The smallest interval around `values`; where one of them is undefined, everything."""
    points = list(values)
    return EVERYTHING if any(math.isnan(point) for point in points) else Interval(min(points), max(points))


def negate(x: Interval) -> Interval:
    # `0.0 -` rather than `-`, so that no end is a negative zero.
    return Interval(0.0 - x.high, 0.0 - x.low)


def add(a: Interval, b: Interval) -> Interval:
    low, high = a.low + b.low, a.high + b.high
    return Interval(-_INFINITY if math.isnan(low) else low, _INFINITY if math.isnan(high) else high)


def subtract(a: Interval, b: Interval) -> Interval:
    return add(a, negate(b))


def _times(a: float, b: float) -> float:
    return 0.0 if a == 0 or b == 0 else a * b


def multiply(a: Interval, b: Interval) -> Interval:
    return _hull(_times(x, y) for x in (a.low, a.high) for y in (b.low, b.high))


def square(x: Interval) -> Interval:
    magnitude = absolute(x)
    return Interval(_times(magnitude.low, magnitude.low), _times(magnitude.high, magnitude.high))


def divide(a: Interval, b: Interval) -> Interval:
    return multiply(a, _reciprocal(b))


def _reciprocal(x: Interval) -> Interval:
    if x.low < 0 < x.high or x.low == x.high == 0:
        return EVERYTHING
    if x.high <= 0:
        return negate(_reciprocal(negate(x)))
    return Interval(1 / x.high, 1 / x.low if x.low > 0 else _INFINITY)


def power(base: Interval, exponent: Interval) -> Interval:
    constant = exponent.low if exponent.low == exponent.high else None
    if base.low >= 0:
        # Monotone in each argument while the other stands still: the extremes are at the corners.
        return _hull(_real_power(b, e) for b in (base.low, base.high) for e in (exponent.low, exponent.high))
    if constant is None or not math.isfinite(constant) or constant != int(constant):
        return EVERYTHING
    if constant < 0:
        return _reciprocal(power(base, Interval(-constant, -constant)))
    if constant % 2 == 0:
        return power(absolute(base), exponent)
    return Interval(_odd_power(base.low, constant), _odd_power(base.high, constant))


def _real_power(base: float, exponent: float) -> float:
    """`base ** exponent` for a base of at least zero, infinite where it overflows."""
    if base == 0 and exponent < 0:
        return _INFINITY
    try:
        return math.pow(base, exponent)
    except OverflowError:
        return _INFINITY


def _odd_power(base: float, exponent: float) -> float:
    return math.copysign(_real_power(abs(base), exponent), base)


def absolute(x: Interval) -> Interval:
    ends = (abs(x.low), abs(x.high))
    return Interval(0.0 if x.low <= 0 <= x.high else min(ends), max(ends))


# ------------------------------------------------------------------------------------------------ rising functions


def rising(function: Callable[[float], float]) -> Callable[[Interval], Interval]:
    return lambda x: Interval(function(x.low), function(x.high))


def rising_from(bound: float, function: Callable[[float], float]) -> Callable[[Interval], Interval]:
    """An increasing function that is defined from `bound` up: of the range only that part counts."""

    def interval(x: Interval) -> Interval:
        return EVERYTHING if x.high < bound else Interval(function(max(x.low, bound)), function(x.high))

    return interval
