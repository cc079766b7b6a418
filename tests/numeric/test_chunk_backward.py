"""The backward of the chunk kernels against autograd through the recurrence in float64."""

from __future__ import annotations

import importlib
import inspect
import re
import statistics
import sys
from collections.abc import Callable, Collection
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from flagen.spec import parse_spec
from tests.fuzz import packages
from tests.margins import beyond
from tests.numeric import shapes
from tests.numeric.problems import (
    NAMES,
    VARIANTS,
    Problem,
    Shape,
    as_state,
    cotangent,
    form,
    make,
    named_results,
    package,
    rms_ratio,
    spec_of,
    state_names,
)
from tests.numeric.test_chunk_kernel import FRONT_ENDS, front_end_arguments
from tests.numeric.test_extremes import at_20, at_high, at_low, extreme, levels, mixed
from tests.tiers import exhaustive, ladder, represents, tiered, variants


def backward(name: str) -> Callable[..., tuple[Tensor | None, ...]]:
    module = importlib.import_module(f"{package(name).__name__}.chunk_backward")
    return getattr(module, f"chunk_backward_{name}")


WITH_BACKWARD = [name for name in NAMES if (Path(package(name).__path__[0]) / "chunk_backward.py").exists()]
KERNELS = [name for name in WITH_BACKWARD if "kept_states" not in inspect.signature(backward(name)).parameters]
"""Those whose backward can do without the call it is of. Scans cannot: test_scan_kernels differentiates their calls."""
BY_KEY = ["dplr", "gdn2", "gla", "hgrn2", "kda", "rwkv6", "rwkv7"]
RIGHT = ["oja"]
DELTA = ["comba", "delta_product", "delta_rule", "gated_delta_product", "gated_delta_rule", "iplr"]
MIXED = ["momentum_delta_rule"]
FLOAT32, LOW, LOW_GATES = 1e-4, 8e-3, 2e-2


def arguments(name: str) -> list[str]:
    """The tensors of a call, in the order in which their gradients come."""
    spec = spec_of(name)
    tensors = [*(decl.name for decl in spec.inputs), *(p.name for p in spec.params if p.is_tensor)]
    return [*tensors, *state_names(name, "initial")]


def cotangents(problem: Problem, without: Collection[str] = ()) -> list[Tensor | None]:
    """Those of o and of each final state that `evaluate` takes, but for the outputs `without`: of a phase, which is
    compared as a point of the circle, the gradient along it."""
    o, final = problem.call(form("naive_recurrent", problem.name))
    states = () if final is None else (final,) if isinstance(final, Tensor) else final
    given = [x.detach().requires_grad_() for x in (o, *states)]
    outputs = named_results(problem.name, given[0], as_state(tuple(given[1:])))
    loss = sum((x.double() * cotangent(key, x)).sum() for key, x in outputs.items() if key not in without)
    return list(torch.autograd.grad(loss, given, allow_unused=True))


def gradients(
    problem: Problem,
    *,
    of: Callable[[str], Callable[..., tuple[Tensor | None, ...]]] = backward,
    without: Collection[str] = (),
    **keywords: object,
) -> dict[str, Tensor | None]:
    """What the backward `of` a variant returns for each tensor, under the `cotangents` of the outputs."""
    given = cotangents(problem, without)

    def call(*args: object, output_final_state: bool, **kwargs: object) -> tuple[Tensor | None, ...]:
        return of(problem.name)(*given, *args, **kwargs)

    return dict(zip(arguments(problem.name), problem.call(call, **keywords), strict=True))


def expected_gradients(
    problem: Problem, without: Collection[str] = (), dtype: torch.dtype = torch.float64
) -> dict[str, Tensor]:
    """Those of the recurrence, evaluated in `dtype`."""
    problem = problem.to(dtype).map(lambda _, x: x.detach().requires_grad_())
    outputs = named_results(problem.name, *problem.call(form("naive_recurrent", problem.name)))
    loss = sum((x * cotangent(key, x)).sum() for key, x in outputs.items() if key not in without)
    leaves = problem.leaves
    found = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True, materialize_grads=True)
    return dict(zip(leaves, found, strict=True))


