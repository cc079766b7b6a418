"""Tokens of several rows: what is found of them, that mistakes are refused, and what is no such spec."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace

import pytest

from flagen import algebra
from flagen.algebra import Derivation, rank_proof
from flagen.algebra.rank_proof import prove_ranks
from flagen.algebra.ranks import RankForm
from flagen.diagnostics import InternalError
from flagen.spec import parse_spec, to_source
from flagen.spec.model import Binary, Spec
from tests.algebra.cases import variant

INPUTS = {
    "q": "[R, K]",
    "k": "[R, K]",
    "v": "{dims: [R, V], heads: HV}",
    "p": "[K]",
    "w": "{dims: [V], heads: HV}",
    "u": "[R, V]",
    "b": "{dims: [R], range: [0, 1]}",
    "g": "{dims: [], heads: HV, range: [-.inf, 0]}",
    "gk": "{dims: [K], range: [-.inf, 0]}",
    "gv": "{dims: [V], range: [-.inf, 0]}",
    "a": "{dims: [], range: [0.1, 1]}",
}


def spec(*update: str, output: str, states: str = "S: [K, V]") -> Spec:
    used = set(re.findall(r"\w+", " ".join((*update, output))))
    inputs = "".join(f"\n  {name}: {declared}" for name, declared in INPUTS.items() if name in used)
    statements = "".join(f"\n  - {statement}" for statement in update)
    head = f"flagen: 2\nname: written\nstate: {{{states}}}\ninputs:{inputs}\nupdate:{statements}"
    return parse_spec(f"{head}\noutput: o = {output}\n")


def derived(*update: str, output: str, states: str = "S: [K, V]") -> Derivation:
    return algebra.derive(spec(*update, output=output, states=states))


def form_of(*update: str, output: str) -> RankForm:
    form = derived(*update, output=output).ranks
    assert form is not None
    return form


WRITE = "S = exp(g) * S + k.T @ v"
FOUND = {
    "rows and reads": ((WRITE,), "q @ S", ["R"], ["R"]),
    "one read": ((WRITE,), "S.T @ p", ["R"], [None]),
    "one row": (("S = exp(g) * S + outer(p, w)",), "q @ S", [None], ["R"]),
    "rows of two kinds": (("S = a * S", "S = 0.5 * (S - k.T @ v + outer(p, w))"), "q @ S", ["R", None], ["R"]),
    "a decay of each key, and rows scaled": (("S = exp(gk) * S + (b * k.T) @ v",), "sum(q @ S, R)", ["R"], ["R"]),
    "rows that decay at once": (("S = exp(g) * (S + k.T @ v)",), "q @ S", ["R"], ["R"]),
    "reads from the right": (("S = exp(gv) * S + k.T @ v",), "S @ u.T", ["R"], ["R"]),
    "two reads, the transposed state": (("S = exp(g) * S + k.T @ v",), "sum(q @ S, R) + S.T @ p", ["R"], ["R", None]),
    "no decay": (("S = S + k.T @ v",), "q @ S", ["R"], ["R"]),
    "only what the token writes": (("S = k.T @ v",), "q @ S", ["R"], ["R"]),
}


@pytest.mark.parametrize(("update", "output", "writes", "reads"), FOUND.values(), ids=FOUND)
def test_rows_are_found_and_proved(update, output, writes, reads):
    own = spec(*update, output=output)
    derivation = algebra.derive(own)
    form = derivation.ranks
    assert form is not None and derivation.no_chunk_form is None
    assert ([row.rank for row in form.writes], [read.rank for read in form.reads]) == (writes, reads)
    (rows,) = derivation.stages
    assert rows.chunk_form is not None
    lines = algebra.prove(own, derivation).lines
    assert lines[0].startswith("rows of tokens, one after another = recurrence")
    assert all(line.startswith("row by row: ") for line in lines[1:])


def test_the_last_stage_of_mamba3_mimo():
    derivation = variant("mamba3_mimo")
    assert derivation.staged is not None
    assert [stage.called for stage in derivation.staged.stages] == ["phi", "last_k", "last_v", "S"]
    form = derivation.stages[-1].ranks
    assert form is not None
    assert [to_source(row.rows) for row in form.writes] == [
        "alpha * (dt - now) * last_k_2.T",
        "now * rotate(k + k_bias, phi_2).T",
    ]
    assert form.few == {"R"} and form.count({"R": 3}) == 6


NOT_FOUND = {
    "rows that erase": (("S = exp(g) * S + k.T @ (v - k @ S)",), "q @ S", "erases what several rows read at once"),
    "a function of the state": (("S = tanh(S) + k.T @ v",), "q @ S", "not affine"),
    "a state of the token before": (("S = exp(g) * S + k.T @ v",), "q @ S_prev", None),
    "a state that is used whole": (("S = exp(g) * S + k.T @ v",), "S * sum(q)", None),
    "reads from both sides": (("S = exp(g) * S + k.T @ v",), "sum(q @ S, R) + sum(S @ u.T) * w", None),
    "a decay that is no decay": (("S = g * S + k.T @ v",), "q @ S", None),
}


@pytest.mark.parametrize(("update", "output", "reason"), NOT_FOUND.values(), ids=NOT_FOUND)
def test_what_has_no_such_rows(update, output, reason):
    """It is what it was: a scan of every element, where it is one; else there is a reason, and its place."""
    derivation = derived(*update, output=output)
    assert derivation.ranks is None
    assert (derivation.scan is None) == (reason is not None)
    if reason is not None:
        assert derivation.no_chunk_form is not None
        assert reason in derivation.no_chunk_form.reason
        assert derivation.no_chunk_form.span.line > 0


# ------------------------------------------------------------------------------------------------------------- mistakes


def doubled(form: RankForm, part: str) -> RankForm:
    """A form with one part of its rows twice what it is."""

    def twice(expr):
        return Binary("+", expr, expr)

    if part == "factor":
        return replace(form, factor=twice(form.factor))
    if part == "q":
        return replace(form, reads=(replace(form.reads[0], q=twice(form.reads[0].q)), *form.reads[1:]))
    return replace(
        form, writes=(replace(form.writes[0], **{part: twice(getattr(form.writes[0], part))}), *form.writes[1:])
    )


MISTAKES: dict[str, Callable[[RankForm], RankForm]] = {
    **{f"twice the {part}": lambda form, part=part: doubled(form, part) for part in ("rows", "columns", "q", "factor")},
    "a lost row": lambda form: replace(form, writes=form.writes[1:]),
    "no decay": lambda form: replace(form, factor=None, within=undecayed(form)),
}


def undecayed(form: RankForm) -> Spec:
    return form_of("S = S + k.T @ v", output="q @ S").within


@pytest.mark.parametrize("mistake", MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_in_the_rows_is_refused(mistake):
    form = form_of("S = exp(g) * S + k.T @ v + outer(p, w)", output="sum(q @ S, R) + S.T @ p")
    assert prove_ranks(form)
    with pytest.raises(InternalError, match="recurrence's"):
        prove_ranks(mistake(form))


@pytest.mark.parametrize("lost", ["later rows", "the decay of the first row alone"])
def test_a_mistake_in_how_rows_are_run_is_refused(lost, monkeypatch):
    form = form_of(WRITE, output="q @ S")
    if lost == "later rows":
        monkeypatch.setattr(rank_proof, "total", lambda values: rank_proof.ZERO)
    else:
        monkeypatch.setattr(rank_proof, "ONE", rank_proof.ONE + rank_proof.ONE)
    with pytest.raises(InternalError, match="recurrence's"):
        prove_ranks(form)
