"""Keys that are pairs, against attention over all tokens: what weighs a token is a polynomial of its score. And where
weights hardly add up to anything."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from tests.numeric.problems import Problem, Shape, assert_close, evaluate, form, make, rms_ratio

SHAPE = Shape(T=37, K=26, V=6, B=2, H=1, groups=2)
POLYNOMIALS: dict[str, tuple[Callable[[Tensor], Tensor], float]] = {
    "based": (lambda s: 1 + s + s * s / 2, 1e-6),
    "rebased": (lambda s: s * s, 1e-5),
    "power_attn": (lambda s: s * s, 1e-6),
}
NAMES = list(POLYNOMIALS)


def problem_of(name: str, shape: Shape, *, state: bool = False, **scalars: float) -> Problem:
    """A problem with the `eps` that is there by default."""
    eps = {} if name == "based" else {"eps": POLYNOMIALS[name][1]}
    return make(name, shape, state=state, **eps, **scalars)


def attention(name: str, normalize: float = 1.0) -> Callable[..., tuple[Tensor, None]]:
    """All tokens at once, with no state."""
    weigh, eps = POLYNOMIALS[name]

    def run(q: Tensor, k: Tensor, v: Tensor, g: Tensor | None = None, **_: object) -> tuple[Tensor, None]:
        groups = v.shape[2] // q.shape[2]
        q, k = (x.repeat_interleave(groups, 2) for x in (q, k))
        weights = weigh(torch.einsum("bihx,bjhx->bhij", q, k) * q.shape[-1] ** -0.5).tril()
        if g is not None:
            total = g.cumsum(1).movedim(1, 2)
            weights = weights * (total[..., None] - total[..., None, :]).tril().exp()
        values = torch.einsum("bhij,bjhv->bihv", weights, v)
        whole = normalize * (weights.sum(-1) + eps) + 1 - normalize
        return values / whole.movedim(1, 2)[..., None], None

    return run


def without_finals(function: Callable[..., tuple[Tensor, object]]) -> Callable[..., tuple[Tensor, None]]:
    return lambda *args, **keywords: (function(*args, **keywords)[0], None)


@pytest.mark.parametrize("kind", ["naive_recurrent", "naive_chunk"])
@pytest.mark.parametrize("name", NAMES)
def test_weights_are_polynomials_of_scores(name, kind):
    problem = problem_of(name, SHAPE)
    expected = evaluate(attention(name), problem)
    size = {} if kind == "naive_recurrent" else {"chunk_size": 8}
    assert_close(expected, evaluate(without_finals(form(kind, name)), problem, **size), 1e-12, gradients=1e-11)


@pytest.mark.parametrize("name", ["based", "rebased"])
def test_nothing_is_divided_where_a_call_says_so(name):
    problem = problem_of(name, SHAPE, normalize=0)
    expected = evaluate(attention(name, normalize=0), problem)
    got = evaluate(without_finals(form("naive_chunk", name)), problem, chunk_size=8)
    assert_close(expected, got, 1e-12, gradients=1e-11)


def with_blind_tokens(name: str) -> Problem:
    """The first tokens of one sequence have keys of 0, those of the other queries that no key is like."""
    problem = problem_of(name, Shape(T=20, K=26, V=6, B=2, H=1))
    q, k = problem.tensors["q"].clone(), problem.tensors["k"].clone()
    k[0, :3] = 0
    q[1, :4], k[1, :4] = 0, 0
    q[1, :4, :, 0], k[1, :4, :, 1] = 1, 1
    return problem.with_tensors(q=q, k=k)


@pytest.mark.parametrize("kind", ["naive_chunk", "chunk", "fused_recurrent"])
@pytest.mark.parametrize("name", NAMES)
def test_where_the_weights_of_the_first_tokens_are_zero(name, kind, kernels):
    """A normalizer of zero: what is read is zero, too, and `eps` is all that it is divided by."""
    problem = with_blind_tokens(name).to(torch.float32)
    got = evaluate(without_finals(form(kind, name)), problem)
    assert all(x.isfinite().all() for x in got.values())
    if name != "based":  # Whose weights are 1 there.
        assert (got["o"][0, :3] == 0).all() and (got["o"][1, :4] == 0).all()
    expected = evaluate(attention(name), problem.to(torch.float64))
    assert rms_ratio(expected["o"], got["o"]) < 1e-5
    # A gradient is divided by `eps` there: what is lost of it is a multiple of that of the rest.
    for leaf in ("d k", "d v"):
        assert rms_ratio(expected[leaf], got[leaf]) < 1e-4


@pytest.mark.parametrize("name", ["rebased", "power_attn"])
def test_pairs_of_other_sizes_than_powers_of_two(name, kernels):
    """Lanes that pad either side of a pair are no element of a state, be that given or wanted."""
    problem = problem_of(name, Shape(T=21, K=26, V=7, H=1), state=True).to(torch.float32)
    assert problem.leaves["S_initial"].shape[2:] == (5, 5, 7)
    expected = evaluate(form("naive_recurrent", name), problem.to(torch.float64))
    assert_close(expected, evaluate(form("chunk", name), problem, chunk_size=16), 3e-6, gradients=1e-5)
