"""fla.ops.log_linear_attn: linear attention whose memory keeps the past in levels."""

from __future__ import annotations

from torch import Tensor

from ...adapt import computing, drop_in, forms, refuse, run

__all__ = ["chunk_log_linear_attn", "naive_log_linear_attn"]

_log_linear_attn = forms("log_linear_attn")


@drop_in
def chunk_log_linear_attn(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    level_scales: Tensor,
    initial_state: object = None,
    output_final_state: bool = False,
    cu_seqlens: Tensor | None = None,
    scale: float | None = 1.0,
) -> tuple[Tensor, None]:
    """Log-linear attention in chunks, of any number of key channels.

    Args:
        q: [B, T, H, K].
        k: [B, T, H, K].
        v: [B, T, HV, V]; HV is a multiple of H.
        g: log decay, [B, T, HV].
        level_scales: how much each level counts, that of the token itself first, [B, T, HV, L].
        initial_state: not supported.
        output_final_state: not supported.
        cu_seqlens: [N + 1] offsets of packed sequences; needs B = 1.
        scale: of what is read, or None for K ** -0.5.

    Returns:
        o, [B, T, HV, V] in q's dtype; None.

    Raises:
        NotImplementedError: a state is given or asked for, which fla keeps as chunks and the tokens of the last one;
            `generated.log_linear_attn` has states of its own.
        ValueError: a shape, dtype or device that does not fit, named.
    """
    refuse("chunk_log_linear_attn", initial_state=initial_state, output_final_state=output_final_state)
    scale = k.shape[-1] ** -0.5 if scale is None else scale
    o, _ = run(_log_linear_attn.chunk, q, k, v, g, level_scales, like=q, scale=scale, cu_seqlens=cu_seqlens)
    return o, None


@drop_in
def naive_log_linear_attn(
    q: Tensor, k: Tensor, v: Tensor, g: Tensor, level_scales: Tensor, scale: float | None = 1.0
) -> Tensor:
    """The recurrence as it is written, in PyTorch and in float32."""
    wide = q.to(computing(q))
    scale = k.shape[-1] ** -0.5 if scale is None else scale
    return run(_log_linear_attn.naive_recurrent, wide, k, v, g, level_scales, like=wide, scale=scale)[0]
