"""Intervals: nothing that an expression can be lies outside them, and the ones that decisions rest on are tight."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from flagen.spec import interval_of
from flagen.spec.model import Expr, Interval
from tests.spec.test_expressions import parsed
from tests.spec.trees import DECLARED, ONE_ARGUMENT, SIZES, TWO_ARGUMENTS, evaluate, expressions, points
from tests.tiers import examples

INFINITE = math.inf


@st.composite
def intervals(draw: st.DrawFn) -> Interval:
    # Adding zero turns a negative zero into the other one.
    ends = sorted(end + 0.0 for end in draw(st.tuples(st.floats(-20, 20), st.floats(-20, 20))))
    low = -INFINITE if draw(st.booleans()) else ends[0]
    return Interval(low, INFINITE if draw(st.booleans()) else ends[1])


@examples(250)
@given(st.data(), st.one_of(expressions(()), expressions(("K",)), expressions(("K", "V"))))
def test_no_value_lies_outside_its_interval(data: st.DataObject, expr: Expr) -> None:
    ranges = {name: data.draw(intervals()) for name, (kind, _) in DECLARED.items() if kind != "dim"}
    values = {name: np.asarray(float(size)) for name, size in SIZES.items()} | {"head": np.asarray(1.0)}
    for name, (kind, dims) in DECLARED.items():
        if kind == "dim":
            continue
        for key in (name, f"{name}_prev"):
            shape = [SIZES[dim] for dim in dims]
            count = math.prod(shape)
            drawn = data.draw(st.lists(points(ranges[name]), min_size=count, max_size=count))
            values[key] = np.asarray(drawn).reshape(shape)
    with np.errstate(all="ignore"):
        value = evaluate(expr, values)
    # An operand beyond what float64 holds says nothing about the real numbers.
    assume(np.isfinite(value).all())
    interval = interval_of(expr, ranges)
    slack = 1e-9 * max(1.0, float(np.abs(value).max()))
    assert interval.low - slack <= value.min() and value.max() <= interval.high + slack, str(interval)


@pytest.mark.parametrize(
    ("text", "beta", "low", "high"),
    [
        ("exp(beta)", (-INFINITE, 0), 0, 1),
        ("exp(beta)", (-5, 0), math.exp(-5), 1),
        ("exp(beta)", (-INFINITE, INFINITE), 0, INFINITE),
        ("1 - exp(beta)", (-INFINITE, 0), 0, 1),
        ("1 - 2 ** (-5 - head)", (0, 0), 1 - 2**-5, 1),
        ("-exp(x) * softplus(beta)", (-INFINITE, INFINITE), -INFINITE, 0),
        ("exp(-exp(x) * softplus(beta))", (-INFINITE, INFINITE), 0, 1),
        ("sigmoid(beta)", (-INFINITE, INFINITE), 0, 1),
        ("2 * sigmoid(beta)", (-INFINITE, 0), 0, 1),
        ("sign(beta)", (-1, 0), -1, 0),
        ("sign(beta)", (0, 1), 0, 1),
        ("tanh(beta)", (-INFINITE, INFINITE), -1, 1),
        ("logsigmoid(beta)", (-INFINITE, INFINITE), -INFINITE, 0),
        ("0 * beta", (-INFINITE, INFINITE), 0, 0),
        ("beta * x * 0", (0, INFINITE), 0, 0),
        ("K ** -0.5", (0, 0), 0, 1),
        ("1 / (1 + abs(beta))", (-INFINITE, INFINITE), 0, 1),
        ("beta ** 2", (-3, 2), 0, 9),
        ("beta ** 3", (-3, 2), -27, 8),
        ("beta ** -1", (2, 4), 0.25, 0.5),
        ("beta ** -2", (-4, -2), 1 / 16, 1 / 4),
        ("1 / beta", (-1, 1), -INFINITE, INFINITE),
        ("1 / beta", (0, 1), 1, INFINITE),
        ("sqrt(beta)", (-4, 4), 0, 2),
        ("log(beta)", (0, 1), -INFINITE, 0),
        ("clamp(beta, -1, 1)", (-INFINITE, INFINITE), -1, 1),
        ("minimum(beta, 1)", (0, INFINITE), 0, 1),
        ("silu(beta)", (-INFINITE, INFINITE), -0.2784645427610738, INFINITE),
        ("logaddexp(beta, beta)", (-INFINITE, 0), -INFINITE, math.log(2)),
        ("dot(k, k)", (0, 0), 0, INFINITE),
        ("dot(exp(k), -exp(q))", (0, 0), -INFINITE, 0),
        ("outer(exp(k), -exp(v))", (0, 0), -INFINITE, 0),
        ("sum(k * k)", (0, 0), 0, INFINITE),
        ("sum(beta * l2norm(k))", (0, 0), 0, 0),
        ("norm(S)", (0, 0), 0, INFINITE),
        ("mean(k * 0 + beta)", (2, 3), 2, 3),
        ("softmax(k)", (0, 0), 0, 1),
        ("l2norm(k)", (0, 0), -1, 1),
        ("l2norm(exp(k))", (0, 0), 0, 1),
        ("beta - beta", (0, 1), -1, 1),
        ("beta / (beta + exp(x))", (0, INFINITE), 0, 1),
        ("beta / (exp(x) + (1 + beta))", (0, 4), 0, 0.8),
        ("3 * beta / (beta + exp(x))", (0, INFINITE), 0, 3),
        ("1 - beta / (beta + 1)", (-INFINITE, INFINITE), -INFINITE, INFINITE),
        ("beta / (beta - exp(x))", (-INFINITE, 0), 0, INFINITE),
        ("beta / (beta + -exp(x))", (-INFINITE, 0), 0, 1),
        ("beta / maximum(exp(x), beta)", (0, INFINITE), 0, 1),
        ("beta / maximum(x, beta)", (-1, INFINITE), -INFINITE, INFINITE),
        ("exp(beta - logaddexp(beta, x))", (-INFINITE, INFINITE), 0, 1),
        ("minimum(x, beta) - beta", (-INFINITE, INFINITE), -INFINITE, 0),
        ("beta - minimum(x, beta)", (-INFINITE, INFINITE), -INFINITE, INFINITE),
        ("beta - abs(beta)", (-INFINITE, INFINITE), -INFINITE, 0),
        ("exp(1000 * beta)", (1, 2), 1.7976931348623157e308, INFINITE),
        ("exp(-1000 * beta)", (1, 2), 0, 5e-324),
    ],
)
def test_intervals_of_the_fields_expressions(text: str, beta: tuple[float, float], low: float, high: float) -> None:
    interval = interval_of(parsed(text), {"beta": Interval(*beta)})
    assert (interval.low, interval.high) == (low, high)


RELATED = [
    *("beta / (beta + x)", "x * beta / (beta + x)", "beta / (1 + x + beta)", "beta / maximum(beta, x)"),
    *("beta - maximum(x, beta)", "minimum(beta, x) - x", "beta - softplus(beta)", "beta / logaddexp(beta, x)"),
]


@pytest.mark.parametrize("text", RELATED)
def test_what_both_sides_have_in_common_is_used_where_it_holds(text: str) -> None:
    """On a grid over every pair of small ranges, whatever their signs."""
    expr = parsed(text)
    grid = [-2.0, -1.0, -0.25, 0.0, 0.25, 1.0, 2.0]
    with np.errstate(all="ignore"):
        values = {
            (beta, x): float(evaluate(expr, {"beta": np.asarray(beta), "x": np.asarray(x)}))
            for beta in grid
            for x in grid
        }
    short = [Interval(low, high) for low in grid[::2] for high in grid if low <= high]
    for beta in short:
        for x in short:
            found = interval_of(expr, {"beta": beta, "x": x})
            for (first, second), value in values.items():
                inside = beta.low <= first <= beta.high and x.low <= second <= x.high
                assert not inside or not math.isfinite(value) or found.low - 1e-12 <= value <= found.high + 1e-12


def test_a_name_is_what_it_is_defined_to_be() -> None:
    share, whole = parsed("beta / x"), parsed("exp(-head) + beta")
    ranges = {"beta": Interval(0, 1), "x": interval_of(whole, {"beta": Interval(0, 1)})}
    assert interval_of(share, ranges).high == INFINITE
    assert interval_of(share, ranges, {"x": whole}) == Interval(0, 1)


def test_a_size_and_a_head_have_their_ranges_and_a_state_any_value() -> None:
    assert interval_of(parsed("HV"), {}) == Interval(1, INFINITE)
    assert interval_of(parsed("head"), {}) == Interval(0, INFINITE)
    assert interval_of(parsed("S"), {}) == Interval()
    assert interval_of(parsed("S_prev"), {"S": Interval(0, 1)}) == Interval(0, 1)


ENDS = (-INFINITE, -1e300, -2.5, -2.0, -1.0, -0.0, 0.0, 5e-324, 1.0, 2.0, 1e300, INFINITE)
SHORT = [Interval(low, high) for low in ENDS for high in ENDS if low <= high]


@pytest.mark.parametrize("text", [*(f"{name}(beta)" for name in ONE_ARGUMENT), "-beta", "beta * beta", "1 / beta"])
def test_no_range_of_one_argument_is_too_strange(text: str) -> None:
    expr = parsed(text)
    for interval in SHORT:
        found = interval_of(expr, {"beta": interval})
        assert found.low <= found.high, interval


@pytest.mark.parametrize(
    "text",
    [
        *(f"beta {operator} x" for operator in ("+", "-", "*", "/", "**")),
        *(f"{name}(beta, x)" for name in TWO_ARGUMENTS),
        "clamp(1, beta, x)",
        "sum(beta * k) * x",
        "mean(beta * k) * x",
        "norm(beta * k) * x",
    ],
)
def test_no_ranges_of_two_arguments_are_too_strange(text: str) -> None:
    expr = parsed(text)
    for beta in SHORT:
        for x in SHORT:
            found = interval_of(expr, {"beta": beta, "x": x})
            assert found.low <= found.high, (beta, x)
