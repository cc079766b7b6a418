"""mamba_ssm.ops.triton.layernorm_gated: the norm of Mamba-2, with its gate."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ....adapt import computing, drop_in

__all__ = ["rmsnorm_fn"]


@drop_in
def rmsnorm_fn(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    z: Tensor | None = None,
    eps: float = 1e-6,
    group_size: int | None = None,
    norm_before_gate: bool = True,
    upcast: bool = True,
) -> Tensor:
    """Divide by the root of the mean square, of each group of channels, and gate.

    Args:
        x: [..., D].
        weight: [D].
        bias: [D], or None.
        z: gate, [..., D]: silu(z) is multiplied by the normed x, or by x before.
        eps: added to the mean square.
        group_size: channels of a group; default all.
        norm_before_gate: whether the norm comes first.
        upcast: taken: it is computed in float32 always.

    Returns:
        [..., D] in x's dtype.
    """
    wide = computing(x, weight)
    y = x.to(wide).contiguous()
    if z is not None and not norm_before_gate:
        y = y * F.silu(z.to(wide))
    grouped = y.view(*y.shape[:-1], -1, group_size or y.shape[-1])
    y = (grouped * torch.rsqrt(grouped.square().mean(-1, keepdim=True) + eps)).flatten(-2) * weight.to(wide)
    if bias is not None:
        y = y + bias.to(wide)
    if z is not None and norm_before_gate:
        y = y * F.silu(z.to(wide))
    return y.to(x.dtype)
