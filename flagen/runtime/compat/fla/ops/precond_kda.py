"""fla.ops.precond_kda: Kimi delta attention, its write key scaled by a second moment of the keys."""

from __future__ import annotations

from torch import Tensor

from ...adapt import channel_gate, check_bound, drop_in, forms, l2norm, refuse
from ._preconditioned import Moment, preconditioned

__all__ = ["chunk_precond_kda", "fused_recurrent_precond_kda", "naive_recurrent_precond_kda"]

_rule = forms("precond_kda")


@drop_in
def chunk_precond_kda(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    g_atk: Tensor,
    beta_atk: Tensor,
    beta: Tensor,
    scale: float | None = None,
    initial_state: Tensor | None = None,
    initial_A_state: Tensor | None = None,
    output_final_state: bool = False,
    use_gate_in_kernel: bool = False,
    safe_gate: bool = False,
    lower_bound: float | None = None,
    cu_seqlens: Tensor | None = None,
    cu_seqlens_cpu: Tensor | None = None,
    chunk_indices: Tensor | None = None,
    cp_context: object | None = None,
    transpose_state_layout: bool = False,
    x: float = 1.5,
    eps: float = 1e-6,
    log_atk_scale: Tensor | float | None = None,
    solve_tril_precision: str | None = None,
    disable_recompute: bool = False,
    return_intermediate_states: bool = False,
    *,
    A_log: Tensor | None = None,
    dt_bias: Tensor | None = None,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Preconditioned Kimi delta attention in chunks; q and k are divided by their lengths, always.

    Args:
        q: [B, T, H, K].
        k: [B, T, H, K].
        v: [B, T, HV, V]; HV is a multiple of H.
        g: log decay of each key channel, [B, T, HV, K]; with `use_gate_in_kernel` what it is made from.
        g_atk: log decay of the second moment, [B, T, H].
        beta_atk: weight of a key in the second moment, [B, T, H].
        beta: write strength, [B, T, HV].
        scale: default K ** -0.5.
        initial_state: [N, HV, K, V].
        initial_A_state: the second moment, [N, H, K].
        output_final_state: also return both states after the last token.
        use_gate_in_kernel: the log decay is -exp(A_log) softplus(g + dt_bias), or, with a lower bound,
            lower_bound sigmoid(exp(A_log) (g + dt_bias)).
        safe_gate: promises a log decay in [-5, 0); nothing here needs the promise.
        lower_bound: of the log decay, with `use_gate_in_kernel`.
        cu_seqlens: [N + 1] offsets of packed sequences; needs B = 1.
        cu_seqlens_cpu: taken, and not needed.
        chunk_indices: taken, and not needed.
        cp_context: refused.
        transpose_state_layout: states are [N, HV, V, K].
        x: bound on how much a channel is scaled up or down.
        eps: what keeps the log of the second moment finite.
        log_atk_scale: the log of the second moment that leaves a channel as it is: a number, or one for each head, [H],
            which is read from the device, and gets no gradient; default -0.2.
        solve_tril_precision: taken, and not needed.
        disable_recompute: keep the states for the gradient.
        return_intermediate_states: refused.
        A_log: [HV]; may be None with a lower bound.
        dt_bias: [HV * K].

    Returns:
        o, [B, T, HV, V] in q's dtype; the final state and the second moment in float32, or None and None.

    Raises:
        ValueError: a shape, dtype or device that does not fit, named; flags that contradict each other.
        NotImplementedError: what is refused above, or `log_atk_scale` where it wants a gradient.
    """
    name = "chunk_precond_kda"
    refuse(name, cp_context=cp_context, return_intermediate_states=return_intermediate_states)
    check_bound(name, use_gate_in_kernel, safe_gate, lower_bound)
    if use_gate_in_kernel:
        g = channel_gate(name, g, A_log, dt_bias, lower_bound)
    return preconditioned(
        name,
        _rule.chunk,
        (l2norm(q), l2norm(k), v, g, beta),
        Moment(g_atk, beta_atk, x, eps, log_atk_scale),
        q,
        (initial_state, initial_A_state),
        output_final_state,
        transpose_state_layout,
        scale=scale,
        cu_seqlens=cu_seqlens,
        save_states=disable_recompute,
    )


@drop_in
def fused_recurrent_precond_kda(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    g_atk: Tensor,
    beta_atk: Tensor,
    beta: Tensor,
    A_log: Tensor | None = None,
    dt_bias: Tensor | None = None,
    scale: float | None = None,
    initial_state: Tensor | None = None,
    initial_A_state: Tensor | None = None,
    output_final_state: bool = False,
    use_qk_l2norm_in_kernel: bool = True,
    use_gate_in_kernel: bool = False,
    lower_bound: float | None = None,
    cu_seqlens: Tensor | None = None,
    transpose_state_layout: bool = False,
    x: float = 1.5,
    eps: float = 1e-6,
    log_atk_scale: Tensor | float | None = None,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Preconditioned Kimi delta attention token by token, with gradients; arguments as of `chunk_precond_kda`.

    q and k are divided by their lengths unless `use_qk_l2norm_in_kernel` says not to.
    """
    name = "fused_recurrent_precond_kda"
    if use_gate_in_kernel:
        g = channel_gate(name, g, A_log, dt_bias, lower_bound)
    qk = (l2norm(q, keep=True), l2norm(k, keep=True)) if use_qk_l2norm_in_kernel else (q, k)
    return preconditioned(
        name,
        _rule.fused_recurrent,
        (*qk, v, g, beta),
        Moment(g_atk, beta_atk, x, eps, log_atk_scale),
        q,
        (initial_state, initial_A_state),
        output_final_state,
        transpose_state_layout,
        scale=scale,
        cu_seqlens=cu_seqlens,
    )


@drop_in
def naive_recurrent_precond_kda(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    g_atk: Tensor,
    beta_atk: Tensor,
    beta: Tensor,
    scale: float | None = None,
    initial_state: Tensor | None = None,
    initial_A_state: Tensor | None = None,
    output_final_state: bool = False,
    x: float = 1.5,
    eps: float = 1e-6,
    log_atk_scale: Tensor | float | None = None,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """The recurrence as it is written, in PyTorch, of q and k as they are."""
    return preconditioned(
        "naive_recurrent_precond_kda",
        _rule.naive_recurrent,
        (q, k, v, g, beta),
        Moment(g_atk, beta_atk, x, eps, log_atk_scale),
        q,
        (initial_state, initial_A_state),
        output_final_state,
        False,
        scale=scale,
    )
