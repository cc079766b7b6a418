"""`prev` in numbers: short convolutions and token shifts are what PyTorch makes of them, packed and in pieces, too."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import cache
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor
from torch.nn.functional import silu

from flagen import algebra
from flagen.spec import load_spec, parse_spec
from flagen.spec.model import Spec
from tests.fuzz.packages import build, imported

EXAMPLES = Path(__file__).parents[2] / "examples" / "specs"
SPECS = {name: load_spec(EXAMPLES / f"{name}.yaml") for name in ("short_conv", "shifted_keys")}
"""They climb the ladder with the other specs of their directory, in tests/fuzz."""

TRAPEZOID = parse_spec("""
flagen: 2
name: trapezoid
dims: {R: K / 2}
state: {phi: [R], S: [K, V]}
inputs: {q: [K], k: [K], v: [V], angle: [R], share: {dims: [], range: [0, 1]}, g: {dims: [], range: [-.inf, 0]}}
decay: {alpha: exp(g)}
update:
  - phi = fraction(phi + angle)
  - kr = rotate(k, 6.283185307179586 * phi)
  - S = alpha * S + (1 - share) * alpha * outer(prev(kr), prev(v)) + share * outer(kr, v)
output: o = S.T @ rotate(q, 6.283185307179586 * phi)
""")
"""Both ends of the step from the token before to this one, as in Mamba-3."""

KINDS = ("naive_recurrent", "naive_chunk", "chunk", "fused_recurrent")
B, T, H, K, V = 2, 70, 2, 6, 5


@pytest.fixture(scope="module")
def packages() -> Iterator[Callable[[Spec], ModuleType]]:
    """The package of a spec, built once."""
    with ExitStack() as stack:
        yield cache(lambda spec: stack.enter_context(imported(build(spec))))


def tensors(spec: Spec, tokens: int = T, batch: int = B, dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
    """Every input and tensor param of a spec."""
    random = torch.Generator().manual_seed(0)
    sizes = {"K": K, "V": V, "R": K // 2}

    def sample(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=random, dtype=torch.float64)

    found = {decl.name: sample(batch, tokens, H, *(sizes[dim] for dim in decl.dims)) for decl in spec.inputs}
    found |= {p.name: sample(H, *(sizes[dim] for dim in p.dims)) for p in spec.params if p.is_tensor}
    between = {decl.name for decl in (*spec.inputs, *spec.params) if decl.range.low == 0 and decl.range.high == 1}
    for name, x in found.items():
        x = x.sigmoid() if name in between else -x.abs() if name == "g" else x
        found[name] = x.to(dtype).requires_grad_(dtype == torch.float64)
    return found


def states(spec: Spec, count: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, ...]:
    """A state for each of `count` sequences."""
    sizes, random = {"K": K, "V": V, "R": K // 2}, torch.Generator().manual_seed(1)
    shapes = ((count, H, *(sizes[dim] for dim in state.dims)) for state in spec.states)
    return tuple(torch.rand(*shape, generator=random, dtype=dtype).requires_grad_() for shape in shapes)


def lagged(x: Tensor, *earlier: Tensor) -> Tensor:
    """x as it was as many tokens ago as there are `earlier` values, the nearest first."""
    past = torch.stack(earlier[::-1], 1)
    return torch.cat([past, x], 1)[:, : x.shape[1]]


def attention(q: Tensor, k: Tensor, v: Tensor, g: Tensor, S: Tensor) -> Tensor:
    """Decayed linear attention over whole sequences, from what every token weighs in every later one."""
    total = g.cumsum(1).movedim(1, -1)
    weights = (total[..., :, None] - total[..., None, :]).tril().exp().tril()
    scores = torch.einsum("bthk,bshk->bhts", q, k) * weights
    first = torch.einsum("bthk,bhkv->bthv", q, S) * total.exp().movedim(-1, 1)[..., None]
    return (torch.einsum("bhts,bshv->bthv", scores, v) + first) * K**-0.5


def short_conv(x: dict[str, Tensor], S: Tensor, k_1: Tensor, k_2: Tensor, k_3: Tensor) -> Tensor:
    k = x["k"]
    rows = (k, lagged(k, k_1), lagged(k, k_1, k_2), lagged(k, k_1, k_2, k_3))
    convolved = sum(x[f"w{ago}"] * row for ago, row in enumerate(rows))
    return attention(x["q"], silu(convolved), x["v"], x["g"], S)


def shifted_keys(x: dict[str, Tensor], S: Tensor, k_1: Tensor, v_1: Tensor) -> Tensor:
    k, v, mix_k, mix_v = x["k"], x["v"], x["mix_k"], x["mix_v"]
    mixed_k = mix_k * k + (1 - mix_k) * lagged(k, k_1)
    mixed_v = mix_v * v + (1 - mix_v) * lagged(v, v_1)
    return attention(x["q"], mixed_k, mixed_v, x["g"], S)


BY_HAND = {"short_conv": short_conv, "shifted_keys": shifted_keys}


@pytest.mark.parametrize("name", SPECS)
def test_it_is_what_pytorch_makes_of_it(packages, name):
    """With the gradients of every input, param and initial state, of the output and of what is kept in the end."""
    spec = SPECS[name]
    x, first = tensors(spec), states(spec, B)
    wanted, leaves = BY_HAND[name](x, *first), [*x.values(), *first]
    kept = [x[name][:, -int(ago)] for name, ago in (state.name.split("_") for state in spec.states[1:])]
    cotangents = [torch.rand_like(each) for each in (wanted, *kept)]
    expected = torch.autograd.grad([wanted, *kept], leaves, cotangents)
    for kind in ("naive_recurrent", "naive_chunk"):
        function = getattr(packages(spec), f"{kind}_{name}")
        o, final = function(**x, initial_state=first, output_final_state=True)
        assert (o - wanted).abs().max() < 1e-12
        assert all(torch.equal(found, value) for found, value in zip(final[1:], kept, strict=True))
        found = torch.autograd.grad([o, *final[1:]], leaves, cotangents)
        for leaf, one, other in zip([*x, *spec.states], found, expected, strict=True):
            assert (one - other).abs().max() < 1e-11, (kind, leaf)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("spec", [*SPECS.values(), TRAPEZOID], ids=lambda spec: spec.name)
def test_a_call_that_is_split_anywhere_is_the_whole_call(packages, spec, kind):
    """After one token, too, when not everything that is kept is of this call."""
    x = tensors(spec, dtype=torch.float32)
    inputs = {decl.name for decl in spec.inputs}
    function = getattr(packages(spec), f"{kind}_{spec.name}")
    whole, end = function(**x, output_final_state=True)
    for cuts in ((1, T - 1), (33, T - 33), (1, 1, 1, T - 3)):
        state, rows = None, []
        pieces = {name: (value.split(cuts, 1) if name in inputs else [value] * len(cuts)) for name, value in x.items()}
        for place in range(len(cuts)):
            piece = {name: parts[place] for name, parts in pieces.items()}
            o, state = function(**piece, initial_state=state, output_final_state=True)
            rows.append(o)
        assert (torch.cat(rows, 1) - whole).abs().max() < 1e-4
        for found, expected, decl in zip(state, end, spec.states, strict=True):
            assert (found - expected).abs().max() < 1e-4, decl.name


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("spec", SPECS.values(), ids=lambda spec: spec.name)
def test_packed_sequences_do_not_see_each_other(packages, spec, kind):
    """Nor an empty one, or one shorter than what is looked back on."""
    lengths = (20, 0, 1, 2, 37)
    x = tensors(spec, sum(lengths), 1, torch.float32)
    inputs = {decl.name for decl in spec.inputs}
    first = tuple(state.detach() for state in states(spec, len(lengths), torch.float32))
    function = getattr(packages(spec), f"{kind}_{spec.name}")
    offsets = torch.tensor([0, *torch.tensor(lengths).cumsum(0).tolist()])
    o, finals = function(**x, initial_state=first, output_final_state=True, cu_seqlens=offsets)
    found = o.split(lengths, 1)
    for place in range(len(lengths)):
        alone = {name: (value.split(lengths, 1)[place] if name in inputs else value) for name, value in x.items()}
        one = tuple(state[place : place + 1] for state in first)
        wanted, final = function(**alone, initial_state=one, output_final_state=True)
        assert torch.allclose(found[place], wanted, atol=1e-5)
        assert all(torch.allclose(e[place : place + 1], w, atol=1e-5) for e, w in zip(finals, final, strict=True))


def test_before_a_sequence_there_is_nothing(packages):
    spec = parse_spec("""
        flagen: 2
        name: after_the_first
        state: {c: [K]}
        inputs: {x: [K]}
        update: c = c + x
        output: o = c * prev(1) + 10 * prev(x, 2)
    """)
    x = torch.ones(1, 4, 1, 1)
    for kind in ("naive_recurrent", "naive_chunk"):
        o, _ = getattr(packages(spec), f"{kind}_after_the_first")(x)
        assert o.flatten().tolist() == [0, 2, 13, 14]


def test_what_is_kept_is_a_stage_before_the_matrix():
    staged = algebra.derive(TRAPEZOID).staged
    assert staged is not None
    assert [stage.is_scan for stage in staged.stages] == [True, True, True, False]


def test_a_short_convolution_is_one_stage():
    staged = algebra.derive(SPECS["short_conv"]).staged
    assert staged is not None
    assert [stage.called for stage in staged.stages] == ["k_1, k_2 and k_3", "S"]
    assert [decl.name for decl in staged.passed] == ["silu_x"]
