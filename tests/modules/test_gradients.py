"""Derivatives in float64 against differences, and calls against plain references, where no peer is needed to know."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from generated.modules import (
    FusedCrossEntropyLoss,
    FusedKLDivLoss,
    FusedLinearCrossEntropyLoss,
    LongConvolution,
    RotaryEmbedding,
    ShortConvolution,
)
from generated.modules import chunked as chunked_losses
from generated.modules.activations import elu_p1, powglu_linear, swiglu_linear
from generated.modules.convolution import causal_conv1d
from generated.modules.fused_cross_entropy import cross_entropy_loss
from generated.modules.fused_kl_div import fused_kl_div_loss
from generated.modules.fused_linear_cross_entropy import fused_linear_cross_entropy_loss
from generated.modules.fused_norm_gate import rms_norm_gated
from generated.modules.grpo import fused_grpo_loss
from generated.modules.layernorm import group_norm
from generated.modules.layernorm_gated import layernorm_fn
from generated.modules.token_shift import token_shift

from .cases import numbers

TARGET = torch.tensor([3, 0, -100, 4, 1])
IDS = torch.tensor([[1, 2, 3], [0, 4, 2]])
BOUNDS = torch.tensor([0, 2, 2, 3, 7])


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks of few rows although the problems are small."""
    monkeypatch.setattr(chunked_losses, "SMALL", 10)
    monkeypatch.setattr(chunked_losses, "CHUNKS", 2)


def conv(x: Tensor, weight: Tensor, bias: Tensor, state: Tensor) -> Any:
    return causal_conv1d(
        x, weight, bias, initial_state=state, output_final_state=True, activation="silu", cu_seqlens=BOUNDS
    )


FUNCTIONS: list[tuple[Callable[..., Any], list[tuple[int, ...]]]] = [
    (conv, [(1, 7, 3), (3, 4), (3,), (4, 3, 4)]),
    (lambda x, c: token_shift(x, BOUNDS, c, output_cache=True), [(1, 7, 3), (4, 3)]),
    (lambda x, w, b, r: group_norm(x, w, b, r, prenorm=True, num_groups=2), [(3, 6), (6,), (6,), (3, 6)]),
    (lambda x, w: group_norm(x, w, None, is_rms_norm=True, num_groups=2), [(3, 6), (6,)]),
    (lambda x, g, w: rms_norm_gated(x, g, w, None), [(3, 6), (3, 6), (6,)]),
    (lambda x, w, z: layernorm_fn(x, w, None, z, group_size=3, norm_before_gate=False), [(3, 6), (6,), (3, 6)]),
    (swiglu_linear, [(3, 4), (3, 4), (2, 4), (2,)]),
    (powglu_linear, [(3, 4), (3, 4), (2, 4), (2,)]),
    (elu_p1, [(3, 4)]),
    (lambda x: cross_entropy_loss(x, TARGET, 0.1, 1.5, 0.02, 2.0)[0], [(5, 6)]),
    (
        lambda x, w, b: fused_linear_cross_entropy_loss(x, TARGET, w, b, -100, 0.1, 1.5, 2.0),
        [(5, 3), (6, 3), (6,)],
    ),
    (lambda x, w: fused_kl_div_loss(x, numbers(7, (5, 2)), w, numbers(8, (6, 2))), [(5, 3), (6, 3)]),
    (lambda q, k: RotaryEmbedding(4)(q, k, torch.tensor([2, 0, 1, 3]), BOUNDS), [(1, 7, 1, 6), (1, 7, 2, 6)]),
]


@pytest.mark.parametrize(("function", "shapes"), FUNCTIONS)
def test_derivatives(function: Callable[..., Any], shapes: list[tuple[int, ...]]) -> None:
    inputs = [numbers(seed, shape).requires_grad_() for seed, shape in enumerate(shapes)]
    assert torch.autograd.gradcheck(function, inputs)


def same_twice(ours: Tensor, plain: Tensor, inputs: list[Tensor]) -> None:
    """The value, and the gradients, which are asked for twice: what is kept for them is not written to."""
    torch.testing.assert_close(ours, plain)
    expected = torch.autograd.grad(3 * plain, inputs)
    for _ in range(2):
        torch.testing.assert_close(torch.autograd.grad(3 * ours, inputs, retain_graph=True), expected)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_cross_entropy_is_torchs(reduction: str, smoothing: float) -> None:
    x = numbers(0, (5, 6)).requires_grad_()
    ours = FusedCrossEntropyLoss(reduction=reduction, label_smoothing=smoothing)(x, TARGET)
    plain = F.cross_entropy(x, TARGET, reduction=reduction, label_smoothing=smoothing)
    same_twice(ours.sum(), plain.sum(), [x])


