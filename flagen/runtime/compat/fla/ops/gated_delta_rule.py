"""fla.ops.gated_delta_rule: the delta rule under a log decay of each head and token."""

from __future__ import annotations

import torch
from torch import Tensor

from ...adapt import EveryForm, computing, drop_in, forms, l2norm, refuse, run, scalar_gate, v_first, write_strength

__all__ = [
    "chunk_gated_delta_rule",
    "chunk_gdn",
    "fused_gdn_gate",
    "fused_recurrent_gated_delta_rule",
    "fused_recurrent_gdn",
    "naive_chunk_gated_delta_rule",
    "naive_gdn_gate",
    "naive_recurrent_gated_delta_rule",
]

_gated = forms("gated_delta_rule")


@drop_in
def chunk_gated_delta_rule(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    beta: Tensor,
    scale: float | None = None,
    initial_state: Tensor | None = None,
    output_final_state: bool = False,
    use_qk_l2norm_in_kernel: bool = False,
    use_beta_sigmoid_in_kernel: bool = False,
    allow_neg_eigval: bool = False,
    state_v_first: bool = False,
    cu_seqlens: Tensor | None = None,
    cu_seqlens_cpu: Tensor | None = None,
    chunk_indices: Tensor | None = None,
    cp_context: object | None = None,
    *,
    use_gate_in_kernel: bool = False,
    A_log: Tensor | None = None,
    dt_bias: Tensor | None = None,
    chunk_size: int | None = None,
    transpose_state_layout: bool | None = None,
) -> tuple[Tensor, Tensor | None]:
    """The gated delta rule in chunks.

    Args:
        q: [B, T, H, K].
        k: [B, T, H, K].
        v: [B, T, HV, V]; HV is a multiple of H.
        g: log decay, [B, T, HV]; with `use_gate_in_kernel` what it is made from.
        beta: write strength, [B, T, HV]; with `use_beta_sigmoid_in_kernel` its logit.
        scale: default K ** -0.5.
        initial_state: [N, HV, K, V].
        output_final_state: also return the state after the last token.
        use_qk_l2norm_in_kernel: divide q and k by their lengths first.
        use_beta_sigmoid_in_kernel: take the sigmoid of beta, in float32.
        allow_neg_eigval: twice that.
        state_v_first: states are [N, HV, V, K].
        cu_seqlens: [N + 1] offsets of packed sequences; needs B = 1.
        cu_seqlens_cpu: taken, and not needed.
        chunk_indices: taken, and not needed.
        cp_context: refused.
        use_gate_in_kernel: the log decay is -exp(A_log) softplus(g + dt_bias).
        A_log: [HV].
        dt_bias: [HV].
        chunk_size: 16, 32 or 64.
        transpose_state_layout: the old name of `state_v_first`.

    Returns:
        o, [B, T, HV, V] in q's dtype; the final state in float32, or None.

    Raises:
        ValueError: a shape, dtype or device that does not fit, named; flags that contradict each other.
        NotImplementedError: `cp_context`.
    """
    name = "chunk_gated_delta_rule"
    refuse(name, cp_context=cp_context)
    if use_gate_in_kernel:
        g = scalar_gate(name, g, A_log, dt_bias)
    qk = (l2norm(q), l2norm(k)) if use_qk_l2norm_in_kernel else (q, k)
    return run(
        _gated.chunk,
        *(*qk, v, g, write_strength(name, beta, use_beta_sigmoid_in_kernel, allow_neg_eigval)),
        like=q,
        scale=scale,
        initial_state=initial_state,
        output_final_state=output_final_state,
        v_first=v_first(name, state_v_first, transpose_state_layout),
        cu_seqlens=cu_seqlens,
        chunk_size=chunk_size,
    )


