"""Rung 0 sees every small mistake in a normal form, a chunk form, an adjoint or a timeline, and says what differs."""

from __future__ import annotations

from dataclasses import replace

import pytest

from flagen.algebra import Derivation, proof
from flagen.algebra.adjoint import adjoint
from flagen.algebra.chunk import chunk_form, split_solve
from flagen.algebra.equations import System
from flagen.algebra.evaluate_system import run
from flagen.algebra.timeline import Timeline, Values
from flagen.diagnostics import InternalError
from tests.algebra import mutants
from tests.algebra.cases import derived, variant

CASES = {
    "scalar decay": variant("gated_delta_rule"),
    "key decay, writes, reads before the decay": variant("dplr"),
    "micro-steps": variant("gated_delta_product"),
    "right read": variant("oja"),
    "read before the update": variant("rwkv6"),
    # All numbers are inputs: a gradient of what is constant reaches nothing.
    "registers": derived(
        "- S = s * S_prev + r * M_prev + half * outer(k, v + (r * S_prev + s * M_prev).T @ p)\n"
        "- M = r * S_prev + half * M_prev + r * outer(k, v + (r * S_prev + s * M_prev).T @ p)",
        "o = (s * S + half * M).T @ q",
        state="S: [K, V], M: [K, V]",
    ),
    "registers that are written, under a decay of each key": derived(
        "- S = exp(gk) * (s * S_prev + r * M_prev) + half * outer(k, v)\n"
        "- M = exp(gk) * (r * S_prev + half * M_prev) + r * outer(k, v)",
        "o = (s * S + r * M).T @ q + s * ((half * S_prev + r * M_prev).T @ k)",
        state="S: [K, V], M: [K, V]",
    ),
    "two reads": derived("S = exp(g) * S + outer(k, v - S_prev.T @ p)", "o = S.T @ q + s * (S_prev.T @ k)"),
}


@pytest.fixture(params=CASES)
def found(request) -> Derivation:
    return CASES[request.param]


DIFFERENCES = (
    "final state is not the recurrence's",
    "output of token",
    "gradient of",
    "a read that sees a write stands before it in the decays",
)


def check(derivation: Derivation, mutant: mutants.Mutant, *, forms: Derivation | None = None) -> None:
    """The proof of `forms` fails and says what differs, or passes where the mutant is the same."""
    forms = forms or derivation
    assert forms.chunk_form is not None and forms.adjoint is not None
    if mutant.same_because:
        proof.prove(forms.chunk_form, forms.adjoint)
        return
    try:
        proof.prove(forms.chunk_form, forms.adjoint)
    except InternalError as error:
        message = str(error)
    else:
        pytest.fail(f"not seen: {mutant.what}")
    assert message.startswith(f"{derivation.spec.name}: "), message
    assert any(what in message for what in DIFFERENCES), message


def test_mistakes_in_the_chunk_form(found):
    for mutant in mutants.of_system(found.chunk_form.system, found.normal_form):
        check(found, mutant, forms=replace(found, chunk_form=replace(found.chunk_form, system=mutant.value)))


@pytest.mark.parametrize(
    "found", [name for name, case in CASES.items() if not case.normal_form.registers], indirect=True
)
def test_mistakes_in_the_split_solve(found, monkeypatch):
    """Of one state: the solve for registers is not split."""
    for mutant in mutants.of_system(split_solve(found.chunk_form), found.normal_form):
        monkeypatch.setattr(proof, "split_solve", lambda _, system=mutant.value: system)
        check(found, mutant)


def test_mistakes_in_the_adjoint(found):
    for mutant in mutants.of_system(found.adjoint.system, found.normal_form):
        check(found, mutant, forms=replace(found, adjoint=replace(found.adjoint, system=mutant.value)))


def test_mistakes_in_the_normal_form(found):
    for mutant in mutants.of_normal_form(found.normal_form):
        chunk = chunk_form(mutant.value)
        check(found, mutant, forms=replace(found, chunk_form=chunk, adjoint=adjoint(chunk)))


def test_mistakes_in_the_timeline(found, monkeypatch):
    timelines: list[Timeline] = []

    def collect(system: System, timeline: Timeline, given: dict[str, Values]) -> dict[str, Values]:
        timelines.append(timeline)
        return run(system, timeline, given)

    monkeypatch.setattr(proof, "run", collect)
    proof.prove(found.chunk_form, found.adjoint)
    # A mistake that no chunk has room for, a chunk's end counted beyond its end, is none.
    possible = {
        mutant.what for timeline in timelines for mutant in mutants.of_timeline(timeline) if mutant.value != timeline
    }
    assert possible
    for what in sorted(possible):

        def mistaken(system: System, timeline: Timeline, given: dict[str, Values], what: str = what):
            (mutant,) = (m for m in mutants.of_timeline(timeline) if m.what == what)
            return run(system, mutant.value, given)

        monkeypatch.setattr(proof, "run", mistaken)
        check(found, mutants.Mutant(what, None))


def test_every_kind_of_mistake_is_made():
    """Each of the kinds that the mutants are for, by the words that name it."""
    found = CASES["two reads"]
    systems = [found.chunk_form.system, split_solve(found.chunk_form), found.adjoint.system]
    made = " ".join(mutant.what for system in systems for mutant in mutants.of_system(system, found.normal_form))
    made += " ".join(mutant.what for mutant in mutants.of_normal_form(found.normal_form))
    registers = CASES["registers"]
    made += " ".join(mutant.what for mutant in mutants.of_system(registers.chunk_form.system, registers.normal_form))
    for kind in (
        "cy for aw",
        "to Gw",
        "after Gy",
        "negated",
        "without",
        "unmasked",
        "masked by q0",
        "without exp",
        " at G",
        " for ",
        "transposed",
    ):
        assert kind in made, kind