def assert_gradients(
    expected: dict[str, Tensor],
    got: dict[str, Tensor | None],
    bound: float,
    gates: float | None = None,
    decays: Collection[str] = (),
) -> None:
    """Every gradient within `bound`; of what has no channels, and of `decays`, within `gates`, where that is given."""
    failures = []
    for name, reference in expected.items():
        gradient = got[name]
        assert gradient is not None, name
        limit = gates if gates is not None and (reference.dim() < 4 or name in decays) else bound
        failures += beyond(f"d {name}", rms_ratio(reference, gradient, 1e-6), limit)
    assert not failures, "; ".join(failures)


def check(
    problem: Problem, bound: float, gates: float | None = None, without: Collection[str] = (), **keywords: object
) -> dict[str, Tensor | None]:
    """The gradients, which are those of the recurrence within the bounds."""
    got = gradients(problem, without=without, **keywords)
    for name, x in problem.leaves.items():
        assert got[name].dtype == x.dtype
    assert_gradients(expected_gradients(problem, without), got, bound, gates, VARIANTS[problem.name].gates)
    return got


def test_the_families_have_kernels():
    additive = ["linear_attn", "linear_attn_normalized", "retention", "lightning_attn", "simple_gla", "mamba2"]
    over_pairs, of_shifts = ["power_attn", "rebased"], ["short_convolution", "token_shift"]
    assert sorted(KERNELS) == sorted([*additive, *over_pairs, *DELTA, *MIXED, *BY_KEY, *RIGHT, *of_shifts])


@ladder(KERNELS, shapes.SHAPES, few=shapes.FEW)
def test_float32(name, shape):
    check(make(name, shape).to(torch.float32), FLOAT32)


@shapes.in_low_precision(KERNELS)
def test_low_precision(name, shape, dtype):
    check(make(name, shape).to(dtype), LOW, LOW_GATES)


@pytest.mark.parametrize("size", [16, pytest.param(32, marks=exhaustive)])
@variants(KERNELS)
def test_chunk_sizes(name, size):
    check(make(name, Shape(T=40, K=64, V=20, groups=2)).to(torch.bfloat16), LOW, LOW_GATES, chunk_size=size)


@pytest.mark.parametrize("steps", [1, 2, 3, 5])
@pytest.mark.parametrize("name", ["delta_product", "gated_delta_product"])
def test_steps(name, steps):
    """Rows that fill a tile and rows that do not."""
    check(make(name, Shape(lengths=(9, 0, 5), K=20, n=steps)).to(torch.float32), FLOAT32, chunk_size=16)


# ------------------------------------------------------------------------------------------------------------- extremes


@pytest.mark.parametrize("place", [at_low, at_high, at_20, mixed])
@variants(name for name in KERNELS if levels(name))
def test_gates_at_their_ends(name, place):
    check(extreme(name, place).to(torch.float32), FLOAT32, chunk_size=16)


@variants(name for name in KERNELS if "g" in {i.name for i in spec_of(name).inputs})
def test_a_reset_among_strong_and_weak_decays(name):
    check(reset(make(name, Shape(T=64, K=16, V=12))).to(torch.float32), FLOAT32)
    check(reset(make(name, Shape(T=64, K=64, V=12))).to(torch.bfloat16), LOW, LOW_GATES)


def reset(problem: Problem) -> Problem:
    g = torch.full_like(problem.tensors["g"], -1e-4)
    g[:, 3::16] = -20
    g[:, 40] = -torch.inf
    return problem.with_tensors(g=g)


