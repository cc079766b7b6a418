"""The norms of Mamba-2 (Dao and Gu 2024, https://arxiv.org/abs/2405.21060): a gate z before the norm or after it, and
the norm of each group of `group_size` channels."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .layernorm import normalize
from .precision import upcast


def layernorm_fn(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    z: Tensor | None = None,
    eps: float = 1e-6,
    group_size: int | None = None,
    norm_before_gate: bool = True,
    is_rms_norm: bool = False,
) -> Tensor:
    """norm(x) * silu(z), or norm(x * silu(z)), in float32, in x's dtype at the end.

    Args:
        x: [..., D].
        weight: [D].
        bias: [D], or None.
        z: [..., D], the gate before its silu; None for no gate.
        eps: added to the variance, or the mean square.
        group_size: of how many channels each norm is; all by default.
        norm_before_gate: whether the gate is applied to the normed x.
        is_rms_norm: whether the mean is left in.

    Returns:
        [..., D].

    Raises:
        ValueError: z has another shape than x, or D is no multiple of group_size.
    """
    channels = x.shape[-1]
    size = channels if group_size is None else group_size
    if channels % size != 0:
        raise ValueError(f"x: expected a multiple of group_size = {size} channels, got {channels}")
    if z is not None and z.shape != x.shape:
        raise ValueError(f"z: expected shape {list(x.shape)} as x, got {list(z.shape)}")
    y = upcast(x)
    if z is not None and not norm_before_gate:
        y = y * F.silu(upcast(z))
    y = normalize(y, weight, bias, eps, is_rms_norm, channels // size)
    if z is not None and norm_before_gate:
        y = y * F.silu(upcast(z))
    return y.to(x.dtype)


def rmsnorm_fn(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    z: Tensor | None = None,
    eps: float = 1e-6,
    group_size: int | None = None,
    norm_before_gate: bool = True,
) -> Tensor:
    """layernorm_fn, the mean left in."""
    return layernorm_fn(x, weight, bias, z, eps, group_size, norm_before_gate, is_rms_norm=True)


class LayerNormGated(nn.Module):
    """layernorm_fn with its weight [hidden_size] and bias [hidden_size].

    Args:
        hidden_size: D, the size of the last dim.
        eps: added to the variance.
        group_size: of how many channels each norm is; all by default.
        norm_before_gate: whether the gate is applied to the normed x.
        device, dtype: of the parameters.
    """

    def __init__(
        self,
        hidden_size: int,
        eps: float = 1e-5,
        group_size: int | None = None,
        norm_before_gate: bool = True,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.empty(hidden_size, device=device, dtype=dtype))
        self.bias = nn.Parameter(torch.empty(hidden_size, device=device, dtype=dtype))
        self.group_size = group_size
        self.norm_before_gate = norm_before_gate
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Ones and zeros."""
        nn.init.ones_(self.weight)
        nn.init.zeros_(self.bias)

    def forward(self, x: Tensor, z: Tensor | None = None) -> Tensor:
        """x and z [..., D] to [..., D]; see layernorm_fn."""
        return layernorm_fn(x, self.weight, self.bias, z, self.eps, self.group_size, self.norm_before_gate)


class RMSNormGated(nn.Module):
    """rmsnorm_fn with its weight [hidden_size]; arguments as LayerNormGated's, but the gate comes first by default."""

    def __init__(
        self,
        hidden_size: int,
        eps: float = 1e-5,
        group_size: int | None = None,
        norm_before_gate: bool = False,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.empty(hidden_size, device=device, dtype=dtype))
        self.bias: nn.Parameter | None
        self.register_parameter("bias", None)
        self.group_size = group_size
        self.norm_before_gate = norm_before_gate
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Ones."""
        nn.init.ones_(self.weight)

    def forward(self, x: Tensor, z: Tensor | None = None) -> Tensor:
        """x and z [..., D] to [..., D]; see rmsnorm_fn."""
        return rmsnorm_fn(x, self.weight, self.bias, z, self.eps, self.group_size, self.norm_before_gate)


__all__ = ["LayerNormGated", "RMSNormGated", "layernorm_fn", "rmsnorm_fn"]
