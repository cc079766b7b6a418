"""Parts of layers and models in plain PyTorch: the names and signatures are those of flash-linear-attention 0.6.0."""

from .convolution import ImplicitLongConvolution, LongConvolution, ShortConvolution
from .fused_norm_gate import (
    FusedLayerNormGated,
    FusedLayerNormSwishGate,
    FusedLayerNormSwishGateLinear,
    FusedRMSNormGated,
    FusedRMSNormSwishGate,
    FusedRMSNormSwishGateLinear,
)
from .l2norm import L2Norm
from .layernorm import GroupNorm, GroupNormLinear, LayerNorm, LayerNormLinear, RMSNorm, RMSNormLinear
from .layernorm_gated import LayerNormGated, RMSNormGated
from .lora import LoRA

__all__ = [
    "FusedLayerNormGated",
    "FusedLayerNormSwishGate",
    "FusedLayerNormSwishGateLinear",
    "FusedRMSNormGated",
    "FusedRMSNormSwishGate",
    "FusedRMSNormSwishGateLinear",
    "GroupNorm",
    "GroupNormLinear",
    "ImplicitLongConvolution",
    "L2Norm",
    "LayerNorm",
    "LayerNormGated",
    "LayerNormLinear",
    "LoRA",
    "LongConvolution",
    "RMSNorm",
    "RMSNormGated",
    "RMSNormLinear",
    "ShortConvolution",
]
