"""Rungs 3 and 4: the chunk kernels against the recurrence in float64 on the same rounded inputs."""

from __future__ import annotations

import importlib
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from torch.nn.functional import normalize

from flagen.spec import parse_spec
from tests.fuzz import packages
from tests.numeric import shapes
from tests.numeric.problems import (
    SLOTTED,
    Problem,
    Shape,
    assert_close,
    evaluate,
    form,
    make,
    named_results,
    spec_of,
    with_form,
)
from tests.numeric.test_extremes import CONDITION, at_20, at_high, at_low, extreme, float32_loss, levels, mixed, turns
from tests.numeric.test_resume import piece
from tests.tiers import exhaustive, interpreted, ladder, variants

KERNELS = with_form("chunk")
ERASING = ["delta_rule", "gated_delta_rule", "comba", "delta_product", "gated_delta_product", "kda"]
"""Those with a `beta` that scales an erasure along the keys."""


def check(problem: Problem, bound: float, **keywords: object) -> None:
    expected = evaluate(form("naive_recurrent", problem.name), problem.to(torch.float64), wrt=())
    got = evaluate(form("chunk", problem.name), problem, wrt=(), **keywords)
    assert_close(expected, got, max(bound, turns(problem)))


@ladder(KERNELS, shapes.SHAPES, few=shapes.FEW)
def test_float32(name, shape):
    check(make(name, shape).to(torch.float32), 1e-5)


@pytest.mark.parametrize("name", [name for name in SLOTTED if name in KERNELS])
def test_many_slots(name):
    problem = make(name, shapes.MANY_SLOTS)
    check(problem.to(torch.float32), 1e-5)
    check(problem.to(torch.bfloat16), 5e-3)


@shapes.in_low_precision(KERNELS)
def test_low_precision(name, shape, dtype):
    check(make(name, shape).to(dtype), 5e-3)


@pytest.mark.parametrize(
    ("dtype", "bound"), [(torch.float32, 1e-5), pytest.param(torch.bfloat16, 5e-3, marks=exhaustive)], ids=str
)
@ladder(KERNELS, [shapes.PACKED, Shape(T=70, K=36, V=60, groups=2)])
def test_outputs_in_a_kernel_of_their_own(name, shape, dtype, bound, monkeypatch):
    """As where there are too few sequences and heads for a GPU; right reads have no other form."""
    launcher = importlib.import_module(f"generated.{name}.chunk")
    if hasattr(launcher, "launches"):
        monkeypatch.setattr(launcher.launches, "splits", lambda programs, device: True)
    check(make(name, shape).to(dtype), bound)


@pytest.mark.parametrize("size", [16, 32, 64])
@variants(KERNELS)
def test_chunk_sizes(name, size):
    check(make(name, Shape(T=70, K=64, V=20, groups=2)).to(torch.bfloat16), 5e-3, chunk_size=size)


@variants(KERNELS)
def test_other_chunk_sizes_are_refused(name):
    with pytest.raises(ValueError, match="chunk_size: expected 16, 32 or 64, got 48"):
        make(name, shapes.GROUPS_OF_4).call(form("chunk", name), chunk_size=48)


@pytest.mark.parametrize("steps", [1, 2, 3, 5, 17])
@pytest.mark.parametrize("name", ["delta_product", "gated_delta_product"])
def test_steps(name, steps):
    """Rows that fill a tile and rows that do not; with 17 there is no room for a token in a tile of 16."""
    problem = make(name, Shape(lengths=(9, 0, 5), K=20, n=steps)).to(torch.float32)
    check(problem, 1e-5, chunk_size=16)
    check(problem, 1e-5, chunk_size=64)


# ------------------------------------------------------------------------------------------------------------- extremes


@pytest.mark.parametrize("place", [at_low, at_high, at_20, mixed])
@variants(name for name in KERNELS if levels(name))
def test_gates_at_their_ends(name, place):
    problem = extreme(name, place)
    check(problem.to(torch.float32), 1e-5, chunk_size=16)
    check(problem.to(torch.float32), 1e-5, chunk_size=64)


