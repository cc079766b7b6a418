"""fla.ops.comba: the delta rule whose correction reads with a key of its own."""

from __future__ import annotations

import torch
from torch import Tensor

from ...adapt import drop_in, forms, l2norm, run

__all__ = ["chunk_comba", "fused_recurrent_comba", "naive_chunk_comba", "naive_recurrent_comba"]

_comba = forms("comba")


def _ones(v: Tensor, beta: Tensor | None) -> Tensor:
    return torch.ones_like(v[..., 0]) if beta is None else beta


@drop_in
def chunk_comba(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    p: Tensor | None,
    g: Tensor,
    beta: Tensor | None = None,
    scale: float | None = None,
    initial_state: Tensor | None = None,
    output_final_state: bool = False,
    use_qk_l2norm_in_kernel: bool = False,
    cu_seqlens: Tensor | None = None,
    cu_seqlens_cpu: Tensor | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Comba in chunks.

    Args:
        q: [B, T, H, K].
        k: [B, T, H, K].
        v: [B, T, HV, V]; HV is a multiple of H.
        p: feedback key, [B, T, H, K], or None for `k`.
        g: log decay, [B, T, HV].
        beta: write strength, [B, T, HV], or None for ones.
        scale: default K ** -0.5.
        initial_state: [N, HV, K, V].
        output_final_state: also return the state after the last token.
        use_qk_l2norm_in_kernel: divide q, k and p by their lengths first.
        cu_seqlens: [N + 1] offsets of packed sequences; needs B = 1.
        cu_seqlens_cpu: taken, and not needed.

    Returns:
        o, [B, T, HV, V] in q's dtype; the final state in float32, or None.

    Raises:
        ValueError: a shape, dtype or device that does not fit, named.
    """
    keys = (q, k, k if p is None else p)
    q_in, k_in, p_in = (l2norm(x) for x in keys) if use_qk_l2norm_in_kernel else keys
    return run(
        _comba.chunk,
        *(q_in, k_in, v, p_in, g, _ones(v, beta)),
        like=q,
        scale=scale,
        initial_state=initial_state,
        output_final_state=output_final_state,
        cu_seqlens=cu_seqlens,
    )


@drop_in
def fused_recurrent_comba(
    q: Tensor,
    k: Tensor,
    p: Tensor | None,
    v: Tensor,
    g: Tensor,
    beta: Tensor | None = None,
    scale: float | None = None,
    initial_state: Tensor | None = None,
    output_final_state: bool = False,
    use_qk_l2norm_in_kernel: bool = False,
    cu_seqlens: Tensor | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Comba token by token; arguments as of `chunk_comba`, but `p` comes before `v` here, as in fla."""
    keys = (q, k, k if p is None else p)
    q_in, k_in, p_in = (l2norm(x, keep=True) for x in keys) if use_qk_l2norm_in_kernel else keys
    return run(
        _comba.fused_recurrent,
        *(q_in, k_in, v, p_in, g, _ones(v, beta)),
        like=q,
        scale=scale,
        initial_state=initial_state,
        output_final_state=output_final_state,
        cu_seqlens=cu_seqlens,
    )


@drop_in
def naive_recurrent_comba(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    p: Tensor,
    beta: Tensor,
    g: Tensor,
    scale: float | None = None,
    initial_state: Tensor | None = None,
    output_final_state: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """The recurrence as it is written, in PyTorch. `beta` comes before `g` here, as in fla."""
    return run(
        _comba.naive_recurrent,
        *(q, k, v, p, g, beta),
        like=q,
        scale=scale,
        initial_state=initial_state,
        output_final_state=output_final_state,
    )


@drop_in
def naive_chunk_comba(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    p: Tensor,
    g: Tensor,
    beta: Tensor,
    chunk_size: int = 64,
    scale: float | None = None,
    initial_state: Tensor | None = None,
    output_final_state: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """The chunk form in PyTorch; `g` comes before `beta`."""
    return run(
        _comba.naive_chunk,
        *(q, k, v, p, g, beta),
        like=q,
        scale=scale,
        initial_state=initial_state,
        output_final_state=output_final_state,
        chunk_size=chunk_size,
    )
