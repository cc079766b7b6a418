"""The functions of the language in exact arithmetic, with their true derivatives.

A kernel spells a derivative out, and rewrites functions where that is cheaper; the proof of kernels cannot take every
function for one nobody knows. So those that the table of functions says it of are made of three: an exponential, a
logarithm and a square root of rational numbers. Their values at a point are made up; what holds between them is what
holds between the true ones:

    exp(-x) = 1 / exp(x)    exp(log x) = x    (exp x)' = exp x    (log x)' = 1 / x    (sqrt x)' = 1 / (2 sqrt x)
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
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


_LARGEST_POWER, _LARGEST_DENOMINATOR = 64, 10**5
_HALVINGS, _DOUBLINGS = 2, 3
"""How often an argument of an exponential is halved, or doubled, so that its value is still a root, or a square."""


@dataclass
class Elementary(Oracle):
    """Values and derivatives of functions at the points at which it is asked, the same every time.

    bases: the constants of which a spec has powers: kernels take exponentials of their logarithms.
    constants: all that a spec has, and may decay a state by, with their logarithms, which kernels over chunks add up.
    """

    bases: tuple[mpq, ...] = ()
    constants: Mapping[mpq, mpq] = field(default_factory=dict)

    def same(self, x: mpq, y: mpq) -> bool:
        """Whether two results are one."""
        return bool(x == y)

    @property
    def log2_e(self) -> mpq:
        """The factor between `exp` and `exp2`."""
        return 1 / self.log(Dual(mpq(2))).value

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
            # What turns by an angle and back is as it was.
            case "cos" if args[0].value < 0:
                return self("cos", (-args[0],))
            case "sin" if args[0].value < 0:
                return -self("sin", (-args[0],))
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
                result = result + Dual(ZERO.value, scaled(arg, at_point(formula(slope), there, self).value))
        return result

    def exp(self, x: Dual) -> Dual:
        value = self._exponential(x.value)
        return Dual(value, scaled(x, value))

    def log(self, x: Dual) -> Dual:
        if x.value == 0:
            raise ZeroDivisionError("the logarithm of zero")
        question = ("log", x.value)
        if question not in self.known:
            self._remember(self._logarithm(x.value), x.value)
        return Dual(self.known[question], scaled(x, 1 / x.value))

    def _logarithm(self, x: mpq) -> mpq:
        """What a planner folds into a kernel is a float: the logarithm of a constant is that float. Where numbers that
        differ have one float, it is that of the first."""
        if x == 1:
            return ZERO.value
        rounded = number(math.log(x)) if x > 0 else ZERO.value
        return self._new() if rounded == 0 or ("exp", rounded) in self.known else rounded

    def sqrt(self, x: Dual) -> Dual:
        value = self._root(x.value, mpq(1, 2))
        return Dual(value, scaled(x, 1 / (2 * value)))

    def power(self, base: Dual, exponent: Dual) -> Dual:
        """Whole powers as such, times a root that nobody knows: so the slope is `n * power(x, n - 1)`."""
        b, n = base.value, exponent.value
        if abs(n) == mpq(1, 2) and not exponent.tangents:
            root = self.sqrt(base)
            return root if n > 0 else ONE / root
        value = self._power(b, n)
        result = Dual(value, scaled(base, n * self._power(b, n - 1))) if base.tangents else Dual(value)
        if exponent.tangents:
            result = result + Dual(ZERO.value, scaled(exponent, value * self.log(Dual(b)).value))
        return result

    def _power(self, base: mpq, n: mpq) -> mpq:
        if base == 0:
            if n > 0:
                return ZERO.value
            raise ZeroDivisionError("a power of zero")
        whole = n.numerator // n.denominator
        if abs(whole) > _LARGEST_POWER:  # It would have too many digits.
            return self._ask(("power", base, n))
        return base**whole * self._root(base, n - whole)

    def _root(self, base: mpq, fraction: mpq) -> mpq:
        """`base` to the power of a fraction; what it is times that of the rest is `base`."""
        if fraction == 0:
            return ONE.value
        if fraction > mpq(1, 2):
            return base / self._root(base, 1 - fraction)
        logarithm = self.known.get(("log", base), ZERO.value)
        if fraction == mpq(1, 2) and ("root of exp", _odd(logarithm)[0]) in self.known:
            return self._exponential(logarithm / 2)
        return self._ask(("root", base, fraction))

    def _exponential(self, x: mpq) -> mpq:
        if x == 0:
            return ONE.value
        if ("exp", x) not in self.known:
            powers = ((base, x / self.log(Dual(base)).value) for base in self.bases)
            found = next((self._power(b, n) for b, n in powers if n.denominator <= _LARGEST_DENOMINATOR), None)
            self._remember(x, self._of_root(x) if found is None else found)
        return self.known["exp", x]

    def _of_root(self, x: mpq) -> mpq:
        """An exponential of which those of `x / 2` and `2 * x` are the root and the square: `sqrt(exp(x))` is one."""
        if x < 0:
            return 1 / self._exponential(-x)
        odd, twos = _odd(x)
        if not -_HALVINGS <= twos <= _DOUBLINGS:
            odd, twos = x, 0
        root = self.known.get(("root of exp", odd))
        if root is None:
            root = self.known["root of exp", odd] = self._new_root()
        return root ** (1 << (twos + _HALVINGS))

    def _remember(self, logarithm: mpq, value: mpq) -> None:
        for sign, power in ((1, value), (-1, 1 / value)):
            self.known["exp", sign * logarithm], self.known["log", power] = power, sign * logarithm

    def _drawn(self, prime: int) -> mpq:
        """A number below 1; with a larger denominator, where many of the small ones have been taken."""
        denominator = prime if len(self.known) < prime else 1_000_003
        return mpq(self.random.randint(1, denominator - 1), denominator)

    def _new(self) -> mpq:
        """A positive number of which nobody has asked for the exponential, nor for that of its negative."""
        while True:
            x = self._drawn(9973)
            if all(("exp", other) not in self.known for other in (x, -x)):
                return x

    def _new_root(self) -> mpq:
        """A positive number with whose powers nobody has anything to do."""
        while True:
            x = self._drawn(997)
            powers = (x ** (1 << n) for n in range(_HALVINGS + 1))
            if all(("log", other) not in self.known for power in powers for other in (power, 1 / power)):
                return x


def scaled(x: Dual, slope: mpq) -> Tangents:
    return tuple(slope * tangent for tangent in x.tangents)


def _odd(x: mpq) -> tuple[mpq, int]:
    """`x` without its factors of two, and how many there are; fewer than none where it is divided by them."""
    numerator, denominator = int(abs(x.numerator)), int(x.denominator)
    up = (numerator & -numerator).bit_length() - 1 if numerator else 0
    down = (denominator & -denominator).bit_length() - 1
    return mpq(numerator >> up, denominator >> down), up - down
