"""fla.ops.rwkv7: diagonal plus low rank, in RWKV-7's order of arguments."""

from __future__ import annotations

import math

from torch import Tensor

from ...adapt import drop_in, forms, refuse, run

__all__ = ["chunk_rwkv7", "fused_mul_recurrent_rwkv7", "fused_recurrent_rwkv7"]

_any_decay = forms("dplr")
_bounded = forms("rwkv7")

LOWEST = -math.exp(-0.5)
"""The log decay that RWKV-7's own map stays above. The kernels of `rwkv7` rely on it, those of `dplr` take any."""


@drop_in
def chunk_rwkv7(
    r: Tensor,
    w: Tensor,
    k: Tensor,
    v: Tensor,
    a: Tensor,
    b: Tensor,
    scale: float | None = 1.0,
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
    """RWKV-7 in chunks.

    Args:
        r: receptance, [B, T, H, K].
        w: log decay of each key channel, [B, T, HV, K].
        k: [B, T, H, K].
        v: [B, T, HV, V].
        a: removal key, [B, T, H, K].
        b: replacement key, [B, T, H, K].
        scale: a number; None for K ** -0.5.
        initial_state: [N, HV, K, V].
        output_final_state: also return the state after the last token.
        cu_seqlens: [N + 1] offsets of packed sequences; needs B = 1.
        cu_seqlens_cpu: taken, and not needed.
        safe_gate: promises that w is bounded.
        chunk_size: 16, 32 or 64.
        disable_recompute: keep the states for the gradient.
        cp_context: refused.
        lower_bound: of w, below 0. From -exp(-0.5) on, which is RWKV-7's, quicker kernels run that rely on it.

    Returns:
        o, [B, T, HV, V] in r's dtype; the final state in float32, or None.

    Raises:
        ValueError: a shape, dtype or device that does not fit, named; `lower_bound` is not below 0.
        NotImplementedError: `cp_context`.
    """
    refuse("chunk_rwkv7", cp_context=cp_context)
    if lower_bound is not None and lower_bound >= 0:
        raise ValueError(f"chunk_rwkv7: lower_bound: expected a number below 0, got {lower_bound}")
    bounded = lower_bound is not None and lower_bound >= LOWEST - 1e-6
    return run(
        *((_bounded.chunk, r, w, k, v, a, b) if bounded else (_any_decay.chunk, r, k, v, a, b, w)),
        like=r,
        scale=r.shape[-1] ** -0.5 if scale is None else scale,
        initial_state=initial_state,
        output_final_state=output_final_state,
        cu_seqlens=cu_seqlens,
        chunk_size=chunk_size,
        save_states=disable_recompute,
    )


@drop_in
def fused_recurrent_rwkv7(
    r: Tensor,
    w: Tensor,
    k: Tensor,
    v: Tensor,
    a: Tensor,
    b: Tensor,
    scale: float | None = None,
    initial_state: Tensor | None = None,
    output_final_state: bool = True,
    cu_seqlens: Tensor | None = None,
) -> tuple[Tensor, Tensor | None]:
    """RWKV-7 token by token; arguments as of `chunk_rwkv7`, but `scale` is K ** -0.5 by default, and the state is given
    back, as in fla."""
    return run(
        _any_decay.fused_recurrent,
        *(r, k, v, a, b, w),
        like=r,
        scale=scale,
        initial_state=initial_state,
        output_final_state=output_final_state,
        cu_seqlens=cu_seqlens,
    )


@drop_in
def fused_mul_recurrent_rwkv7(
    r: Tensor,
    w: Tensor,
    k: Tensor,
    v: Tensor,
    kk: Tensor,
    a: Tensor,
    scale: float | None = 1.0,
    initial_state: Tensor | None = None,
    output_final_state: bool = False,
    reverse: bool = False,
    cu_seqlens: Tensor | None = None,
) -> tuple[Tensor, Tensor | None]:
    """RWKV-7 token by token from its normed key `kk` and its rate `a`, [B, T, H, K]: -kk is read, kk * a added.

    With `reverse` it runs from the last token of each sequence to the first.
    """
    return run(
        _any_decay.fused_recurrent,
        *(r, k, v, -kk, kk * a, w),
        like=r,
        scale=scale,
        initial_state=initial_state,
        output_final_state=output_final_state,
        reverse=reverse,
        cu_seqlens=cu_seqlens,
    )
