"""The backward of the recurrent kernels against autograd through the recurrence in float64."""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable, Collection
from dataclasses import replace
from functools import partial
from pathlib import Path
from textwrap import dedent

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from flagen.spec import parse_spec
from tests.fuzz import packages
from tests.numeric.problems import (
    NAMES,
    VARIANTS,
    Problem,
    Shape,
    assert_close,
    cotangent,
    evaluate,
    form,
    make,
    package,
    spec_of,
    with_form,
)
from tests.numeric.test_chunk_backward import arguments, assert_gradients, expected_gradients
from tests.numeric.test_chunk_backward import gradients as gradients_of
from tests.numeric.test_extremes import GATED, at_20, at_high, at_low, levels, mixed
from tests.tiers import ladder, variants

FLOAT32, LOW, LOW_GATES = 1e-4, 8e-3, 2e-2
KERNELS = [name for name in NAMES if (Path(package(name).__path__[0]) / "fused_recurrent_backward.py").exists()]

# HV in groups, several batches; K and V that are no powers of two; packed, with empty sequences.
SHAPES = (
    Shape(T=4, K=16, V=20, H=2, groups=2, n=3),
    Shape(T=2, K=60, V=12, B=2, n=1),
    Shape(lengths=(0, 1, 4, 0), groups=2, n=2),
)


def backward(name: str) -> Callable[..., tuple[Tensor | None, ...]]:
    module = importlib.import_module(f"{package(name).__name__}.fused_recurrent_backward")
    return getattr(module, f"fused_recurrent_backward_{name}")


gradients = partial(gradients_of, of=backward)


def check(problem: Problem, bound: float, gates: float | None = None, without: Collection[str] = ()) -> None:
    got = gradients(problem, without=without)
    for name, x in problem.leaves.items():
        assert got[name].dtype == x.dtype
    assert_gradients(expected_gradients(problem, without), got, bound, gates, VARIANTS[problem.name].gates)


def test_every_recurrent_kernel_has_a_backward():
    assert with_form("fused_recurrent") == KERNELS


# `flagen build` proves of every variant that they are the gradients; here is how they round, print and are launched.
@ladder(KERNELS, SHAPES, few=(SHAPES[2],))
def test_float32(name, shape):
    check(make(name, shape).to(torch.float32), FLOAT32)


@pytest.mark.parametrize("name", ["gated_delta_rule", "dplr", "gated_delta_product", "mamba2"])
def test_several_segments(name):
    """A segment has 64 tokens; states go from one to the next, and so does the gradient of the decay."""
    check(make(name, Shape(lengths=(66, 1), K=16, V=12)).to(torch.float32), FLOAT32)


@pytest.mark.parametrize("name", ["kda", "oja", "rwkv6", "mamba2"])
def test_shares_of_blocks(name):
    """A state that no program can hold: sums over the values are added up from blocks, the last of them ragged."""
    check(make(name, Shape(T=2, K=256, V=130)).to(torch.float32), FLOAT32)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@variants(KERNELS)
def test_low_precision(name, dtype):
    check(make(name, Shape(T=4, K=100, V=24, groups=2, n=1)).to(dtype), LOW, LOW_GATES)


@pytest.mark.parametrize("steps", [1, 2, 3])
@pytest.mark.parametrize("name", ["delta_product", "gated_delta_product"])
def test_steps(name, steps):
    check(make(name, Shape(lengths=(4, 0, 2), K=20, n=steps)).to(torch.float32), FLOAT32)


# ------------------------------------------------------------------------------------------------------------- extremes


@pytest.mark.parametrize("place", [at_low, at_high, at_20, mixed])
@variants(name for name in GATED if name in KERNELS)
def test_gates_at_their_ends(name, place):
    problem = make(name, Shape(T=6, K=8, V=6))
    ends = {x: place(problem.tensors[x], values) for x, values in levels(name).items()}
    check(problem.with_tensors(**ends).to(torch.float32), FLOAT32)


@pytest.mark.parametrize("name", ["gla", "gated_delta_rule", "kda"])
def test_a_reset_among_strong_and_weak_decays(name):
    problem = make(name, Shape(T=20, K=16, V=12))
    g = torch.full_like(problem.tensors["g"], -1e-4)
    g[:, 3::5] = -20
    g[:, 10] = -torch.inf
    check(problem.with_tensors(g=g).to(torch.float32), FLOAT32)