def test_z_loss_is_part_of_the_loss_and_has_no_gradient() -> None:
    x = numbers(0, (5, 6)).requires_grad_()
    loss, z_loss = FusedCrossEntropyLoss(lse_square_scale=0.3, return_z_loss=True)(x, TARGET)
    counted = TARGET != -100
    expected = 0.3 * x.logsumexp(-1).square()[counted].mean()
    torch.testing.assert_close(z_loss, expected)
    assert not z_loss.requires_grad
    same_twice(loss, F.cross_entropy(x, TARGET) + expected, [x])


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("num_chunks", [1, 4])
def test_linear_cross_entropy_is_torchs(reduction: str, num_chunks: int) -> None:
    x, weight, bias = (numbers(i, shape).requires_grad_() for i, shape in enumerate([(5, 3), (6, 3), (6,)]))
    module = FusedLinearCrossEntropyLoss(reduction=reduction, num_chunks=num_chunks)
    plain = F.cross_entropy(F.linear(x, weight, bias), TARGET, reduction=reduction)
    same_twice(module(x[None], TARGET[None], weight, bias), plain, [x, weight, bias])


def test_only_gradients_that_are_wanted() -> None:
    x, weight = numbers(0, (5, 3)), numbers(1, (6, 3)).requires_grad_()
    loss = FusedLinearCrossEntropyLoss()(x, TARGET, weight)
    same_twice(loss, F.cross_entropy(x @ weight.T, TARGET), [weight])
    with torch.no_grad():
        assert not FusedLinearCrossEntropyLoss()(x, TARGET, weight).requires_grad


def test_nothing_counts() -> None:
    x, weight = numbers(0, (2, 3)).requires_grad_(), numbers(1, (6, 3))
    ignored = torch.full((2,), -100)
    loss = FusedLinearCrossEntropyLoss()(x, ignored, weight)
    loss.backward()
    assert loss == 0
    assert x.grad is not None and (x.grad == 0).all()
    assert FusedCrossEntropyLoss()(x, ignored).isnan()


@pytest.mark.parametrize("module", ["cross entropy", "grpo"])
def test_a_gradient_in_the_place_of_logits(module: str) -> None:
    x = numbers(0, (2, 3, 5)).requires_grad_()
    grads = []
    for inplace in (False, True):
        logits = x * 1
        if module == "grpo":
            loss = fused_grpo_loss(logits, numbers(1, (2, 2)), IDS, numbers(2, (2,)), inplace=inplace)
            assert isinstance(loss, Tensor)
        else:
            loss = FusedCrossEntropyLoss(inplace_backward=inplace)(logits.flatten(0, 1), IDS.flatten())
        (grad,) = torch.autograd.grad(loss.sum(), logits)
        assert (grad.data_ptr() == logits.data_ptr()) == inplace
        grads.append(grad.clone())
    torch.testing.assert_close(grads[0], grads[1])


def test_kl_is_torchs() -> None:
    x, weight = numbers(0, (5, 3)).requires_grad_(), numbers(1, (6, 3)).requires_grad_()
    teacher, teachers_weight = numbers(2, (5, 2)), numbers(3, (6, 2))
    student, target = (x @ weight.T).log_softmax(-1), (teacher @ teachers_weight.T).softmax(-1)
    plain = F.kl_div(student, target, reduction="batchmean")
    same_twice(FusedKLDivLoss()(x, teacher, weight, teachers_weight), plain, [x, weight])


def test_grpo_is_its_formula_and_skips_masked_tokens() -> None:
    x = numbers(0, (2, 3, 5))
    mask = torch.tensor([[1, 0], [1, 1]])
    broken = x.clone()
    broken[0, 1] = float("nan")
    broken[:, -1] = float("inf")
    x.requires_grad_()
    reference, advantages = numbers(1, (2, 2)), numbers(2, (2,))
    logp = x[:, :-1].log_softmax(-1).gather(-1, IDS[:, -2:, None]).squeeze(-1)
    kl = (reference - logp).exp() - (reference - logp) - 1
    plain = (0.1 * kl - (logp - logp.detach()).exp() * advantages[:, None]) * mask
    loss, found = fused_grpo_loss(x, reference, IDS, advantages, completion_mask=mask, save_kl=True)
    torch.testing.assert_close(found, kl * mask)
    same_twice((loss + found).sum(), (plain + kl * mask).sum(), [x])
    broken.requires_grad_()
    loss = fused_grpo_loss(broken, reference, IDS, advantages, completion_mask=mask)
    assert isinstance(loss, Tensor)
    torch.testing.assert_close(loss.detach(), plain.detach())
    loss.sum().backward()
    assert broken.grad is not None and broken.grad.isfinite().all()
    assert (broken.grad[0, 1] == 0).all() and (broken.grad[:, -1] == 0).all()


def test_long_convolution_looks_back_only() -> None:
    """With a filter that is longer than the sequence, where the peer's wraps around."""
    module = LongConvolution(3, 12).double()
    x = numbers(0, (1, 5, 3))
    expected = x + torch.stack([sum(module.filter[:, i] * x[:, t - i] for i in range(t + 1)) for t in range(5)], dim=1)
    torch.testing.assert_close(module(x), expected)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("cached", [False, True])
