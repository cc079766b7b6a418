"""Gradients by transposed statements, interpreted, against autograd through the recurrence in float64."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping
from functools import cache, partial
from types import ModuleType

import pytest
import torch
from torch import Tensor

from flagen.pipeline import derive, make_plan
from flagen.plan.reverse_mode import ReversePlan
from flagen.spec import load_spec, parse_spec
from flagen.spec.model import Spec
from tests.algebra.cases import SPECS
from tests.backends.triton_odd import ODD
from tests.fuzz.kernels import Rounded
from tests.fuzz.ladder import Shape
from tests.fuzz.packages import build, imported
from tests.numeric.problems import rms_ratio

pytestmark = pytest.mark.filterwarnings("ignore:.*encountered in:RuntimeWarning")

RESULTS, FLOAT32, LOW, LOW_GATES = 1e-5, 1e-4, 8e-3, 2e-2

CELLS = {
    "nonlinear": """
state: {S: [K, V]}
inputs: {q: [K], k: [K], v: {dims: [V], heads: HV}, a: {dims: [V], heads: HV, range: [0, 1]}}
update: S = tanh(S) * a + outer(k, v)
output: o = S.T @ q
""",
    "cycle": """
state: {S: [K, V], Y: [K, V]}
inputs: {q: [K], k: [K], v: {dims: [V], heads: HV}, b: {dims: [], heads: HV, range: [0, 1]}}
update:
  - S = 0.5 * Y_prev + outer(k, v)
  - Y = b * S_prev + 0.3 * tanh(S)
output: o = S.T @ q + Y_prev.T @ k
""",
    "two_loops": """
state: {S: [K, V], z: {dims: [K], init: 1}}
steps: {n: num_steps, default: 2}
inputs:
  q: [K]
  k: {dims: [K], per: step}
  v: {dims: [V], per: step, heads: HV}
  b: {dims: [], heads: HV, range: [0, 0.9]}
params: {w: {dims: [K], per: head}}
let: {kn: l2norm(k)}
update:
  - z = 0.9 * z + sigmoid(w)
  - repeat: n
    do:
      - z = b * z + abs(kn)
      - e = v - S.T @ kn
      - S = b * S + outer(kn / (1 + z), e) + 0.1 * S_prev / n
  - S = tanh(S) + outer(z * q, b * sum(S, K))
  - repeat: n
    do:
      - S = S - 0.1 * S * S * sigmoid(v)
output: o = (S + 0.5 * S_prev).T @ (q + z_prev)
""",
    "number": """
state: {s: [], m: {dims: [], init: -.inf}}
inputs: {x: {dims: [], heads: HV}, g: {dims: [], heads: HV, range: [-.inf, 0]}}
params: {w: {per: head}}
update:
  - m = logaddexp(m + g, x)
  - s = exp(m_prev + g - m) * s + exp(x - m) * tanh(w * x)
output: o = s * (head + 1) / HV + sigmoid(m)
""",
}
"""A cell that is not affine; two states that make each other; loops over micro-steps with two states; numbers."""

BODIES = {name: f"flagen: 1\nname: {name}\n{body}" for name, body in CELLS.items()}


def planned_so(spec: Spec) -> bool:
    return isinstance(make_plan(spec, derive(spec)).fused_backward, ReversePlan)


VARIANTS = [path.stem for path in sorted(SPECS.glob("*.yaml")) if planned_so(load_spec(path))]
ODD_ONES = [name for name, text in ODD.items() if planned_so(parse_spec(text))]
"""Specs whose gradients come about this way."""

SHAPES = (
    Shape(tokens=6, batch=2, H=1, HV=2, first=20, second=12, steps=3),
    Shape(lengths=(0, 5, 1, 0), tokens=6, H=2, HV=4, first=12, second=20, steps=1, initial=False),
    Shape(tokens=3, H=1, HV=1, first=16, second=33, steps=2),
)


@cache
def spec_of(name: str) -> Spec:
    texts = {**ODD, **BODIES}
    return parse_spec(texts[name]) if name in texts else load_spec(SPECS / f"{name}.yaml")


@pytest.fixture(scope="module")
def packages() -> Iterator[Mapping[str, ModuleType]]:
    """Packages by name: those that are committed, and others as they are asked for."""
    opened = []

    class Packages(dict[str, ModuleType]):
        def __missing__(self, name: str) -> ModuleType:
            if name in VARIANTS:
                self[name] = importlib.import_module(f"generated.{name}")
            else:
                opened.append(imported(build(spec_of(name))))
                self[name] = opened[-1].__enter__()
            return self[name]

    yield Packages()
    for context in opened:
        context.__exit__(None, None, None)


def problem_of(name: str, shape: Shape, dtype: torch.dtype = torch.float32) -> Rounded:
    """Arguments of a call; no state starts below zero, where a second moment has no logarithm."""
    problem = Rounded(spec_of(name), shape, dtype)
    problem.leaves = {key: x.abs() if key.startswith("first ") else x for key, x in problem.leaves.items()}
    return problem


def results(problem: Rounded, package: ModuleType, form: str, dtype: torch.dtype) -> Mapping[str, Tensor]:
    exact = {name: x.to(dtype) for name, x in problem.leaves.items()}
    return problem.results(partial(problem.called, package, form=form), exact)


def check(problem: Rounded, package: ModuleType, bound: float = FLOAT32, gates: float | None = None) -> None:
    """The gradients, in the dtypes of the arguments, are those of the recurrence in float64."""
    expected = results(problem, package, "naive_recurrent", torch.float64)
    assert all(x.isfinite().all() for name, x in expected.items() if name.startswith("d ")), "nothing to compare with"
    run = partial(problem.called, package, form="fused_recurrent")
    got = problem.results(run)
    ranged = {
        f"d {x.name}" for x in (*problem.spec.inputs, *problem.spec.params) if abs(x.range.low + x.range.high) > 0
    }
    for name, x in expected.items():
        if not name.startswith("d "):
            continue
        assert got[name].dtype == problem.leaves[name.removeprefix("d ")].dtype, name
        ratio = rms_ratio(x, got[name])
        limit = gates if gates is not None and name in ranged else bound
        assert ratio <= limit, f"{name} is off by {ratio:.1e}"


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("name", [*VARIANTS, *BODIES, *ODD_ONES])
def test_float32(name, shape, packages):
    check(problem_of(name, shape), packages[name])
