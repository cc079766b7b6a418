"""What must be masked, and what need not be: padding never leaks, and no mask is put where none is wanted."""

from __future__ import annotations

import pytest

from flagen.plan.fused import FusedPlan, plan_fused_recurrent
from flagen.plan.schedule import Set
from flagen.plan.show import show
from flagen.spec import parse_spec

HEADER = """\
flagen: 1
name: example
state: {S: [K, V], z: {dims: [K], init: %s}}
inputs:
  q: [K]
  k: [K]
  v: {dims: [V], heads: HV}
  g: {dims: [K], heads: HV, range: [-.inf, 0]}
  c: {dims: [], heads: HV}
  l: {dims: [], heads: HV, range: [-.inf, 0]}
"""


def planned(value: str, *, S: str = "exp(g) * S + outer(k, v)", z: str = "exp(g) * z + k", init: str = "0") -> str:
    """How `value`, a scalar or a [V] in the output of a spec with these updates, is evaluated."""
    used = "0 * outer(q * z, (c + exp(l)) * v)"  # A name that nothing uses is an error.
    text = (
        f"{HEADER % init}update:\n  - z = {z}\n  - S = {S} + {used}\noutput:\n  - e = {value}\n  - o = (S.T @ q) * e\n"
    )
    plan = plan_fused_recurrent(parse_spec(text))
    assert isinstance(plan, FusedPlan)
    return next(show(a.value) for a in plan.schedule.token if isinstance(a, Set) and a.target == "e")


@pytest.mark.parametrize(
    "value",
    [
        "S.T @ q",
        "S.T @ (exp(g) * k)",
        "sum(S, K)",
        "sum(S)",
        "dot(q, k)",
        "S.T @ l2norm(q)",
        "S.T @ (1 - exp(g))",
        "S.T @ (tanh(k) + silu(q) - relu(k) + log1p(q) * expm1(k) + sqrt(k) + abs(k) + sign(q))",
        "S.T @ (k / K + c * q)",
        "S.T @ (q ** 2)",
        "mean(z)",
        "sum(exp(g) * z)",
        "sum(clamp(k, -1, 1) + minimum(k, 1) + maximum(q, -2))",
        "norm(k)",
        "S.T @ (q * (0.3 + sigmoid(z)))",
    ],
)
def test_a_certain_zero_is_not_masked(value: str) -> None:
    assert "where" not in planned(value)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("sum(exp(g))", "sum_K(where_K(exp(g), else 0))"),
        ("sum(k + 1)", "sum_K(where_K(k + 1, else 0))"),
        ("sum(sigmoid(k))", "sum_K(where_K(sigmoid(k), else 0))"),
        ("norm(log(k))", "sqrt(sum_K(where_K(square(log(k)), else 0)))"),
        ("S.T @ (1 / k)", "sum_K(where_K(S * (1 / k), else 0))"),
        ("S.T @ log(q)", "sum_K(where_K(S * log(q), else 0))"),
        ("S.T @ exp(k - z)", "sum_K(S * exp(k - z))"),
        ("S.T @ exp(c * k)", "sum_K(S * exp(c * k))"),
        ("S.T @ (q / c)", "sum_K(where_K(S * (q / c), else 0))"),
        ("S.T @ (q * l)", "l * sum_K(S * q)"),
        ("S.T @ softmax(q)", "sum_K(S * softmax(where_K(q, else -inf)))"),
        ("l2norm(q + 1) @ S", "sum_K(l2norm(where_K(q + 1, else 0)) * S)"),
        ("exp(S).T @ q", "sum_K(exp(S) * q)"),
        ("log(S).T @ exp(q)", "sum_K(where_K(log(S) * exp(q), else 0))"),
        ("sum(softplus(S), K)", "sum_K(where_K(softplus(S), else 0))"),
    ],
)
def test_what_could_leak_is_masked_at_the_sum(value: str, text: str) -> None:
    assert planned(value) == text


def test_a_state_is_trusted_only_while_no_statement_changes_its_padding() -> None:
    assert planned("sum(z)") == "sum_K(z)"
    assert planned("sum(z)", z="exp(g) * z + 1") == "sum_K(where_K(z, else 0))"
    assert planned("dot(z, q)", z="exp(g) * z + 1") == "sum_K(where_K(z * q, else 0))"
    # One matrix may overflow in its padding, and a zero times an infinity is no zero.
    assert planned("S.T @ q", S="exp(g) * S + outer(exp(k), v)") == "sum_K(where_K(S * q, else 0))"


def test_minus_infinity_stays_minus_infinity_under_sums_and_is_masked_under_products() -> None:
    assert planned("sum(exp(z))", z="z + k", init="-.inf") == "sum_K(exp(z))"
    assert planned("dot(z, q)", z="z + k", init="-.inf") == "sum_K(where_K(z * q, else 0))"
    assert planned("dot(q, softmax(z))", z="z + k", init="-.inf") == "sum_K(q * softmax(z))"
    assert planned("sum(exp(z))", z="logaddexp(z, k)", init="-.inf") == "sum_K(where_K(exp(z), else 0))"


def test_a_legal_infinity_of_the_data_is_no_zero_when_padding_is_multiplied_by_it() -> None:
    assert planned("sum(k * log(abs(c)))") == "log(abs(c)) * sum_K(k)"
    assert planned("sum(exp(k * l) - 1)") == "sum_K(where_K(exp(k * l) - 1, else 0))"
    assert planned("sum(exp(k * c) - 1)") == "sum_K(exp(k * c) - 1)"
    assert planned("sum(exp(k * exp(l)) - 1)") == "sum_K(exp(k * exp(l)) - 1)"


def test_both_paddings_of_a_matrix_are_followed_and_their_corner_too() -> None:
    # S is 0 in both paddings; S + 1 is 1; the sum over K leaves the padding of V to the second sum.
    assert planned("sum(S + 1)") == "sum_V(where_V(sum_K(where_K(S + 1, else 0)), else 0))"
    assert planned("sum(outer(k, exp(v)))") == "sum_K(k) * sum_V(where_V(exp(v), else 0))"
    assert planned("sum(S * outer(k, log(v)))") == "sum_V(where_V(log(v) * sum_K(S * k), else 0))"


def test_the_padding_of_a_matrix_product_is_masked_on_both_sides() -> None:
    text = (
        "flagen: 1\nname: example\nstate: {S: [K, V], R: [V, P]}\ninputs: {q: [K], v: [V], p: [P]}\n"
        "update:\n  - S = S + outer(q, v)\n  - R = R + outer(v, p)\noutput: o = (%s).T @ q\n"
    )

    def product(value: str) -> str:
        plan = plan_fused_recurrent(parse_spec(text % value))
        assert isinstance(plan, FusedPlan)
        return next(show(a.value) for a in plan.schedule.token if isinstance(a, Set) and a.target == "o")

    assert product("S @ R") == "sum_K(matmul_V(S, R) * q)"
    assert product("S @ exp(R)") == "sum_K(matmul_V(S, exp(R)) * q)"
    assert product("exp(S) @ exp(R)") == "sum_K(matmul_V(where_V(exp(S), else 0), where_V(exp(R), else 0)) * q)"
