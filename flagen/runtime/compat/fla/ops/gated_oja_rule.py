"""fla.ops.gated_oja_rule: Oja's rule under a log decay of each value channel."""

from __future__ import annotations

import torch
from torch import Tensor

from ...adapt import drop_in, forms, l2norm, run

__all__ = ["chunk_gated_oja_rule", "fused_recurrent_gated_oja_rule"]

_oja = forms("oja")


@drop_in
def chunk_gated_oja_rule(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    gv: Tensor,
    beta: Tensor,
    scale: float | None = None,
    initial_state: Tensor | None = None,
    output_final_state: bool = False,
    use_q_l2norm: bool = False,
    use_k_l2norm: bool = False,
    cu_seqlens: Tensor | None = None,
    cu_seqlens_cpu: Tensor | None = None,
    *,
    use_qk_l2norm_in_kernel: bool = False,
    chunk_size: int | None = None,
) -> tuple[Tensor, Tensor | None]:
    """The gated Oja rule in chunks.

    Args:
        q: [B, T, H, K].
        k: [B, T, H, K].
        v: [B, T, HV, V].
        gv: log decay of each value channel, [B, T, HV, V].
        beta: write strength, [B, T, HV].
        scale: default K ** -0.5.
        initial_state: [N, HV, K, V].
        output_final_state: also return the state after the last token.
        use_q_l2norm: divide q by its length first.
        use_k_l2norm: divide k by its length first.
        cu_seqlens: [N + 1] offsets of packed sequences; needs B = 1.
        cu_seqlens_cpu: taken, and not needed.
        use_qk_l2norm_in_kernel: both.
        chunk_size: 16, 32 or 64.

    Returns:
        o, [B, T, HV, V] in q's dtype; the final state in float32, or None.

    Raises:
        ValueError: a shape, dtype or device that does not fit, named.
    """
    return run(
        _oja.chunk,
        l2norm(q) if use_q_l2norm or use_qk_l2norm_in_kernel else q,
        l2norm(k) if use_k_l2norm or use_qk_l2norm_in_kernel else k,
        *(v, gv, beta),
        like=q,
        scale=scale,
        initial_state=initial_state,
        output_final_state=output_final_state,
        cu_seqlens=cu_seqlens,
        chunk_size=chunk_size,
    )


@drop_in
def fused_recurrent_gated_oja_rule(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    gv: Tensor | None = None,
    beta: Tensor | None = None,
    scale: float | None = None,
    initial_state: Tensor | None = None,
    output_final_state: bool = False,
    use_q_l2norm: bool = False,
    use_k_l2norm: bool = False,
    cu_seqlens: Tensor | None = None,
    *,
    use_qk_l2norm_in_kernel: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """The gated Oja rule token by token; arguments as of `chunk_gated_oja_rule`.

    No decay where `gv` is None, and ones for `beta`.
    """
    return run(
        _oja.fused_recurrent,
        l2norm(q, keep=True) if use_q_l2norm or use_qk_l2norm_in_kernel else q,
        l2norm(k, keep=True) if use_k_l2norm or use_qk_l2norm_in_kernel else k,
        v,
        torch.zeros_like(v) if gv is None else gv,
        torch.ones_like(v[..., 0]) if beta is None else beta,
        like=q,
        scale=scale,
        initial_state=initial_state,
        output_final_state=output_final_state,
        cu_seqlens=cu_seqlens,
    )
