"""fla.ops.precond_gated_delta_rule: the gated delta rule, its write key scaled by a second moment of the keys."""

from __future__ import annotations

import torch
from torch import Tensor

from ...adapt import drop_in, forms, l2norm, refuse
from ._preconditioned import Moment, preconditioned

__all__ = [
    "chunk_precond_gated_delta_rule",
    "fused_recurrent_pgdn",
    "fused_recurrent_precond_gated_delta_rule",
    "naive_recurrent_precond_gated_delta_rule",
]

_rule = forms("precond_gated_delta_rule")


@drop_in
def chunk_precond_gated_delta_rule(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g_atk: Tensor,
    g: Tensor,
    beta_atk: Tensor,
    beta: Tensor,
    scale: float | None = None,
    initial_state: Tensor | None = None,
    initial_A_state: Tensor | None = None,
    output_final_state: bool = False,
    use_qk_l2norm_in_kernel: bool = True,
    cu_seqlens: Tensor | None = None,
    cu_seqlens_cpu: Tensor | None = None,
    cp_context: object | None = None,
    transpose_state_layout: bool = False,
    x: float = 1.5,
    eps: float = 1e-6,
    log_atk_scale: Tensor | float | None = None,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """The preconditioned gated delta rule in chunks.

    Args:
        q: [B, T, H, K].
        k: [B, T, H, K].
        v: [B, T, HV, V]; HV is a multiple of H.
        g_atk: log decay of the second moment, [B, T, H].
        g: log decay, [B, T, HV].
        beta_atk: weight of a key in the second moment, [B, T, H].
        beta: write strength, [B, T, HV].
        scale: default K ** -0.5.
        initial_state: [N, HV, K, V].
        initial_A_state: the second moment, [N, H, K].
        output_final_state: also return both states after the last token.
        use_qk_l2norm_in_kernel: divide q and k by their lengths first.
        cu_seqlens: [N + 1] offsets of packed sequences; needs B = 1.
        cu_seqlens_cpu: taken, and not needed.
        cp_context: refused.
        transpose_state_layout: states are [N, HV, V, K].
        x: bound on how much a channel is scaled up or down.
        eps: what keeps the log of the second moment finite.
        log_atk_scale: the log of the second moment that leaves a channel as it is: a number, or one for each head, [H],
            which is read from the device, and gets no gradient; default -0.2.

    Returns:
        o, [B, T, HV, V] in q's dtype; the final state and the second moment in float32, or None and None.

    Raises:
        ValueError: a shape, dtype or device that does not fit, named.
        NotImplementedError: `cp_context`, or `log_atk_scale` where it wants a gradient.
    """
    name = "chunk_precond_gated_delta_rule"
    refuse(name, cp_context=cp_context)
    qk = (l2norm(q), l2norm(k)) if use_qk_l2norm_in_kernel else (q, k)
    return preconditioned(
        name,
        _rule.chunk,
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
def fused_recurrent_precond_gated_delta_rule(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor | None = None,
    gk: Tensor | None = None,
    gv: Tensor | None = None,
    beta: Tensor | None = None,
    g_atk: Tensor | None = None,
    beta_atk: Tensor | None = None,
    scale: float | None = None,
    initial_state: Tensor | None = None,
    initial_A_state: Tensor | None = None,
    output_final_state: bool = False,
    use_qk_l2norm_in_kernel: bool = True,
    cu_seqlens: Tensor | None = None,
    transpose_state_layout: bool = False,
    x: float = 1.5,
    eps: float = 1e-6,
    log_atk_scale: Tensor | float | None = None,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """The preconditioned gated delta rule token by token; arguments as of `chunk_precond_gated_delta_rule`, and:

    Args:
        g: None for no decay of heads.
        gk: log decay of each key channel, [B, T, HV, K], on top of `g`.
        gv: refused.
        beta: None for ones.

    Raises:
        ValueError: a shape, dtype or device that does not fit, named; `g_atk` or `beta_atk` is missing.
        NotImplementedError: `gv`, or `log_atk_scale` where it wants a gradient.
    """
    name = "fused_recurrent_precond_gated_delta_rule"
    refuse(name, gv=gv)
    if g_atk is None or beta_atk is None:
        raise ValueError(f"{name}: expected both g_atk and beta_atk, [B, T, H]")
    rule = _rule
    decay = torch.zeros_like(v[..., 0]) if g is None else g
    if gk is not None:
        rule, decay = forms("precond_kda"), gk if g is None else gk + g[..., None]
    qk = (l2norm(q, keep=True), l2norm(k, keep=True)) if use_qk_l2norm_in_kernel else (q, k)
    return preconditioned(
        name,
        rule.fused_recurrent,
        (*qk, v, decay, torch.ones_like(v[..., 0]) if beta is None else beta),
        Moment(g_atk, beta_atk, x, eps, log_atk_scale),
        q,
        (initial_state, initial_A_state),
        output_final_state,
        transpose_state_layout,
        scale=scale,
        cu_seqlens=cu_seqlens,
    )


fused_recurrent_pgdn = fused_recurrent_precond_gated_delta_rule


@drop_in
def naive_recurrent_precond_gated_delta_rule(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g_atk: Tensor,
    g: Tensor,
    beta_atk: Tensor,
    beta: Tensor,
    scale: float | None = None,
    initial_state: Tensor | None = None,
    initial_A_state: Tensor | None = None,
    output_final_state: bool = False,
    x: float = 1.5,
    eps: float = 1e-6,
    log_atk_scale: Tensor | float | None = None,
    cu_seqlens: Tensor | None = None,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """The recurrence as it is written, in PyTorch, of q and k divided by their lengths."""
    return preconditioned(
        "naive_recurrent_precond_gated_delta_rule",
        _rule.naive_recurrent,
        (l2norm(q, keep=True, eps=1e-24), l2norm(k, keep=True, eps=1e-24), v, g, beta),
        Moment(g_atk, beta_atk, x, eps, log_atk_scale),
        q,
        (initial_state, initial_A_state),
        output_final_state,
        False,
        scale=scale,
        cu_seqlens=cu_seqlens,
    )
