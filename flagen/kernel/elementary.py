"""The functions of the language in exact arithmetic, with their true derivatives.

A kernel spells a derivative out, and rewrites functions where that is cheaper; the proof of kernels cannot take every
function for one nobody knows. So those that the table of functions says it of are made of three: an exponential, a
logarithm and a square root of rational numbers. Their values at a point are made up; what holds between them is what
holds between the true ones:

    exp(-x) = 1 / exp(x)    exp(log x) = x    (exp x)' = exp x    (log x)' = 1 / x    (sqrt x)' = 1 / (2 sqrt x)
"""

from __future__ import annotations

import math
from fractions import Fraction

from gmpy2 import mpq

from flagen.algebra.exact import ONE, ZERO, Dual, Oracle, Tangents, at_point, call, decimal
from flagen.functions import FUNCTIONS, operation
from flagen.spec.formulas import formula

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
        match function:
            case "exp":
                return self.exp(*args)
            case "log":
                return self.log(*args)
            case "sqrt":
                return self.sqrt(*args)
            case "power":
                return self.power(*args)
            case "infinite":
                return Dual(_INFINITE if args[0].value > 0 else -_INFINITE)
        row = operation(function)
        assert row is not None
        names = dict(zip(row.arguments, args, strict=True))
        definition = row.exact or (FUNCTIONS[function].definition if function in FUNCTIONS else "")
        if definition:
            return at_point(formula(definition), names, self)
        if function in FUNCTIONS and FUNCTIONS[function].rational:
            return call(function, args, self)
        return self._unknown(function, row.slopes, names)

    def _unknown(self, function: str, slopes: tuple[str, ...], names: dict[str, Dual]) -> Dual:
        """Of what nothing is known but its slopes."""
        value = self._ask((function, *(arg.value for arg in names.values())))
        result = Dual(value)
        there = {**{name: Dual(arg.value) for name, arg in names.items()}, "y": result}
        for arg, slope in zip(names.values(), slopes, strict=True):
            if arg.tangents:
                result = result + Dual(ZERO.value, _scaled(arg, at_point(formula(slope), there, self).value))
        return result

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
        fixed = exponent.value if not exponent.tangents else None
        if fixed is not None and fixed.denominator == 1 and abs(fixed) <= 16:
            result = ONE
            for _ in range(abs(int(fixed))):
                result = result * base
            return result if fixed >= 0 else ONE / result
        if fixed is not None and abs(fixed) == mpq(1, 2):
            root = self.sqrt(base)
            return root if fixed > 0 else ONE / root
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