@pytest.mark.parametrize("name", [*(name for name in DELTA if name != "iplr"), "kda"])
def test_correlated_keys_written_at_full_strength(name):
    problem = make(name, Shape(T=70, K=16, V=12, groups=2))
    tensors = problem.tensors
    keys = normalize(1 + 0.1 * torch.randn(tensors["k"].shape, generator=torch.Generator().manual_seed(0)), dim=-1)
    beta = 0.99 * torch.full_like(tensors["beta"], levels(name)["beta"][1])
    gentle = {x: 0.01 * tensors[x] for x in ("g",) if x in tensors}
    check(problem.with_tensors(k=keys.double(), beta=beta, **gentle).to(torch.float32), FLOAT32)


@tiered(
    ("name", "dtype", "bound"),
    [
        (name, *case)
        for name in ("gated_delta_rule", "comba", "kda", "oja")
        for case in ((torch.bfloat16, 6e-3), (torch.float16, 8e-4))
    ],
    lambda name, dtype, _: represents(name) or dtype == torch.bfloat16,
)
def test_decays_of_keys_alike(name, dtype, bound):
    """Rows that read have most in common with rows that write: what they have of one another cancels where both sides
    get it of the same rounded numbers, and is else as large as what is left. The middle one of some problems: one in
    twenty loses twice as much, and one of 120 six times. In bf16 flash-linear-attention loses a quarter more of
    the same problems of the gated delta rule, and half as much again of the hardest (decision 086)."""
    ratios = []
    for seed in range(7):
        problem = make(name, Shape(T=66, K=16, V=16), seed=seed)
        tensors, generator = dict(problem.tensors), torch.Generator().manual_seed(seed)
        for key in sorted({"q", "k", "p"} & tensors.keys()):
            tensors[key] = normalize(torch.rand(tensors[key].shape, generator=generator).double(), dim=-1)
        single = {key: torch.rand(tensors[key].shape, generator=generator) for key in ("beta", "g")}
        single["g"] *= -5
        problem = problem.with_tensors(**tensors).to(dtype).with_tensors(**single)
        ratios.append(rms_ratio(expected_gradients(problem)["g"], gradients(problem)["g"]))
    failure = beyond("d g", statistics.median(ratios), bound)
    assert not failure, failure


# ------------------------------------------------------------------------------------------------------------ the call


@variants(KERNELS)
def test_one_output_used_without_the_other(name):
    for without in (("o",), state_names(name, "final")):
        check(make(name, Shape(lengths=(0, 3, 20), groups=2)).to(torch.float32), FLOAT32, without=without)


@variants(KERNELS)
def test_starts_from_zero(name):
    problem = make(name, Shape(T=20, B=2, groups=2), state=False).to(torch.float32)
    got = check(problem, FLOAT32, chunk_size=16)
    assert all(got[state] is None for state in state_names(name, "initial"))


@variants(KERNELS)
def test_each_gradient_alone_is_what_it_is_among_others(name):
    problem = make(name, Shape(T=20, groups=2)).to(torch.bfloat16)
    every = gradients(problem, chunk_size=16)
    for wanted in arguments(name):
        alone = gradients(problem, wanted=(wanted,), chunk_size=16)
        assert [key for key, x in alone.items() if x is not None] == [wanted]
        assert torch.equal(alone[wanted], every[wanted]), wanted


@variants(KERNELS)
def test_strides_and_mixed_dtypes(name):
    problem = make(name, Shape(T=20, B=2, groups=2)).to(torch.float32)
    first, *_, last = problem.tensors

    def spread(key, x):
        x = x.to(torch.bfloat16) if key == first else x.to(torch.float16) if key == last else x
        return x.repeat_interleave(2, dim=-1)[..., ::2]

    check(problem.map(spread), LOW)


