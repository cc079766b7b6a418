"""fla.ops.lightning_attn: a constant decay for each head and layer."""

from __future__ import annotations

from torch import Tensor

from ...adapt import drop_in, forms, run

__all__ = ["chunk_lightning_attn", "fused_recurrent_lightning_attn"]

_lightning = forms("lightning_attn")


@drop_in
def chunk_lightning_attn(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    layer_idx: int,
    num_layers: int,
    scale: float | None = None,
    initial_state: Tensor | None = None,
    output_final_state: bool = False,
    cu_seqlens: Tensor | None = None,
    *,
    chunk_size: int | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Lightning attention in chunks: head h of H has the log decay -8 h / H (1 - layer_idx / num_layers).

    Args:
        q: [B, T, H, K].
        k: [B, T, H, K].
        v: [B, T, HV, V].
        layer_idx: index of the layer, from 0.
        num_layers: number of layers.
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
        _lightning.chunk,
        *(q, k, v),
        like=q,
        layer_idx=layer_idx,
        num_layers=num_layers,
        scale=scale,
        initial_state=initial_state,
        output_final_state=output_final_state,
        cu_seqlens=cu_seqlens,
        chunk_size=chunk_size,
    )


@drop_in
def fused_recurrent_lightning_attn(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    layer_idx: int,
    num_layers: int,
    scale: float | None = None,
    initial_state: Tensor | None = None,
    output_final_state: bool = False,
    reverse: bool = False,
    cu_seqlens: Tensor | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Lightning attention token by token; arguments as of `chunk_lightning_attn`.

    With `reverse` it runs from the last token of each sequence to the first.
    """
    return run(
        _lightning.fused_recurrent,
        *(q, k, v),
        like=q,
        layer_idx=layer_idx,
        num_layers=num_layers,
        scale=scale,
        initial_state=initial_state,
        output_final_state=output_final_state,
        reverse=reverse,
        cu_seqlens=cu_seqlens,
    )
