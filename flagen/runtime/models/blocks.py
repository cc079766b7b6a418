"""The blocks of a model: a layer that mixes tokens and what mixes channels, each behind a norm and a residual."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..modules import GatedMLP, LayerNorm, RMSNorm
from ..modules.activations import ACT2FN
from ..modules.token_mix import LerpLinear
from ..shared.cache import read_states, write_states
from ..shared.functional import check_activation
from ..shared.packing import Packing
from ..shared.shift import shift
from .config import ModelConfig

Handed = dict[str, Tensor]
"""Values that a layer hands on to the next one, by name."""


class Block(nn.Module):
    """A layer and a gated MLP, each behind an RMS norm and a residual."""

    def __init__(self, config: ModelConfig, layer_idx: int) -> None:
        super().__init__()
        self.attn_norm = norm_of(config)
        self.attn = config.layer_class(**config.layer_arguments(layer_idx))
        self.mlp_norm = norm_of(config)
        self.mlp = GatedMLP(config.hidden_size, config.hidden_ratio, config.intermediate_size, config.hidden_act)

    def forward(self, x: Tensor, handed: Handed, **call: Any) -> tuple[Tensor, Handed]:
        """x [B, T, D] and what the layer before hands on, to the same; `call` is what a layer is called with."""
        mixed, handed = mix(self.attn, self.attn_norm(x), handed, call)
        x = x + mixed
        return x + self.mlp(self.mlp_norm(x)), handed


class MixerBlock(nn.Module):
    """A layer and a gated MLP, as `Block` has them, under the names and in the order of log-linear Mamba-2's models."""

    def __init__(self, config: ModelConfig, layer_idx: int) -> None:
        super().__init__()
        self.mixer_norm = norm_of(config)
        self.mlp_norm = norm_of(config)
        self.mixer = config.layer_class(**config.layer_arguments(layer_idx))
        self.mlp = GatedMLP(config.hidden_size, config.hidden_ratio, config.intermediate_size, "swish")

    def forward(self, x: Tensor, handed: Handed, **call: Any) -> tuple[Tensor, Handed]:
        """As `Block`; the norms are in float32, whatever the dtype of the rest."""
        dtype = next(self.mixer.parameters()).dtype
        mixed, handed = mix(self.mixer, self.mixer_norm(x).to(dtype), handed, call)
        x = x + mixed
        return x + self.mlp(self.mlp_norm(x).to(dtype)), handed


class BareBlock(nn.Module):
    """A layer behind an RMS norm and a residual, as Mamba's models have it."""

    def __init__(self, config: ModelConfig, layer_idx: int) -> None:
        super().__init__()
        self.norm = norm_of(config)
        self.mixer = config.layer_class(**config.layer_arguments(layer_idx))
        self.residual_in_fp32 = config.residual_in_fp32

    def forward(self, x: Tensor, handed: Handed, **call: Any) -> tuple[Tensor, Handed]:
        """As `Block`; with residual_in_fp32 the residual is in float32."""
        dtype = next(self.mixer.parameters()).dtype
        mixed, handed = mix(self.mixer, self.norm(x).to(dtype), handed, call)
        if self.residual_in_fp32:
            return x.float() + mixed, handed
        return x + mixed, handed


class RWKVBlock(nn.Module):
    """A layer and RWKV's channel mixing, each behind a layer norm and a residual; the first has a norm before."""

    def __init__(self, config: ModelConfig, layer_idx: int) -> None:
        super().__init__()
        if config.norm_first and layer_idx == 0:
            self.pre_norm = norm_of(config)
        self.attn_norm = norm_of(config)
        self.attn = config.layer_class(**config.layer_arguments(layer_idx))
        self.ffn_norm = norm_of(config)
        mixing = ReceptanceMixing if config.family.block == "rwkv6" else ChannelMixing
        self.ffn = mixing(config, layer_idx)

    def forward(self, x: Tensor, handed: Handed, **call: Any) -> tuple[Tensor, Handed]:
        """As `Block`."""
        if hasattr(self, "pre_norm"):
            x = self.pre_norm(x)
        mixed, handed = mix(self.attn, self.attn_norm(x), handed, call)
        x = x + mixed
        return x + self.ffn(self.ffn_norm(x), call), handed


