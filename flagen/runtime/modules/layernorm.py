"""Layer norm, RMS norm and group norm of the last dim, with the residual stream's sum in the same call.

All take x of shape [..., D], compute in float32 (float64 stays float64) and return x's dtype. With `residual`, the sum
x + residual is what is normalized; with `prenorm`, that sum is returned too, as the next block's residual: in the
residual's dtype, or, where there is no residual yet, in float32 if `residual_in_fp32`, else in x's.

Layer norm: Ba et al. 2016, https://arxiv.org/abs/1607.06450. RMS norm: Zhang and Sennrich 2019,
https://arxiv.org/abs/1910.07467. Group norm: Wu and He 2018, https://arxiv.org/abs/1803.08494.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .precision import upcast, upcast_optional

Normed = Tensor | tuple[Tensor, Tensor]


def __getattr__(name: str) -> Any:
    """NormParallel, when it is asked for: importing torch's DTensor takes a second."""
    if name == "NormParallel":
        from .parallel import NormParallel

        return NormParallel
    raise AttributeError(f"module {__name__} has no attribute {name}")


def add_residual(x: Tensor, residual: Tensor | None, residual_in_fp32: bool) -> tuple[Tensor, torch.dtype]:
    """What is normalized, in float32 or wider, and the dtype in which it goes on as a residual.

    Raises:
        ValueError: residual has another shape than x.
    """
    if residual is None:
        return upcast(x), torch.float32 if residual_in_fp32 else x.dtype
    if residual.shape != x.shape:
        raise ValueError(f"residual: expected shape {list(x.shape)} as x, got {list(residual.shape)}")
    return upcast(x) + upcast(residual), residual.dtype


