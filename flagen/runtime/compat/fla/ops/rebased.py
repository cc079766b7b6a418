"""fla.ops.rebased: linear attention by squares of scores."""

from __future__ import annotations

import torch
from torch import Tensor

from ...adapt import drop_in, forms, run

__all__ = ["naive_parallel_rebased", "parallel_rebased"]

_rebased = forms("rebased")


@drop_in
def parallel_rebased(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    eps: float = 1e-5,
    use_scale: bool = True,
    use_normalize: bool = True,
    return_both: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """ReBased in chunks, for any number of key channels; fla has no more than 128.

    Args:
        q: [B, T, H, K].
        k: [B, T, H, K].
        v: [B, T, HV, V]; HV is a multiple of H.
        eps: added to the sum of the weights before it divides.
        use_scale: scores times K ** -0.5.
        use_normalize: divide by the sum of the weights.
        return_both: return what is divided and the sums instead, as heads of tokens.

    Returns:
        o, [B, T, HV, V] in q's dtype; with `return_both` o before the division, [B, HV, T, V], and the sums of the
        weights, [B, HV, T].

    Raises:
        ValueError: a shape, dtype or device that does not fit, named.
    """
    scale = None if use_scale else 1.0
    if not return_both:
        return run(_rebased.chunk, q, k, v, like=q, scale=scale, normalize=1.0 if use_normalize else 0.0, eps=eps)[0]
    with_weights = torch.cat([v, torch.ones_like(v[..., :1])], -1)
    o, _ = run(_rebased.chunk, q, k, with_weights, like=q, scale=scale, normalize=0.0)
    o = o.transpose(1, 2)
    return o[..., :-1], o[..., -1]


@drop_in
def naive_parallel_rebased(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    scale: float | None = None,
    use_norm: bool = True,
) -> Tensor:
    """The recurrence as it is written, in PyTorch, of inputs [B, H, T, ...]; 1e-6 is added to sums of weights."""
    given = (x.transpose(1, 2) for x in (q, k, v))
    o, _ = run(_rebased.naive_recurrent, *given, like=q, scale=scale, normalize=1.0 if use_norm else 0.0, eps=1e-6)
    return o.transpose(1, 2)
