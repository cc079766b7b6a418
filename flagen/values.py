"""Values of the elementwise functions on Python numbers, and ranges of those that neither rise nor fall throughout.

As precisely as floats allow; of infinities as the code that is generated has it.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable

from flagen.intervals import EVERYTHING, Interval

_LEAST = 5e-324
"""The smallest positive number."""


def exp(x: float) -> float:
    try:
        return math.exp(x)
    except OverflowError:
        return math.inf


def exp_interval(x: Interval) -> Interval:
    # Of a finite argument neither zero nor infinite, though floats underflow and overflow.
    low = exp(x.low) if math.isinf(x.low) else min(exp(x.low), sys.float_info.max)
    return Interval(low, exp(x.high) or (0.0 if math.isinf(x.high) else _LEAST))


def log(x: float) -> float:
    return -math.inf if x == 0 else math.log(x)


def log1p(x: float) -> float:
    return -math.inf if x == -1 else math.log1p(x)


def expm1(x: float) -> float:
    try:
        return math.expm1(x)
    except OverflowError:
        return math.inf


def rsqrt_interval(x: Interval) -> Interval:
    if x.high <= 0:
        return EVERYTHING
    low = max(x.low, 0.0)
    return Interval(1 / math.sqrt(x.high), 1 / math.sqrt(low) if low > 0 else math.inf)


def sign(x: float) -> float:
    return float((x > 0) - (x < 0))


def sigmoid(x: float) -> float:
    if x >= 0:
        return 1 / (1 + math.exp(-x))
    if math.isinf(x):
        return 0.0
    power = math.exp(x) or _LEAST
    return power / (1 + power)


def softplus(x: float) -> float:
    return x if x == math.inf else max(x, 0.0) + math.log1p(math.exp(-abs(x)))


def logsigmoid(x: float) -> float:
    return 0.0 - softplus(0.0 - x)


def silu(x: float) -> float:
    return x * sigmoid(x)


_SILU_LEAST_AT = -1.2784645427610738
_SILU_LEAST = -0.2784645427610738


def silu_interval(x: Interval) -> Interval:
    # Falls from 0 to its one minimum, rises from there on.
    ends = [0.0 if end == -math.inf else silu(end) for end in (x.low, x.high)]
    return Interval(_SILU_LEAST if x.low <= _SILU_LEAST_AT <= x.high else min(ends), max(ends))


def relu(x: float) -> float:
    return max(x, 0.0)


def minimum_interval(a: Interval, b: Interval) -> Interval:
    return Interval(min(a.low, b.low), min(a.high, b.high))


def maximum_interval(a: Interval, b: Interval) -> Interval:
    return Interval(max(a.low, b.low), max(a.high, b.high))


def logaddexp(a: float, b: float) -> float:
    return max(a, b) if math.isinf(a) or math.isinf(b) else max(a, b) + math.log1p(math.exp(-abs(a - b)))


def cos(x: float) -> float:
    return math.cos(x) if math.isfinite(x) else math.nan


def sin(x: float) -> float:
    return math.sin(x) if math.isfinite(x) else math.nan


def cos_interval(x: Interval) -> Interval:
    return _wave_interval(cos, x, 0.0)


def sin_interval(x: Interval) -> Interval:
    return _wave_interval(sin, x, math.pi / 2)


def _wave_interval(wave: Callable[[float], float], x: Interval, top: float) -> Interval:
    """Of what rises and falls between -1 and 1, and is 1 at `top`."""
    if not (math.isfinite(x.low) and math.isfinite(x.high)):
        return Interval(-1.0, 1.0)
    ends = wave(x.low), wave(x.high)
    first, last = (x.low - top) / math.pi, (x.high - top) / math.pi
    extremes = range(math.ceil(first), min(math.floor(last), math.ceil(first) + 1) + 1)
    reached = (*ends, *(1.0 if half % 2 == 0 else -1.0 for half in extremes))
    return Interval(min(reached), max(reached))


def floor(x: float) -> float:
    return x if abs(x) == math.inf else math.floor(x)


def fraction(x: float) -> float:
    return x - floor(x)


def fraction_interval(x: Interval) -> Interval:
    # Just below a whole number it is rounded to 1.
    whole = floor(x.low)
    within = math.isfinite(whole) and whole == floor(x.high)
    return Interval(x.low - whole, x.high - whole) if within else Interval(0.0, 1.0)
