"""What a rate of decay gets. A log decay is often a rate times a step, in the spec or before the call: the gradient of
the rate is a sum over tokens of gradients, times log decays that may be large where these are next to nothing. What is
the same in all of them by mistake adds up, and where that can be, the docstring says so."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from flagen.pipeline import derive, make_plan
from flagen.plan.differences import differs_in_chunks, differs_in_segments
from flagen.spec import parse_spec
from tests.margins import beyond
from tests.numeric.problems import NAMES, Problem, Shape, evaluate, form, forms, make, rms_ratio, spec_of
from tests.numeric.rates import LOST, SAID, says_so
from tests.plans import plan_of
from tests.tiers import represents, tiered

RATE = 8
"""How much more of the gradient of a rate of decay a form may lose in float32 than the recurrence does."""

DELTAS = ("gated_delta_rule", "comba")
"""Rows that erase, after the decay and before it, whose chunk kernels are to lose nothing."""


def steps_of(name: str) -> list[str]:
    """The inputs that are log decays, or steps of them."""
    if "A" in (names := {decl.name for decl in (*spec_of(name).inputs, *spec_of(name).params)}) and "dt" in names:
        return ["dt"]
    whole = ((decl.name, decl.range) for decl in spec_of(name).inputs)
    return [name for name, range_ in whole if range_ is not None and (range_.low, range_.high) == (-math.inf, 0)]


def strong(name: str) -> tuple[Problem, dict[str, Tensor]]:
    """A problem with log decays of up to -30, and these; with steps of up to 30, and none, where it has the rates."""
    problem = make(name, Shape(T=50, K=16, V=16, H=4), seed=1).to(torch.float32)
    generator = torch.Generator().manual_seed(1)
    large = {step: 30 * torch.rand(problem.tensors[step].shape, generator=generator) for step in steps_of(name)}
    if "dt" in large:
        return problem.with_tensors(**large), {}
    decays = {step: -x for step, x in large.items()}
    return problem.with_tensors(**decays), decays


def of_rates(kind: str, problem: Problem, decays: dict[str, Tensor]) -> dict[str, Tensor]:
    """The gradient of the rate of each head, or channel: of `A`, or of what could multiply `decays`."""
    found = evaluate(form(kind, problem.name), problem, wrt=decays or ("A",))
    if not decays:
        return {"A": found["d A"].double()}
    return {name: (found[f"d {name}"].double() * x.double()).sum(dim=(0, 1)) for name, x in decays.items()}


@tiered(
    ("kind", "name"),
    (each for each in forms("naive_chunk", "chunk", "fused_recurrent") if steps_of(each[1])),
    lambda kind, name: represents(name) or name == "mamba2" or (kind == "chunk" and name in DELTAS),
)
def test_a_rate_loses_what_its_docstring_says(kind, name):
    problem, decays = strong(name)
    expected = of_rates("naive_recurrent", problem.to(torch.float64), decays)
    lost = of_rates("naive_recurrent", problem, decays)
    got = of_rates(kind, problem, decays)
    ratios = {rate: (rms_ratio(x, got[rate]), rms_ratio(x, lost[rate])) for rate, x in expected.items()}
    if not says_so(form(kind, name)):
        failures = [beyond(f"d {rate}", ratio, RATE * least) for rate, (ratio, least) in ratios.items()]
    else:
        failures = [beyond(f"d {rate}", ratio, SAID[kind]) for rate, (ratio, _) in ratios.items()]
        # Where the recurrence itself loses as much, nobody can tell.
        told = [ratio > RATE * least for ratio, least in ratios.values() if RATE * least < LOST[kind]]
        assert not told or any(told), "then let its docstring say so no longer"
    assert not any(failures), failures


@pytest.mark.parametrize("name", NAMES)
def test_docstrings_say_what_is_planned(name):
    plan = plan_of(name)
    for kind, differs in (("fused_recurrent", differs_in_segments), ("chunk", differs_in_chunks)):
        if (kind, name) in forms(kind):
            assert says_so(form(kind, name)) == differs(plan)


@pytest.mark.parametrize(
    ("update", "differs"),
    [
        ("S = exp(g) * S + outer(k, v)", True),
        ("S = 0.5 * S + outer(k, exp(g) * v)", False),  # A decay, but no gradient of it.
        ("[S = exp(g) * S, 'S = S + outer(k, v)', S = exp(g) * S]", True),
        ("S = g * S + outer(k, v)", False),  # A factor of any sign: statements are transposed.
    ],
)
def test_what_differs_in_segments(update, differs):
    inputs = "q: [K]\n  k: [K]\n  v: {dims: [V], heads: HV}\n  g: {dims: [], heads: HV}"
    text = f"flagen: 1\nname: example\nstate: {{S: [K, V]}}\ninputs:\n  {inputs}\n"
    spec = parse_spec(f"{text}update: {update}\noutput: o = S.T @ q\n")
    assert differs_in_segments(make_plan(spec, derive(spec))) == differs
