"""States that stand still within a mini-batch: which they are, that mistakes are refused, and what is no such spec."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from fractions import Fraction

import pytest

from flagen import algebra
from flagen.algebra.mini_batches import MiniBatchForm, OutsideMiniBatches, mini_batch_form, prove_mini_batches
from flagen.diagnostics import InternalError
from flagen.spec import parse_spec
from flagen.spec.model import Assign, Binary, Expr, Number, Spec, StateRead
from tests.numeric.problems import spec_of

INPUTS = {"q": "[K]", "k": "[K]", "v": "[V]", "eta": "{dims: [], range: [0, 1]}"}
OWN = {
    "a softmax": """
        - W = W - first(3) * prev(eta) * G
        - G = (1 - first(3)) * G + outer(k, softmax(W.T @ k) - v)
    """,
    "a decay, and a product of reads": """
        - W = first(2) * G + (1 - first(2)) * W
        - x = W.T @ k
        - G = sigmoid(eta) * G + outer(k, x * tanh(x) - v)
    """,
    "one that erases": """
        - W = W + first(4) * (G - W)
        - G = G - eta * outer(k, G.T @ k - sigmoid(W.T @ k) * v)
    """,
    "what is kept without a matrix": """
        - W = W - first(2) * c * G
        - G = (1 - first(2)) * G + outer(k, v)
        - c = (1 - first(2)) * c + exp(-dot(W.T @ k, v) * dot(W.T @ k, v))
    """,
}


def spec(update: str, states: str = "W: [K, V], G: [K, V]", output: str = "W.T @ q") -> Spec:
    kept = f"{states}, c: []" if " c = " in update else states
    used = ", ".join(f"{name}: {dims}" for name, dims in INPUTS.items() if re.search(rf"\b{name}\b", update + output))
    head = f"flagen: 2\nname: example\nstate: {{{kept}}}\ninputs: {{{used}}}\n"
    return parse_spec(f"{head}update:\n{update}\noutput: o = {output}\n")


@pytest.mark.parametrize("update", OWN.values(), ids=OWN)
def test_specs_of_ones_own_are_derived_and_proved(update):
    own = spec(update, output="W.T @ q + G.T @ q")
    derivation = algebra.derive(own)
    assert derivation.mini_batches is not None and derivation.no_chunk_form is None
    assert algebra.prove(own, derivation).lines[0].startswith("mini-batches with copies of W")


@pytest.mark.parametrize(
    ("name", "still", "copies"),
    [("ttt_linear", ("W", "c"), ("W", "c", "G", "d")), ("titans_linear", ("W",), ("W", "M"))],
)
def test_what_stands_still(name, still, copies):
    form = mini_batch_form(spec_of(name))
    assert form.still == still and tuple(form.copies.values()) == copies


def mistakes(form: MiniBatchForm) -> dict[str, MiniBatchForm]:
    """The form with one thing wrong each time."""
    within, states = form.within, [state.name for state in form.spec.states]
    made = {
        f"{copy} begins as {other}": replace(form, copies={**form.copies, copy: other})
        for copy, name in form.copies.items()
        for other in states
        if other != name and dims_of(form, other) == dims_of(form, name)
    }
    for place, assign in enumerate(within.update):
        assert isinstance(assign, Assign)
        for wrong, value in changed(form, assign):
            update = (*within.update[:place], replace(assign, value=value), *within.update[place + 1 :])
            made[f"{assign.target} {wrong}"] = replace(form, within=replace(within, update=update))
    return made


def changed(form: MiniBatchForm, assign: Assign) -> Iterator[tuple[str, Expr]]:
    """Other values for a state. What a copy becomes that is read at first tokens alone makes no difference."""
    if form.copies.get(assign.target) in form.still:
        yield "is another", Binary("+", assign.value, assign.value)
        yield "stays as it is", StateRead(assign.target, True, assign.value.dims)
    elif assign.target in form.copies:
        return
    elif assign.to_state:
        yield "is half of what it is", Binary("*", Number(Fraction(1, 2)), assign.value)


def dims_of(form: MiniBatchForm, name: str) -> tuple[str, ...]:
    return next(state.dims for state in form.spec.states if state.name == name)


@pytest.mark.parametrize("name", ["ttt_linear", "titans_linear"])
def test_mistakes_are_refused(name):
    form = mini_batch_form(spec_of(name))
    made = mistakes(form)
    survived = []
    for what, wrong in made.items():
        try:
            prove_mini_batches(wrong)
        except InternalError:
            continue
        survived.append(what)
    assert survived == [] and len(made) > 8


@pytest.mark.parametrize(
    ("update", "reason"),
    [
        ("- G = eta * G + outer(k, tanh(W.T @ k) - v)\n- W = W - first(2) * G", "takes what this token has made of G"),
        ("- W = W - eta * G\n- G = (1 - first(2)) * G + outer(k, tanh(W.T @ k) - v)", "changes within a mini-batch"),
        (
            "- W = W - first(2) * G - first(3) * G\n- G = eta * G + outer(k, tanh(W.T @ k) - v)",
            "mini-batches of 2 and of 3 are no one kind",
        ),
    ],
)
def test_what_is_no_mini_batch_is_said(update, reason):
    with pytest.raises(OutsideMiniBatches) as outside:
        mini_batch_form(spec(update))
    assert reason in outside.value.reason and outside.value.span.line > 5


def test_where_a_cycle_is_left_it_has_no_chunk_form():
    """A row that reads, through a function, what this mini-batch has written."""
    own = spec("- W = W - first(2) * G\n- G = (1 - first(2)) * G + outer(k, tanh(W.T @ k + G.T @ k) - v)")
    derivation = algebra.derive(own)
    assert derivation.mini_batches is None
    assert derivation.no_chunk_form is not None and "G" in derivation.no_chunk_form.reason