def _operator(
    q: Tensor, k: Tensor, v: Tensor, g: Tensor | None, gk: Tensor | None, beta: Tensor
) -> tuple[EveryForm, tuple[Tensor, ...]]:
    """The operator for the decays that there are, and its inputs."""
    if gk is not None:
        return forms("kda"), (q, k, v, gk if g is None else gk + g[..., None], beta)
    return (forms("delta_rule"), (q, k, v, beta)) if g is None else (_gated, (q, k, v, g, beta))


@drop_in
def fused_recurrent_gated_delta_rule(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor | None = None,
    gk: Tensor | None = None,
    gv: Tensor | None = None,
    beta: Tensor | None = None,
    scale: float | None = None,
    initial_state: Tensor | None = None,
    output_final_state: bool = False,
    use_qk_l2norm_in_kernel: bool = False,
    use_gate_in_kernel: bool = False,
    A_log: Tensor | None = None,
    dt_bias: Tensor | None = None,
    use_beta_sigmoid_in_kernel: bool = False,
    allow_neg_eigval: bool = False,
    state_v_first: bool = False,
    cu_seqlens: Tensor | None = None,
    *,
    transpose_state_layout: bool | None = None,
) -> tuple[Tensor, Tensor | None]:
    """The gated delta rule token by token, with gradients; arguments as of `chunk_gated_delta_rule`, and:

    Args:
        g: None for no decay of heads.
        gk: log decay of each key channel, [B, T, HV, K], on top of `g`.
        gv: refused.
        beta: None for ones.

    Raises:
        ValueError: a shape, dtype or device that does not fit, named; flags that contradict each other.
        NotImplementedError: `gv`, a decay of value channels.
    """
    name = "fused_recurrent_gated_delta_rule"
    refuse(name, gv=gv)
    if use_gate_in_kernel:
        g = scalar_gate(name, g, A_log, dt_bias)
    qk = (l2norm(q, keep=True), l2norm(k, keep=True)) if use_qk_l2norm_in_kernel else (q, k)
    beta = write_strength(
        name, torch.ones_like(v[..., 0]) if beta is None else beta, use_beta_sigmoid_in_kernel, allow_neg_eigval
    )
    operator, inputs = _operator(*qk, v, g, gk, beta)
    return run(
        operator.fused_recurrent,
        *inputs,
        like=q,
        scale=scale,
        initial_state=initial_state,
        output_final_state=output_final_state,
        v_first=v_first(name, state_v_first, transpose_state_layout),
        cu_seqlens=cu_seqlens,
    )


chunk_gdn = chunk_gated_delta_rule
fused_recurrent_gdn = fused_recurrent_gated_delta_rule


@drop_in
def naive_recurrent_gated_delta_rule(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    beta: Tensor,
    g: Tensor,
    scale: float | None = None,
    initial_state: Tensor | None = None,
    output_final_state: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """The recurrence as it is written, in PyTorch. `beta` comes before `g` here, as in fla."""
    return run(
        _gated.naive_recurrent,
        *(q, k, v, g, beta),
        like=q,
        scale=scale,
        initial_state=initial_state,
        output_final_state=output_final_state,
    )


@drop_in
def naive_chunk_gated_delta_rule(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    beta: Tensor,
    chunk_size: int = 64,
    scale: float | None = None,
    initial_state: Tensor | None = None,
    output_final_state: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """The chunk form in PyTorch; `g` comes before `beta`."""
    return run(
        _gated.naive_chunk,
        *(q, k, v, g, beta),
        like=q,
        scale=scale,
        initial_state=initial_state,
        output_final_state=output_final_state,
        chunk_size=chunk_size,
    )


@drop_in
def naive_gdn_gate(
    g: Tensor, A_log: Tensor, dt_bias: Tensor | None = None, output_dtype: torch.dtype = torch.float32
) -> Tensor:
    """-exp(A_log) softplus(g + dt_bias), [..., HV], with A_log and dt_bias [HV]."""
    gate = scalar_gate("naive_gdn_gate", g, A_log, dt_bias)
    return gate if computing(g, A_log) == torch.float64 else gate.to(output_dtype)


fused_gdn_gate = naive_gdn_gate
