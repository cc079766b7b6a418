"""Angles that add up, in turns: a scan of phases before matrices, over 65,536 tokens, and in pieces."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import cache
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor

from flagen import algebra
from flagen.algebra.find_scan import scan_form
from flagen.spec import load_spec, parse_spec
from flagen.spec.model import Spec
from tests.fuzz import kernels
from tests.fuzz.packages import build, imported
from tests.phases import on_circle, phases

ROOT = Path(__file__).parents[2]
CHANNELS = load_spec(ROOT / "examples" / "specs" / "turning_channels.yaml")
"""Climbs the ladder with the other specs of its directory, in tests/fuzz."""

PHASE = """
flagen: 2
name: {name}
state: {{phi: [K]}}
inputs: {{turn: [K]}}
update: phi = {update}
output: o = cos(6.283185307179586 * phi)
"""
WRAPPED = parse_spec(PHASE.format(name="wrapped", update="fraction(phi + turn)"))
UNWRAPPED = parse_spec(PHASE.format(name="unwrapped", update="phi + turn"))

LONG, DRIFT = 65_536, 1 / (2 * math.pi)
"""Tokens, and turns a token on average: one radian."""
BOUND, LOST = 3e-4, 1e-3
"""What float32 may lose of a cosine after all these tokens, and what a sum that is never reduced does lose."""


@pytest.fixture(scope="module")
def packages() -> Iterator[Callable[[Spec], ModuleType]]:
    """The package of a spec, built once."""
    with ExitStack() as stack:
        yield cache(lambda spec: stack.enter_context(imported(build(spec))))


# ------------------------------------------------------------------------------------------------------------- stages


def test_the_phase_is_a_stage_of_its_own():
    staged = algebra.derive(CHANNELS).staged
    assert staged is not None
    assert [stage.is_scan for stage in staged.stages] == [True, False, False]
    first = staged.stages[0]
    assert [scan.kind for scan in scan_form(first.spec, first.outputs).scans] == ["phase"]
    assert phases(CHANNELS) == {"phi"}


@pytest.mark.interpreted
def test_the_interpreter_has_the_same_kernels(packages):
    small = kernels.Shape(lengths=(0, 18, 1), tokens=19, H=1, HV=2, first=4, second=4, chunk=16)
    assert "d angle" in kernels.check(CHANNELS, packages(CHANNELS), shapes=[small])


# ------------------------------------------------------------------------------------------------------- many tokens


def turns(tokens: int) -> Tensor:
    """Up to half a turn either way, beside the drift; a channel that never turns back, and one of a tiny drift."""
    random = torch.rand(1, tokens, 1, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return torch.cat([random - 0.5 + DRIFT, random, 1e-3 * random], dim=-1)


def largest_error(function: Callable[..., tuple], x: Tensor, **keywords: object) -> float:
    """Of the cosines of all tokens, against those of the sum in float64."""
    o, _ = function(x.float(), **keywords)
    return (o.double() - (2 * math.pi * x.cumsum(1)).cos()).abs().max().item()


@pytest.mark.parametrize("kind", ["naive_chunk", "chunk"])
def test_an_angle_keeps_its_digits_over_many_tokens(packages, kind):
    x = turns(LONG)
    wrapped, unwrapped = (getattr(packages(spec), f"{kind}_{spec.name}") for spec in (WRAPPED, UNWRAPPED))
    assert largest_error(wrapped, x) <= BOUND
    assert largest_error(unwrapped, x) >= LOST


def test_no_sum_grows_with_the_tokens(packages):
    """Twice around exactly: what is lost is lost within a chunk, and does not add up."""
    x = torch.full((1, 4096, 1, 3), 0.5) + torch.tensor([0.0, 0.25, 0.375])
    for kind in ("naive_recurrent", "naive_chunk", "chunk", "fused_recurrent"):
        o, final = getattr(packages(WRAPPED), f"{kind}_wrapped")(x, output_final_state=True)
        assert torch.equal(final, torch.zeros_like(final))
        assert torch.allclose(o[:, -1], torch.ones_like(o[:, -1]))


# ---------------------------------------------------------------------------------------------- pieces of a sequence


@pytest.mark.parametrize("kind", ["naive_recurrent", "naive_chunk", "chunk", "fused_recurrent"])
def test_a_call_that_is_split_resumes_exactly(packages, kind):
    """Between two chunks to the bit; elsewhere within the rounding of a chunk."""
    x = turns(200).float()
    function = getattr(packages(WRAPPED), f"{kind}_wrapped")
    whole, end = function(x, output_final_state=True)
    for cut, bound in ((128, 0.0), (101, 1e-5)):
        head, middle = function(x[:, :cut], output_final_state=True)
        tail, last = function(x[:, cut:], initial_state=middle, output_final_state=True)
        assert (torch.cat([head, tail], 1) - whole).abs().max() <= bound
        assert (on_circle(last) - on_circle(end)).abs().max() <= bound


@pytest.mark.parametrize("kind", ["naive_recurrent", "naive_chunk", "chunk", "fused_recurrent"])
def test_packed_sequences_turn_alone(packages, kind):
    lengths = (70, 0, 1, 33)
    parts = turns(sum(lengths)).float().split(lengths, dim=1)
    first = torch.tensor([0.0, 0.25, 0.999, 3.75])[:, None, None, None].expand(4, 1, 1, 3)[:, 0]
    function = getattr(packages(WRAPPED), f"{kind}_wrapped")
    offsets = torch.tensor([0, *torch.tensor(lengths).cumsum(0).tolist()])
    o, finals = function(torch.cat(parts, 1), initial_state=first, output_final_state=True, cu_seqlens=offsets)
    found = o.split(lengths, dim=1)
    for place, part in enumerate(parts):
        alone, final = function(part, initial_state=first[place : place + 1], output_final_state=True)
        assert torch.equal(found[place], alone)
        assert torch.equal(finals[place : place + 1], final)