@variants(name for name in KERNELS if "g" in {i.name for i in spec_of(name).inputs})
def test_a_reset_among_strong_and_weak_decays(name):
    """Differences of plain sums of log decays would leave nothing of the weak ones beside the strong ones."""
    for dtype, bound, channels in ((torch.float32, 1e-5, 16), (torch.bfloat16, 5e-3, 64)):
        problem = make(name, Shape(T=64, K=channels, V=12))
        g = torch.full_like(problem.tensors["g"], -1e-4)
        g[:, 3::16] = -20
        g[:, 40] = -torch.inf
        check(problem.with_tensors(g=g).to(dtype), bound)


@pytest.mark.parametrize("name", ERASING)
def test_correlated_keys_written_at_full_strength(name):
    """An inverse by powers of L loses every digit here."""
    problem = make(name, Shape(T=70, K=16, V=12, groups=2))
    tensors = problem.tensors
    keys = normalize(1 + 0.1 * torch.randn(tensors["k"].shape, generator=torch.Generator().manual_seed(0)), dim=-1)
    beta = 0.99 * torch.full_like(tensors["beta"], levels(name)["beta"][1])
    gentle = {x: 0.01 * tensors[x] for x in ("g",) if x in tensors}
    problem = problem.with_tensors(k=keys.double(), beta=beta, **gentle).to(torch.float32)
    # Half of what a longer chunk may lose: reflections come in chunks of K / 2 rows at most.
    check(problem, max(1e-5, CONDITION / 2 * float32_loss(problem)))


# ------------------------------------------------------------------------------------------------------------ the call


@variants(KERNELS)
def test_starts_from_zero(name):
    check(make(name, Shape(lengths=(0, 3, 20), groups=2), state=False).to(torch.float32), 1e-5)


@variants(KERNELS)
def test_output_without_the_final_state(name):
    problem = make(name, Shape(T=20)).to(torch.float32)
    o, final_state = problem.call(form("chunk", name), output_final_state=False)
    expected = problem.to(torch.float64).call(form("naive_recurrent", name))[0]
    assert final_state is None
    assert_close({"o": expected}, {"o": o}, 1e-5)


@variants(KERNELS)
def test_strides_and_mixed_dtypes(name):
    """Arguments that are not contiguous, some of a lower precision: products are then taken in float32."""
    problem = make(name, Shape(T=20, B=2, groups=2)).to(torch.float32)
    first, *_, last = problem.tensors

    def spread(key, x):
        x = x.to(torch.bfloat16) if key == first else x.to(torch.float16) if key == last else x
        return x.repeat_interleave(2, dim=-1)[..., ::2]

    check(problem.map(spread), 5e-3)


@variants(KERNELS)
def test_gradients_and_float64_run_in_pytorch(name):
    problem = make(name, Shape(T=20, groups=2))
    expected = evaluate(form("naive_recurrent", name), problem)
    assert_close(expected, evaluate(form("chunk", name), problem, chunk_size=16), 1e-9)


@variants([name for name in KERNELS if name in with_form("fused_recurrent")])
def test_a_prefill_then_decoding_is_one_pass(name):
    shape = Shape(T=21, B=2, groups=2)
    problem = make(name, shape).to(torch.float32)
    state, outputs = problem.initial_state, []
    for kind, (start, end) in zip(
        ("chunk", "fused_recurrent", "chunk", "chunk"), pairwise((0, 13, 14, 14, 21)), strict=True
    ):
        o, state = piece(problem, start, end, state).call(form(kind, name))
        outputs.append(o)
    expected = evaluate(form("naive_recurrent", name), problem.to(torch.float64), wrt=())
    assert_close(expected, named_results(name, torch.cat(outputs, dim=1), state), 1e-5)


@interpreted
@pytest.mark.parametrize("name", ["simple_gla", "gated_delta_rule", "gated_delta_product"])
def test_a_sequence_has_the_same_bits_whatever_is_packed_beside_it(name):
    packed = make(name, Shape(lengths=(70, 9), groups=2)).to(torch.bfloat16)
    o, final_state = packed.call(form("chunk", name))
    rows = {i.name: 2 if i.per == "step" else 1 for i in spec_of(name).inputs}
    alone = replace(
        packed,
        tensors={x: tensor[:, 70 * rows[x] :] for x, tensor in packed.tensors.items()},
        initial_state=packed.initial_state[1:],
        cu_seqlens=None,
    )
    own_o, own_state = alone.call(form("chunk", name))
    assert torch.equal(o[:, 70:], own_o)
    assert torch.equal(final_state[1:], own_state)


