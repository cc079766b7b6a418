"""A norm times a gate: norm(x) * act(g), in float32, in x's dtype at the end.

The activation is `swish` (also called `silu`) or `sigmoid`. `residual`, `prenorm` and `residual_in_fp32` mean what they
do in layernorm.py.
"""

import torch
from torch import Tensor

from ..shared.functional import activate, check_activation
from .layernorm import AffineNorm, Normed, add_residual, linear_in, normalize
from .precision import upcast

GATES = ("swish", "silu", "sigmoid")


def norm_gated(
    x: Tensor,
    g: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    activation: str,
    residual: Tensor | None,
    residual_in_fp32: bool,
    eps: float,
    is_rms_norm: bool,
) -> tuple[Tensor, Tensor]:
    """norm(x + residual) * act(g), and the sum.

    Raises:
        ValueError: an unknown activation; g or residual has another shape than x.
    """
    check_activation(GATES, activation=activation)
    if g.shape != x.shape:
        raise ValueError(f"g: expected shape {list(x.shape)} as x, got {list(g.shape)}")
    total, residual_dtype = add_residual(x, residual, residual_in_fp32)
    y = normalize(total, weight, bias, eps, is_rms_norm) * activate(upcast(g), activation)
    return y.to(x.dtype), total.to(residual_dtype)


def layer_norm_gated(
    x: Tensor,
    g: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    activation: str = "swish",
    residual: Tensor | None = None,
    prenorm: bool = False,
    residual_in_fp32: bool = False,
    eps: float = 1e-6,
) -> Normed:
    """Layer norm times a gate.

    Args:
        x: [..., D].
        g: [..., D], the gate before its activation.
        weight: [D], or None for ones.
        bias: [D], or None for zeros.
        activation: `swish`, `silu` or `sigmoid`.
        residual: [..., D], added to x before.
        prenorm: whether the sum is returned too.
        residual_in_fp32: whether the sum is returned in float32 where there is no residual.
        eps: added to the variance.

    Returns:
        [..., D] in x's dtype; with prenorm, that and the sum, [..., D].

    Raises:
        ValueError: an unknown activation; g or residual has another shape than x.
    """
    y, total = norm_gated(x, g, weight, bias, activation, residual, residual_in_fp32, eps, is_rms_norm=False)
    return (y, total) if prenorm else y


def rms_norm_gated(
    x: Tensor,
    g: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    activation: str = "swish",
    residual: Tensor | None = None,
    prenorm: bool = False,
    residual_in_fp32: bool = False,
    eps: float = 1e-6,
) -> Normed:
    """layer_norm_gated, the mean left in."""
    y, total = norm_gated(x, g, weight, bias, activation, residual, residual_in_fp32, eps, is_rms_norm=True)
    return (y, total) if prenorm else y


def layer_norm_swish_gate_linear(
    x: Tensor,
    g: Tensor,
    norm_weight: Tensor | None,
    norm_bias: Tensor | None,
    linear_weight: Tensor,
    linear_bias: Tensor | None,
    residual: Tensor | None = None,
    prenorm: bool = False,
    residual_in_fp32: bool = False,
    eps: float = 1e-6,
) -> Normed:
    """layer_norm_gated with swish, then a linear map.

    Args:
        linear_weight: [O, D].
        linear_bias: [O], or None.

    The rest as for layer_norm_gated.

    Returns:
        [..., O] in x's dtype; with prenorm, that and the sum, [..., D].
    """
    y, total = norm_gated(x, g, norm_weight, norm_bias, "swish", residual, residual_in_fp32, eps, is_rms_norm=False)
    out = linear_in(y, linear_weight, linear_bias)
    return (out, total) if prenorm else out


def rms_norm_swish_gate_linear(
    x: Tensor,
    g: Tensor,
    norm_weight: Tensor | None,
    norm_bias: Tensor | None,
    linear_weight: Tensor,
    linear_bias: Tensor | None,
    residual: Tensor | None = None,
    prenorm: bool = False,
    residual_in_fp32: bool = False,
    eps: float = 1e-6,
) -> Normed:
    """layer_norm_swish_gate_linear, the mean left in."""
    y, total = norm_gated(x, g, norm_weight, norm_bias, "swish", residual, residual_in_fp32, eps, is_rms_norm=True)
    out = linear_in(y, linear_weight, linear_bias)
    return (out, total) if prenorm else out


