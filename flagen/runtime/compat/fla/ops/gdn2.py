"""fla.ops.gdn2: the delta rule with gates of each channel for what is erased and what is written."""

from __future__ import annotations

from torch import Tensor

from ...adapt import channel_gate, check_bound, drop_in, forms, l2norm, refuse, run, v_first

__all__ = ["chunk_gdn2", "fused_recurrent_gdn2", "naive_chunk_gdn2", "naive_recurrent_gdn2"]

_gdn2 = forms("gdn2")


@drop_in
def chunk_gdn2(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    b: Tensor,
    w: Tensor,
    scale: float | None = None,
    initial_state: Tensor | None = None,
    output_final_state: bool = False,
    use_qk_l2norm_in_kernel: bool = False,
    use_gate_in_kernel: bool = False,
    cu_seqlens: Tensor | None = None,
    cu_seqlens_cpu: Tensor | None = None,
    safe_gate: bool = False,
    lower_bound: float | None = None,
    disable_recompute: bool = False,
    return_intermediate_states: bool = False,
    state_v_first: bool = False,
    cp_context: object | None = None,
    *,
    A_log: Tensor | None = None,
    dt_bias: Tensor | None = None,
    chunk_size: int | None = None,
    transpose_state_layout: bool | None = None,
) -> tuple[Tensor, Tensor | None]:
    """GDN-2 in chunks.

    Args:
        q: [B, T, H, K].
        k: [B, T, H, K].
        v: [B, T, HV, V]; HV is a multiple of H.
        g: log decay of each key channel, [B, T, HV, K]; with `use_gate_in_kernel` what it is made from.
        b: erase gate, [B, T, HV, K].
        w: write gate, [B, T, HV, V].
        scale: default K ** -0.5.
        initial_state: [N, HV, K, V].
        output_final_state: also return the state after the last token.
        use_qk_l2norm_in_kernel: divide q and k by their lengths first.
        use_gate_in_kernel: the log decay is -exp(A_log) softplus(g + dt_bias), or, with a lower bound,
            lower_bound sigmoid(exp(A_log) (g + dt_bias)).
        cu_seqlens: [N + 1] offsets of packed sequences; needs B = 1.
        cu_seqlens_cpu: taken, and not needed.
        safe_gate: promises a log decay in [-5, 0); nothing here needs the promise.
        lower_bound: of the log decay, with `use_gate_in_kernel`.
        disable_recompute: keep the states for the gradient.
        return_intermediate_states: refused.
        state_v_first: states are [N, HV, V, K].
        cp_context: refused.
        A_log: [HV]; may be None with a lower bound.
        dt_bias: [HV * K].
        chunk_size: 16, 32 or 64.
        transpose_state_layout: the old name of `state_v_first`.

    Returns:
        o, [B, T, HV, V] in q's dtype; the final state in float32, or None.

    Raises:
        ValueError: a shape, dtype or device that does not fit, named; flags that contradict each other.
        NotImplementedError: what is refused above.
    """
    name = "chunk_gdn2"
    refuse(name, return_intermediate_states=return_intermediate_states, cp_context=cp_context)
    check_bound(name, use_gate_in_kernel, safe_gate, lower_bound)
    if use_gate_in_kernel:
        g = channel_gate(name, g, A_log, dt_bias, lower_bound)
    qk = (l2norm(q), l2norm(k)) if use_qk_l2norm_in_kernel else (q, k)
    return run(
        _gdn2.chunk,
        *(*qk, v, g, b, w),
        like=q,
        scale=scale,
        initial_state=initial_state,
        output_final_state=output_final_state,
        v_first=v_first(name, state_v_first, transpose_state_layout),
        cu_seqlens=cu_seqlens,
        chunk_size=chunk_size,
        save_states=disable_recompute,
    )


@drop_in
def fused_recurrent_gdn2(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    b: Tensor,
    w: Tensor,
    A_log: Tensor | None = None,
    dt_bias: Tensor | None = None,
    scale: float | None = None,
    initial_state: Tensor | None = None,
    output_final_state: bool = False,
    use_qk_l2norm_in_kernel: bool = False,
    use_gate_in_kernel: bool = False,
    lower_bound: float | None = None,
    state_v_first: bool = False,
    cu_seqlens: Tensor | None = None,
    *,
    transpose_state_layout: bool | None = None,
) -> tuple[Tensor, Tensor | None]:
    """GDN-2 token by token, with gradients; arguments as of `chunk_gdn2`."""
    name = "fused_recurrent_gdn2"
    if use_gate_in_kernel:
        g = channel_gate(name, g, A_log, dt_bias, lower_bound)
    qk = (l2norm(q, keep=True), l2norm(k, keep=True)) if use_qk_l2norm_in_kernel else (q, k)
    return run(
        _gdn2.fused_recurrent,
        *(*qk, v, g, b, w),
        like=q,
        scale=scale,
        initial_state=initial_state,
        output_final_state=output_final_state,
        v_first=v_first(name, state_v_first, transpose_state_layout),
        cu_seqlens=cu_seqlens,
    )


@drop_in
def naive_recurrent_gdn2(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    b: Tensor,
    w: Tensor,
    scale: float | None = None,
    initial_state: Tensor | None = None,
    output_final_state: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """The recurrence as it is written, in PyTorch; arguments as of `chunk_gdn2`."""
    return run(
        _gdn2.naive_recurrent,
        *(q, k, v, g, b, w),
        like=q,
        scale=scale,
        initial_state=initial_state,
        output_final_state=output_final_state,
    )


@drop_in
def naive_chunk_gdn2(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    b: Tensor,
    w: Tensor,
    scale: float | None = None,
    initial_state: Tensor | None = None,
    output_final_state: bool = False,
    chunk_size: int = 64,
) -> tuple[Tensor, Tensor | None]:
    """The chunk form in PyTorch; arguments as of `chunk_gdn2`."""
    return run(
        _gdn2.naive_chunk,
        *(q, k, v, g, b, w),
        like=q,
        scale=scale,
        initial_state=initial_state,
        output_final_state=output_final_state,
        chunk_size=chunk_size,
    )