@pytest.mark.parametrize("name", ["delta_rule", "gated_delta_product", "kda", "oja"])
def test_correlated_keys_written_at_full_strength(name):
    problem = make(name, Shape(T=30, K=16, V=12))
    tensors, erased = problem.tensors, "v" if name == "oja" else "k"
    keys = normalize(1 + 0.1 * torch.randn(tensors[erased].shape, generator=torch.Generator().manual_seed(0)), dim=-1)
    beta = 0.99 * torch.full_like(tensors["beta"], levels(name)["beta"][1])
    gentle = {x: 0.01 * tensors[x] for x in ("g",) if x in tensors}
    check(problem.with_tensors(**{erased: keys.double()}, beta=beta, **gentle).to(torch.float32), FLOAT32)


# ------------------------------------------------------------------------------------------------------------ the call


@pytest.mark.parametrize("without", ["o", "final_state"])
@pytest.mark.parametrize("name", ["gated_delta_product", "oja", "rwkv7"])
def test_one_output_used_without_the_other(name, without):
    check(make(name, Shape(lengths=(0, 3), groups=2)).to(torch.float32), FLOAT32, without=(without,))


@pytest.mark.parametrize("name", ["gated_delta_rule", "mamba2"])
def test_starts_from_zero(name):
    problem = make(name, Shape(T=3, B=2, groups=2), state=False).to(torch.float32)
    assert gradients(problem)["initial_state"] is None
    check(problem, FLOAT32)


@pytest.mark.parametrize("shape", [Shape(T=0, B=2, groups=2), Shape(lengths=(0, 0), groups=2)], ids=str)
@pytest.mark.parametrize("name", ["gated_delta_product", "mamba2"])
def test_no_tokens(name, shape):
    check(make(name, shape).to(torch.float32), FLOAT32)


@pytest.mark.parametrize("name", ["gated_delta_product", "oja", "rwkv6", "mamba2"])
def test_each_gradient_alone_is_what_it_is_among_others(name):
    problem = make(name, Shape(T=3, groups=2)).to(torch.bfloat16)
    every = gradients(problem)
    for wanted in arguments(name):
        alone = gradients(problem, wanted=(wanted,))
        assert [key for key, x in alone.items() if x is not None] == [wanted]
        assert torch.equal(alone[wanted], every[wanted]), wanted


@pytest.mark.parametrize("name", ["kda", "mamba2"])
def test_strides_and_mixed_dtypes(name):
    problem = make(name, Shape(T=4, B=2, groups=2)).to(torch.float32)
    first, *_, last = problem.tensors

    def spread(key, x):
        x = x.to(torch.bfloat16) if key == first else x.to(torch.float16) if key == last else x
        return x.repeat_interleave(2, dim=-1)[..., ::2]

    check(problem.map(spread), LOW)


def test_a_sequence_has_the_same_bits_whatever_is_packed_beside_it():
    name = "gated_delta_product"
    packed = make(name, Shape(lengths=(7, 9), groups=2)).to(torch.bfloat16)
    rows = {i.name: 2 if i.per == "step" else 1 for i in spec_of(name).inputs}
    own = {x: tensor[:, 7 * rows[x] :] for x, tensor in packed.tensors.items()}
    alone = replace(packed, tensors=own, initial_state=packed.initial_state[1:], cu_seqlens=None)
    o, state = packed.call(form("naive_recurrent", name))
    do, d_state = (cotangent(key, x).to(x.dtype) for key, x in (("o", o), ("final_state", state)))

    def differentiate(problem, *given):
        found = problem.call(lambda *args, output_final_state, **kwargs: backward(name)(*given, *args, **kwargs))
        return dict(zip(arguments(name), found, strict=True))

    both, single = differentiate(packed, do, d_state), differentiate(alone, do[:, 7:], d_state[1:])
    for key, gradient in single.items():
        part = both[key][1:] if key == "initial_state" else both[key][:, 7 * rows[key] :]
        assert torch.equal(part, gradient), key


@pytest.mark.parametrize("name", ["gla", "gated_delta_product"])
def test_the_operator_launches_it(name, monkeypatch):
    """Eagerly, with a graph: the kernels' gradients, and not those of the PyTorch form."""
    launcher = importlib.import_module(f"{package(name).__name__}.fused_recurrent")
    monkeypatch.setattr(launcher._fused_recurrent, "form", None)
    problem = make(name, Shape(T=3, groups=2)).to(torch.float32)
    expected = evaluate(form("naive_recurrent", name), problem.to(torch.float64), wrt=("k", "g"))
    assert_close(expected, evaluate(form("fused_recurrent", name), problem, wrt=("k", "g")), 1e-5, gradients=FLOAT32)


# ----------------------------------------------------------------------------------------------------------- front ends

