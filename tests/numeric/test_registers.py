"""Registers in float32, where numbers are hard: decays near 1 and near 0, numbers that are 0 or of either sign.

The weights between rows are products of the mixes. A form that takes differences of logarithms loses all digits here.
"""

from __future__ import annotations

import pytest
import torch

from tests.numeric.problems import Problem, Shape, assert_close, evaluate, form, make
from tests.numeric.references import REFERENCES

NAME = "momentum_delta_rule"
SHAPE = Shape(T=70, K=16, V=12, H=1)


def uniform(low: float, high: float, like: torch.Tensor, seed: int = 0) -> torch.Tensor:
    return low + (high - low) * torch.rand(like.shape, generator=torch.Generator().manual_seed(seed), dtype=like.dtype)


def problem(**ranges: tuple[float, float]) -> Problem:
    made = make(NAME, SHAPE)
    given = {name: uniform(*ends, made.tensors[name], seed) for seed, (name, ends) in enumerate(ranges.items())}
    return made.with_tensors(**given)


def zeroed(x: torch.Tensor) -> torch.Tensor:
    """Half of the numbers 0."""
    return x * (uniform(0, 1, x, seed=9) > 0.5)


REGIMES = {
    "momentum of a few tokens": problem(log_alpha=(-0.03, -0.03), log_mu=(-0.5, -0.5)),
    "hardly any momentum": problem(log_alpha=(-0.1, 0), log_mu=(-16, -8)),
    "nothing decays": problem(log_alpha=(-1e-3, 0), log_mu=(-1e-3, 0)),
    "the memory is gone, the momentum is not": problem(log_alpha=(-3, 0), log_mu=(-0.05, 0)),
    "numbers of either sign": problem(beta=(-1, 1), eta=(-1, 1)),
    "nothing is handed on at half of the tokens": problem().with_tensors(beta=zeroed(problem().tensors["beta"])),
    "no momentum is kept at half of the tokens": problem().with_tensors(
        log_mu=zeroed(torch.ones_like(problem().tensors["log_mu"])).log()
    ),
}


@pytest.mark.parametrize("given", REGIMES.values(), ids=REGIMES)
def test_chunks_lose_no_more_than_float32_does(given):
    expected = evaluate(REFERENCES[NAME], given)
    assert_close(expected, evaluate(form("naive_chunk", NAME), given, chunk_size=64), 1e-12, gradients=1e-10)
    single = given.to(torch.float32)
    expected = evaluate(REFERENCES[NAME], single.to(torch.float64))
    for kind in ("naive_chunk", "chunk"):
        assert_close(expected, evaluate(form(kind, NAME), single, chunk_size=64), 3e-6, gradients=1e-5)


def test_weights_are_right_to_the_last_digits():
    """Of a column, whatever is behind it: no entry is a small difference of large ones."""
    from generated.shared import registers

    generator = torch.Generator().manual_seed(0)
    alpha, mu, beta = torch.rand(3, 64, generator=generator, dtype=torch.float64)
    mix = torch.stack([0.5 + 0.5 * alpha, beta * mu, torch.zeros_like(mu), mu], -1).unflatten(-1, (2, 2))
    into = torch.stack([beta, torch.ones_like(mu)], -1)
    exact = registers.reach(mix, into)
    found = registers.reach(mix.float(), into.float()).double()
    present = exact > 1e-30
    assert ((found - exact).abs() / exact)[present].max() < 64 * torch.finfo(torch.float32).eps
    assert (found[exact == 0] == 0).all()
