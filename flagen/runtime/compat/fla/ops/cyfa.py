"""fla.ops.cyfa: slots on a circle, through which a clock moves what was written."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ....shared.forms import Form
from ...adapt import computing, drop_in, forms, run

__all__ = ["chunk_cyfa", "fused_recurrent_cyfa", "naive_recurrent_cyfa"]

_cyfa = forms("cyfa")
States = tuple[Tensor, Tensor, Tensor]


@drop_in
def chunk_cyfa(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    delta: Tensor,
    beta: Tensor,
    readout: Tensor,
    q_norm_weight: Tensor,
    k_norm_weight: Tensor,
    q_norm_eps: float,
    k_norm_eps: float,
    scale: float | None = None,
    initial_state: States | None = None,
    output_final_state: bool = False,
    cu_seqlens: Tensor | None = None,
    cu_seqlens_cpu: Tensor | None = None,
    checkpoint_level: int = 0,
) -> tuple[Tensor, States | None]:
    """Cyclic flow attention in chunks.

    Args:
        q: [B, T, H, K].
        k: [B, T, H, K].
        v: [B, T, HV, V]; HV is a multiple of H.
        g: log decay, [B, T, HV].
        delta: how many slots the clock moves on, [B, T, HV].
        beta: write strength, [B, T, HV].
        readout: how the logits of C slots are mixed, [HV, C, C]; C is odd.
        q_norm_weight: [K].
        k_norm_weight: [K].
        q_norm_eps: what is added to the mean square of a query.
        k_norm_eps: what is added to that of a key.
        scale: default K ** -0.5.
        initial_state: keys, [N, HV, K, C + 1], values, [N, HV, C + 1, V], and the clock in slots, [N, HV].
        output_final_state: also return the states after the last token.
        cu_seqlens: [N + 1] offsets of packed sequences; needs B = 1.
        cu_seqlens_cpu: taken, and not needed.
        checkpoint_level: taken, and not needed.

    Returns:
        o, [B, T, HV, V] in q's dtype; the three states in float32, the clock with all the slots that have gone by, or
        None.

    Raises:
        ValueError: a shape, dtype or device that does not fit, named.
    """
    return _run(
        _cyfa.chunk,
        *(q, k, v, g, delta, beta, readout, q_norm_weight, k_norm_weight),
        q_norm_eps=q_norm_eps,
        k_norm_eps=k_norm_eps,
        scale=scale,
        initial_state=initial_state,
        output_final_state=output_final_state,
        cu_seqlens=cu_seqlens,
    )


@drop_in
def fused_recurrent_cyfa(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    delta: Tensor,
    beta: Tensor,
    readout: Tensor,
    q_norm_weight: Tensor,
    k_norm_weight: Tensor,
    q_norm_eps: float,
    k_norm_eps: float,
    scale: float | None = None,
    initial_state: States | None = None,
    output_final_state: bool = False,
    cu_seqlens: Tensor | None = None,
) -> tuple[Tensor, States | None]:
    """Cyclic flow attention token by token, with gradients, which fla's has not; arguments as of `chunk_cyfa`."""
    return _run(
        _cyfa.fused_recurrent,
        *(q, k, v, g, delta, beta, readout, q_norm_weight, k_norm_weight),
        q_norm_eps=q_norm_eps,
        k_norm_eps=k_norm_eps,
        scale=scale,
        initial_state=initial_state,
        output_final_state=output_final_state,
        cu_seqlens=cu_seqlens,
    )


@drop_in
def naive_recurrent_cyfa(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    delta: Tensor,
    beta: Tensor,
    readout: Tensor,
    q_norm_weight: Tensor,
    k_norm_weight: Tensor,
    q_norm_eps: float,
    k_norm_eps: float,
    scale: float | None = None,
    initial_state: States | None = None,
    output_final_state: bool = False,
    cu_seqlens: Tensor | None = None,
) -> tuple[Tensor, States | None]:
    """The recurrence as it is written, in PyTorch; arguments as of `chunk_cyfa`."""
    return _run(
        _cyfa.naive_recurrent,
        *(q, k, v, g, delta, beta, readout, q_norm_weight, k_norm_weight),
        q_norm_eps=q_norm_eps,
        k_norm_eps=k_norm_eps,
        scale=scale,
        initial_state=initial_state,
        output_final_state=output_final_state,
        cu_seqlens=cu_seqlens,
    )


def _run(
    form: Form,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    delta: Tensor,
    *inputs: Tensor,
    initial_state: States | None,
    output_final_state: bool,
    cu_seqlens: Tensor | None,
    **options: Any,
) -> tuple[Tensor, States | None]:
    """Run the operator, whose clock is kept in rounds; C slots are one."""
    slots = inputs[1].shape[-1]
    if initial_state is not None:
        keys, values, clock = initial_state
        initial_state = keys, values, torch.remainder(clock / slots, 1)
    o, last = run(
        form,
        *(q, k, v, g, delta, *inputs),
        like=q,
        initial_state=initial_state,
        output_final_state=output_final_state,
        cu_seqlens=cu_seqlens,
        **options,
    )
    if last is None:
        return o, None
    gone_by = _sums(delta.to(computing(delta)), cu_seqlens)
    return o, (last[0], last[1], gone_by if initial_state is None else clock + gone_by)


def _sums(x: Tensor, cu_seqlens: Tensor | None) -> Tensor:
    """Over the tokens of each sequence: [B, T, HV] to [N, HV]."""
    if cu_seqlens is None:
        return x.sum(1)
    lengths = cu_seqlens.to(x.device).diff()
    sequence = torch.arange(len(lengths), device=x.device).repeat_interleave(lengths, output_size=x.shape[1])
    return x.new_zeros(len(lengths), x.shape[-1]).index_add(0, sequence, x[0])
