"""fla.ops.rwkv4: a mean of values under decaying weights."""

from __future__ import annotations

import torch
from torch import Tensor

from ...adapt import computing, drop_in, forms, run

__all__ = ["fused_recurrent_rwkv4"]

_rwkv4 = forms("rwkv4")


@drop_in
def fused_recurrent_rwkv4(w: Tensor, u: Tensor, k: Tensor, v: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """RWKV-4, token by token.

    Args:
        w: log of the rate of decay, [C]: a channel decays by exp(-exp(w)).
        u: bonus of the current token, [C].
        k: log weight, [B, T, C].
        v: [B, T, C].
        state: [B, 3, 1, C]: a sum of values, that of their weights, and the exponent that both are to be multiplied by.

    Returns:
        o, [B, T, C] in k's dtype; the state after the last token, [B, 3, 1, C], the sum of whose weights is 1: other
        numbers than fla's for the same state.

    Raises:
        ValueError: a shape, dtype or device that does not fit, named.
    """
    values, weights, exponent = state.to(computing(state)).unbind(1)  # Of [B, 1, C] each.
    some = weights > 0
    mean = torch.where(some, values / torch.where(some, weights, 1), 0)
    log_weight = torch.where(some, exponent + torch.where(some, weights, 1).log(), -torch.inf)
    decay = -w.to(computing(w)).exp()
    o, (z, p) = run(
        _rwkv4.fused_recurrent,
        *(k.unsqueeze(2), v.unsqueeze(2)),
        like=k,
        w=decay.view(1, -1),
        u=u.view(1, -1),
        initial_state=(log_weight, mean),
        output_final_state=True,
    )
    written = torch.isfinite(z)
    last = torch.stack([p, written.to(p.dtype), torch.where(written, z, -1e38)], dim=1)
    return o.squeeze(2), last
