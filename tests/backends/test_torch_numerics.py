"""The chunk form of odd recurrences where arithmetic is hard: hard resets, decays from none to total, float32, half.

The committed variants meet the same under `tests/numeric`; here are the paths of the printer that none of them takes.
"""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch
from torch import Tensor

from flagen.spec import parse_spec
from flagen.spec.model import Spec
from tests.algebra.shapes import SHAPES
from tests.fuzz.ladder import Problem, Shape, compare
from tests.fuzz.packages import build, imported

torch.set_num_threads(1)

NAMES = (
    "two erasures in one rule",
    "delta steps with decays between and behind",
    "reads before and after the decay in one micro-step",
    "read after the decay",
    "read before the token, in update and output",
    "decay after the write",
    "decay of the whole right side",
    "decay per value of a [V, K] state",
    "a state that is dropped between writes",
    "decay before the micro-steps",
    "decay before the micro-steps and in each",
    "decay before and after the micro-steps",
    "read between the decay and the micro-steps",
)
RIGHT = """
flagen: 1
name: written
state: {S: [K, V]}
inputs: {k: [K], v: [V], c: [V], g: {dims: [], range: [-.inf, 0]}, gv: {dims: [V], range: [-.inf, 0]}}
update:
  - S = S * exp(gv)
  - y = S @ c
  - S = exp(g) * S + outer(k - S @ v, v)
output: o = S @ c + y
"""
SPECS = {name: SHAPES[name].spec for name in NAMES} | {"right reads between decays": parse_spec(RIGHT)}
DECAYS = ("g", "gk", "gv", "gj")
SHAPE = Shape(tokens=41, H=1, HV=2, steps=2, first=6, second=5)


@pytest.fixture(scope="module", params=SPECS)
def built(request):
    """A spec and its package."""
    spec = SPECS[request.param]
    with imported(build(spec, kernels=False)) as package:
        yield spec, package


def problem(spec: Spec, levels: tuple[float, ...]) -> Problem:
    """Arguments whose keys are of length about 1, and log decays that are one of `levels` each."""
    found = Problem(spec, SHAPE)
    random = torch.Generator().manual_seed(1)
    for name, x in found.leaves.items():
        if name in DECAYS:
            choice = torch.randint(0, len(levels), x.shape, generator=random)
            found.leaves[name] = torch.tensor(levels, dtype=torch.float64)[choice]
        elif not name.startswith("first "):
            found.leaves[name] = x / max(math.sqrt(x.shape[-1]), 1) if x.ndim == 4 else x
    return found


def rms(expected: Tensor, found: Tensor) -> float:
    return ((found.double() - expected).square().mean().sqrt() / expected.square().mean().sqrt()).item()


LEVELS = {
    "resets": (-math.inf, 0.0),
    "everything": (-math.inf, -1e4, -30.0, -0.5, -1e-3, 0.0),
    "total": (-1e4,),
    "none": (0.0,),
    "strong": (-20.0, -5.0, -1e-4),
}


@pytest.mark.parametrize("levels", LEVELS)
@pytest.mark.parametrize("chunk_size", [1, 7, 16, 64])
def test_finite_and_right(built, levels, chunk_size):
    spec, package = built
    given = problem(spec, LEVELS[levels])
    expected = given.results(partial(given.called, package))
    assert all(x.isfinite().all() for x in expected.values())
    chunked = partial(given.called, package, form="naive_chunk", chunk_size=chunk_size)
    compare(f"chunks of {chunk_size}", expected, given.results(chunked))


@pytest.mark.parametrize("levels", ["everything", "strong", "none"])
def test_single_precision(built, levels):
    """As near to float64 as float32 comes, whatever the decays: sums of logs, not quotients of products."""
    spec, package = built
    given = problem(spec, LEVELS[levels])
    single = {name: x.float() for name, x in given.leaves.items()}
    expected = given.called(package, {name: x.double() for name, x in single.items()})
    found = given.called(package, single, form="naive_chunk", chunk_size=16)
    for name, x in expected.items():
        assert found[name].dtype == torch.float32
        assert rms(x, found[name]) <= 1e-5, name


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision(built, dtype):
    """Inputs are rounded, nothing in between is."""
    spec, package = built
    given = problem(spec, LEVELS["strong"])
    low = {name: x.float() if name.startswith("first ") else x.to(dtype) for name, x in given.leaves.items()}
    expected = given.called(package, {name: x.double() for name, x in low.items()})
    found = given.called(package, low, form="naive_chunk", chunk_size=16)
    for name, x in expected.items():
        assert found[name].dtype == (dtype if name == "o" else torch.float32)
        assert rms(x, found[name]) <= (5e-3 if name == "o" else 1e-5), name


def test_a_half_precision_decay_may_be_infinite(built):
    spec, package = built
    given = problem(spec, LEVELS["resets"])
    low = {name: x.float() if name.startswith("first ") else x.half() for name, x in given.leaves.items()}
    found = given.called(package, low, form="naive_chunk", chunk_size=16)
    assert all(x.isfinite().all() for x in found.values())