def normalize(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, is_rms_norm: bool, num_groups: int = 1
) -> Tensor:
    """The norm of each of num_groups groups of the last dim, in x's dtype, which is float32 or wider.

    Raises:
        ValueError: the last dim has no num_groups equal parts.
    """
    if x.shape[-1] % num_groups != 0:
        raise ValueError(f"x: expected a multiple of num_groups = {num_groups} channels, got {x.shape[-1]}")
    weight, bias = upcast_optional(weight), upcast_optional(bias)
    if num_groups == 1 and not is_rms_norm:
        return F.layer_norm(x, x.shape[-1:], weight, bias, eps)
    if num_groups == 1:
        normed = F.rms_norm(x, x.shape[-1:], weight, eps)
    else:
        groups = x.reshape(*x.shape[:-1], num_groups, x.shape[-1] // num_groups)
        norm = F.rms_norm if is_rms_norm else F.layer_norm
        normed = norm(groups, groups.shape[-1:], eps=eps).flatten(-2)
        normed = normed if weight is None else normed * weight
    return normed if bias is None else normed + bias


def group_norm(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None = None,
    eps: float = 1e-5,
    prenorm: bool = False,
    residual_in_fp32: bool = False,
    is_rms_norm: bool = False,
    num_groups: int = 1,
) -> Normed:
    """Layer norm, or RMS norm, of each of num_groups groups of channels.

    Args:
        x: [..., D].
        weight: [D], or None for ones.
        bias: [D], or None for zeros.
        residual: [..., D], added to x before.
        eps: added to the variance, or the mean square.
        prenorm: whether the sum is returned too.
        residual_in_fp32: whether the sum is returned in float32 where there is no residual.
        is_rms_norm: whether the mean is left in.
        num_groups: in how many groups the channels fall.

    Returns:
        [..., D] in x's dtype; with prenorm, that and the sum, [..., D].

    Raises:
        ValueError: residual has another shape, or D is no multiple of num_groups.
    """
    total, residual_dtype = add_residual(x, residual, residual_in_fp32)
    y = normalize(total, weight, bias, eps, is_rms_norm, num_groups).to(x.dtype)
    return (y, total.to(residual_dtype)) if prenorm else y


def layer_norm(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None = None,
    eps: float = 1e-5,
    prenorm: bool = False,
    residual_in_fp32: bool = False,
    is_rms_norm: bool = False,
) -> Normed:
    """group_norm of one group."""
    return group_norm(x, weight, bias, residual, eps, prenorm, residual_in_fp32, is_rms_norm)


def rms_norm(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None = None,
    eps: float = 1e-5,
    prenorm: bool = False,
    residual_in_fp32: bool = False,
) -> Normed:
    """group_norm of one group, the mean left in."""
    return group_norm(x, weight, bias, residual, eps, prenorm, residual_in_fp32, is_rms_norm=True)


def layer_norm_linear(
    x: Tensor,
    norm_weight: Tensor | None,
    norm_bias: Tensor | None,
    linear_weight: Tensor,
    linear_bias: Tensor | None,
    residual: Tensor | None = None,
    eps: float = 1e-5,
    prenorm: bool = False,
    residual_in_fp32: bool = False,
    is_rms_norm: bool = False,
    num_groups: int = 1,
) -> Normed:
    """group_norm, then a linear map of what it gives, in x's dtype.

    Args:
        linear_weight: [O, D].
        linear_bias: [O], or None.

    The rest as for group_norm.

    Returns:
        [..., O]; with prenorm, that and the sum, [..., D].
    """
    y, total = group_norm(x, norm_weight, norm_bias, residual, eps, True, residual_in_fp32, is_rms_norm, num_groups)
    out = linear_in(y, linear_weight, linear_bias)
    return (out, total) if prenorm else out


def linear_in(y: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """F.linear in y's dtype."""
    return F.linear(y, weight.to(y.dtype), None if bias is None else bias.to(y.dtype))


def rms_norm_linear(
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
    """layer_norm_linear, the mean left in."""
    return layer_norm_linear(
        x, norm_weight, norm_bias, linear_weight, linear_bias, residual, eps, prenorm, residual_in_fp32, True
    )


def group_norm_linear(
    x: Tensor,
    norm_weight: Tensor | None,
    norm_bias: Tensor | None,
    linear_weight: Tensor,
    linear_bias: Tensor | None,
    residual: Tensor | None = None,
    eps: float = 1e-5,
    prenorm: bool = False,
    residual_in_fp32: bool = False,
    is_rms_norm: bool = False,
    num_groups: int = 1,
) -> Normed:
    """layer_norm_linear under the name that says that there are groups."""
    return layer_norm_linear(
        x,
        norm_weight,
        norm_bias,
        linear_weight,
        linear_bias,
        residual,
        eps,
        prenorm,
        residual_in_fp32,
        is_rms_norm,
        num_groups,
    )


class AffineNorm(nn.Module):
    """The parameters of a norm: weight [hidden_size] of ones and bias [hidden_size] of zeros, or None."""

    weight: nn.Parameter | None
    bias: nn.Parameter | None

    def __init__(
        self,
        hidden_size: int,
        elementwise_affine: bool = True,
        bias: bool = False,
        eps: float = 1e-5,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.hidden_size = hidden_size
        self.elementwise_affine = elementwise_affine
        self.eps = eps
        self.register_parameter("weight", None)
        self.register_parameter("bias", None)
        if elementwise_affine:
            self.weight = nn.Parameter(torch.empty(hidden_size, device=device, dtype=dtype))
            if bias:
                self.bias = nn.Parameter(torch.empty(hidden_size, device=device, dtype=dtype))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Ones and zeros."""
        if self.weight is not None:
            nn.init.ones_(self.weight)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def extra_repr(self) -> str:
        affine = "" if self.elementwise_affine else ", elementwise_affine=False"
        return f"{self.hidden_size}{affine}, eps={self.eps}"


class LayerNorm(AffineNorm):
    """layer_norm with its parameters.

    Args:
        hidden_size: D, the size of the last dim.
        elementwise_affine: whether there is a weight.
        bias: whether there is a bias as well.
        eps: added to the variance.
        device, dtype: of the parameters.
    """

    def forward(
        self, x: Tensor, residual: Tensor | None = None, prenorm: bool = False, residual_in_fp32: bool = False
    ) -> Normed:
        """[..., D] to [..., D]; see layer_norm."""
        return layer_norm(x, self.weight, self.bias, residual, self.eps, prenorm, residual_in_fp32)


class RMSNorm(AffineNorm):
    """rms_norm with its parameters; arguments as LayerNorm's."""

    def forward(
        self, x: Tensor, residual: Tensor | None = None, prenorm: bool = False, residual_in_fp32: bool = False
    ) -> Normed:
        """[..., D] to [..., D]; see rms_norm."""
        return rms_norm(x, self.weight, self.bias, residual, self.eps, prenorm, residual_in_fp32)


class GroupedNorm(AffineNorm):
    """The parameters of a norm of groups of channels."""

    def __init__(
        self,
        num_groups: int,
        hidden_size: int,
        elementwise_affine: bool = True,
        bias: bool = False,
        eps: float = 1e-5,
        is_rms_norm: bool = False,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        if hidden_size % num_groups != 0:
            raise ValueError(f"hidden_size: expected a multiple of num_groups = {num_groups}, got {hidden_size}")
        super().__init__(hidden_size, elementwise_affine, bias, eps, device, dtype)
        self.num_groups = num_groups
        self.is_rms_norm = is_rms_norm

    def extra_repr(self) -> str:
        affine = "" if self.elementwise_affine else ", elementwise_affine=False"
        rms = ", is_rms_norm=True" if self.is_rms_norm else ""
        return f"{self.num_groups}, {self.hidden_size}{affine}{rms}, eps={self.eps}"


class GroupNorm(GroupedNorm):
    """group_norm with its parameters.

    Args:
        num_groups: in how many groups the channels fall.
        hidden_size: D, the size of the last dim, a multiple of num_groups.
        elementwise_affine: whether there is a weight.
        bias: whether there is a bias as well.
        eps: added to the variance, or the mean square.
        is_rms_norm: whether the mean is left in.
        device, dtype: of the parameters.

    Raises:
        ValueError: hidden_size is no multiple of num_groups.
    """

    def forward(
        self, x: Tensor, residual: Tensor | None = None, prenorm: bool = False, residual_in_fp32: bool = False
    ) -> Normed:
        """[..., D] to [..., D]; see group_norm."""
        return group_norm(
            x,
            self.weight,
            self.bias,
            residual,
            self.eps,
            prenorm,
            residual_in_fp32,
            self.is_rms_norm,
            self.num_groups,
        )


class LayerNormLinear(AffineNorm):
    """layer_norm_linear with the norm's parameters; the linear map's are given to the call."""

    def forward(
        self,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        residual: Tensor | None = None,
        prenorm: bool = False,
        residual_in_fp32: bool = False,
    ) -> Normed:
        """[..., D], weight [O, D], bias [O] to [..., O]; see layer_norm_linear."""
        return layer_norm_linear(x, self.weight, self.bias, weight, bias, residual, self.eps, prenorm, residual_in_fp32)


class RMSNormLinear(AffineNorm):
    """rms_norm_linear with the norm's parameters; the linear map's are given to the call."""

    def forward(
        self,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        residual: Tensor | None = None,
        prenorm: bool = False,
        residual_in_fp32: bool = False,
    ) -> Normed:
        """[..., D], weight [O, D], bias [O] to [..., O]; see rms_norm_linear."""
        return rms_norm_linear(x, self.weight, self.bias, weight, bias, residual, self.eps, prenorm, residual_in_fp32)


class GroupNormLinear(GroupedNorm):
    """group_norm_linear with the norm's parameters; the linear map's are given to the call."""

    def forward(
        self,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        residual: Tensor | None = None,
        prenorm: bool = False,
        residual_in_fp32: bool = False,
    ) -> Normed:
        """[..., D], weight [O, D], bias [O] to [..., O]; see group_norm_linear."""
        return group_norm_linear(
            x,
            self.weight,
            self.bias,
            weight,
            bias,
            residual,
            self.eps,
            prenorm,
            residual_in_fp32,
            self.is_rms_norm,
            self.num_groups,
        )


__all__ = [
    "GroupNorm",
    "GroupNormLinear",
    "LayerNorm",
    "LayerNormLinear",
    "RMSNorm",
    "RMSNormLinear",
    "group_norm",
    "group_norm_linear",
    "layer_norm",
    "layer_norm_linear",
    "rms_norm",
    "rms_norm_linear",
]
