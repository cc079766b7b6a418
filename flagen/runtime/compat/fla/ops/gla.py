"""fla.ops.gla: a log decay for each key channel."""

from __future__ import annotations

from typing import Any, NoReturn

from torch import Tensor

from ...adapt import drop_in, forms, refuse, run, v_first

__all__ = ["chunk_gla", "fused_chunk_gla", "fused_recurrent_gla", "naive_recurrent_gla"]

_gla = forms("gla")
_plain = forms("linear_attn")


@drop_in
def chunk_gla(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    scale: float | None = None,
    initial_state: Tensor | None = None,
    output_final_state: bool = False,
    state_v_first: bool = False,
    cu_seqlens: Tensor | None = None,
    cu_seqlens_cpu: Tensor | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Gated linear attention in chunks.

    Args:
        q: [B, T, H, K].
        k: [B, T, H, K].
        v: [B, T, HV, V].
        g: log decay of each key channel, [B, T, HV, K].
        scale: default K ** -0.5.
        initial_state: [N, HV, K, V].
        output_final_state: also return the state after the last token.
        state_v_first: states are [N, HV, V, K].
        cu_seqlens: [N + 1] offsets of packed sequences; needs B = 1.
        cu_seqlens_cpu: taken, and not needed.

    Returns:
        o, [B, T, HV, V] in q's dtype; the final state in float32, or None.

    Raises:
        ValueError: a shape, dtype or device that does not fit, named.
    """
    return run(
        _gla.chunk,
        *(q, k, v, g),
        like=q,
        scale=scale,
        initial_state=initial_state,
        output_final_state=output_final_state,
        v_first=state_v_first,
        cu_seqlens=cu_seqlens,
    )


def fused_chunk_gla(**kwargs: Any) -> NoReturn:
    """Gone, as in fla."""
    raise NotImplementedError("fused_chunk_gla is gone: call chunk_gla")


@drop_in
def fused_recurrent_gla(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    gk: Tensor | None = None,
    gv: Tensor | None = None,
    scale: float | None = None,
    initial_state: Tensor | None = None,
    output_final_state: bool = False,
    reverse: bool = False,
    state_v_first: bool = False,
    cu_seqlens: Tensor | None = None,
    *,
    transpose_state_layout: bool | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Gated linear attention token by token; `gk` is the `g` of `chunk_gla`, or None for no decay.

    With `reverse` it runs from the last token of each sequence to the first.

    Raises:
        NotImplementedError: `gv`, a decay of value channels.
    """
    refuse("fused_recurrent_gla", gv=gv)
    operator, inputs = (_plain, [q, k, v]) if gk is None else (_gla, [q, k, v, gk])
    return run(
        operator.fused_recurrent,
        *inputs,
        like=q,
        scale=scale,
        initial_state=initial_state,
        output_final_state=output_final_state,
        v_first=v_first("fused_recurrent_gla", state_v_first, transpose_state_layout),
        reverse=reverse,
        cu_seqlens=cu_seqlens,
    )


@drop_in
def naive_recurrent_gla(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    gk: Tensor,
    initial_state: Tensor | None = None,
    output_final_state: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """The recurrence as it is written, in PyTorch, with the scale K ** -0.5."""
    return run(
        _gla.naive_recurrent,
        *(q, k, v, gk),
        like=q,
        initial_state=initial_state,
        output_final_state=output_final_state,
    )
