"""What counts as a decay and what as a gate: each is checked against what the update does with the name."""

from __future__ import annotations

import pytest

from flagen.spec import check_spec

SPEC = """
flagen: 1
name: roles
state: {{S: [K, V]}}
inputs: {{k: [K], v: [V], g: {{dims: [], range: [-.inf, 0]}}}}
{section}: {{a: exp(g)}}
update:
{update}
output: o = S.T @ k * norm(v) * a
"""

DECAYS = [
    "S = a * S + outer(k, v)",
    "S = S * a + outer(k, v)",
    "S = S / a",
    "S = -a * S",
    "S = S - a * S",
    "S = (1 - a) * S",
    "S = exp(-a) * S",
    "S = 2 ** a * S",
    "S = 2 * (a * S)",
    "S = a * tanh(S)",
    "S = tanh(a * S)",
    "S = (a * S.T).T",
    "S = (a * k) * S",
    "S = a * S_prev",
    "S = a * (S + outer(k, v))",
    "S = a * (S - outer(k, S.T @ k))",
    "S = a * (outer(k, v) - S)",
    "x = a * S; S = x + outer(k, v)",
    "x = 1 - a; S = x * S",
    "x = S + outer(k, v); S = a * x",
]
GATES = [
    "S = S + a * outer(k, v)",
    "S = S + outer(a * k, v)",
    "S = S + outer(k, a * v)",
    "S = S + outer(k, v) / a",
    "S = S + outer(k, (1 - a) * v)",
    "S = S + exp(a) * outer(k, v)",
    "S = S + outer(k, a * (v - S.T @ k))",
    "S = S + outer(k, v - S.T @ (a * k))",
    "S = S - outer(a * k, S.T @ k)",
    "S = a * (outer(k, v) - S) + S",
    "x = a * k; S = S + outer(x, v)",
    "x = outer(k, v); S = S + a * x",
    "x = (1 - a) * k; y = x * 2; S = S + outer(y, v)",
]
NEITHER = [
    "S = S + outer(k, v) + a",
    "S = S + outer(k, v - (a * S).T @ k)",
    "S = S + outer(k, v) + sum(a * S)",
    "x = (a * S).T @ k; S = S + outer(k, v - x)",
    "S = S ** a",
    "S = maximum(S, a)",
]


def codes(section: str, update: str) -> list[str]:
    statements = "\n".join(f"  - {statement}" for statement in update.split("; "))
    found = check_spec(SPEC.format(section=section, update=statements))[1]
    return [each.code for each in found if each.severity == "error"]


@pytest.mark.parametrize("update", DECAYS)
def test_a_decay_multiplies_a_state(update: str) -> None:
    assert codes("decay", update) == []


@pytest.mark.parametrize("update", GATES + NEITHER)
def test_what_multiplies_no_state_is_no_decay(update: str) -> None:
    both = {"S = a * (outer(k, v) - S) + S"}
    assert codes("decay", update) == ([] if update in both else ["E607"])


@pytest.mark.parametrize("update", GATES)
def test_a_gate_scales_a_write(update: str) -> None:
    assert codes("gate", update) == []


@pytest.mark.parametrize("update", DECAYS + NEITHER)
def test_what_scales_no_write_is_no_gate(update: str) -> None:
    both = {update for update in DECAYS if "a * (" in update and "outer" in update} | {"x = S + outer(k, v); S = a * x"}
    assert codes("gate", update) == ([] if update in both else ["E608"])


def test_a_name_counts_through_the_names_that_use_it() -> None:
    text = SPEC.format(section="decay", update="  - S = b * S + outer(k, v)").replace(
        "a: exp(g)", "a: exp(g), b: a / 2"
    )
    assert check_spec(text)[1] == ()
    assert [found.code for found in check_spec(text.replace("b * S", "S * 0.5 + b"))[1]] == ["E607", "E607"]
