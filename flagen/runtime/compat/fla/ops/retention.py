"""fla.ops.retention: a constant decay for each head."""

from __future__ import annotations

from torch import Tensor

from ...adapt import drop_in, forms, refuse, run, v_first

__all__ = [
    "chunk_retention",
    "fused_chunk_retention",
    "fused_recurrent_retention",
    "naive_retention",
    "parallel_retention",
]

_retention = forms("retention")


@drop_in
def chunk_retention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    scale: float | None = None,
    initial_state: Tensor | None = None,
    output_final_state: bool = False,
    cu_seqlens: Tensor | None = None,
    *,
    chunk_size: int | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Retention in chunks: head h decays by 1 - 2 ** (-5 - h).

    Args:
        q: [B, T, H, K].
        k: [B, T, H, K].
        v: [B, T, HV, V].
        scale: default K ** -0.5.
        initial_state: [N, HV, K, V].
        output_final_state: also return the state after the last token.
        cu_seqlens: [N + 1] offsets of packed sequences; needs B = 1.
        chunk_size: 16, 32 or 64.

    Returns:
        o, [B, T, HV, V] in q's dtype; the final state in float32, or None.

    Raises:
        ValueError: a shape, dtype or device that does not fit, named.
    """
    return run(
        _retention.chunk,
        *(q, k, v),
        like=q,
        scale=scale,
        initial_state=initial_state,
        output_final_state=output_final_state,
        cu_seqlens=cu_seqlens,
        chunk_size=chunk_size,
    )


@drop_in
def fused_chunk_retention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    scale: float | None = None,
    initial_state: Tensor | None = None,
    output_final_state: bool = False,
    cu_seqlens: Tensor | None = None,
) -> tuple[Tensor, Tensor | None]:
    """`chunk_retention` under another name."""
    return chunk_retention(q, k, v, scale, initial_state, output_final_state, cu_seqlens)


@drop_in
def fused_recurrent_retention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    scale: float | None = None,
    initial_state: Tensor | None = None,
    output_final_state: bool = False,
    reverse: bool = False,
    state_v_first: bool = False,
    cu_seqlens: Tensor | None = None,
    *,
    transpose_state_layout: bool | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Retention token by token; arguments as of `chunk_retention`.

    With `reverse` it runs from the last token of each sequence to the first; with `state_v_first` states are
    [N, HV, V, K].
    """
    return run(
        _retention.fused_recurrent,
        *(q, k, v),
        like=q,
        scale=scale,
        initial_state=initial_state,
        output_final_state=output_final_state,
        v_first=v_first("fused_recurrent_retention", state_v_first, transpose_state_layout),
        reverse=reverse,
        cu_seqlens=cu_seqlens,
    )


@drop_in
def parallel_retention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    scale: float | None = None,
    output_attentions: bool = False,
    cu_seqlens: Tensor | None = None,
) -> tuple[Tensor, None]:
    """The output of `chunk_retention`, and None for the attention, which is never formed."""
    refuse("parallel_retention", output_attentions=output_attentions)
    return chunk_retention(q, k, v, scale, cu_seqlens=cu_seqlens)[0], None


@drop_in
def naive_retention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """The output alone, in PyTorch, of inputs [B, H, T, ...]."""
    o, _ = run(_retention.naive_recurrent, *(x.transpose(1, 2) for x in (q, k, v)), like=q)
    return o.transpose(1, 2)
