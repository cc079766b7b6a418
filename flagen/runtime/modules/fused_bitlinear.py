"""Linear maps with 8-bit activations and ternary weights, trained straight through the rounding.

BitNet b1.58, Ma et al. 2024, https://arxiv.org/abs/2402.17764; with the norm inside, Zhu et al. 2024,
https://arxiv.org/abs/2406.02528.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .layernorm import Normed, RMSNorm, add_residual, normalize
from .precision import upcast


def activation_quant(x: Tensor) -> Tensor:
    """Each row of [..., D] rounded to the 255 multiples of a 127th of its largest magnitude, in x's dtype."""
    wide = upcast(x)
    scale = 127.0 / wide.abs().amax(dim=-1, keepdim=True).clamp(min=1e-5)
    return ((wide * scale).round().clamp(-128, 127) / scale).to(x.dtype)


def weight_quant(w: Tensor) -> Tensor:
    """w rounded to -1, 0 and 1 times its mean magnitude, in w's dtype."""
    wide = upcast(w)
    scale = 1.0 / wide.abs().mean().clamp(min=1e-5)
    return ((wide * scale).round().clamp(-1, 1) / scale).to(w.dtype)


def straight_through(x: Tensor, rounded: Tensor) -> Tensor:
    """The value of `rounded`, the gradient of x."""
    return rounded.detach() + (x - x.detach())


def layer_norm_linear_quant(
    x: Tensor,
    norm_weight: Tensor | None,
    norm_bias: Tensor | None,
    linear_weight: Tensor,
    linear_bias: Tensor | None,
    residual: Tensor | None = None,
    eps: float = 1e-6,
    prenorm: bool = False,
    residual_in_fp32: bool = False,
    is_rms_norm: bool = False,
) -> Normed:
    """A norm, its rows rounded to 8 bits, then a linear map with ternary weights, in x's dtype.

    Args:
        x: [..., D].
        norm_weight: [D], or None for ones.
        norm_bias: [D], or None for zeros.
        linear_weight: [O, D].
        linear_bias: [O], or None.
        residual, eps, prenorm, residual_in_fp32, is_rms_norm: as for layernorm.layer_norm.

    Returns:
        [..., O]; with prenorm, that and the sum, [..., D].

    Raises:
        ValueError: residual has another shape than x.
    """
    total, residual_dtype = add_residual(x, residual, residual_in_fp32)
    normed = normalize(total, norm_weight, norm_bias, eps, is_rms_norm)
    rows = straight_through(normed, activation_quant(normed)).to(x.dtype)
    weight = straight_through(linear_weight, weight_quant(linear_weight)).to(x.dtype)
    out = F.linear(rows, weight, None if linear_bias is None else linear_bias.to(x.dtype))
    return (out, total.to(residual_dtype)) if prenorm else out


def rms_norm_linear_quant(
    x: Tensor,
    norm_weight: Tensor | None,
    norm_bias: Tensor | None,
    linear_weight: Tensor,
    linear_bias: Tensor | None,
    residual: Tensor | None = None,
    eps: float = 1e-5,
    prenorm: bool = False,
    residual_in_fp32: bool = False,
) -> Normed:
    """layer_norm_linear_quant, the mean left in."""
    return layer_norm_linear_quant(
        x, norm_weight, norm_bias, linear_weight, linear_bias, residual, eps, prenorm, residual_in_fp32, True
    )


def bit_linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    norm_weight: Tensor | None = None,
    norm_bias: Tensor | None = None,
    eps: float = 1e-8,
) -> Tensor:
    """rms_norm_linear_quant of x alone: [..., D] and weight [O, D] to [..., O]."""
    out = rms_norm_linear_quant(x, norm_weight, norm_bias, weight, bias, eps=eps)
    assert isinstance(out, Tensor)
    return out


class BitLinear(nn.Linear):
    """RMS norm, 8-bit rows, ternary weights: parameters weight [O, I], bias [O] if asked for, norm.weight [I].

    The rows are rounded from the norm in x's dtype; the bias is added (flash-linear-attention's leaves it out).

    Args:
        in_features: I.
        out_features: O.
        bias: whether there is a bias.
        norm_eps: of the norm.
    """

    def __init__(self, in_features: int, out_features: int, bias: bool = False, norm_eps: float = 1e-8) -> None:
        super().__init__(in_features, out_features, bias=bias)
        self.norm = RMSNorm(in_features, eps=norm_eps, dtype=torch.float32)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, norm_eps={self.norm.eps}"

    def forward(self, x: Tensor) -> Tensor:
        """[..., I] to [..., O]."""
        normed = self.norm(x)
        rows = straight_through(normed, activation_quant(normed))
        return F.linear(rows, straight_through(self.weight, weight_quant(self.weight)), self.bias)


class FusedBitLinear(BitLinear):
    """BitLinear whose rows are rounded from the norm in float32."""

    def __init__(self, in_features: int, out_features: int, bias: bool = False) -> None:
        super().__init__(in_features, out_features, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """[..., I] to [..., O] in x's dtype."""
        return bit_linear(x, self.weight, self.bias, self.norm.weight, self.norm.bias, self.norm.eps)


__all__ = [
    "BitLinear",
    "FusedBitLinear",
    "activation_quant",
    "bit_linear",
    "layer_norm_linear_quant",
    "rms_norm_linear_quant",
    "weight_quant",
]
