"""States in levels: which specs have a chunk form by columns, that mistakes are refused, and what has none."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest

from flagen import algebra
from flagen.algebra import levels_proof
from flagen.algebra.levels import LevelForm
from flagen.algebra.levels_proof import TOKENS, prove_levels
from flagen.diagnostics import InternalError
from flagen.spec import parse_spec
from flagen.spec.model import Assign, Binary, Expr, Number, Spec, StateRead
from flagen.spec.rewrite import map_children
from tests.numeric.problems import spec_of

INPUTS = {"q": "[K]", "k": "[K]", "v": "[V]", "a": "[K]", "g": "{dims: [K], range: [-.inf, 0]}", "b": "[]", "x": "[L]"}
DERIVED = {
    "nothing is forgotten": "S = S + outer(k, v)",
    "a decay of each key, and an erasure": "S = exp(g) * S - b * outer(a, S.T @ k) + outer(k, b * v)",
    "two writes": "S = S + outer(k, v) + outer(a, v / 2)",
    "an erasure in two statements": "r = b * (S.T @ a)\n  - S = S - outer(k, r - v)",
}


def spec(update: str, output: str = "levels(S, x).T @ q") -> Spec:
    used = ", ".join(f"{name}: {dims}" for name, dims in INPUTS.items() if re.search(rf"\b{name}\b", update + output))
    head = f"flagen: 2\nname: example\nstate: {{S: [K, V]}}\ninputs: {{{used}}}\n"
    return parse_spec(f"{head}update:\n  - {update}\noutput: o = {output}\n")


def form_of(of: Spec) -> LevelForm:
    derivation = algebra.derive(of)
    assert derivation.levels is not None, derivation.no_chunk_form
    return derivation.levels


@pytest.mark.parametrize("update", DERIVED.values(), ids=DERIVED)
def test_what_is_linear_in_its_columns_is_derived_and_proved(update):
    own = spec(update)
    derivation = algebra.derive(own)
    assert derivation.levels is not None and derivation.no_chunk_form is None
    first, second, *others = algebra.prove(own, derivation).lines
    assert first.startswith("levels of S by columns of chunks") and second.startswith("levels of S by runs over blocks")
    assert others[0].startswith("columns of a chunk: chunk form")


def test_levels_are_written_out_around_the_statements():
    texts = [statement.text for statement in spec("S = b * S + outer(k, v)").update if isinstance(statement, Assign)]
    assert texts == [
        "full = floor((position_prev + 0.5) / 2 ** index(L)) - floor((position_prev - 0.5) / 2 ** index(L))",
        "level = minimum(sum(full, L), L - 1)",
        "into = maximum(1 - maximum(index(L) - level, level - index(L)), 0)",
        "new = maximum(1 - index(L), 0)",
        "S = S - full * S + outer(into, full @ S)",
        "S = b * S + outer(new, outer(k, v))",
        "position = position_prev + 1",
    ]


def mistakes(form: LevelForm) -> Iterator[tuple[str, LevelForm]]:
    """The form with one thing wrong each time."""

    def without(expr: Expr) -> Expr:
        """Without what multiplies the state."""
        if isinstance(expr, Binary) and expr.op == "*" and isinstance(expr.right, StateRead):
            return expr.right
        return map_children(expr, without)

    def doubled(expr: Expr) -> Expr:
        return Binary("*", Number(2), expr)

    for what, change in {"no decay": without, "a write that is doubled": doubled}.items():
        update = (*form.columns.update[:-1], changed(form.columns.update[-1], change))
        if what == "no decay":
            update = tuple(changed(statement, change) for statement in form.columns.update)
        yield what, replace(form, columns=replace(form.columns, update=update))
    output = tuple(changed(statement, doubled) for statement in form.columns.output)
    yield "an output that is doubled", replace(form, columns=replace(form.columns, output=output))


def changed(statement: object, change: Callable[[Expr], Expr]) -> Assign:
    assert isinstance(statement, Assign)
    return replace(statement, value=change(statement.value))


@pytest.mark.parametrize("name", ["log_linear_attn", "log_linear_gated_delta_rule"])
def test_mistakes_in_what_columns_do_are_refused(name):
    form = form_of(spec_of(name))
    assert prove_levels(form)
    for what, wrong in mistakes(form):
        with pytest.raises(InternalError, match="is not the recurrence's"):
            prove_levels(wrong)
            pytest.fail(what)


WRONG = {
    "all at one level more": lambda token, earlier, highest: min((token ^ earlier).bit_length() + 1, highest),
    "the last level is not the last": lambda token, earlier, highest: min((token ^ earlier).bit_length(), highest - 1),
    "how long ago": lambda token, earlier, highest: min((token - earlier).bit_length(), highest),
}


@pytest.mark.parametrize("wrong", WRONG.values(), ids=WRONG)
def test_other_levels_are_refused(monkeypatch, wrong):
    monkeypatch.setattr(levels_proof, "level_of", wrong)
    with pytest.raises(InternalError, match="is not the recurrence's"):
        prove_levels(form_of(spec_of("log_linear_attn")))


BLOCKS = {
    "what a block is read at": (
        "_read",
        lambda old: lambda self, token, level, row: old(self, token, level and level - 1, row),
    ),
    "what was there before is lost": ("_take", lambda old: lambda self, block, state, level, end: None),
    "the chunk before is another": ("_block_of", lambda old: lambda self, chunk, inside: old(self, chunk, inside) * 0),
}


@pytest.mark.parametrize(("method", "change"), BLOCKS.values(), ids=BLOCKS)
def test_other_blocks_are_refused(monkeypatch, method, change):
    monkeypatch.setattr(levels_proof._Call, method, change(getattr(levels_proof._Call, method)))
    with pytest.raises((InternalError, KeyError)):
        prove_levels(form_of(spec_of("log_linear_gated_delta_rule")))


def test_other_runs_are_refused(monkeypatch):
    form = form_of(spec_of("log_linear_gated_delta_rule"))
    block = levels_proof._Runs._block
    mistakes = {
        "a level is read at another": lambda self, level, tokens: block(self, level - 1, tokens),
        "blocks of other tokens": lambda self, level, tokens: block(self, level, range(tokens.start + 1, tokens.stop)),
        "the last block is lost": lambda self, level, tokens: tokens.stop < TOKENS and block(self, level, tokens),
    }
    for what, wrong in mistakes.items():
        monkeypatch.setattr(levels_proof._Runs, "_block", wrong)
        with pytest.raises(InternalError, match="is not the recurrence's"):
            prove_levels(form)
            pytest.fail(what)


NONE = {
    "what is written is no multiple": ("S = S + outer(k, tanh(v))", {}, "`tanh(v)` is no multiple of `v`"),
    "what is erased depends on it": ("S = S - outer(k, S.T @ k) * norm(v)", {}, "this depends on V"),
    "so does the output": ("S = S + outer(k, v)", {"output": "levels(S, x).T @ q + v"}, "is no multiple of `read0`"),
    "scales that are made": ("S = S + outer(k, v)", {"output": "levels(S, 2 * x).T @ q"}, "where one input says"),
    "columns of a known size": ("S = S + outer(k, v)", {"output": "levels(S, x).T @ q / V"}, "this depends on V"),
    "another state": ("S = S + outer(prev(k), v)", {}, "only one"),
    "two reads": ("S = S + outer(k, v)", {"output": "levels(S, x).T @ q + levels(S, x).T @ k"}, "read once"),
}


@pytest.mark.parametrize(("update", "rest", "reason"), NONE.values(), ids=NONE)
def test_what_has_no_chunk_form_says_why(update, rest, reason):
    derivation = algebra.derive(spec(update, **rest))
    assert derivation.levels is None and derivation.no_chunk_form is not None
    assert reason in derivation.no_chunk_form.reason
