"""Gradients by transposed statements against autograd through the recurrence in float64."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping
from functools import cache, partial
from itertools import product
from types import ModuleType

import pytest
import torch
from torch import Tensor

from flagen.pipeline import derive, make_plan
from flagen.plan.reverse_mode import ReversePlan
from flagen.spec import load_spec, parse_spec
from flagen.spec.model import Spec
from tests import plans
from tests.algebra.cases import SPECS
from tests.backends.triton_odd import ODD
from tests.fuzz.kernels import Rounded
from tests.fuzz.ladder import Shape
from tests.fuzz.packages import build, imported
from tests.margins import beyond
from tests.numeric.problems import rms_ratio
from tests.specs import OPERATORS
from tests.tiers import interpreted, represents, tiered, variants

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
    "spread": """
state: {S: [K, V]}
inputs: {q: [K], k: [K], v: {dims: [V], heads: HV}, c: {dims: [], heads: HV}}
update: S = tanh(S) + 0.1 * outer(k - S @ v, v)
output: o = S.T @ q + sum(S + c, K)
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
"""A cell that is not affine; two states that make each other; loops over micro-steps with two states; what is spread
over the dim that is cut, and summed over it again; numbers."""

BODIES = {name: f"flagen: 1\nname: {name}\n{body}" for name, body in CELLS.items()}


@cache
def spec_of(name: str) -> Spec:
    texts = {**ODD, **BODIES}
    return parse_spec(texts[name]) if name in texts else load_spec(SPECS / f"{name}.yaml")


def planned_so(name: str) -> bool:
    return isinstance(plans.plan_of(name).fused_backward, ReversePlan)


VARIANTS = list(filter(planned_so, OPERATORS))
ODD_ONES = list(filter(planned_so, ODD))
"""Specs whose gradients come about this way."""


@cache
def split_of(name: str) -> str | None:
    """The dim of which a program owns a block."""
    written = name in BODIES
    plan = (make_plan(spec_of(name), derive(spec_of(name))) if written else plans.plan_of(name)).fused_backward
    return plan.forward.split.dim if plan.forward.split else None


SHAPES = (
    Shape(tokens=4, batch=2, H=1, HV=2, first=20, second=12, steps=3),
    Shape(lengths=(0, 3, 1, 0), tokens=4, H=2, HV=4, first=12, second=20, steps=1, initial=False),
    Shape(tokens=3, H=1, HV=1, first=16, second=33, steps=2),
)


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
        limit = gates if gates is not None and name in ranged else bound
        assert not (failure := beyond(name, rms_ratio(x, got[name]), limit)), failure


WRITTEN = [*BODIES, *ODD_ONES]
MEETING = [*product(VARIANTS, SHAPES), *((name, SHAPES[turn % 2]) for turn, name in enumerate(WRITTEN))]
"""Every variant meets every shape; what is written here, one of several segments or one of packed sequences."""


def seen_always(name: str, shape: Shape) -> bool:
    """All that is written here, and of most variants the packed sequences."""
    return name in WRITTEN or represents(name) or shape == SHAPES[1]


def in_triton(name: str, shape: Shape) -> bool:
    return represents(name) and shape == SHAPES[1]


@tiered(("name", "shape"), MEETING, seen_always, in_triton)
def test_float32(name, shape, packages):
    """Several segments, packed and empty sequences, sizes that pad, value heads in groups, one step and three."""
    check(problem_of(name, shape), packages[name])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@variants([*VARIANTS, "nonlinear", "two_loops"], also=("two_loops",))
def test_low_precision(name, dtype, packages):
    shape = Shape(tokens=5, H=1, HV=2, first=24, second=12, steps=2)
    check(problem_of(name, shape, dtype), packages[name], LOW, LOW_GATES)


def has_small_blocks(name: str) -> bool:
    """Whether all pairs of its keys leave room for no more than eight values."""
    return any(len(state.dims) > 2 for state in spec_of(name).states)


CUT = [name for name in (*VARIANTS, *BODIES, *ODD_ONES) if split_of(name) and not has_small_blocks(name)]


@variants(CUT, also=ODD_ONES)
def test_shares_of_blocks(name, packages, monkeypatch):
    """A state that no program can hold: what blocks share is added up, the last block ragged."""
    module = importlib.import_module(f"{packages[name].__name__}.fused_recurrent_backward_kernels")
    planned = module.launch_config

    def small_blocks(*sizes: int) -> dict[str, int]:
        tiles = planned(*sizes)
        assert tiles[f"BLOCK_{split_of(name)}"] >= 16
        return {**tiles, f"BLOCK_{split_of(name)}": 8}

    monkeypatch.setattr(module, "launch_config", small_blocks)
    check(problem_of(name, Shape(tokens=3, H=1, HV=2, first=20, second=20)), packages[name])