class FusedLayerNormGated(AffineNorm):
    """layer_norm_gated with its parameters.

    Args:
        hidden_size: D, the size of the last dim.
        elementwise_affine: whether there is a weight.
        bias: whether there is a bias as well.
        activation: `swish`, `silu` or `sigmoid`.
        eps: added to the variance.
        device, dtype: of the parameters.

    Raises:
        ValueError: an unknown activation.
    """

    def __init__(
        self,
        hidden_size: int,
        elementwise_affine: bool = True,
        bias: bool = False,
        activation: str = "swish",
        eps: float = 1e-5,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        check_activation(GATES, activation=activation)
        super().__init__(hidden_size, elementwise_affine, bias, eps, device, dtype)
        self.activation = activation

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, activation={self.activation}"

    def forward(
        self,
        x: Tensor,
        g: Tensor,
        residual: Tensor | None = None,
        prenorm: bool = False,
        residual_in_fp32: bool = False,
    ) -> Normed:
        """x and g [..., D] to [..., D]; see layer_norm_gated."""
        return layer_norm_gated(
            x, g, self.weight, self.bias, self.activation, residual, prenorm, residual_in_fp32, self.eps
        )


class FusedRMSNormGated(AffineNorm):
    """rms_norm_gated with its parameters; arguments as FusedLayerNormGated's, without a bias."""

    def __init__(
        self,
        hidden_size: int,
        elementwise_affine: bool = True,
        eps: float = 1e-5,
        activation: str = "swish",
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        check_activation(GATES, activation=activation)
        super().__init__(hidden_size, elementwise_affine, False, eps, device, dtype)
        self.activation = activation

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, activation={self.activation}"

    def forward(
        self,
        x: Tensor,
        g: Tensor,
        residual: Tensor | None = None,
        prenorm: bool = False,
        residual_in_fp32: bool = False,
    ) -> Normed:
        """x and g [..., D] to [..., D]; see rms_norm_gated."""
        return rms_norm_gated(
            x, g, self.weight, self.bias, self.activation, residual, prenorm, residual_in_fp32, self.eps
        )


class FusedLayerNormSwishGate(FusedLayerNormGated):
    """FusedLayerNormGated with swish."""

    def __init__(
        self,
        hidden_size: int,
        elementwise_affine: bool = True,
        bias: bool = False,
        eps: float = 1e-5,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(hidden_size, elementwise_affine, bias, "swish", eps, device, dtype)


class FusedRMSNormSwishGate(FusedRMSNormGated):
    """FusedRMSNormGated with swish."""

    def __init__(
        self,
        hidden_size: int,
        elementwise_affine: bool = True,
        eps: float = 1e-5,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(hidden_size, elementwise_affine, eps, "swish", device, dtype)


class GatedLinearNorm(AffineNorm):
    """The weight of a norm before a gate and a linear map, whose own weight and bias are given to the call."""

    def __init__(
        self,
        hidden_size: int,
        elementwise_affine: bool = True,
        eps: float = 1e-5,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(hidden_size, elementwise_affine, False, eps, device, dtype)

    def linear_weight(self, weight: Tensor | None) -> Tensor:
        """weight, which stands after arguments with defaults and is needed all the same."""
        if weight is None:
            raise TypeError(f"weight: expected the linear map's, [O, {self.hidden_size}], got None")
        return weight


class FusedLayerNormGatedLinear(GatedLinearNorm):
    """layer_norm_swish_gate_linear with the norm's weight.

    Args:
        hidden_size: D, the size of the last dim.
        elementwise_affine: whether there is a weight.
        eps: added to the variance.
        device, dtype: of the weight.
    """

    def forward(
        self,
        x: Tensor,
        g: Tensor,
        weight: Tensor | None = None,
        bias: Tensor | None = None,
        residual: Tensor | None = None,
        prenorm: bool = False,
        residual_in_fp32: bool = False,
    ) -> Normed:
        """x and g [..., D], weight [O, D], bias [O] to [..., O]; see layer_norm_swish_gate_linear."""
        weight = self.linear_weight(weight)
        return layer_norm_swish_gate_linear(
            x, g, self.weight, self.bias, weight, bias, residual, prenorm, residual_in_fp32, self.eps
        )


class FusedRMSNormGatedLinear(GatedLinearNorm):
    """rms_norm_swish_gate_linear with the norm's weight; arguments as FusedLayerNormGatedLinear's."""

    def forward(
        self,
        x: Tensor,
        g: Tensor,
        weight: Tensor | None = None,
        bias: Tensor | None = None,
        residual: Tensor | None = None,
        prenorm: bool = False,
        residual_in_fp32: bool = False,
    ) -> Normed:
        """x and g [..., D], weight [O, D], bias [O] to [..., O]; see rms_norm_swish_gate_linear."""
        weight = self.linear_weight(weight)
        return rms_norm_swish_gate_linear(
            x, g, self.weight, self.bias, weight, bias, residual, prenorm, residual_in_fp32, self.eps
        )


class FusedLayerNormSwishGateLinear(FusedLayerNormGatedLinear):
    """FusedLayerNormGatedLinear under its other name."""


class FusedRMSNormSwishGateLinear(FusedRMSNormGatedLinear):
    """FusedRMSNormGatedLinear under its other name."""


__all__ = [
    "FusedLayerNormGated",
    "FusedLayerNormGatedLinear",
    "FusedLayerNormSwishGate",
    "FusedLayerNormSwishGateLinear",
    "FusedRMSNormGated",
    "FusedRMSNormGatedLinear",
    "FusedRMSNormSwishGate",
    "FusedRMSNormSwishGateLinear",
    "layer_norm_gated",
    "layer_norm_swish_gate_linear",
    "rms_norm_gated",
    "rms_norm_swish_gate_linear",
]
