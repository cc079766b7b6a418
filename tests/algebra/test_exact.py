"""Exact arithmetic is arithmetic: expressions over rationals mean what they mean over floats, tangents are derivatives,
and what leaves the rationals is at least the same every time."""

from __future__ import annotations

import itertools
import math
import random
from fractions import Fraction

import pytest
import torch
from gmpy2 import mpq

from flagen.algebra.exact import Dual, Oracle, Scope, Tensor, evaluate, scalar
from flagen.spec.model import Binary, Call, Expr, Name, Number, RowMap, Spec
from tests.algebra.cases import recurrence
from tests.fuzz.interpreter import Scope as Floats

SIZES = {"K": 2, "V": 3, "M": 2}

RATIONAL = (
    "k + p",
    "k - 2 * p",
    "-k * p",
    "s * k / (1 + s * s)",
    "k / (r * r + 1)",
    "2 / 3 - k ** 3",
    "(1 + k * k) ** -2",
    "k ** 0",
    "X @ v",
    "v @ X.T",
    "(X.T @ k) @ X.T",
    "dot(k, p) * k",
    "sum(X, V)",
    "mean(X, V) * K",
    "sum(X) * k",
    "mean(X) * k",
    "sum(outer(k, v) * X, V)",
    "sum(v * X, V)",
    "mean(k * X, V)",
    "(outer(v, k) + X.T).T @ v",
    "abs(k) + sign(p)",
    "relu(k)",
    "minimum(k, p)",
    "maximum(k, s)",
    "clamp(k, -1, abs(s))",
    "fraction(3 * k) * floor(2 * p) + fraction(-s)",
    "outer(k, v) @ (XM @ x @ X)",
)


def expression(text: str) -> tuple[Spec, Expr]:
    """A spec that declares what `text` names, and `text` as an expression over K."""
    spec = recurrence(f"S = S + outer({text}, v) * dot(q, k)")
    (statement,) = spec.update
    return spec, statement.value.right.left.left


def point(spec: Spec, oracle: Oracle) -> dict[str, Tensor]:
    """Random rationals for every input, each with one direction of its own."""
    names = [decl.name for decl in spec.inputs]

    def number(place: int) -> Dual:
        tangents = tuple(oracle.rational() if p == place else mpq(0) for p in range(len(names)))
        return Dual(oracle.rational(), tangents)

    return {
        decl.name: Tensor(
            decl.dims, {index: number(place) for index in itertools.product(*(range(SIZES[d]) for d in decl.dims))}
        )
        for place, decl in enumerate(spec.inputs)
    }


def floats(tensor: Tensor, part: int | None = None) -> torch.Tensor:
    """The values of `tensor`, or (with `part`) its tangents along one direction, as [1, 1, *dims]."""
    sizes = [SIZES[dim] for dim in tensor.dims]
    values = [
        element.value if part is None else (*element.tangents, *[mpq(0)] * 20)[part] for element in tensor.data.values()
    ]
    return torch.tensor([float(value) for value in values], dtype=torch.float64).reshape(1, 1, *sizes)


@pytest.mark.parametrize("text", RATIONAL)
def test_values_and_derivatives(text):
    spec, expr = expression(text)
    oracle = Oracle(random.Random(text))
    exact = point(spec, oracle)
    found = evaluate(expr, Scope(exact, {}, SIZES, oracle))
    assert not oracle.known, "no function here leaves the rationals"

    sizes = {name: torch.full((1, 1), size, dtype=torch.float64) for name, size in SIZES.items()}
    names = [decl.name for decl in spec.inputs]

    def run(*values: torch.Tensor) -> torch.Tensor:
        return Floats({**sizes, **dict(zip(names, values, strict=True))}, {}, {}, (1, 1)).evaluate(expr)

    values = tuple(floats(exact[name]) for name in names)
    assert torch.allclose(floats(found), run(*values), rtol=1e-12, atol=1e-12)
    for place in range(len(names)):
        directions = tuple(floats(exact[name], place) for name in names)
        _, derivative = torch.autograd.functional.jvp(run, values, directions)
        assert torch.allclose(floats(found, place), derivative, rtol=1e-12, atol=1e-12)


def number(value: int | Fraction, *tangents: int) -> Dual:
    return Dual(mpq(value), tuple(mpq(t) for t in tangents))


def test_a_function_has_one_value_everywhere():
    oracle = Oracle(random.Random(0))
    values = [oracle("exp", (number(x),)).value for x in (1, 2, 1, 2, 3)]
    assert values[:2] == values[2:4]
    assert all(value > 0 for value in values)
    assert oracle("sigmoid", (number(1),)).value == oracle("sigmoid", (number(1),)).value


def test_exp_is_its_own_derivative():
    oracle = Oracle(random.Random(0))
    found = oracle("exp", (number(1, 3, 5),))
    assert found.tangents == (3 * found.value, 5 * found.value)


def test_other_functions_have_one_slope_everywhere():
    oracle = Oracle(random.Random(0))
    once, again = (oracle("logaddexp", (number(1, 1, 0), number(2, 0, 1))) for _ in range(2))
    assert once.tangents == again.tangents
    doubled = oracle("logaddexp", (number(1, 2, 0), number(2, 0, 2)))
    assert doubled.tangents == tuple(2 * t for t in once.tangents)


def test_softmax_sums_to_one_and_keeps_to_exp():
    oracle = Oracle(random.Random(0))
    k = Tensor(("K",), {(0,): number(1), (1,): number(2)})
    scope = Scope({"k": k}, {}, SIZES, oracle)
    name = Name("k", "input", ("K",))
    softmax = evaluate(RowMap("softmax", name), scope)
    exp = evaluate(Call("exp", (name,)), scope)
    assert sum(element.value for element in softmax.data.values()) == 1
    assert softmax.data[(0,)].value / softmax.data[(1,)].value == exp.data[(0,)].value / exp.data[(1,)].value


def test_l2norm_is_along_its_argument():
    oracle = Oracle(random.Random(0))
    k = Tensor(("K",), {(0,): number(1), (1,): number(-2)})
    normed = evaluate(RowMap("l2norm", Name("k", "input", ("K",))), Scope({"k": k}, {}, SIZES, oracle))
    assert normed.data[(1,)].value == -2 * normed.data[(0,)].value


def test_a_root_is_a_function_and_a_square_is_none():
    oracle = Oracle(random.Random(0))
    scope = Scope({"s": scalar(number(2))}, {}, SIZES, oracle)
    name = Name("s", "input")
    square, root, again = (
        evaluate(Binary("**", name, Number(Fraction(exponent))), scope).data[()].value
        for exponent in ("2", "1/2", "0.5")
    )
    assert square == 4
    assert root == again
    assert len(oracle.known) == 1


RANGES = [
    (-math.inf, math.inf),
    (-math.inf, 0.0),
    (0.0, math.inf),
    (0.0, 1.0),
    (-0.6065, 0.0),
    (2.0, 2.0),
    (-1e300, 1e300),
]


@pytest.mark.parametrize(("low", "high"), RANGES)
def test_a_random_rational_lies_inside_its_range(low, high):
    oracle = Oracle(random.Random(0))
    for _ in range(200):
        x = oracle.rational(low, high)
        assert low < x < high or x == low == high
        if math.isinf(high - low) or 0 < high - low <= 1:
            assert x.denominator != 1, "a spec's own constants are integers"
