"""Values of functions in many digits are the true ones, and so are their derivatives."""

from __future__ import annotations

import math
import random

import gmpy2
import pytest
from gmpy2 import mpq

from flagen.algebra.exact import Dual
from flagen.kernel.precise import Precise, precision

X = mpq(-35, 12)


@pytest.mark.parametrize(
    ("function", "value", "slope"),
    [
        ("cos", math.cos(X), -math.sin(X)),
        ("sin", math.sin(X), math.cos(X)),
        ("exp", math.exp(X), math.exp(X)),
        ("tanh", math.tanh(X), 1 - math.tanh(X) ** 2),
        ("floor", -3, 0),
        ("fraction", 1 / 12, 1),
    ],
)
def test_functions_and_their_slopes(function: str, value: float, slope: float) -> None:
    with precision():
        found = Precise(random.Random(0))(function, (Dual(X, (mpq(1), mpq(0))),))
        assert float(found.value) == pytest.approx(value, rel=1e-15)
        assert [float(tangent) for tangent in found.tangents or (0, 0)] == pytest.approx([slope, 0], rel=1e-14)


def test_sine_and_cosine_have_all_digits() -> None:
    with precision():
        functions = Precise(random.Random(0))
        cos, sin = (functions(name, (Dual(X),)).value for name in ("cos", "sin"))
        assert functions.same(cos * cos + sin * sin, gmpy2.mpfr(1))
        assert not functions.same(cos * cos + sin * sin, gmpy2.mpfr(1) + mpq(1, 1 << 150))