@variants(BY_KEY)
def test_what_a_forward_call_hands_on_is_not_computed_again(name):
    """The rows of a chunk are scaled again to the same bits, and what was saved is taken as it is."""
    problem = make(name, Shape(lengths=(20, 0, 9), K=20)).to(torch.bfloat16)
    every, found = gradients_and_scratch(problem)
    doc = inspect.getdoc(backward(name))
    prepared, saved = (tuple(found[x] for x in named_in(doc, argument)) for argument in ("prepared", "saved"))
    for handed in ({"prepared": prepared}, {"prepared": prepared, "saved": saved}):
        for key, gradient in gradients(problem, chunk_size=16, **handed).items():
            assert torch.equal(gradient, every[key]), (handed.keys(), key)
    with pytest.raises(AssertionError, match="RMS"):
        other = tuple(torch.zeros_like(x) for x in prepared)
        assert_gradients(every, gradients(problem, chunk_size=16, prepared=other), LOW)


def named_in(doc: str, argument: str) -> list[str]:
    """The arrays that the docstring lists for an argument."""
    listed = re.search(rf"^\s*{argument}: (.*?)\s+of\s+each\s+chunk", doc, re.MULTILINE | re.DOTALL)[1]
    return re.findall(r"\w+", listed)


def gradients_and_scratch(problem: Problem) -> tuple[dict[str, Tensor | None], dict[str, Tensor]]:
    """The gradients, and what the launcher called the arrays between its kernels."""
    arrays: dict[str, Tensor] = {}

    def look(frame, event, _argument):
        if event == "return" and frame.f_code.co_name == f"chunk_backward_{problem.name}":
            arrays.update({key: x for key, x in frame.f_locals.items() if isinstance(x, Tensor)})

    sys.setprofile(look)
    try:
        return gradients(problem, chunk_size=16), arrays
    finally:
        sys.setprofile(None)


@pytest.mark.parametrize("name", ["simple_gla", "gated_delta_rule", "gated_delta_product", "gla", "kda", "rwkv7"])
def test_a_sequence_has_the_same_bits_whatever_is_packed_beside_it(name):
    packed = make(name, Shape(lengths=(70, 9), groups=2)).to(torch.bfloat16)
    rows = {i.name: 2 if i.per == "step" else 1 for i in spec_of(name).inputs}
    alone = replace(
        packed,
        tensors={x: tensor[:, 70 * rows[x] :] for x, tensor in packed.tensors.items()},
        initial_state=packed.initial_state[1:],
        cu_seqlens=None,
    )
    generator = torch.Generator().manual_seed(0)
    (o, state), function = packed.call(form("naive_recurrent", name)), backward(name)
    do, d_state = (torch.randn(x.shape, generator=generator).to(x.dtype) for x in (o, state))

    def differentiate(problem, *given):
        found = problem.call(lambda *args, output_final_state, **kwargs: function(*given, *args, **kwargs))
        return dict(zip(arguments(name), found, strict=True))

    both, own = differentiate(packed, do, d_state), differentiate(alone, do[:, 70:], d_state[1:])
    for key, gradient in own.items():
        part = both[key][1:] if key == "initial_state" else both[key][:, 70 * rows[key] :]
        assert torch.equal(part, gradient), key


# ----------------------------------------------------------------------------------------------------------- front ends


def build(text: str, name: str, directory: Path):
    built = packages.kept(packages.build(parse_spec(text)), directory)
    module = importlib.import_module(f"{built.__name__}.chunk_backward")
    return getattr(built, f"naive_recurrent_{name}"), getattr(module, f"chunk_backward_{name}")


NAMED = """
flagen: 1
name: named
state: {S: [K, V]}
inputs:
  scores: [K]
  inverse: [K]
  states: {dims: [V], heads: HV}
  do: {dims: [], heads: HV}
  saved: {dims: [], heads: HV, range: [0, 1]}
params:
  R_gradient: {default: 0.5}
  kept: {dims: [V]}
let: {member: l2norm(inverse)}
decay: {alpha: exp(-exp(do))}
update:
  - S = alpha * S
  - S = S + saved * outer(member, states - S.T @ member)
output: o = R_gradient * (S.T @ scores) + kept * states
"""
"""Everything is called what the kernels and their launcher would call something of their own."""


