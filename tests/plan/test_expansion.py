"""The plan of what has no kernels of its own: the rows of a token, one after another, and their recurrence."""

from __future__ import annotations

import re

import pytest

from flagen import algebra
from flagen.plan import Unavailable, make_plan
from flagen.plan.chunk import Count
from flagen.plan.chunk_kernel import ChunkKernelPlan
from flagen.plan.expansion import ExpandedPlan
from flagen.plan.key_kernel import KeyKernelPlan
from flagen.spec import parse_spec
from flagen.spec.printer import to_source

DECLARED = {
    "q": "[K]",
    "k": "[K]",
    "v": "{dims: [V], heads: HV}",
    "c": "[V]",
    "g": "{dims: [], range: [-1, 0]}",
    "gk": "{dims: [K], range: [-.inf, 0]}",
    "kj": "{dims: [K], per: step}",
    "vj": "{dims: [V], per: step}",
}
READ = "output: o = S.T @ q"


def planned(text: str) -> ExpandedPlan | Unavailable:
    """The plan of the spec that says `text` of its state `S`, over the inputs that it names."""
    used = {name: fields for name, fields in DECLARED.items() if re.search(rf"\b{name}\b", text)}
    inputs = ", ".join(f"{name}: {fields}" for name, fields in used.items())
    spec = parse_spec(f"flagen: 1\nname: example\nstate: {{S: [K, V]}}\ninputs: {{{inputs}}}\n{text}\n")
    plan = make_plan(spec, algebra.derive(spec)).chunk_kernel
    assert isinstance(plan, ExpandedPlan | Unavailable), plan
    return plan


def expanded(text: str) -> ExpandedPlan:
    plan = planned(text)
    assert isinstance(plan, ExpandedPlan), plan
    return plan


def rows_of(plan: ExpandedPlan) -> list[str]:
    return [line.strip() for line in plan.dump().split("\n") if line.startswith("    row")]


def test_unlike_rows_of_a_token_come_one_after_another():
    plan = expanded(f"update:\n  - S = exp(gk) * S\n  - S = S + outer(k, v)\n  - S = S + outer(q, c - S.T @ q)\n{READ}")
    assert rows_of(plan) == ["row: g = gk, k = k, v = v", "row: w = q, y = -q, z = c, q = q"]
    assert plan.rows == Count(2)
    assert plan.reads == (("read0", Count(1)),)
    assert isinstance(plan.kernels, KeyKernelPlan)


def test_writes_of_one_statement_are_rows_of_their_own():
    plan = expanded(f"update: S = exp(g) * S + outer(k, v) + outer(q, v * c)\n{READ}")
    assert rows_of(plan) == ["row: g = g, k = k, v = v", "row: k = q, v = v * c, q = q"]
    assert isinstance(plan.kernels, ChunkKernelPlan)
    assert sorted(plan.names) == ["g", "k", "q", "v"]


def test_each_read_follows_a_row_and_shares_it_with_no_other():
    plan = expanded("update: S = S + outer(k, v)\noutput: o = S.T @ q + S.T @ k + S_prev.T @ q + S_prev.T @ k")
    asked = [row.rpartition("q = ")[2] for row in rows_of(plan)]
    assert [plan.reads[at][1] for at in range(4)] == [Count(0), Count(1), Count(2), Count(3)]
    assert sorted(asked[:2]) == sorted(asked[2:]) == ["k", "q"]
    assert rows_of(plan)[2].startswith("row: k = k, v = v, q = ")


def test_a_read_between_a_decay_and_its_rows_comes_before_both():
    update = "update:\n  - S = exp(gk) * S\n  - u = S.T @ q\n  - S = S + outer(k, v)\n"
    plan = expanded(f"{update}output: o = u + S.T @ q")
    first, second = rows_of(plan)
    assert first == "row: q = exp(gk) * q"
    assert second == "row: g = gk, k = k, v = v, q = q"


def test_what_is_read_from_the_right_after_a_decay_decays_itself():
    update = "update:\n  - S = exp(gk) * S\n  - u = S @ c\n  - S = S + outer(k, v)\n"
    plan = expanded(f"{update}output: o = u + S @ v")
    assert rows_of(plan)[0] == "row: q = c"
    assert "exp(gk) * read" in to_source(plan.normal_form.output)
    assert plan.kernels.right


def test_the_rows_of_micro_steps_stay_repeated():
    plan = expanded(
        f"steps: {{n: count, default: 2}}\nupdate:\n  - S = exp(gk) * S\n  - repeat: n\n    do:\n"
        f"      - S = S + outer(kj, vj - S.T @ kj)\n{READ}"
    )
    assert rows_of(plan) == ["row, n times: w = kj, y = -kj, z = vj", "row: q = q"]
    assert plan.rows == Count(1, 1)
    assert plan.reads == (("read0", Count(0, 1)),)


@pytest.mark.parametrize(
    ("decay", "low"), [("gk", float("-inf")), ("0.5 * g", -0.5)], ids=["by key, unbounded", "a bounded number"]
)
def test_the_decay_of_the_rows_has_the_range_of_the_spec_s(decay, low):
    plan = expanded(f"update: S = exp({decay}) * S + outer(k, l2norm(v))\n{READ} + c * sum(gk)")
    (log_decay,) = (decl for decl in plan.kernels.spec.inputs if decl.name == plan.names["g"])
    assert (log_decay.range.low, log_decay.range.high) == (low, 0.0)


def test_roles_have_names_that_no_dim_has():
    spec = parse_spec(
        "flagen: 1\nname: example\nstate: {Z: [k, S]}\ninputs: {x: [k], v: [S]}\n"
        "update: Z = Z + outer(x, l2norm(v))\noutput: o = Z.T @ x\n"
    )
    plan = make_plan(spec, algebra.derive(spec)).chunk_kernel
    assert isinstance(plan, ExpandedPlan)
    assert plan.names == {"q": "q", "k": "k_2", "v": "v"}
    assert plan.kernels.spec.states[0].name == "S_2"


@pytest.mark.parametrize(
    ("rest", "reason"),
    [
        ("update: S = S + outer(k, v)\noutput: o = (S.T @ q) * sum(S @ c)", "from both sides"),
        (f"update: S = S + outer(k, v - S.T @ k) - outer(q, S.T @ q)\n{READ}", "two erasures of one micro-step"),
    ],
)
def test_what_is_no_sequence_of_rows_says_why(rest, reason):
    plan = planned(rest)
    assert isinstance(plan, Unavailable)
    assert reason in plan.reason
    assert plan.span.line > 0


def test_the_recurrence_of_the_rows_is_proved_like_any_other():
    plan = expanded(f"update: S = exp(gk) * S + outer(k, l2norm(v) - S_prev.T @ k) + outer(q, c)\n{READ}")
    algebra.prove(plan.kernels.spec, algebra.derive(plan.kernels.spec))
