"""The functions of the language in exact arithmetic, with their true derivatives.

A kernel spells a derivative out, and rewrites functions where that is cheaper; the proof of kernels cannot take every
function for one nobody knows. So all are made of three: an exponential, a logarithm and a square root of rational
numbers. Their values at a point are made up; what holds between them is what holds between the true ones:

    exp(-x) = 1 / exp(x)    exp(log x) = x    (exp x)' = exp x    (log x)' = 1 / x    (sqrt x)' = 1 / (2 sqrt x)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from fractions import Fraction

from gmpy2 import mpq

from flagen.algebra.exact import ONE, Dual, Oracle, Tangents, decimal

HALF, TWO = Dual(mpq(1, 2)), Dual(mpq(2))
_INFINITE = mpq(10**6 * 7 + 1, 7)
"""Stands for infinity where a spec names it: far beyond what values at a point can be."""


def number(value: Fraction | float) -> mpq:
    """A number of a spec, or of a kernel."""
    if isinstance(value, Fraction):
        return mpq(value.numerator, value.denominator)
    if math.isinf(value):
        return _INFINITE if value > 0 else -_INFINITE
    return decimal(value)


class Elementary(Oracle):
    """Values and derivatives of functions at the points at which it is asked, the same every time."""

    def __call__(self, function: str, args: tuple[Dual, ...]) -> Dual:
        return _FUNCTIONS[function](self, *args)

    def exp(self, x: Dual) -> Dual:
        value = self._exponential(x.value)
        return Dual(value, _scaled(x, value))

    def log(self, x: Dual) -> Dual:
        if x.value == 0:
            raise ZeroDivisionError("the logarithm of zero")
        question = ("log", x.value)
        if question not in self.known:
            # What a planner folds into a kernel is a float: the logarithm of a constant is that float.
            self._remember(number(math.log(x.value)) if x.value > 0 else self._new("exp"), x.value)
        return Dual(self.known[question], _scaled(x, 1 / x.value))

    def sqrt(self, x: Dual) -> Dual:
        value = self._ask(("sqrt", x.value))
        return Dual(value, _scaled(x, 1 / (2 * value)))

    def power(self, base: Dual, exponent: Dual) -> Dual:
        """A whole number of factors as such: that is what `algebra.exact` does with one."""
        match exponent.value if not exponent.tangents else None:
            case mpq() as whole if whole.denominator == 1 and abs(whole) <= 16:
                result = ONE
                for _ in range(abs(int(whole))):
                    result = result * base
                return result if whole >= 0 else ONE / result
            case mpq() as half if abs(half) == mpq(1, 2):
                root = self.sqrt(base)
                return root if half > 0 else ONE / root
        return self.exp(exponent * self.log(base))

    def _exponential(self, x: mpq) -> mpq:
        if x == 0:
            return mpq(1)
        if ("exp", x) not in self.known:
            self._remember(x, self._new("log"))
        return self.known["exp", x]

    def _remember(self, logarithm: mpq, value: mpq) -> None:
        for sign, power in ((1, value), (-1, 1 / value)):
            self.known["exp", sign * logarithm], self.known["log", power] = power, sign * logarithm

    def _new(self, function: str) -> mpq:
        """A positive number at which nobody has asked for the function, nor at its inverse or negative."""
        while True:
            x = mpq(self.random.randint(1, 9972), 9973)
            if all((function, other) not in self.known for other in (x, 1 / x, -x)):
                return x


def _scaled(x: Dual, slope: mpq) -> Tangents:
    return tuple(slope * tangent for tangent in x.tangents)


def _sigmoid(f: Elementary, x: Dual) -> Dual:
    return ONE / (ONE + f.exp(-x))


def _softplus(f: Elementary, x: Dual) -> Dual:
    return f.log(ONE + f.exp(x))


def _tanh(f: Elementary, x: Dual) -> Dual:
    whole = f.exp(TWO * x)
    return (whole - ONE) / (whole + ONE)


_FUNCTIONS: Mapping[str, Callable[..., Dual]] = {
    "infinite": lambda f, x: Dual(_INFINITE if x.value > 0 else -_INFINITE),
    "exp": Elementary.exp,
    "exp2": lambda f, x: f.power(TWO, x),
    "expm1": lambda f, x: f.exp(x) - ONE,
    "log": Elementary.log,
    "log1p": lambda f, x: f.log(ONE + x),
    "sqrt": Elementary.sqrt,
    "rsqrt": lambda f, x: ONE / f.sqrt(x),
    "square": lambda f, x: x * x,
    "power": Elementary.power,
    "power_slope": lambda f, x, y: y * f.power(x, y) / x,
    "exponent_slope": lambda f, x, y: f.power(x, y) * f.log(x),
    "abs": lambda f, x: -x if x.value < 0 else x,
    "sign": lambda f, x: Dual(mpq((x.value > 0) - (x.value < 0))),
    "relu": lambda f, x: x if x.value > 0 else Dual(mpq(0)),
    "minimum": lambda f, *args: min(args, key=lambda arg: arg.value),
    "maximum": lambda f, *args: max(args, key=lambda arg: arg.value),
    "clamp": lambda f, x, low, high: min(max(x, low, key=lambda arg: arg.value), high, key=lambda arg: arg.value),
    "sigmoid": _sigmoid,
    "logsigmoid": lambda f, x: -f.log(ONE + f.exp(-x)),
    "softplus": _softplus,
    "tanh": _tanh,
    "silu": lambda f, x: x * _sigmoid(f, x),
    "logaddexp": lambda f, x, y: y + _softplus(f, x - y),
    "part_of": lambda f, x, y: _sigmoid(f, x - y),
}
"""Every function of the language, of tiles, and of the slopes of `**` and `logaddexp`."""
