"""mamba_ssm.ops.triton.layernorm_gated: the norm of Mamba-2, with its gate."""

from __future__ import annotations

from torch import Tensor

from .....modules import layernorm_gated
from ....adapt import drop_in

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

    Raises:
        ValueError: z has another shape than x, or D is no multiple of group_size.
    """
    return layernorm_gated.rmsnorm_fn(x, weight, bias, z, eps, group_size, norm_before_gate)
