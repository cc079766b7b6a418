"""Levels in numbers: chunks of any size begun at any token, calls cut anywhere, packed sequences, and mistakes."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from flagen.spec import parse_spec
from tests.fuzz import packages
from tests.numeric.problems import Problem, Shape, evaluate, form, make, package, rms_ratio

IN_LEVELS = ("log_linear_attn", "log_linear_gated_delta_rule")
LENGTH = 37


def begun_at(name: str, shape: Shape, positions: list[int], levels: int) -> Problem:
    """A problem whose sequences have had so many tokens, with so many levels, all of them with something in them."""
    problem = make(name, shape)
    state, position = problem.initial_state
    generator = torch.Generator().manual_seed(levels)
    scales = torch.randn(*problem.tensors["level_scales"].shape[:3], levels, generator=generator, dtype=state.dtype)
    state = torch.randn(*state.shape[:2], levels, *state.shape[3:], generator=generator, dtype=state.dtype)
    count = torch.tensor(positions, dtype=position.dtype)[:, None].expand_as(position).clone()
    return replace(problem.with_tensors(level_scales=scales), initial_state=(state, count))


def apart(problem: Problem, **keywords: object) -> float:
    """How far the chunk form and its gradients are from the recurrence."""
    expected = evaluate(form("naive_recurrent", problem.name), problem)
    found = evaluate(form("naive_chunk", problem.name), problem, **keywords)
    return max(rms_ratio(x, found[key], floor=1e-3) for key, x in expected.items())


CALLS = [
    (Shape(T=21, K=9, V=3, M=4, B=2, groups=2), [0, 0], 5),
    (Shape(T=16, K=9, V=3, M=4, B=2), [8, 8], 4),  # Whole chunks, behind whole ones.
    (Shape(T=23, K=9, V=3, M=4, B=3), [3, 3, 13], 6),
    (Shape(T=9, K=9, V=3, M=4, B=2), [63, 64], 4),  # The last level takes what there is.
    (Shape(T=1, K=9, V=3, M=4, B=2), [6, 127], 9),
    (Shape(lengths=(5, 0, 1, 12, 0), K=9, V=3, M=4), [0, 4, 7, 16, 0], 4),
    (Shape(T=12, K=9, V=3, M=4), [5], 1),
    (Shape(T=12, K=9, V=3, M=4), [5], 2),
]


@pytest.mark.parametrize("name", IN_LEVELS)
def test_chunks_of_any_size_begun_at_any_token_are_the_recurrence(name):
    for shape, positions, levels in CALLS:
        problem = begun_at(name, shape, positions, levels)
        for size in (1, 4, 8):
            assert apart(problem, chunk_size=size) < 1e-12, (shape, positions, levels, size)


@pytest.mark.parametrize("name", IN_LEVELS)
def test_levels_are_binary_digits_of_what_differs(name):
    """One token that writes, read by all later ones at one level each: scales that are a unit each time."""
    for writer in (0, 1, 6, 7, 11):
        problem = make(name, Shape(T=16, K=9, V=3, M=4), state=False)
        tokens = torch.arange(16)
        level = (tokens ^ writer).double().frexp().exponent.clamp(max=3)
        scales = torch.nn.functional.one_hot(level.long(), 4).double()[None, :, None].requires_grad_()
        once = (tokens == writer).double()[None, :, None, None]
        problem = problem.with_tensors(level_scales=scales, v=problem.tensors["v"] * once)
        for kind in ("naive_recurrent", "naive_chunk"):
            o, _ = problem.call(form(kind, name))
            alike = problem.with_tensors(level_scales=torch.ones_like(scales))
            same, _ = alike.call(form(kind, name))
            assert rms_ratio(same[:, writer:], o[:, writer:]) < 1e-12
            (slope,) = torch.autograd.grad(o.square().sum(), scales)
            assert not slope[:, writer:][scales[:, writer:] == 0].any() and not slope[:, :writer].any()


@pytest.mark.parametrize("kind", ["naive_recurrent", "naive_chunk", "chunk"])
@pytest.mark.parametrize("name", IN_LEVELS)
def test_a_call_that_is_cut_anywhere_is_the_whole_call(kernels, name, kind):
    problem = make(name, Shape(T=LENGTH, K=16, V=8, M=8, B=2, groups=2), state=False).to(torch.float32)
    function, keywords = form(kind, name), {} if kind == "naive_recurrent" else {"chunk_size": 16}
    inputs = list(problem.tensors.values())
    whole, end = function(*inputs, output_final_state=True, **keywords)
    rows, state, start = [], None, 0
    for length in (16, 1, 3, 12, 5):
        o, state = function(
            *(x[:, start : start + length] for x in inputs), initial_state=state, output_final_state=True, **keywords
        )
        rows.append(o)
        start += length
    assert rms_ratio(whole, torch.cat(rows, 1)) < 2e-6
    assert rms_ratio(end[0], state[0]) < 2e-6
    assert torch.equal(state[1], torch.full_like(state[1], LENGTH)) and torch.equal(state[1], end[1])


def test_positions_restart_with_each_sequence():
    """Packed sequences are those by themselves, and not one sequence that goes on."""
    name = "log_linear_attn"
    packed = make(name, Shape(lengths=(6, 11), K=9, V=3, M=4), state=False)
    for kind in ("naive_recurrent", "naive_chunk"):
        o, (_, position) = packed.call(form(kind, name))
        inputs = packed.tensors.values()
        alone = [form(kind, name)(*(x[:, part] for x in inputs))[0] for part in (slice(0, 6), slice(6, 17))]
        assert rms_ratio(torch.cat(alone, 1), o) < 1e-12
        assert position[:, 0].tolist() == [6, 11]
        going_on, _ = form(kind, name)(*inputs)
        assert rms_ratio(going_on, o) > 1e-2


FROM_THE_FIRST = [
    (Shape(T=37, K=16, V=8, M=8, B=2, groups=2), 7),
    (Shape(T=64, K=16, V=8, M=8), 4),  # Whole blocks; the last level takes what there is.
    (Shape(lengths=(5, 0, 16, 33, 0, 70), K=16, V=8, M=8), 8),
    (Shape(T=1, K=16, V=8, M=8, B=2), 1),
    (Shape(lengths=(0, 0), K=16, V=8, M=8), 3),
]


def from_the_first(name: str, shape: Shape, levels: int) -> Problem:
    """A problem from no state with so many levels."""
    begun = begun_at(name, shape, [0] * (len(shape.lengths or ()) or shape.B), levels)
    return replace(begun, initial_state=None)


@pytest.mark.parametrize("name", IN_LEVELS)
def test_runs_over_blocks_are_the_recurrence(kernels, name):
    for shape, levels in FROM_THE_FIRST:
        problem = from_the_first(name, shape, levels)
        expected = evaluate(form("naive_recurrent", name), problem)
        for dtype, bound in ((torch.float32, 3e-6), (torch.bfloat16, 3e-2)):
            found = evaluate(form("chunk", name), problem.to(dtype), chunk_size=16)
            for key, x in expected.items():
                assert rms_ratio(x, found[key], floor=1e-3) < bound, (shape, levels, dtype, key)


KEYED = """
flagen: 2
name: keyed
state: {S: [K, V]}
inputs:
  rows: [K]
  columns: [K]
  run: [V]
  g: {dims: [K], range: [-.inf, 0]}
  given: {dims: [], range: [0, 1]}
  runs: [L]