def test_short_convolution_packed_whole_and_step_by_step(bias: bool, cached: bool) -> None:
    module = ShortConvolution(3, 4, bias=bias).double()
    x = numbers(0, (1, 7, 3))
    cache = numbers(1, (4, 3, 4)) if cached else None
    y, state = module(x, cache=cache, output_final_state=True, cu_seqlens=BOUNDS)
    assert state is not None
    for n, (begin, end) in enumerate(pairwise(BOUNDS)):
        own = None if cache is None else cache[n : n + 1]
        alone, its_state = module(x[:, begin:end], cache=own, output_final_state=True)
        torch.testing.assert_close(alone, y[:, begin:end])
        torch.testing.assert_close(its_state, state[n : n + 1])
        moving = torch.zeros(1, 3, 4, dtype=x.dtype) if own is None else own.clone()
        with torch.no_grad():
            for t in range(int(begin), int(end)):
                one, moved = module(x[:, t : t + 1], cache=moving, output_final_state=True)
                assert moved is moving
                torch.testing.assert_close(one, y[:, t : t + 1].detach())
        torch.testing.assert_close(moving, state[n : n + 1].detach())


def test_one_token_of_each_packed_sequence() -> None:
    module = ShortConvolution(3, 4).double()
    x, cache = numbers(0, (1, 5, 3)), numbers(1, (5, 3, 4))
    expected, state = module(x, cache=cache, output_final_state=True, cu_seqlens=torch.arange(6))
    with torch.no_grad():
        y, moved = module(x, cache=cache, output_final_state=True, cu_seqlens=torch.arange(6))
    assert moved is cache
    torch.testing.assert_close(y, expected)
    torch.testing.assert_close(cache, state)


@pytest.mark.parametrize("bounds", [None, torch.arange(6)])
def test_a_cache_that_is_only_read_stays_as_it_is(bounds: torch.Tensor | None) -> None:
    module = ShortConvolution(3, 4).double()
    x, cache = numbers(0, (5, 1, 3) if bounds is None else (1, 5, 3)), numbers(1, (5, 3, 4))
    before = cache.clone()
    with torch.no_grad():
        y, state = module(x, cache=cache, cu_seqlens=bounds)
        assert state is None
        assert torch.equal(cache, before)
        torch.testing.assert_close(y, module(x, cache=cache, output_final_state=True, cu_seqlens=bounds)[0])


ROOT = Path(__file__).parents[2]

FROM_META = """
import torch
from generated.modules import RotaryEmbedding

q, k = torch.randn(2, 2, 5, 3, 8)
for scale_base in (None, 512.0):
    with torch.device("meta"):
        module = RotaryEmbedding(8, scale_base=scale_base)
    made = module.to_empty(device="cpu")
    assert all(map(torch.equal, made(q, k), RotaryEmbedding(8, scale_base=scale_base)(q, k)))
"""


def test_positions_turn_the_same_after_the_meta_device() -> None:
    """In a process of its own, whose memory nobody has written to and whose torch nobody has patched."""
    subprocess.run([sys.executable, "-c", FROM_META], cwd=ROOT, check=True, timeout=300)


def test_token_shift_with_an_empty_sequence() -> None:
    x, cache = numbers(0, (1, 7, 3)), numbers(1, (4, 3))
    y, last = token_shift(x, BOUNDS, cache, output_cache=True)
    for n, (begin, end) in enumerate(pairwise(BOUNDS)):
        alone, own = token_shift(x[:, begin:end], cache=cache[n : n + 1, None], output_cache=True)
        torch.testing.assert_close(alone, y[:, begin:end])
        torch.testing.assert_close(own, last[n : n + 1])
    assert torch.equal(last[1], cache[1])


def test_the_last_token_does_not_hold_the_others_in_memory() -> None:
    _, last = token_shift(numbers(0, (2, 7, 3)), output_cache=True)
    assert last.untyped_storage().nbytes() == last.nbytes


def test_a_cache_that_is_not_asked_for_stays_as_it_is() -> None:
    module, x, cache = ShortConvolution(3, 4).double(), numbers(0, (2, 1, 3)), numbers(1, (2, 3, 4))
    before = cache.clone()
    with torch.no_grad():
        assert module(x, cache=cache)[1] is None
    assert torch.equal(cache, before)


def test_rotary_depends_on_the_distance_only() -> None:
    rotary = RotaryEmbedding(6, scale_base=512.0).bfloat16()
    q, k = numbers(0, (1, 4, 1, 8)), numbers(1, (1, 4, 1, 8))

    def scores(offset: int) -> Tensor:
        turned = rotary(q, k, offset, max_seqlen=3000)
        return torch.einsum("bihd,bjhd->bij", *turned)

    torch.testing.assert_close(scores(0), scores(2000), rtol=1e-3, atol=1e-3)
