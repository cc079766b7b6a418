"""The functions of the language in floating point of ninety digits.

In exact arithmetic a function's values are made up, and not all that holds between functions can be made to hold
between those: a kernel may use what the made-up ones do not have. Where the two differ, this decides: here everything
holds that does, but for the last digits.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property

import gmpy2
from gmpy2 import mpq

from flagen.algebra.exact import Dual
from flagen.kernel.elementary import Elementary, number, scaled
from flagen.kernel.elements import Element

_BITS, _SAME = 320, 200
"""Of numbers, and how many of those of a result have to be right: what is left is for sums that cancel."""


@contextmanager
def precision() -> Iterator[None]:
    """Numbers of as many digits meanwhile."""
    with gmpy2.context(gmpy2.get_context(), precision=_BITS):
        yield


@dataclass
class Precise(Elementary):
    """True values and derivatives; the logarithm of a constant is the float that a planner folds into a kernel."""

    def same(self, x: Element, y: Element) -> bool:
        return bool(abs(x - y) <= mpq(1, 1 << _SAME) * max(1, abs(x), abs(y)))

    def rational(self, low: float = -math.inf, high: float = math.inf) -> mpq:
        """No two are the same: the maximum of equal numbers has two derivatives."""
        one = other = super().rational(low, high)
        while other == one:
            other = super().rational(low, high)
        return one + (other - one) * mpq(self.random.randint(1, 10**6), 10**6 + 3)

    @property
    def log2_e(self) -> Element:
        return 1 / gmpy2.log(gmpy2.mpfr(2))

    def __call__(self, function: str, args: tuple[Dual, ...]) -> Dual:
        if function not in ("cos", "sin"):
            return super().__call__(function, args)
        (x,) = args
        sin, cos = gmpy2.sin_cos(gmpy2.mpfr(x.value))
        return Dual(cos, scaled(x, -sin)) if function == "cos" else Dual(sin, scaled(x, cos))

    def exp(self, x: Dual) -> Dual:
        value = self._exponential(x.value)
        return Dual(value, scaled(x, value))

    def log(self, x: Dual) -> Dual:
        if x.value <= 0:
            raise ZeroDivisionError("the logarithm of what is not positive")
        rounded = self._logarithms.get(x.value, number(math.log(2)) if x.value == 2 else None)
        value = gmpy2.log(gmpy2.mpfr(x.value)) if rounded is None else rounded
        return Dual(value, scaled(x, 1 / x.value))

    @cached_property
    def _logarithms(self) -> Mapping[mpq, mpq]:
        """Of constants those that kernels have."""
        return {**{base: number(math.log(base)) for base in self.bases}, **self.constants}

    def sqrt(self, x: Dual) -> Dual:
        if x.value <= 0:
            raise ZeroDivisionError("the root of what is not positive")
        value = gmpy2.sqrt(gmpy2.mpfr(x.value))
        return Dual(value, scaled(x, 1 / (2 * value)))

    def _exponential(self, x: Element) -> Element:
        """A whole power of a constant as such, though its logarithm is rounded: nobody else rounds that."""
        for base, log in self._logarithms.items():
            n = x / log if log else 0
            if n and abs(n) < 2**30 and abs(n - round(n)) <= mpq(1, 1 << _SAME):
                return gmpy2.mpfr(base) ** round(n)
        return gmpy2.exp(gmpy2.mpfr(x))

    def _power(self, base: Element, n: Element) -> Element:
        if base == 0:
            if n > 0:
                return mpq(0)
            raise ZeroDivisionError("a power of zero")
        if n == int(n):
            return gmpy2.mpfr(base) ** int(n)
        if base == 2 and self.constants:
            return self._exponential(n * gmpy2.log(gmpy2.mpfr(2)))
        if base in self.bases:
            return self._exponential(n * number(math.log(base)))
        if base < 0:
            raise ZeroDivisionError("a root of what is negative")
        return gmpy2.mpfr(base) ** gmpy2.mpfr(n)
