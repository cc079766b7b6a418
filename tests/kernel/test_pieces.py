"""Kernels that walk mini-batches: mistakes made by hand are refused, and specs of one's own have such kernels."""

from __future__ import annotations

from dataclasses import replace

import pytest

from flagen import algebra
from flagen.algebra.mini_batches import mini_batch_form
from flagen.diagnostics import InternalError
from flagen.kernel import lower
from flagen.kernel.ir import Add, Fill, If, Let, Load, Loop
from flagen.kernel.prove import prove_chunk
from flagen.kernel.settings import MINI_BATCHES
from flagen.kernel.sizes import Sizes
from flagen.plan import Unavailable, make_plan
from flagen.plan.pieces import plan_piece_kernels
from flagen.plan.rows import TOKEN, WRITTEN
from flagen.plan.tiles import Constant, Dot, Lane, Masked, Scan, Select, Shifted, Spread, Value
from tests.algebra.test_mini_batches import OWN, spec
from tests.kernel.scans import of
from tests.kernel.test_scan import changed, on
from tests.numeric.problems import spec_of

TRAINED = ("ttt_linear", "titans_linear")

MORE = {
    "two rows, a decay and a read of two matrices": (
        "- W = W - first(4) * prev(eta) * G\n- x = tanh(W.T @ k)\n"
        "- G = (1 - first(4)) * exp(-eta) * G + eta * outer(k, x - v) - 0.5 * outer(q, v)",
        {"output": "(W - eta * G).T @ q"},
    ),
    "reads from the right, and a rate of the first token": (
        "- W = W - first(4) * eta * G\n- x = tanh(W @ v)\n- G = (1 - first(4)) * G + outer(x - k, v)",
        {"output": "W.T @ q + G.T @ q"},
    ),
    "matrices before and after a token": (
        "- W = first(2) * M + (1 - first(2)) * W\n- x = W.T @ k\n- S = eta * S_prev / 2 + outer(k, tanh(x) - v)\n"
        "- M = (1 - eta) * M + 2 * S - S_prev",
        {"states": "W: [K, V], M: [K, V], S: [K, V]", "output": "M_prev.T @ q + (M - 3 * S).T @ q"},
    ),
}


@pytest.mark.parametrize("title", [*(title for title in OWN if title != "one that erases"), *MORE])
def test_specs_of_ones_own_have_kernels(title):
    update, keywords = MORE.get(title) or (OWN[title], {"output": "W.T @ q + G.T @ q"})
    own = spec(update, **keywords)
    programs = lower(make_plan(own, algebra.derive(own)))
    assert len(prove_chunk(own, programs.chunk, programs.chunk_backward)) == len(MINI_BATCHES)


@pytest.mark.parametrize(
    ("update", "reason"),
    [
        (OWN["one that erases"], "a token needs what others of its mini-batch have written, through a function"),
        (
            "- x = tanh(W.T @ k)\n- W = W - first(2) * G\n- G = (1 - first(2)) * G + outer(k, x - v)",
            "`W` is read as it was before its mini-batch",
        ),
        (
            "- W = first(2) * G + (1 - first(2)) * W\n- G = sigmoid(k) * G + outer(k, tanh(W.T @ k) - v)",
            "multiplies a matrix by more than a number",
        ),
    ],
)
def test_what_has_no_such_kernels_is_said(update, reason):
    forward, backward = plan_piece_kernels(mini_batch_form(spec(update, output="W.T @ q + G.T @ q")))
    assert isinstance(forward, Unavailable) and forward == backward
    assert reason in forward.reason and forward.span.line > 5


def named(name, change):
    return lambda node: change(node) if isinstance(node, Let) and node.target == name else node


def without_last(node):
    """The row of the last token is that of the chunk's last lane."""
    return node.value if isinstance(node, Masked) and node.dim == TOKEN and node.value == Constant(1.0) else node


MISTAKES = {
    "chunks come in the other order": on(Loop, lambda node: replace(node, reverse=not node.reverse)),
    "scans go the other way": on(Scan, lambda node: replace(node, reverse=not node.reverse)),
    "nothing comes before the first row": on(
        Shifted,
        lambda node: node if node.reverse else replace(node, first=Spread(Constant(0.0), node.first.dims)),
    ),
    "what is written is not masked": on(Masked, lambda node: node.value if node.dim == TOKEN else node),
    "the last row is another": without_last,
    "a product is left out": on(Dot, lambda node: node.onto or Spread(Constant(0.0), node.dims)),
    "numbers of matrices begin as zero": on(Fill, lambda node: replace(node, number=0.0) if node.number else node),
    "tokens that write are all tokens": on(
        Select, lambda node: replace(node, other=Constant(1.0)) if WRITTEN in node.dims else node
    ),
    "tokens that write are others": on(Lane, lambda node: Constant(0.0) if node.axis == WRITTEN else node),
    "the state is not loaded": on(
        If, lambda node: node.then[0] if any(isinstance(s, Load) for s in node.otherwise) else node
    ),
    "sums are not made": on(Add, lambda _: None),
}
FORWARD = {
    "the state does not open": named(
        "W_open", lambda node: replace(node, value=Value("W_before", "local", ("K", "V")))
    ),
    "the next piece has the state before": named("W_before", lambda _: None),
}


@pytest.mark.parametrize("which", ["chunk", "chunk_backward"])
@pytest.mark.parametrize("name", TRAINED)
def test_a_mistake_is_refused(name, which):
    """All of them that a kernel has a place for; at the first setting that shows it."""
    programs, own = of(name), spec_of(name)
    program, found, survived = getattr(programs, which), 0, []
    (kernel,) = program.kernels
    for title, change in {**MISTAKES, **(FORWARD if which == "chunk" else {})}.items():
        body = changed(kernel.body, change)
        if body == kernel.body:
            continue
        found += 1
        wrong = {which: replace(program, kernels=(replace(kernel, body=body),))}
        try:
            prove_chunk(own, *(wrong.get(each, getattr(programs, each)) for each in ("chunk", "chunk_backward")))
        except InternalError:
            continue
        survived.append(title)
    assert survived == [] and found >= 8


def test_chunks_of_a_sequence_are_those_of_its_mini_batches():
    """Counted from the tokens before the sequence, and no two of all sequences in one row."""
    sizes = Sizes((5, 0, 7, 1), 1, 1, {}, {TOKEN: 4}, {}, 1, words={"LENGTH": 3})
    assert sizes.aligned_chunks(0, 5) == [(0, range(1)), (1, range(1, 4)), (2, range(4, 5))]
    assert sizes.aligned_chunks(1, 2) == []
    for begun in range(3):
        rows = [row for sequence in range(4) for row, _ in sizes.aligned_chunks(sequence, begun)]
        assert len({*rows}) == len(rows) and max(rows) < sizes._chunks
        tokens = [token for sequence in range(4) for _, own in sizes.aligned_chunks(sequence, begun) for token in own]
        assert tokens == list(range(13))
