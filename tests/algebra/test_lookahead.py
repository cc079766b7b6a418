"""Rows of the token before as rows of their own tokens: which stages are retimed, and that the proof sees mistakes."""

from __future__ import annotations

from dataclasses import replace

import pytest

from flagen import algebra
from flagen.algebra.staged import StagedForm
from flagen.algebra.staged_proof import prove_stages
from flagen.diagnostics import InternalError
from flagen.spec.model import Assign, Binary, Name, StateRead
from flagen.spec.printer import to_source
from tests.algebra.cases import recurrence, variant

STATES = "S: [K, V], m: [K], n: [V]"
SHIFTS = "\n- m = k\n- n = v"


def form(update: str, output: str = "o = S.T @ q + s * v", state: str = STATES, **more: str) -> StagedForm:
    """The stages of a recurrence, proved, and everything that was derived of them as well."""
    spec = recurrence(update, output, state=state, **more)
    derivation = algebra.derive(spec)
    assert derivation.staged is not None, derivation.no_chunk_form
    algebra.prove(spec, derivation)
    return derivation.staged


def test_a_row_of_the_token_before_is_written_at_the_end_of_its_own():
    found = form(f"- S = exp(g) * (S + s * outer(m, n)){SHIFTS}")
    assert [line.strip() for line in found.dump().splitlines()[1:]] == [
        "stage S [K, V]",
        "given s_next [] in [-inf, inf]",
        "S = exp(g) * S",
        "read0 = S.T @ q",
        "S = S + s_next * outer(k, v)",
        "o = read0 + s * v",
        "from S = S + s * outer(m, n) to s_next = 0, where m = k, n = v",
    ]


def test_what_prev_says_is_a_shift():
    found = form("- S = exp(g) * (S + s * outer(prev(k), prev(v)))", state="S: [K, V]")
    assert found.ahead is not None
    assert {state: to_source(row) for state, row in found.ahead.shifts.items()} == {"k_1": "k", "v_1": "v"}


@pytest.mark.parametrize(
    ("update", "output"),
    [
        pytest.param(f"- S = exp(g) * S + s * outer(m, n){SHIFTS}", "o = S.T @ q", id="no row before the decay"),
        pytest.param(f"- S = S + s * outer(m, n){SHIFTS}", "o = S.T @ q", id="no decay"),
        pytest.param(f"- S = exp(g) * (S + outer(m, n)){SHIFTS}", "o = S.T @ q", id="no number"),
        pytest.param(f"- S = exp(g) * (S + s * outer(m, v)){SHIFTS}", "o = S.T @ q + n", id="a value of this token"),
        pytest.param(
            f"- S = exp(g) * (S + s * outer(m, n)){SHIFTS}", "o = S.T @ q + n", id="a shift somebody else takes"
        ),
        pytest.param(
            f"- S = exp(g) * (S + s * outer(m, n)){SHIFTS}", "o = S_prev.T @ q", id="a read of the state before"
        ),
        pytest.param(
            "- S = exp(g) * (S + s * outer(m, n))\n- m = s * m + k\n- n = v", "o = S.T @ q", id="a sum of keys"
        ),
        pytest.param("- m = k\n- n = v\n- S = exp(g) * (S + s * outer(m, n))", "o = S.T @ q", id="rows of this token"),
    ],
)
def test_others_stay_as_they_are(update, output):
    spec = recurrence(update, output, state=STATES)
    staged = algebra.derive(spec).staged
    assert staged is not None
    assert staged.ahead is None


def test_a_first_row_that_is_not_zero_is_no_row_of_a_token():
    staged = algebra.derive(
        recurrence(
            f"- S = exp(g) * (S + s * outer(m, n)){SHIFTS}",
            "o = S.T @ q",
            state="S: [K, V], m: {dims: [K], init: 1}, n: [V]",
        )
    ).staged
    assert staged is not None
    assert staged.ahead is None


# ------------------------------------------------------------------------------------------------------------- mistakes


def _with_update(whole: StagedForm, *update: Assign) -> StagedForm:
    last = whole.stages[-1]
    return replace(whole, stages=(*whole.stages[:-1], replace(last, spec=replace(last.spec, update=update))))


def _mistakes(whole: StagedForm) -> dict[str, StagedForm]:
    ahead, (decayed, read, written) = whole.ahead, whole.stages[-1].spec.update
    assert ahead is not None
    state = next(state for state in whole.spec.states if state.name == ahead.state)
    number = Name(ahead.number, "input")
    own = replace(
        written,
        value=Binary("+", StateRead(state.name, False, state.dims), Binary("*", number, written.value.right.right)),
    )
    (key, rows), (value, others) = ahead.shifts.items()
    return {
        "reads its own row": _with_update(whole, decayed, written, read),
        "reads before the decay": _with_update(whole, read, decayed, written),
        "decays its own row": _with_update(whole, read, written, decayed),
        "has the number of its own token": _with_update(whole, decayed, read, own),
        "starts without a row": replace(whole, ahead=replace(ahead, start=ahead.start.left)),
        "hands on another row": replace(
            whole, ahead=replace(ahead, shifts={key: rows, value: replace(others, name=_another(whole, others.name))})
        ),
    }


def _another(whole: StagedForm, vector: str) -> str:
    """Another input or result over the same dims."""
    declared = {decl.name: decl.dims for decl in (*whole.spec.inputs, *whole.passed)}
    return next(name for name, dims in declared.items() if dims == declared[vector] and name != vector)


def test_the_proof_sees_what_is_written_wrongly():
    staged = variant("mamba3").staged
    assert staged is not None
    prove_stages(staged)
    for mistake, wrong in _mistakes(staged).items():
        with pytest.raises(InternalError, match="is not the recurrence's"):
            prove_stages(wrong)
            pytest.fail(f"nobody sees that a stage {mistake}")
