"""Parts of layers and models in plain PyTorch: the names and signatures are those of flash-linear-attention 0.6.0."""

from .convolution import ImplicitLongConvolution, LongConvolution, ShortConvolution
from .fused_bitlinear import BitLinear, FusedBitLinear
from .fused_cross_entropy import FusedCrossEntropyLoss
from .fused_kl_div import FusedKLDivLoss
from .fused_linear_cross_entropy import FusedLinearCrossEntropyLoss
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
from .mlp import GatedMLP
from .rotary import RotaryEmbedding
from .token_shift import TokenShift

__all__ = [
    "BitLinear",
    "FusedBitLinear",
    "FusedCrossEntropyLoss",
    "FusedKLDivLoss",
    "FusedLayerNormGated",
    "FusedLayerNormSwishGate",
    "FusedLayerNormSwishGateLinear",
    "FusedLinearCrossEntropyLoss",
    "FusedRMSNormGated",
    "FusedRMSNormSwishGate",
    "FusedRMSNormSwishGateLinear",
    "GatedMLP",
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
    "RotaryEmbedding",
    "ShortConvolution",
    "TokenShift",
]
