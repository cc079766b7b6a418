"""A sequence run in pieces, by any of the forms, is the sequence run at once."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise, product

import torch

from tests.numeric.problems import (
    NAMES,
    Problem,
    Shape,
    State,
    assert_close,
    evaluate,
    form,
    forms,
    make,
    named_results,
    spec_of,
)
from tests.tiers import represents, tiered

SHAPE = Shape(T=21, B=2, groups=2)
CUTS = (0, 13, 14, 15, 15, 21)
"""A prefill, two tokens decoded, a call without a token, and the rest."""

KINDS = ("naive_recurrent", "naive_chunk", "fused_recurrent")
THERE_ARE = forms(*KINDS)
PAIRS = [
    (name, *pair)
    for name in NAMES
    for pair in product(KINDS, KINDS)
    if {*pair} <= {k for k, n in THERE_ARE if n == name}
]


def piece(problem: Problem, start: int, end: int, state: State | None) -> Problem:
    """Tokens start to end of the problem, from `state` on."""
    spec = spec_of(problem.name)
    rows = {i.name: 1 if spec.steps is None or i.per == "token" else SHAPE.n for i in spec.inputs}
    tensors = {
        name: x[:, start * rows[name] : end * rows[name]] if name in rows else x for name, x in problem.tensors.items()
    }
    return replace(problem, tensors=tensors, initial_state=state)


@tiered(("name", "prefill", "decode"), PAIRS, lambda name, *_: represents(name))
def test_pieces_are_the_whole(name, prefill, decode):
    fused = "fused_recurrent" in (prefill, decode)
    problem = make(name, SHAPE).to(torch.float32 if fused else torch.float64)
    state, outputs = problem.initial_state, []
    for i, (start, end) in enumerate(pairwise(CUTS)):
        o, state = piece(problem, start, end, state).call(form(decode if i else prefill, name))
        outputs.append(o)
    expected = evaluate(form("naive_recurrent", name), problem.to(torch.float64), wrt=())
    assert_close(expected, named_results(name, torch.cat(outputs, dim=1), state), 1e-5 if fused else 1e-9)