BLOCKS: dict[str, type[Block] | type[MixerBlock] | type[BareBlock] | type[RWKVBlock]] = {
    "mlp": Block,
    "mixer": MixerBlock,
    "none": BareBlock,
    "rwkv6": RWKVBlock,
    "rwkv7": RWKVBlock,
}


def norm_of(config: ModelConfig) -> RMSNorm | LayerNorm:
    """The norm before each part of a block, and after the last."""
    match config.family.block:
        case "rwkv6" | "rwkv7":
            return LayerNorm(config.hidden_size, bias=config.norm_bias, eps=config.norm_eps)
        case "mixer" | "none":
            return RMSNorm(config.hidden_size, eps=config.norm_eps, dtype=torch.float32)
    return RMSNorm(config.hidden_size, eps=config.norm_eps)


class _Shifting(nn.Module):
    """What sees the token before, whose last one a cache keeps as `ffn_state`."""

    def __init__(self, layer_idx: int) -> None:
        super().__init__()
        self.layer_idx = layer_idx

    def forward(self, x: Tensor, call: dict[str, Any]) -> Tensor:
        """[B, T, D] to [B, T, D], zero where there is no token."""
        cache = call["past_key_values"]
        keep = cache is not None and bool(call["use_cache"])
        packing = Packing.of(x, call["attention_mask"], call["cu_seqlens"], made=call.get("packings"))
        x = packing.pack(x)
        before = None if cache is None else read_states(cache, self.layer_idx)["ffn_state"]
        previous, last = shift(x, before, keep, packing.cu_seqlens)
        if keep:
            write_states(cache, self.layer_idx, 0, ffn_state=last)
        return packing.unpack(self.mixed(x, previous - x))

    def mixed(self, x: Tensor, delta: Tensor) -> Tensor:
        """[B, T, D] of tokens, and of by how much the one before differs, [B, T, D] each."""
        raise NotImplementedError


class ChannelMixing(_Shifting):
    """RWKV-7's: a squared ReLU between two projections, of a token and the one before (https://arxiv.org/abs/2503.14456)."""

    def __init__(self, config: ModelConfig, layer_idx: int) -> None:
        super().__init__(layer_idx)
        width = _width(config)
        self.depth = 1 - layer_idx / config.num_hidden_layers
        self.x_k = nn.Parameter(torch.zeros(config.hidden_size))
        self.key = nn.Linear(config.hidden_size, width, bias=False)
        self.value = nn.Linear(width, config.hidden_size, bias=False)
        self.activation = _activation(config.hidden_act)
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Later layers start with less of the token before; what is written starts at zero."""
        place = torch.arange(len(self.x_k), device=self.x_k.device) / len(self.x_k)
        self.x_k.copy_(1 - place ** (self.depth**4))
        nn.init.orthogonal_(self.key.weight)
        nn.init.zeros_(self.value.weight)

    def mixed(self, x: Tensor, delta: Tensor) -> Tensor:
        mixed: Tensor = self.value(self.activation(self.key(x + delta * self.x_k)))
        return mixed


class ReceptanceMixing(_Shifting):
    """RWKV-6's: the same with a gate (https://arxiv.org/abs/2404.05892)."""

    def __init__(self, config: ModelConfig, layer_idx: int) -> None:
        super().__init__(layer_idx)
        width = _width(config)
        self.key = LerpLinear(config.hidden_size, width)
        self.value = nn.Linear(width, config.hidden_size, bias=False)
        self.receptance = LerpLinear(config.hidden_size, config.hidden_size)
        self.activation = _activation(config.hidden_act)

    def mixed(self, x: Tensor, delta: Tensor) -> Tensor:
        value: Tensor = self.value(self.activation(self.key(x, delta)))
        gate: Tensor = self.receptance(x, delta)
        return gate.sigmoid() * value


def mix(layer: nn.Module, x: Tensor, handed: Handed, call: dict[str, Any]) -> tuple[Tensor, Handed]:
    """A layer's output, and what it hands on."""
    o, _, _, *values = layer(x, **handed, **call)
    names = getattr(layer, "outputs", ())
    return o, dict(zip(names, values, strict=True))


def _width(config: ModelConfig) -> int:
    if config.intermediate_size is not None:
        return int(config.intermediate_size)
    return 32 * ((int(config.hidden_size * config.hidden_ratio) + 31) // 32)


def _activation(name: str) -> Any:
    check_activation(sorted(ACT2FN), hidden_act=name)
    return ACT2FN[name]