update:
  - S = exp(g) * S
  - S = S + given * outer(columns, run - S.T @ columns)
output: o = levels(S, runs).T @ rows
"""
"""Decays of each key, and an erasure, called what the launcher would call something of its own."""


def test_decays_of_each_key_in_levels(kernels, tmp_path):
    built = packages.kept(packages.build(parse_spec(KEYED)), tmp_path)
    generator = torch.Generator().manual_seed(0)
    q, k, v, g, x = (torch.randn(1, 80, 2, size, generator=generator) for size in (16, 16, 8, 16, 5))
    inputs = [q, torch.nn.functional.normalize(k, dim=-1), v, -g.sigmoid() / 3, g[..., 0].sigmoid(), x]
    inputs = [each.requires_grad_() for each in inputs]
    found = []
    for kind, keywords in (("naive_recurrent", {}), ("chunk", {"chunk_size": 16})):
        function = getattr(built, f"{kind}_keyed")
        for more in ({}, {"cu_seqlens": torch.tensor([0, 5, 5, 38, 80])}):
            o, (state, _) = function(*inputs, output_final_state=True, **more, **keywords)
            gradients = torch.autograd.grad(o.sin().sum() + state.cos().sum(), inputs)
            found.append((o, state, *gradients))
    for expected, got in zip(found[:2], found[2:], strict=True):
        for one, other in zip(expected, got, strict=True):
            assert rms_ratio(one.detach(), other.detach(), floor=1e-3) < 3e-6


RUNS = {
    "blocks twice as long": ("_blocks", lambda old: lambda self, size: old(self, 2 * size)),
    "the other half": ("_places", lambda old: property(lambda self: old.func(self) ^ 32)),
    "no levels inside chunks": ("_inside", lambda old: lambda self: 0 * old(self)),
}


def test_mistakes_in_runs_show(kernels, monkeypatch):
    runs, name = package("shared").level_runs.LevelRuns, "log_linear_attn"
    problem = from_the_first(name, *FROM_THE_FIRST[1])
    problem = problem.with_tensors(g=problem.tensors["g"] / 100)  # What is long ago is not forgotten.
    expected = evaluate(form("naive_recurrent", name), problem)["o"]
    for what, (method, change) in RUNS.items():
        with monkeypatch.context() as patch:
            patch.setattr(runs, method, change(vars(runs)[method]))
            found = evaluate(form("chunk", name), problem.to(torch.float32), chunk_size=16)["o"]
        assert rms_ratio(expected, found) > 1e-2, what


MISTAKES = {
    "levels by how long ago": ("level_of", lambda old: lambda a, b, most: (a[:, None] - b).abs().clamp(max=most)),
    "the last level is one too early": ("level_of", lambda old: lambda a, b, most: old(a, b, max(most - 2, 0))),
    "no block to the left": (
        "_in_pairs",
        lambda old: lambda numbers, blocks, missing: old(numbers, 0 * blocks, missing),
    ),
    "chunks that begin with the call": ("cut", lambda old: lambda first, tokens, size: old(0, tokens, size)),
}


@pytest.mark.parametrize(("function", "change"), MISTAKES.values(), ids=MISTAKES)
def test_mistakes_in_what_is_put_together_show(monkeypatch, function, change):
    levels = package("shared").levels
    monkeypatch.setattr(levels, function, change(getattr(levels, function)))
    found = 0.0
    for shape, positions, count in CALLS[:4]:
        try:
            found = max(found, apart(begun_at("log_linear_attn", shape, positions, count), chunk_size=8))
        except (RuntimeError, IndexError, ValueError):
            return  # It does not even fit.
    assert found > 1e-3


@pytest.mark.parametrize("name", IN_LEVELS)
def test_heads_of_a_sequence_are_at_one_position(name):
    problem = begun_at(name, Shape(T=6, K=9, groups=2), [3], 4)
    state, position = problem.initial_state
    with pytest.raises(ValueError, match="initial_state: expected as many tokens before the first for all heads"):
        problem.call(form("naive_chunk", name), initial_state=(state, position + torch.tensor([0, 1])))
    with pytest.raises(ValueError, match="chunk_size: expected a positive int, got 0"):
        problem.call(form("naive_chunk", name), chunk_size=0)
