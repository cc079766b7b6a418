"""fla.ops.delta_rule: a memory that is corrected, and does not decay."""

from __future__ import annotations

from typing import Any, NoReturn

import torch
from torch import Tensor

from ...adapt import drop_in, forms, l2norm, refuse, run

__all__ = ["chunk_delta_rule", "fused_chunk_delta_rule", "fused_recurrent_delta_rule", "parallel_delta_rule"]

_delta = forms("delta_rule")


@drop_in
def chunk_delta_rule(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    beta: Tensor,
    scale: float | None = None,
    initial_state: Tensor | None = None,
    output_final_state: bool = False,
    use_qk_l2norm_in_kernel: bool = False,
    cu_seqlens: Tensor | None = None,
    cu_seqlens_cpu: Tensor | None = None,
    *,
    chunk_size: int | None = None,
) -> tuple[Tensor, Tensor | None]:
    """The delta rule in chunks; float32 too, which fla refuses.

    Args:
        q: [B, T, H, K].
        k: [B, T, H, K].
        v: [B, T, HV, V].
        beta: write strength, [B, T, HV].
        scale: default K ** -0.5.
        initial_state: [N, HV, K, V].
        output_final_state: also return the state after the last token.
        use_qk_l2norm_in_kernel: divide q and k by their lengths first.
        cu_seqlens: [N + 1] offsets of packed sequences; needs B = 1.
        cu_seqlens_cpu: taken, and not needed.
        chunk_size: 16, 32 or 64.

    Returns:
        o, [B, T, HV, V] in q's dtype; the final state in float32, or None.

    Raises:
        ValueError: a shape, dtype or device that does not fit, named.
    """
    qk = (l2norm(q), l2norm(k)) if use_qk_l2norm_in_kernel else (q, k)
    return run(
        _delta.chunk,
        *(*qk, v, beta),
        like=q,
        scale=scale,
        initial_state=initial_state,
        output_final_state=output_final_state,
        cu_seqlens=cu_seqlens,
        chunk_size=chunk_size,
    )


def fused_chunk_delta_rule(**kwargs: Any) -> NoReturn:
    """Gone, as in fla."""
    raise NotImplementedError("fused_chunk_delta_rule is gone: call chunk_delta_rule")


@drop_in
def fused_recurrent_delta_rule(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    beta: Tensor | None = None,
    scale: float | None = None,
    initial_state: Tensor | None = None,
    output_final_state: bool = False,
    use_qk_l2norm_in_kernel: bool = False,
    cu_seqlens: Tensor | None = None,
) -> tuple[Tensor, Tensor | None]:
    """The delta rule token by token; arguments as of `chunk_delta_rule`, with ones for `beta` where it is None."""
    qk = (l2norm(q, keep=True), l2norm(k, keep=True)) if use_qk_l2norm_in_kernel else (q, k)
    return run(
        _delta.fused_recurrent,
        *(*qk, v, torch.ones_like(v[..., 0]) if beta is None else beta),
        like=q,
        scale=scale,
        initial_state=initial_state,
        output_final_state=output_final_state,
        cu_seqlens=cu_seqlens,
    )


@drop_in
def parallel_delta_rule(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    beta: Tensor,
    scale: float | None = None,
    output_attentions: bool = False,
) -> tuple[Tensor, None]:
    """The output of `chunk_delta_rule`, and None for the attention, which is never formed."""
    refuse("parallel_delta_rule", output_attentions=output_attentions)
    return chunk_delta_rule(q, k, v, beta, scale)[0], None