@pytest.mark.parametrize("name", ["gsa", "number", "two_loops"])
@pytest.mark.parametrize("shape", [Shape(tokens=0, batch=2, HV=2), Shape(lengths=(0, 0), tokens=0, HV=2)], ids=str)
def test_no_tokens(name, shape, packages):
    check(problem_of(name, shape), packages[name])


# ------------------------------------------------------------------------------------------------------------- extremes


@pytest.mark.parametrize("name", ["gsa", "hgrn", "precond_kda", "precond_gated_delta_rule"])
def test_resets(name, packages):
    """A gate at -inf: its gradient is zero, and nothing of it is NaN."""
    problem = problem_of(name, Shape(tokens=6, H=1, HV=2, first=12, second=10))
    g = problem.leaves["g"].clone()
    g[:, 1::3], g[:, 2::3] = -torch.inf, -20
    problem.leaves["g"] = g
    check(problem, packages[name])


@pytest.mark.parametrize("name", ["abc_attn", "lightnet", "rwkv4", "running_sum", "slots", "number"])
def test_what_starts_at_minus_infinity(name, packages):
    """No initial state, and logits that are far apart: exp(-inf - z) has a gradient of zero, not 0 * inf."""
    problem = problem_of(name, Shape(tokens=7, H=1, HV=2, first=12, second=10, initial=False))
    logits = {"abc_attn": "s", "slots": "s", "number": "x"}.get(name, "k")
    x = problem.leaves[logits].clone()
    # Of some slots alone: where one token is all that any of them holds, softmax over them has no gradient.
    x[:, ::2, ..., :1] -= 40
    x[:, 3, ..., 1:3] += 80
    problem.leaves[logits] = x
    check(problem, packages[name])


@pytest.mark.parametrize("name", ["lightnet", "abc_attn"])
def test_a_logit_of_minus_infinity_after_one_that_is_none(name, packages):
    problem = problem_of(name, Shape(tokens=4, H=1, HV=2, first=12, second=10, initial=False))
    logits = "s" if name == "abc_attn" else "k"
    x = problem.leaves[logits].clone()
    x[:, 2, :, ::3] = -torch.inf
    problem.leaves[logits] = x
    check(problem, packages[name])


# ------------------------------------------------------------------------------------------------------------- the call


def differentiate(problem: Rounded, package: ModuleType, given: Mapping[str, Tensor | None], wanted=None):
    """The gradients that the launcher gives, under these of the results, by argument."""
    spec = problem.spec
    module = importlib.import_module(f"{package.__name__}.fused_recurrent_backward")
    function = getattr(module, f"fused_recurrent_backward_{spec.name}")
    cotangents = [given["o"], *(given[f"final {state.name}"] for state in spec.states)]
    found = {}

    def call(*positional, output_final_state, **keywords):
        asked = None if wanted is None else [argument_of(spec, name) for name in wanted]
        found["gradients"] = function(*cotangents, *positional, **keywords, wanted=asked)
        return torch.empty(()), tuple(torch.empty(()) for _ in spec.states)

    problem.called(type("Form", (), {f"form_{spec.name}": staticmethod(call)}), problem.leaves, form="form")
    names = [*(i.name for i in spec.inputs), *(p.name for p in spec.params if p.is_tensor)]
    return dict(zip([*names, *(f"first {state.name}" for state in spec.states)], found["gradients"], strict=True))


def argument_of(spec: Spec, name: str) -> str:
    """What the launcher calls an argument."""
    if not name.startswith("first "):
        return name
    return "initial_state" if len(spec.states) == 1 else f"{name.removeprefix('first ')}_initial"


def cotangents_of(problem: Rounded, package: ModuleType) -> dict[str, Tensor]:
    random = torch.Generator().manual_seed(1)
    exact = {name: x.double() for name, x in problem.leaves.items()}
    return {
        name: torch.randn(x.shape, generator=random, dtype=torch.float64).float()
        for name, x in problem.called(package, exact).items()
    }


@pytest.mark.parametrize("name", ["abc_attn", "mamba", "rwkv4", "two_loops"])
def test_each_gradient_alone_is_what_it_is_among_others(name, packages):
    problem = problem_of(name, Shape(tokens=3, H=1, HV=2, first=12, second=10), torch.bfloat16)
    given = cotangents_of(problem, packages[name])
    every = differentiate(problem, packages[name], given)
    assert all(x is not None for x in every.values())
    for wanted in every:
        alone = differentiate(problem, packages[name], given, (wanted,))
        assert [key for key, x in alone.items() if x is not None] == [wanted]
        assert torch.equal(alone[wanted], every[wanted]), wanted