SCALED = """
flagen: 1
name: scaled
state: {S: [K, V]}
inputs:
  q: [K]
  k: [K]
  v: {dims: [V], heads: HV}
  decay: {dims: [], heads: HV}
  beta: {dims: [], heads: HV, range: [0, 1]}
params:
  A: {per: head}
  w: {dims: [V]}
decay: {alpha: exp(-exp(decay))}
update:
  - S = alpha * S
  - S = S + outer(l2norm(k), beta * w - sigmoid(A) * (S.T @ l2norm(k)))
output: o = S.T @ q + beta * v
"""
"""A number that all rows have alike, norms of keys, and values that no token changes."""


TURNED = """
flagen: 1
name: turned
state: {S: [K, V]}
inputs:
  q: {dims: [V], heads: HV}
  k: {dims: [K], heads: HV}
  v: {dims: [V], heads: HV}
  decay: {dims: [V], heads: HV}
  beta: {dims: [], heads: HV, range: [0, 1]}
params:
  A: {per: head}
  w: {dims: [V]}
decay: {alpha: exp(-exp(A) * softplus(decay))}
update: S = alpha * S + outer(beta * k, l2norm(v) * w)
output: o = S_prev @ q + beta * dot(q, v) * k
"""
"""A decay and keys of the state's other side, a norm, and a sum of what a value head has."""


RIGHT_READ = """
flagen: 1
name: right_read
state: {S: [K, V]}
inputs:
  q: [K]
  scores: [K]
  v: {dims: [V], heads: HV}
  p: {dims: [V], heads: HV}
  do: {dims: [], heads: HV, range: [0, 1]}
params:
  A: {per: head}
  w: {dims: [V]}
decay: {alpha: exp(-exp(A) * softplus(p))}
update: S = alpha * S + do * outer(tanh(q), l2norm(v) * w)
output: o = -(S_prev.T @ scores) / 3
"""
"""Values decay and are read before the update; the keys, which their heads share, are not what is read with."""
OWN_FRONT_ENDS = {"named": NAMED, "scaled": SCALED, "turned": TURNED, "right_read": RIGHT_READ}


def own_arguments(name: str) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    params = [(12,)] if name == "named" else [(2,), (12,)]
    shapes = [(1, 40, 1, 20), (1, 40, 1, 20), (1, 40, 2, 12), (1, 40, 2), (1, 40, 2), *params]
    if name == "right_read":
        shapes[3] = (1, 40, 2, 12)
    if name == "turned":
        shapes = [(1, 40, 2, 12), (1, 40, 2, 20), (1, 40, 2, 12), (1, 40, 2, 12), (1, 40, 2), *params]
    q, k, v, decay, beta, *others = (torch.randn(shape, generator=generator) for shape in shapes)
    return [q, k, v, decay, beta.sigmoid(), *others]


@pytest.mark.parametrize("name", ["additive", "erasing", "early", *OWN_FRONT_ENDS])
def test_front_ends(name, tmp_path):
    """Gradients go through what is evaluated in registers: of keys, of values, of numbers, to params too."""
    naive, function = build((FRONT_ENDS | OWN_FRONT_ENDS)[name], name, tmp_path)
    tensors = own_arguments(name) if name in OWN_FRONT_ENDS else front_end_arguments(name)
    cu_seqlens = torch.tensor([0, 17, 17, 40])
    leaves = [x.double().requires_grad_() for x in tensors]
    outputs = naive(*leaves, output_final_state=True, cu_seqlens=cu_seqlens)
    given = [cotangent(key, x) for key, x in zip(("o", "final_state"), outputs, strict=True)]
    expected = torch.autograd.grad(outputs, leaves, given)
    *got, d_initial = function(*(x.float() for x in given), *tensors, cu_seqlens=cu_seqlens)
    assert d_initial is None
    names = [str(place) for place in range(len(tensors))]
    assert_gradients(dict(zip(names, expected, strict=True)), dict(zip(names, got, strict=True)), FLOAT32)
