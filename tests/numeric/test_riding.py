"""Vector states that ride on a matrix state: in which specs they do, and their kernels, interpreted, against the
recurrence in float64."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import ExitStack
from functools import cache, partial
from itertools import product
from types import ModuleType
from unittest import mock

import pytest
import torch
from torch import Tensor

from flagen import pipeline
from flagen.plan import StagedPlan
from flagen.plan.chunk_kernel import ChunkKernelPlan
from flagen.spec import parse_spec
from tests.fuzz.kernels import Rounded
from tests.fuzz.ladder import Shape
from tests.fuzz.packages import build, imported
from tests.margins import beyond
from tests.numeric.problems import rms_ratio
from tests.tiers import tiered

HEAD = """\
flagen: 1
name: riding
state: {S: [K, V], z: [K]}
inputs:
  q: {dims: [K], range: [0, .inf]}
  k: {dims: [K], range: [0, .inf]}
  v: {dims: [V], heads: HV}
"""
G = "  g: {dims: [], heads: HV, range: [-1, 0]}\n"
BETA = "  beta: {dims: [], heads: HV, range: [0, 1]}\n"
LOG = "  i: {dims: [], heads: HV, range: [-1, 1]}\n"

RIDING = {
    "plain": f"""{HEAD}
params: {{scale: {{default: K ** -0.5}}}}
update:
  - z = z + k
  - S = S + outer(k, v)
output: o = scale * (S.T @ q) / (scale * dot(z, q) + 1e-10)
""",
    "decayed": f"""{HEAD}{G}
decay: {{alpha: exp(g)}}
update:
  - S = alpha * S
  - S = S + outer(k, v)
  - z = exp(g) * z + k
output:
  - d = dot(z, q)
  - o = S.T @ q / (d + 0.1)
""",
    "constant": f"""{HEAD}
let: {{gamma: 1 - 2 ** (-5 - head)}}
update:
  - S = gamma * S + outer(k, v)
  - z = gamma * z + 2 * k
output: o = 0.5 * (S.T @ q) / (z @ q)
""",
    # The column is what scales the values, too.
    "gated": f"""{HEAD}{G}{BETA}
update:
  - S = exp(g) * S + beta * outer(k, v)
  - z = exp(g) * z + beta * k
output: o = S.T @ q / maximum(abs(dot(z, q)), 0.1)
""",
    # It is another number than that.
    "apart": f"""{HEAD}{G}{BETA}{LOG}
update:
  - S = exp(g) * S + exp(i) * outer(k, v)
  - z = exp(g) * z + k * beta
output: o = S.T @ q / (1 + z @ q)
""",
    # Only the values are scaled, and q is.
    "values": f"""{HEAD}{BETA}
params: {{w: {{dims: [K], range: [0.5, 1.5]}}}}
update:
  - S = S + beta * outer(k, v)
  - z = z + k
output: o = S.T @ (w * l2norm(q)) / (dot(z, w * l2norm(q)) + 0.1)
""",
}

UNLIKE = {
    "another decay": f"""{HEAD}{G}
update:
  - S = exp(g) * S + outer(k, v)
  - z = exp(0.5 * g) * z + k
output: o = S.T @ q / (z @ q + 0.1)
""",
    "another key": f"""{HEAD}
update:
  - S = S + outer(k, v)
  - z = z + q
output: o = S.T @ q / (z @ q + 0.1)
""",
    "another query": f"""{HEAD}
update:
  - S = S + outer(k, v)
  - z = z + k
output: o = S.T @ q / (z @ k + 0.1)
""",
    "no vector of the keys": f"""{HEAD}
update:
  - S = S + outer(k, v)
  - z = z + k + 1
output: o = S.T @ q / (z @ q + 0.1)
""",
    "a decay of each key": f"""{HEAD}  a: {{dims: [K], range: [-1, 0]}}
update:
  - S = exp(a) * S + outer(k, v)
  - z = exp(a) * z + k
output: o = S.T @ q / (z @ q + 0.1)
""",
    "an erasure": f"""{HEAD}
update:
  - S = S + outer(k, v - S.T @ k)
  - z = z + k
output: o = S.T @ q / (z @ q + 0.1)
""",
    "no linear output": f"""{HEAD}
update:
  - S = S + outer(k, v)
  - z = z + k
output: o = sigmoid(S.T @ q) / (z @ q + 0.1)
""",
}

SHAPES = (
    Shape(tokens=65, batch=2, H=1, HV=2, first=20, second=12, chunk=16),
    Shape(lengths=(0, 18, 1, 0, 33, 0), tokens=52, H=1, HV=2, first=12, second=20, initial=False, chunk=32),
    Shape(tokens=130, H=1, HV=1, first=16, second=70, chunk=64),
    Shape(tokens=0, H=1, HV=2, first=16, second=12, chunk=64),
    Shape(tokens=1, H=1, HV=2, first=16, second=12, chunk=64),
)
BOUNDS = {torch.float32: (1e-5, 1e-4), torch.bfloat16: (5e-3, 8e-3)}


@pytest.mark.parametrize("name", RIDING)
def test_a_column_of_the_values(name: str) -> None:
    assert isinstance(plan_of(RIDING[name]), ChunkKernelPlan)


@pytest.mark.parametrize("name", UNLIKE)
def test_other_states_stay_stages(name: str) -> None:
    assert isinstance(plan_of(UNLIKE[name]), StagedPlan)


def plan_of(text: str) -> object:
    spec = parse_spec(text)
    return pipeline.make_plan(spec, pipeline.derive(spec)).chunk_kernel


@pytest.mark.filterwarnings("ignore:.*encountered in:RuntimeWarning")
@tiered(
    ("name", "shape", "dtype"),
    [(name, *case) for name in RIDING for case in (*product(SHAPES, [torch.float32]), (SHAPES[0], torch.bfloat16))],
    lambda name, shape, dtype: shape.lengths is not None,
)
def test_kernels(name: str, shape: Shape, dtype: torch.dtype) -> None:
    spec = parse_spec(RIDING[name])
    with imported(files_of(name)) as package:
        problem = Rounded(spec, shape, dtype, first={"z": Tensor.abs})
        exact = {x: tensor.double() for x, tensor in problem.leaves.items()}
        expected = problem.results(partial(problem.called, package), exact)
        for what, got in called(package, problem):
            for x, tensor in got.items():
                bound = BOUNDS[dtype][x.startswith("d ")]
                failure = beyond(f"{what}, {shape}, {dtype}: {x}", rms_ratio(expected[x], tensor), bound)
                assert not failure, failure


@cache
def files_of(name: str) -> dict[str, str]:
    return build(parse_spec(RIDING[name]))


WAYS = ("no gradients", "with gradients", "with states saved", "split", "split, with gradients")
"""How the chunk kernels can be called; where outputs are `split` off, they are in a kernel of their own."""


def called(package: ModuleType, problem: Rounded) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """Each way to call them, and what comes of it."""
    run = partial(problem.called, package, form="chunk", chunk_size=problem.shape.chunk)
    launcher = sys.modules[f"{package.__name__}.chunk"]
    for way in WAYS:
        with ExitStack() as stack:
            if way.startswith("split"):
                stack.enter_context(mock.patch.object(launcher.launches, "splits", lambda programs, device: True))
            if way == "with states saved":
                yield way, problem.results(partial(run, save_states=True))
            else:
                yield way, problem.results(run) if way.endswith("with gradients") else run(problem.leaves)