@pytest.mark.parametrize("name", ["gsa", "cycle", "two_loops", "scalars"])
def test_results_used_one_by_one(name, packages):
    """Gradients are linear in those of the results, any of which may be absent."""
    problem = problem_of(name, Shape(lengths=(2, 0, 3), tokens=5, H=1, HV=2, first=12, second=10))
    given = cotangents_of(problem, packages[name])
    every = differentiate(problem, packages[name], given)
    parts = [
        differentiate(problem, packages[name], {other: x if other == one else None for other, x in given.items()})
        for one in given
    ]
    for key, x in every.items():
        assert not (failure := beyond(key, rms_ratio(x, sum(part[key] for part in parts)), FLOAT32)), failure


@interpreted
@pytest.mark.parametrize("name", ["gsa", "two_loops"])
def test_a_sequence_has_the_same_bits_whatever_is_packed_beside_it(name, packages):
    """Its segments are as long as those of the longest sequence, which says nothing about its numbers."""
    lengths, n = (3, 9), 2
    packed = problem_of(name, Shape(lengths=lengths, tokens=12, H=1, HV=2, first=12, second=10, steps=n))
    alone = problem_of(name, Shape(lengths=lengths[:1], tokens=3, H=1, HV=2, first=12, second=10, steps=n))
    rows = {i.name: n if i.per == "step" else 1 for i in packed.spec.inputs}
    cut = {key: 3 * rows[key] for key in rows}

    def first(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {
            key: x[:, : cut[key]] if key in cut else x[:1] if key.startswith("first ") else x
            for key, x in tensors.items()
        }

    given = cotangents_of(packed, packages[name])
    part = {key: x[:, :3] if key == "o" else x[:1] for key, x in given.items()}
    alone.leaves = first(packed.leaves)
    of_params = {param.name for param in packed.spec.params}
    both = first(differentiate(packed, packages[name], given))
    for key, x in differentiate(alone, packages[name], part).items():
        assert key in of_params or torch.equal(x, both[key]), key


@pytest.mark.parametrize("name", ["lightnet", "hgrn"])
def test_the_operator_launches_it(name, packages, monkeypatch):
    """Eagerly, with a graph: the kernels' gradients, and not those of the PyTorch form."""
    launcher = importlib.import_module(f"{packages[name].__name__}.fused_recurrent")
    monkeypatch.setattr(launcher._fused_recurrent, "form", None)
    check(problem_of(name, SHAPES[0]), packages[name])


def test_memory_grows_with_the_root_of_the_length(packages):
    """States between segments and inside of one: about as many of either, whatever the length."""
    launches = importlib.import_module(f"{packages['hgrn'].__name__}.fused_recurrent_backward").launches
    arguments = importlib.import_module(f"{packages['hgrn'].__name__}.arguments")
    for T in (1, 2, 3, 7, 64, 100, 4096, 100000):
        x = torch.empty(1, T, 1, 1)
        args = arguments.CALL.check(x, x, initial_state=None, cu_seqlens=None)
        tokens, segments, _ = launches.segments_by_length(args, None)
        assert tokens * segments >= T
        assert tokens + segments <= 2.2 * T**0.5 + 1


@pytest.mark.parametrize("name", ["lightnet", "mamba"])
def test_strides_and_mixed_dtypes(name, packages):
    problem = problem_of(name, Shape(tokens=4, batch=2, H=1, HV=2, first=12, second=10))
    first, *_, last = (decl.name for decl in problem.spec.inputs)
    dtypes = {first: torch.bfloat16, last: torch.float16}
    # Dense, so that a clone has the same strides.
    problem.leaves = {
        key: x.to(dtypes.get(key, x.dtype)).transpose(0, -1).contiguous().transpose(0, -1)
        for key, x in problem.leaves.items()
    }
    assert not any(x.clone().is_contiguous() for x in problem.leaves.values() if x.ndim > 1)
    check(problem, packages[name], LOW, LOW_GATES)


@pytest.mark.parametrize("name", ["gsa", "rwkv4"])
def test_one_graph_of_torch_compile(name, packages):
    """Several states go in and out, and each has a gradient."""
    torch.compiler.reset()
    package, problem = packages[name], problem_of(name, SHAPES[0])
    function = f"fused_recurrent_{name}"
    compiled = torch.compile(getattr(package, function), backend="aot_eager", fullgraph=True)
    traced = type("Package", (), {function: staticmethod(compiled)})
    expected = problem.results(partial(problem.called, package, form="fused_recurrent"))
    got = problem.results(partial(problem.called, traced, form="fused_recurrent"))
    for key, x in expected.items():
        assert torch.equal(got[key], x), key
