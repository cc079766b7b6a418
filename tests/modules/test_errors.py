"""What is wrong with a call is named, with what was expected; what is not supported is refused by its name."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch

from generated import modules
from generated.modules import ShortConvolution
from generated.modules.activations import swiglu
from generated.modules.convolution import PositionalEmbedding, causal_conv1d, causal_conv1d_update
from generated.modules.feature_map import LearnablePolySketchNonNegativeFeatureMap, RebasedFeatureMap
from generated.modules.fused_cross_entropy import cross_entropy_loss
from generated.modules.fused_kl_div import fused_kl_div_loss
from generated.modules.fused_linear_cross_entropy import fused_linear_cross_entropy_loss
from generated.modules.fused_norm_gate import FusedRMSNormGatedLinear, rms_norm_gated
from generated.modules.grpo import fused_grpo_loss, grpo_loss_with_old_logps
from generated.modules.layernorm import group_norm, layer_norm
from generated.modules.layernorm_gated import layernorm_fn
from generated.modules.rotary import rotary_embedding
from generated.modules.token_shift import token_shift

x = torch.zeros(2, 3, 4)
w = torch.zeros(4, 3)
ids = torch.zeros(2, 3, dtype=torch.long)
cu = torch.tensor([0, 1, 3])

WRONG: list[tuple[type[Exception], str, Callable[[], Any]]] = [
    (ValueError, "residual: expected shape [2, 3, 4] as x, got [2, 4]", lambda: layer_norm(x, None, None, x[:, 0])),
    (
        ValueError,
        "x: expected a multiple of num_groups = 3 channels, got 4",
        lambda: group_norm(x, None, None, num_groups=3),
    ),
    (ValueError, "hidden_size: expected a multiple of num_groups = 3, got 4", lambda: modules.GroupNorm(3, 4)),
    (
        ValueError,
        "x: expected a multiple of group_size = 3 channels, got 4",
        lambda: layernorm_fn(x, w[:, 0], None, group_size=3),
    ),
    (ValueError, "z: expected shape [2, 3, 4] as x, got [2, 4]", lambda: layernorm_fn(x, w[:, 0], None, x[:, 0])),
    (ValueError, "g: expected shape [2, 3, 4] as x, got [2, 4]", lambda: rms_norm_gated(x, x[:, 0], None, None)),
    (
        ValueError,
        "activation: expected one of swish, silu, sigmoid, got 'relu'",
        lambda: rms_norm_gated(x, x, None, None, "relu"),
    ),
    (
        ValueError,
        "activation: expected one of swish, silu, sigmoid, got 'relu'",
        lambda: modules.FusedRMSNormGated(4, activation="relu"),
    ),
    (TypeError, "weight: expected the linear map's, [O, 4], got None", lambda: FusedRMSNormGatedLinear(4)(x, x)),
    (ValueError, "y: expected shape [2, 3, 4] as x, got [2, 4]", lambda: swiglu(x, x[:, 0])),
    (ValueError, "hidden_act: expected 'swish' or 'powlu', got 'relu'", lambda: modules.GatedMLP(4, hidden_act="relu")),
    (
        ValueError,
        "activation: expected one of None, sigmoid, tanh, relu, got 'gelu'",
        lambda: modules.LoRA(4, 4, 2, activation="gelu"),
    ),
    (
        ValueError,
        "activation: expected one of silu, swish, None, got 'relu'",
        lambda: causal_conv1d(x, w, activation="relu"),
    ),
    (
        ValueError,
        "backend: expected one of triton, cuda, mix, got 'cudnn'",
        lambda: ShortConvolution(4, 3, backend="cudnn"),
    ),
    (
        TypeError,
        "ShortConvolution: expected no argument but those of its signature, got dilation",
        lambda: ShortConvolution(4, 3, dilation=2),
    ),
    (
        TypeError,
        "ShortConvolution.forward: expected no argument but those of its signature, got state",
        lambda: ShortConvolution(4, 3)(x, state=x),
    ),
    (
        ValueError,
        "mask, cu_seqlens: expected one of the two, got both",
        lambda: ShortConvolution(4, 3)(x, mask=ids, cu_seqlens=cu),
    ),
    (NotImplementedError, "cp_context", lambda: causal_conv1d(x, w, cp_context=object())),
    (NotImplementedError, "seq_idx: not supported", lambda: causal_conv1d(x, w, seq_idx=ids)),
    (
        TypeError,
        "causal_conv1d: expected no argument but those of its signature, got weights",
        lambda: causal_conv1d(x, weights=w),
    ),
    (TypeError, "weight: expected [D, W], got None", lambda: causal_conv1d(x)),
    (TypeError, "weight: expected [D, W], got None", lambda: causal_conv1d_update(x[:, 0], x)),
    (ValueError, "x: expected [B, T, D] with D = 4 as weight, got [2, 3, 3]", lambda: causal_conv1d(x[..., :3], w)),
    (ValueError, "residual: expected shape [2, 3, 4] as x, got [2, 4]", lambda: causal_conv1d(x, w, residual=x[:, 0])),
    (
        ValueError,
        "x: expected packed sequences in a batch of 1, got a batch of 2",
        lambda: causal_conv1d(x, w, cu_seqlens=cu),
    ),
    (
        ValueError,
        "initial_state: expected [N, D, W] = [2, 4, 3], got [2, 3, 4]",
        lambda: causal_conv1d(x, w, initial_state=x),
    ),
    (
        ValueError,
        "cache: expected [N, D, W] = [2, 4, 3], got [2, 3, 4]",
        lambda: causal_conv1d_update(x[:, 0], x, weight=w),
    ),
    (
        ValueError,
        "emb_dim: expected an odd number from 3, for time, cosines and sines, got 4",
        lambda: PositionalEmbedding(4, 8),
    ),
    (ValueError, "cache: expected [N, D] = [2, 4], got (3, 4)", lambda: token_shift(x, cache=x[0])),
    (ValueError, "x: expected packed sequences in a batch of 1, got a batch of 2", lambda: token_shift(x, cu)),
    (ValueError, "dim: expected an even number, got 3", lambda: modules.RotaryEmbedding(3)),
    (
        ValueError,
        "seqlen_offsets: expected [N] = [2], got [1]",
        lambda: modules.RotaryEmbedding(4)(x[:, :, None], x[:, :, None], cu[:1]),
    ),
    (
        ValueError,
        "x: expected at least the 6 channels that are rotated, got 4",
        lambda: modules.RotaryEmbedding(6)(x[:, :, None], x[:, :, None]),
    ),
    (
        ValueError,
        "max_seqlen: expected a number with a scale_base",
        lambda: modules.RotaryEmbedding(4, scale_base=2.0)(x[:, :, None], x[:, :, None], cu[:2]),
    ),
    (
        ValueError,
        "seqlen_offsets: expected positions of cos, 0 to 1, got 0 to 2",
        lambda: rotary_embedding(x[:, :, None], w[:2, :2], w[:2, :2]),
    ),
    (ValueError, "degree: expected 2, 4, 8, ..., got 3", lambda: LearnablePolySketchNonNegativeFeatureMap(4, degree=3)),
    (
        ValueError,
        "use_gamma, normalize: expected one of the two at least, got neither",
        lambda: RebasedFeatureMap(4, use_gamma=False, normalize=False),
    ),
    (ValueError, "logits: expected [N, V], got [2, 3, 4]", lambda: cross_entropy_loss(x, ids)),
    (ValueError, "target: expected [N] = [3], got [2, 3]", lambda: cross_entropy_loss(x[0], ids)),
    (
        ValueError,
        "reduction: expected 'mean', 'sum' or 'none', got 'batch'",
        lambda: modules.FusedCrossEntropyLoss(reduction="batch"),
    ),
    (NotImplementedError, "process_group", lambda: modules.FusedCrossEntropyLoss(process_group=object())),
    (NotImplementedError, "process_group", lambda: modules.FusedLinearCrossEntropyLoss(process_group=object())),
    (
        ValueError,
        "reduction: expected 'mean' or 'sum', got 'none'",
        lambda: modules.FusedLinearCrossEntropyLoss(reduction="none"),
    ),
    (
        ValueError,
        "x, weight: expected [N, D] and [V, D], got [3, 4] and [4, 3]",
        lambda: fused_linear_cross_entropy_loss(x[0], ids[0], w),
    ),
    (ValueError, "reduction: expected 'batchmean', got 'mean'", lambda: modules.FusedKLDivLoss("mean")),
    (
        ValueError,
        "target_x, target_weight: expected 3 rows and 3 columns as x and weight, got 3 and 5",
        lambda: fused_kl_div_loss(x[0], x[0], x[1], torch.zeros(5, 4)),
    ),
    (
        RuntimeError,
        "target_x: expected a teacher that requires no gradient",
        lambda: fused_kl_div_loss(x[0], x[0].clone().requires_grad_(), x[1], x[1]),
    ),
    (
        ValueError,
        "ref_logp: expected [B, L] = [2, 2], got [2, 3]",
        lambda: fused_grpo_loss(x, ids.float(), ids, w[:2, 0]),
    ),
    (ValueError, "advantages: expected [B] = [2], got [4]", lambda: fused_grpo_loss(x, x[:, :2, 0], ids, w[:, 0])),
    (
        ValueError,
        "input_ids: expected [2, 2 or more], got [2, 1]",
        lambda: fused_grpo_loss(x, x[:, :2, 0], ids[:, :1], w[:2, 0]),
    ),
    (
        ValueError,
        "logits_to_keep: expected T = 4, got 2",
        lambda: grpo_loss_with_old_logps(x[0], x[0], x[0], x[0], 2, w[0]),
    ),
    (
        ValueError,
        "logps: expected two completions at least, for rewards are relative, got 1",
        lambda: grpo_loss_with_old_logps(x[0, :1], x[0], x[0], x[0], 4, w[0]),
    ),
    (
        ValueError,
        "rewards: expected [B] = [3], got [4]",
        lambda: grpo_loss_with_old_logps(x[0], x[0], x[0], x[0], 4, w[:, 0]),
    ),
    (AttributeError, "has no attribute Nothing", lambda: modules.layernorm.Nothing),
]


@pytest.mark.parametrize(("kind", "message", "call"), WRONG, ids=[message for _, message, _ in WRONG])
def test_error(kind: type[Exception], message: str, call: Callable[[], Any]) -> None:
    with pytest.raises(kind, match=re.escape(message)):
        call()