# ----------------------------------------------------------------------------------------------------------- front ends

FRONT_ENDS = {
    # Operands evaluated in registers, of which the padding is not zero; a fixed factor, and one for each row.
    "additive": """
flagen: 1
name: additive
state: {S: [K, V]}
inputs:
  q: [K]
  k: [K]
  v: {dims: [V], heads: HV}
  a: {dims: [], heads: HV}
  decay: {dims: [], heads: HV}
params:
  A_log: {per: head}
  w: {dims: [K]}
decay: {alpha: exp(-exp(A_log) * softplus(decay))}
update: S = alpha * S + outer(sigmoid(a) * exp(k), v)
output: o = S.T @ (w * l2norm(q)) * 0.5
""",
    "erasing": """
flagen: 1
name: erasing
state: {S: [K, V]}
inputs:
  q: [K]
  k: {dims: [K], per: step}
  v: {dims: [V], per: step, heads: HV}
  a: {dims: [], heads: HV}
  b: {dims: [], per: step, heads: HV}
  c: {dims: [], heads: HV}
steps: {n: count, default: 2}
let: {key: l2norm(k)}
decay: {alpha: sigmoid(a)}
gate: {beta: sigmoid(b) * sigmoid(c)}
update:
  - S = alpha * S
  - repeat: n
    do:
      - S = S + beta * outer(key, silu(v) - S.T @ key)
output: o = S.T @ q + c
""",
}


FRONT_ENDS["early"] = """
flagen: 1
name: early
state: {S: [K, V]}
inputs:
  q: [K]
  k: [K]
  v: {dims: [V], heads: HV}
  a: {dims: [], heads: HV}
  decay: {dims: [], heads: HV}
params:
  A_log: {per: head}
  w: {dims: [K]}
decay: {alpha: exp(-exp(A_log) * softplus(decay))}
update: S = alpha * S - sigmoid(a) * outer(tanh(w) * l2norm(k), S_prev.T @ l2norm(k)) + outer(q, v)
output: o = S.T @ q
"""
"""Erasures read before their token's decay, beside rows that are written."""

FRONT_ENDS["names"] = """
flagen: 1
name: names
state: {S: [K, V]}
inputs:
  scores: [K]
  inverse: [K]
  states: {dims: [V], heads: HV}
  log_decay: {dims: [K], heads: HV, range: [-1, 0]}
  U: {dims: [], heads: HV, range: [0, 1]}
params:
  level: {default: 0.5}
  whole: {dims: [K]}
let: {L: l2norm(inverse)}
decay: {alpha: exp(log_decay)}
update:
  - S = alpha * S
  - S = S + U * outer(L, states - S.T @ L)
output: o = level * (S.T @ scores) + dot(whole, scores) * states
"""
"""Everything is called what the kernels and their launcher would call something of their own."""


@pytest.mark.parametrize("name", FRONT_ENDS)
def test_front_ends(name, tmp_path):
    built = packages.kept(packages.build(parse_spec(FRONT_ENDS[name])), tmp_path)
    arguments = front_end_arguments(name)
    keywords = {"output_final_state": True, "cu_seqlens": torch.tensor([0, 17, 17, 40])}
    expected = getattr(built, f"naive_recurrent_{name}")(*(x.double() for x in arguments), **keywords)
    o, state = getattr(built, f"chunk_{name}")(*arguments, **keywords)
    assert_close({"o": expected[0], "state": expected[1]}, {"o": o, "state": state}, 1e-5)


def front_end_arguments(name: str) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator)

    T, H, HV, K, V = 40, 1, 2, 20, 12
    if name in ("additive", "early"):
        return [
            normal(1, T, H, K),
            normal(1, T, H, K),
            normal(1, T, HV, V),
            normal(1, T, HV),
            normal(1, T, HV),
            normal(HV),
            normal(K),
        ]
    if name == "names":
        keys = [normal(1, T, H, K), normal(1, T, H, K), normal(1, T, HV, V)]
        return [*keys, -normal(1, T, HV, K).sigmoid(), normal(1, T, HV).sigmoid(), normal(K)]
    rows = 2 * T
    return [
        normal(1, T, H, K),
        normal(1, rows, H, K),
        normal(1, rows, HV, V),
        normal(1, T, HV),
        normal(1, rows, HV),
        normal(1, T, HV),
    ]
