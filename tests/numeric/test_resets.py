"""A document ends where a log decay is -inf: nothing before it has any part in what comes after, to the last bit."""

from __future__ import annotations

import math

import torch

from tests.numeric.problems import FORMS, NAMES, Problem, Shape, form, forms, make, named_results, spec_of
from tests.tiers import each_form

SHAPE = Shape(T=21, K=8, V=6, groups=2)
RESET = 13
"""The first token of the second document: inside a chunk, and not where a block of a chunk begins."""


def with_past(name: str, seed: int) -> Problem:
    """The problem whose log decays are -inf at RESET, with the first document and the first state of another seed."""
    problem, other, spec = (
        make(name, SHAPE).to(torch.float32),
        make(name, SHAPE, seed=seed).to(torch.float32),
        spec_of(name),
    )
    tensors = dict(problem.tensors)
    for decl in spec.inputs:
        rows = SHAPE.n if decl.per == "step" else 1
        x, past = tensors[decl.name].clone(), other.tensors[decl.name]
        x[:, : RESET * rows] = past[:, : RESET * rows]
        if (decl.range.low, decl.range.high) == (-math.inf, 0):
            x[:, RESET * rows : (RESET + 1) * rows] = -math.inf
        tensors[decl.name] = x
    states = {state: x for state, x in other.leaves.items() if state not in tensors}
    return problem.with_leaves({**tensors, **states})


def after_reset(kind: str, name: str, seed: int) -> dict[str, torch.Tensor]:
    sizes = {"chunk_size": 16} if kind in ("naive_chunk", "chunk") else {}
    results = named_results(name, *with_past(name, seed).call(form(kind, name), **sizes))
    return {**results, "o": results["o"][:, RESET:]}


def forgets(name: str) -> bool:
    """Whether such a token forgets: that is so unless something reads the state before it has decayed, or stays."""
    first, second = after_reset("naive_recurrent", name, 1), after_reset("naive_recurrent", name, 2)
    return all(torch.equal(x, second[result]) for result, x in first.items())


FORGETTING = [name for name in NAMES if forgets(name)]


@each_form([(kind, name) for kind, name in forms(*FORMS) if name in FORGETTING])
def test_a_reset_is_exact(kind, name):
    first, second = after_reset(kind, name, 1), after_reset(kind, name, 2)
    for result, x in first.items():
        assert x.isfinite().all(), result
        assert torch.equal(x, second[result]), result


def test_most_gates_can_reset():
    gated = [name for name in NAMES if any((d.range.low, d.range.high) == (-math.inf, 0) for d in spec_of(name).inputs)]
    # What these write or read at a token, they read of the state before it decays.
    kept = {"comba", "dplr", "momentum_delta_rule", "rwkv6"}
    # Their angles are sums over all tokens, which no gate ends, and so are the positions by which levels go.
    clocks = {"cyfa", "mamba3", "mamba3_mimo", "log_linear_attn", "log_linear_gated_delta_rule"}
    assert [name for name in gated if name not in kept | clocks] == FORGETTING
