"""fla.ops.generalized_delta_rule: the state is read along `a` and what is read added along `b`."""

from __future__ import annotations

from torch import Tensor

from ...adapt import drop_in, forms, refuse, run

__all__ = [
    "chunk_dplr_delta_rule",
    "chunk_iplr_delta_rule",
    "fused_recurrent_dplr_delta_rule",
    "fused_recurrent_iplr_delta_rule",
]

_dplr = forms("dplr")
_iplr = forms("iplr")


@drop_in
def chunk_dplr_delta_rule(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    a: Tensor,
    b: Tensor,
    gk: Tensor,
    scale: float | None = None,
    initial_state: Tensor | None = None,
    output_final_state: bool = False,
    cu_seqlens: Tensor | None = None,
    cu_seqlens_cpu: Tensor | None = None,
    safe_gate: bool = False,
    chunk_size: int | None = None,
    disable_recompute: bool = False,
    cp_context: object | None = None,
    lower_bound: float | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Diagonal plus low rank, in chunks.

    Args:
        q: [B, T, H, K].
        k: [B, T, H, K].
        v: [B, T, HV, V].
        a: what is read from the state, [B, T, H, K].
        b: where it is added back, [B, T, H, K].
        gk: log decay of each key channel, [B, T, HV, K].
        scale: default K ** -0.5.
        initial_state: [N, HV, K, V].
        output_final_state: also return the state after the last token.
        cu_seqlens: [N + 1] offsets of packed sequences; needs B = 1.
        cu_seqlens_cpu: taken, and not needed.
        safe_gate: promises that gk is bounded; nothing here needs the promise.
        chunk_size: 16, 32 or 64.
        disable_recompute: keep the states for the gradient.
        cp_context: refused.
        lower_bound: of gk, below 0; nothing here needs it.

    Returns:
        o, [B, T, HV, V] in q's dtype; the final state in float32, or None.

    Raises:
        ValueError: a shape, dtype or device that does not fit, named; `lower_bound` is not below 0.
        NotImplementedError: `cp_context`.
    """
    refuse("chunk_dplr_delta_rule", cp_context=cp_context)
    if lower_bound is not None and lower_bound >= 0:
        raise ValueError(f"chunk_dplr_delta_rule: lower_bound: expected a number below 0, got {lower_bound}")
    return run(
        _dplr.chunk,
        *(q, k, v, a, b, gk),
        like=q,
        scale=scale,
        initial_state=initial_state,
        output_final_state=output_final_state,
        cu_seqlens=cu_seqlens,
        chunk_size=chunk_size,
        save_states=disable_recompute,
    )


@drop_in
def fused_recurrent_dplr_delta_rule(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    a: Tensor,
    b: Tensor,
    gk: Tensor,
    scale: float | None = None,
    initial_state: Tensor | None = None,
    output_final_state: bool = False,
    reverse: bool = False,
    cu_seqlens: Tensor | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Diagonal plus low rank, token by token; arguments as of `chunk_dplr_delta_rule`.

    With `reverse` it runs from the last token of each sequence to the first.
    """
    return run(
        _dplr.fused_recurrent,
        *(q, k, v, a, b, gk),
        like=q,
        scale=scale,
        initial_state=initial_state,
        output_final_state=output_final_state,
        reverse=reverse,
        cu_seqlens=cu_seqlens,
    )


@drop_in
def chunk_iplr_delta_rule(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    a: Tensor,
    b: Tensor,
    scale: float | None = None,
    initial_state: Tensor | None = None,
    output_final_state: bool = False,
    cu_seqlens: Tensor | None = None,
    cu_seqlens_cpu: Tensor | None = None,
    *,
    chunk_size: int | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Identity plus low rank, in chunks: `chunk_dplr_delta_rule` without a decay."""
    return run(
        _iplr.chunk,
        *(q, k, v, a, b),
        like=q,
        scale=scale,
        initial_state=initial_state,
        output_final_state=output_final_state,
        cu_seqlens=cu_seqlens,
        chunk_size=chunk_size,
    )


@drop_in
def fused_recurrent_iplr_delta_rule(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    a: Tensor,
    b: Tensor,
    scale: float | None = None,
    initial_state: Tensor | None = None,
    output_final_state: bool = False,
    cu_seqlens: Tensor | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Identity plus low rank, token by token: `fused_recurrent_dplr_delta_rule` without a decay."""
    return run(
        _iplr.fused_recurrent,
        *(q, k, v, a, b),
        like=q,
        scale=scale,
        initial_state=initial_state,
        output_final_state=output_final_state,
        cu_seqlens=cu_seqlens,
    )
