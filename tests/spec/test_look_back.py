"""`prev` means states: those that its author would have written."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

from flagen.backends.signature import parameters
from flagen.describe import describe
from flagen.diagnostics import NOWHERE, SpecError
from flagen.spec import parse_spec
from flagen.spec.limits import MAX_LOOK_BACK
from flagen.spec.model import Spec
from flagen.spec.printer import to_source
from flagen.spec.usage import assignments

INPUTS = {"q": "[K]", "k": "[K]", "v": "[V]", "a": "[]"}
HEAD = """
flagen: 2
name: example
state: {{{state}}}
inputs: {{{inputs}}}
update:
{update}
output: {output}
"""


def spec_of(update: str, output: str = "o = S.T @ q", state: str = "S: [K, V]") -> Spec:
    return parse_spec(text_of(update, output, state))


def text_of(update: str, output: str = "o = S.T @ q", state: str = "S: [K, V]") -> str:
    """The text of a spec, with the inputs that it uses."""
    words = set(re.findall(r"[a-z]\w*", f"{update} {output}"))
    inputs = ", ".join(f"{name}: {dims}" for name, dims in INPUTS.items() if name in words)
    lines = "\n".join(f"  - {line}" for line in update.split("; "))
    return HEAD.format(state=state, inputs=inputs, update=lines, output=output)


def hidden(spec: Spec) -> dict[str, str]:
    """What each state that no one declared is before a token."""
    return {state.name: state.meaning for state in spec.states if state.meaning}


def written(spec: Spec) -> list[str]:
    return [f"{assign.target} = {to_source(assign.value)}" for assign in assignments(spec.update)]


def test_it_is_the_spec_with_the_states_written_out():
    short = spec_of("x = k + a * prev(k, 2) - prev(v @ v); S = S + outer(x, prev(v))", "o = S.T @ prev(k)")
    long = spec_of(
        "x = k + a * k_2_prev - x_1_prev; S = S + outer(x, v_1_prev); k_2 = k_1_prev; k_1 = k; x_1 = v @ v; v_1 = v",
        "o = S.T @ k_1_prev",
        "S: [K, V], k_1: [K], k_2: [K], x_1: [], v_1: [V]",
    )
    assert [replace(state, meaning="") for state in short.states] == list(long.states)
    assert written(short) == written(long)
    assert [to_source(assign.value) for assign in short.output] == [to_source(assign.value) for assign in long.output]
    assert (short.dims, short.axes) == (long.dims, long.axes)


@pytest.mark.parametrize(
    ("update", "output", "kept"),
    [
        ("S = S + outer(prev(k), v)", "o = S.T @ prev(k, 1)", {"k_1": "prev(k)"}),
        ("S = S + outer(prev(k, 2), v)", "o = S.T @ prev(k)", {"k_1": "prev(k)", "k_2": "prev(k, 2)"}),
        ("S = S + outer(prev(k), v)", "o = S.T @ prev(k, 2)", {"k_1": "prev(k)", "k_2": "prev(k, 2)"}),
        ("S = S + outer(prev(prev(k)), v)", "o = S.T @ q", {"k_1": "prev(k)", "k_2": "prev(k, 2)"}),
        (
            "S = S + outer(prev(prev(k), 2), v)",
            "o = S.T @ prev(prev(k, 2))",
            {"k_1": "prev(k)", "k_2": "prev(k, 2)", "k_3": "prev(k, 3)"},
        ),
        (
            "S = S + outer(prev(k * a) + prev(a * k), v)",
            "o = S.T @ prev(k*a)",
            {"x_1": "prev(k * a)", "x__1": "prev(a * k)"},
        ),
        (
            "S = S + outer(prev(q - prev(k)), v)",
            "o = S.T @ q",
            {"k_1": "prev(k)", "x_1": "prev(q - prev(k))"},
        ),
        ("u = 2 * k; S = S + outer(prev(u), v)", "o = S.T @ prev(u)", {"u_1": "prev(u)"}),
    ],
)
def test_what_is_alike_is_kept_once(update, output, kept):
    assert hidden(spec_of(update, output)) == kept


def test_names_of_the_spec_are_left_alone():
    """Those that are declared, and those of locals further on."""
    update = "k_1 = k; S = S + outer(prev(k) + prev(q), v); q_7 = 2 * k"
    spec = spec_of(update, "o = S.T @ (q_7 + k_1)", "k_1: [K], S: [K, V]")
    assert hidden(spec) == {"k__1": "prev(k)", "q__1": "prev(q)"}


def test_a_state_counts_as_it_is_at_the_end_of_the_token():
    spec = spec_of("u = prev(z); z = z + k; S = S + outer(u, v)", "o = S.T @ q", "z: [K], S: [K, V]")
    assert written(spec)[-1] == "z_1 = z"
    assert [assign.target for assign in assignments(spec.update)] == ["u", "z", "S", "z_1"]


def test_a_gate_may_scale_what_is_kept():
    text = text_of("S = S + beta * outer(prev(k), v)").replace("inputs: {", "inputs: {a: [], ")
    spec = parse_spec(text.replace("update:", "gate: {beta: sigmoid(a)}\nupdate:"))
    assert hidden(spec) == {"k_1": "prev(k)"}
    with pytest.raises(SpecError) as refused:
        parse_spec(text.replace("update:", "decay: {beta: sigmoid(a)}\nupdate:"))
    assert [found.code for found in refused.value.diagnostics] == ["E607"]


def test_explanations_and_docstrings_say_what_is_kept():
    spec = spec_of("S = S + outer(prev(k, 2), v)", "o = S.T @ prev(q)")
    assert "k_2  [K] per value head, starts at 0; before a token it is prev(k, 2)" in describe(spec)
    initial = next(parameter for parameter in parameters(spec) if parameter.name == "initial_state")
    assert "; the last 3 are what prev(k), prev(k, 2) and prev(q) are at the next token" in initial.doc
    one = next(p for p in parameters(spec_of("S = S + outer(prev(k), v)")) if p.name == "initial_state")
    assert "; the last one is what prev(k) is at the next token" in one.doc
    none = next(p for p in parameters(spec_of("S = S + outer(k, v)")) if p.name == "initial_state")
    assert "token" not in none.doc


def test_as_many_as_there_may_be():
    spec = spec_of(f"S = S + outer(prev(k, {MAX_LOOK_BACK}), v)")
    assert len(hidden(spec)) == MAX_LOOK_BACK
    with pytest.raises(SpecError) as refused:
        spec_of(f"S = S + outer(prev(k, {10**30}), v)")
    assert [found.code for found in refused.value.diagnostics] == ["E209"]


def test_each_of_them_has_its_place():
    spec = spec_of("S = S + outer(k, prev(v))")
    assert all(state.span != NOWHERE and state.span.line == 7 for state in spec.states if state.meaning)