FRONT_ENDS = {
    "gated": """
        let: {n: l2norm(k)}
        decay: {alpha: exp(-exp(g))}
        update:
          - S = alpha * S
          - S = S + outer(n, sigmoid(A) * v - 0.5 * (S.T @ n))
        output: o = silu(b) * (S.T @ q) + b
    """,
    "squashed": """
        update: S = S + outer(k, v)
        output: o = tanh(S.T @ q) * sigmoid(g)
    """,
    "erased_and_squashed": """
        update: S = S + sigmoid(g) * outer(k, v - S.T @ k)
        output: o = silu(S.T @ q)
    """,
    "centered": """
        update: S = sigmoid(g) * S + outer(k, v - mean(v))
        output: o = l2norm(S.T @ q)
    """,
    "written_first": """
        update:
          - S = S + outer(k, v - S.T @ k * 0.3)
          - S = exp(-exp(A) - g ** 2) * S
        output: o = S.T @ q + S_prev.T @ k
    """,
    "twice": """
        decay: {alpha: exp(-softplus(k))}
        update: S = alpha * S + outer(q, S_prev.T @ k) * 0.2 - outer(k, S_prev.T @ q) * 0.2 + outer(w, v)
        output: o = S.T @ w
    """,
    "faded_twice": """
        update:
          - S = exp(-exp(g)) * S
          - S = S + outer(k, v - S.T @ k)
          - S = sigmoid(k) * S
          - S = S + outer(q, b)
        output: o = S.T @ q + S_prev.T @ k
    """,
}
"""A gate on what is read, and norms; functions of what is read, whose gradients go back to the state; sums over values;
rows before the decay; many rows; two decays in a token."""


INPUTS = {
    "q": ("[K]", (1, 6, 1, 5)),
    "k": ("[K]", (1, 6, 1, 5)),
    "v": ("{dims: [V], heads: HV}", (1, 6, 2, 3)),
    "g": ("{dims: [], heads: HV}", (1, 6, 2)),
    "b": ("{dims: [V], heads: HV}", (1, 6, 2, 3)),
}
PARAMS = {"A": ("{per: head}", (2,)), "w": ("{dims: [K]}", (5,))}


def front_end(name: str, directory: Path, monkeypatch: pytest.MonkeyPatch):
    """The functions of a front end, and the sizes of their arguments."""
    read = set(re.findall(r"[A-Za-z]+", FRONT_ENDS[name]))
    declared = [{x: kinds[x] for x in kinds if x in read} for kinds in (INPUTS, PARAMS)]
    inputs, params = (", ".join(f"{x}: {how}" for x, (how, _) in kinds.items()) for kinds in declared)
    head = f"flagen: 1\nname: {name}\nstate: {{S: [K, V]}}\ninputs: {{{inputs}}}\nparams: {{{params}}}\n"
    built = packages.kept(packages.build(parse_spec(head + dedent(FRONT_ENDS[name]))), directory)
    module = importlib.import_module(f"{built.__name__}.fused_recurrent_backward")
    sizes = [size for kinds in declared for _, size in kinds.values()]
    monkeypatch.setattr(module, "SEGMENT", 2)  # So that sequences of a few tokens have several.
    return getattr(built, f"naive_recurrent_{name}"), getattr(module, f"fused_recurrent_backward_{name}"), sizes


@pytest.mark.parametrize("name", FRONT_ENDS)
def test_front_ends(name, tmp_path, monkeypatch):
    """Gradients go through what is evaluated in registers, wherever it stands in a token."""
    naive, function, sizes = front_end(name, tmp_path, monkeypatch)
    generator = torch.Generator().manual_seed(0)
    tensors = [0.5 * torch.randn(size, generator=generator) for size in sizes]
    cu_seqlens = torch.tensor([0, 1, 1, 6])
    state = torch.randn(3, 2, 5, 3, generator=generator)
    leaves = [x.double().requires_grad_() for x in (*tensors, state)]
    outputs = naive(*leaves[:-1], initial_state=leaves[-1], output_final_state=True, cu_seqlens=cu_seqlens)
    given = [cotangent(key, x) for key, x in zip(("o", "final_state"), outputs, strict=True)]
    expected = torch.autograd.grad(outputs, leaves, given, allow_unused=True, materialize_grads=True)
    names = [str(place) for place in range(len(tensors))] + ["initial_state"]
    passed = {"initial_state": state, "cu_seqlens": cu_seqlens}
    got = function(*(x.float() for x in given), *tensors, **passed)
    assert_gradients(dict(zip(names, expected, strict=True)), dict(zip(names, got, strict=True)), FLOAT32)
    *others, alone = function(*(x.float() for x in given), *tensors, **passed, wanted=["initial_state"])
    assert not any(x is not None for x in others) and torch.equal(alone, got[-1])
