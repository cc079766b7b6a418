"""fla.ops.kda: the delta rule under a log decay of each key channel."""

from __future__ import annotations

import torch
from torch import Tensor

from ...adapt import channel_gate, check_bound, computing, drop_in, forms, l2norm, refuse, run, v_first, write_strength

__all__ = [
    "chunk_kda",
    "fused_kda_gate",
    "fused_recurrent_kda",
    "naive_chunk_kda",
    "naive_kda_gate",
    "naive_kda_lowerbound_gate",
    "naive_recurrent_kda",
]

_kda = forms("kda")


@drop_in
def chunk_kda(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    beta: Tensor,
    scale: float | None = None,
    initial_state: Tensor | None = None,
    output_final_state: bool = False,
    use_qk_l2norm_in_kernel: bool = False,
    use_gate_in_kernel: bool = False,
    use_beta_sigmoid_in_kernel: bool = False,
    allow_neg_eigval: bool = False,
    safe_gate: bool = False,
    lower_bound: float | None = None,
    disable_recompute: bool = False,
    return_intermediate_states: bool = False,
    state_v_first: bool = False,
    cu_seqlens: Tensor | None = None,
    cu_seqlens_cpu: Tensor | None = None,
    cp_context: object | None = None,
    use_graph: bool = False,
    max_num_seqs: int | None = None,
    *,
    A_log: Tensor | None = None,
    dt_bias: Tensor | None = None,
    chunk_size: int | None = None,
    transpose_state_layout: bool | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Kimi delta attention in chunks.

    Args:
        q: [B, T, H, K].
        k: [B, T, H, K].
        v: [B, T, HV, V]; HV is a multiple of H.
        g: log decay of each key channel, [B, T, HV, K]; with `use_gate_in_kernel` what it is made from.
        beta: write strength, [B, T, HV]; with `use_beta_sigmoid_in_kernel` its logit.
        scale: default K ** -0.5.
        initial_state: [N, HV, K, V].
        output_final_state: also return the state after the last token.
        use_qk_l2norm_in_kernel: divide q and k by their lengths first.
        use_gate_in_kernel: the log decay is -exp(A_log) softplus(g + dt_bias), or, with a lower bound,
            lower_bound sigmoid(exp(A_log) (g + dt_bias)).
        use_beta_sigmoid_in_kernel: take the sigmoid of beta, in float32.
        allow_neg_eigval: twice that.
        safe_gate: promises a log decay in [-5, 0); nothing here needs the promise.
        lower_bound: of the log decay, with `use_gate_in_kernel`.
        disable_recompute: keep the states for the gradient.
        return_intermediate_states: refused.
        state_v_first: states are [N, HV, V, K].
        cu_seqlens: [N + 1] offsets of packed sequences; needs B = 1.
        cu_seqlens_cpu: taken, and not needed.
        cp_context: refused.
        use_graph: refused.
        max_num_seqs: refused.
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
    name = "chunk_kda"
    refuse(
        name,
        return_intermediate_states=return_intermediate_states,
        cp_context=cp_context,
        use_graph=use_graph,
        max_num_seqs=max_num_seqs,
    )
    check_bound(name, use_gate_in_kernel, safe_gate, lower_bound)
    if use_gate_in_kernel:
        g = channel_gate(name, g, A_log, dt_bias, lower_bound)
    qk = (l2norm(q), l2norm(k)) if use_qk_l2norm_in_kernel else (q, k)
    return run(
        _kda.chunk,
        *(*qk, v, g, write_strength(name, beta, use_beta_sigmoid_in_kernel, allow_neg_eigval)),
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
def fused_recurrent_kda(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    beta: Tensor,
    A_log: Tensor | None = None,
    dt_bias: Tensor | None = None,
    scale: float | None = None,
    initial_state: Tensor | None = None,
    output_final_state: bool = False,
    use_qk_l2norm_in_kernel: bool = False,
    use_gate_in_kernel: bool = False,
    use_beta_sigmoid_in_kernel: bool = False,
    allow_neg_eigval: bool = False,
    lower_bound: float | None = None,
    state_v_first: bool = False,
    cu_seqlens: Tensor | None = None,
    *,
    transpose_state_layout: bool | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Kimi delta attention token by token, with gradients; arguments as of `chunk_kda`."""
    name = "fused_recurrent_kda"
    if use_gate_in_kernel:
        g = channel_gate(name, g, A_log, dt_bias, lower_bound)
    qk = (l2norm(q, keep=True), l2norm(k, keep=True)) if use_qk_l2norm_in_kernel else (q, k)
    return run(
        _kda.fused_recurrent,
        *(*qk, v, g, write_strength(name, beta, use_beta_sigmoid_in_kernel, allow_neg_eigval)),
        like=q,
        scale=scale,
        initial_state=initial_state,
        output_final_state=output_final_state,
        v_first=v_first(name, state_v_first, transpose_state_layout),
        cu_seqlens=cu_seqlens,
    )


@drop_in
def naive_recurrent_kda(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    beta: Tensor,
    scale: float | None = None,
    initial_state: Tensor | None = None,
    output_final_state: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """The recurrence as it is written, in PyTorch; arguments as of `chunk_kda`."""
    return run(
        _kda.naive_recurrent,
        *(q, k, v, g, beta),
        like=q,
        scale=scale,
        initial_state=initial_state,
        output_final_state=output_final_state,
    )


@drop_in
def naive_chunk_kda(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    beta: Tensor,
    scale: float | None = None,
    initial_state: Tensor | None = None,
    output_final_state: bool = False,
    chunk_size: int = 64,
) -> tuple[Tensor, Tensor | None]:
    """The chunk form in PyTorch; arguments as of `chunk_kda`."""
    return run(
        _kda.naive_chunk,
        *(q, k, v, g, beta),
        like=q,
        scale=scale,
        initial_state=initial_state,
        output_final_state=output_final_state,
        chunk_size=chunk_size,
    )


@drop_in
def fused_kda_gate(
    g: Tensor,
    A_log: Tensor | None = None,
    dt_bias: Tensor | None = None,
    lower_bound: float | None = None,
    output_dtype: torch.dtype = torch.float32,
) -> Tensor:
    """The log decays of key channels, [..., HV, K], as `chunk_kda` makes them with `use_gate_in_kernel`."""
    gate = channel_gate("fused_kda_gate", g, A_log, dt_bias, lower_bound)
    return gate if computing(g, A_log) == torch.float64 else gate.to(output_dtype)


@drop_in
def naive_kda_gate(
    g: Tensor, A_log: Tensor, dt_bias: Tensor | None = None, output_dtype: torch.dtype = torch.float32
) -> Tensor:
    """`fused_kda_gate` without a lower bound."""
    return fused_kda_gate(g, A_log, dt_bias, None, output_dtype)


@drop_in
def naive_kda_lowerbound_gate(
    g: Tensor,
    A_log: Tensor | None = None,
    dt_bias: Tensor | None = None,
    lower_bound: float = -5.0,
    output_dtype: torch.dtype = torch.float32,
) -> Tensor:
    """`fused_kda_gate` with a lower bound."""
    return fused_kda_gate(g, A_log, dt_bias, lower_bound, output_dtype)
