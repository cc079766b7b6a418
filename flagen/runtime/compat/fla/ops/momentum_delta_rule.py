"""fla.ops.momentum_delta_rule: the delta rule with momentum."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ....shared.forms import Form
from ...adapt import computing, drop_in, forms, l2norm, of_groups, run

__all__ = [
    "chunk_momentum_delta_rule",
    "chunk_momentum_delta_rule_ref",
    "fused_recurrent_momentum_delta_rule",
    "recurrent_momentum_delta_rule_ref",
]

_momentum = forms("momentum_delta_rule")
CHUNK_SIZES = (16, 32, 64)


@drop_in
def chunk_momentum_delta_rule(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_alpha: Tensor,
    log_mu: Tensor,
    p: Tensor | None = None,
    beta: Tensor | None = None,
    eta: Tensor | None = None,
    scale: float | None = None,
    initial_state: Tensor | tuple[Tensor, Tensor] | None = None,
    output_final_state: bool = False,
    cu_seqlens: Tensor | None = None,
    use_qk_l2norm_in_kernel: bool = True,
    use_p_times_alpha: bool = True,
    chunk_size: int = 64,
) -> tuple[Tensor, Tensor | None]:
    """The momentum delta rule in chunks; float32 and packed sequences too, which fla refuses, and beta as it is, to
    which fla's chunk form adds 1e-6.

    Args:
        q: [B, T, H, K].
        k: [B, T, H, K].
        v: [B, T, HV, V]; HV is a multiple of H.
        log_alpha: log decay of the memory, [B, T, HV].
        log_mu: log decay of the momentum, [B, T, HV].
        p: what the memory is read by before a correction, [B, T, H, K], or None for `k`.
        beta: how much of the momentum the memory gets, [B, T, HV], or None for ones.
        eta: learning rate, [B, T, HV], or None for ones.
        scale: default K ** -0.5.
        initial_state: memory and momentum, [2, N, HV, K, V], or two of [N, HV, K, V].
        output_final_state: also return the states after the last token.
        cu_seqlens: [N + 1] offsets of packed sequences; needs B = 1.
        use_qk_l2norm_in_kernel: divide q, k and p by their lengths first.
        use_p_times_alpha: read the memory as the token decays it.
        chunk_size: 16, 32 or 64; the result does not depend on it, and the operator has its own.

    Returns:
        o, [B, T, HV, V] in q's dtype; memory and momentum, [2, N, HV, K, V] in float32, or None.

    Raises:
        ValueError: a shape, dtype or device that does not fit, named; another chunk_size.
    """
    if chunk_size not in CHUNK_SIZES:
        raise ValueError(f"chunk_momentum_delta_rule: chunk_size: expected 16, 32 or 64, got {chunk_size}")
    given = (q, k, k if p is None else p)
    rows = tuple(map(l2norm, given)) if use_qk_l2norm_in_kernel else given
    q_in, k_in, p_in = _decayed(rows, log_alpha) if use_p_times_alpha else rows
    return _run(
        _momentum.chunk,
        *(q_in, k_in, v, log_alpha, log_mu, p_in.to(q.dtype), beta, eta),
        like=q,
        scale=scale,
        initial_state=initial_state,
        output_final_state=output_final_state,
        cu_seqlens=cu_seqlens,
    )


@drop_in
def fused_recurrent_momentum_delta_rule(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_alpha: Tensor,
    log_mu: Tensor,
    p: Tensor | None = None,
    beta: Tensor | None = None,
    eta: Tensor | None = None,
    scale: float | None = None,
    initial_state: Tensor | tuple[Tensor, Tensor] | None = None,
    output_final_state: bool = False,
    cu_seqlens: Tensor | None = None,
    use_qk_l2norm_in_kernel: bool = True,
    use_p_times_alpha: bool = True,
) -> tuple[Tensor, Tensor | None]:
    """The momentum delta rule token by token; arguments as of `chunk_momentum_delta_rule`."""
    given = (q, k, k if p is None else p)
    rows = tuple(l2norm(x, keep=True) for x in given) if use_qk_l2norm_in_kernel else given
    q_in, k_in, p_in = _decayed(rows, log_alpha) if use_p_times_alpha else rows
    return _run(
        _momentum.fused_recurrent,
        *(q_in, k_in, v, log_alpha, log_mu, p_in, beta, eta),
        like=q,
        scale=scale,
        initial_state=initial_state,
        output_final_state=output_final_state,
        cu_seqlens=cu_seqlens,
    )


@drop_in
def recurrent_momentum_delta_rule_ref(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_alpha: Tensor,
    log_mu: Tensor,
    p: Tensor,
    beta: Tensor | None = None,
    eta: Tensor | None = None,
    scale: float | None = None,
    initial_S: Tensor | None = None,
    initial_M: Tensor | None = None,
    output_final_state: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """The recurrence as it is written, in PyTorch and in float32; nothing is normed, and `p` is as it is given."""
    return _run(
        _momentum.naive_recurrent,
        *(q.to(computing(q)), k, v, log_alpha, log_mu, p, beta, eta),
        scale=scale,
        initial_state=_both(initial_S, initial_M),
        output_final_state=output_final_state,
    )


@drop_in
def chunk_momentum_delta_rule_ref(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    p: Tensor,
    log_alpha: Tensor,
    log_mu: Tensor,
    beta: Tensor,
    eta: Tensor,
    scale: float | None = None,
    initial_S: Tensor | None = None,
    initial_M: Tensor | None = None,
    output_final_state: bool = False,
    chunk_size: int = 64,
) -> tuple[Tensor, Tensor | None]:
    """The chunk form in PyTorch, in float32; `p` comes before the decays here, as in fla."""
    return _run(
        _momentum.naive_chunk,
        *(q.to(computing(q)), k, v, log_alpha, log_mu, p, beta, eta),
        scale=scale,
        initial_state=_both(initial_S, initial_M),
        output_final_state=output_final_state,
        chunk_size=chunk_size,
    )


def _decayed(rows: tuple[Tensor, ...], log_alpha: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """q, k and p for every head of values, and p times its decay."""
    q, k, p = of_groups(log_alpha.shape[2] // rows[0].shape[2], *rows)
    return q, k, p * log_alpha.to(computing(p, log_alpha)).exp()[..., None]


def _both(S: Tensor | None, M: Tensor | None) -> tuple[Tensor, Tensor] | None:
    """Memory and momentum, of which one that is not given is zero."""
    if S is None:
        return None if M is None else (torch.zeros_like(M), M)
    return S, torch.zeros_like(S) if M is None else M


def _run(
    form: Form,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_alpha: Tensor,
    log_mu: Tensor,
    p: Tensor,
    beta: Tensor | None,
    eta: Tensor | None,
    *,
    initial_state: Tensor | tuple[Tensor, Tensor] | None,
    like: Tensor | None = None,
    **options: Any,
) -> tuple[Tensor, Tensor | None]:
    """Run the operator, whose states are two."""
    beta, eta = (torch.ones_like(v[..., 0]) if x is None else x for x in (beta, eta))
    o, states = run(
        form,
        *(q, k, v, log_alpha, log_mu, p, beta, eta),
        like=q if like is None else like,
        initial_state=None if initial_state is None else (initial_state[0], initial_state[1]),
        **options,
    )
    return o, None if states is None else torch.stack(states)
