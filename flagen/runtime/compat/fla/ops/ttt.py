"""fla.ops.ttt: a linear model that is trained, a mini-batch after the other, while it is read."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ....shared.forms import Form
from ...adapt import computing, drop_in, forms, run

__all__ = ["chunk_ttt_linear", "chunk_ttt_linear_ref", "fused_chunk_ttt_linear", "ttt_linear"]

_ttt_linear = forms("ttt_linear")
Results = tuple[Tensor, Tensor | None, Tensor | None]


@drop_in
def chunk_ttt_linear(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    w: Tensor,
    b: Tensor,
    eta: Tensor | float,
    scale: float | None = None,
    eps: float = 1e-6,
    chunk_size: int = 16,
    initial_state: Tensor | None = None,
    initial_state_bias: Tensor | None = None,
    output_final_state: bool = False,
    cu_seqlens: Tensor | None = None,
    cu_seqlens_cpu: Tensor | None = None,
) -> Results:
    """TTT-Linear, in mini-batches of `chunk_size` tokens; a call begins one, and ends the last.

    The bias that a call ends with is right also where the last mini-batch is not full: to fla's each missing token adds
    the gradient of a key and a value that are zero.

    Args:
        q: [B, T, H, K].
        k: [B, T, H, K].
        v: [B, T, HV, K]; HV is a multiple of H.
        w: weight of the layer norm, [HV, K].
        b: its bias, [HV, K].
        eta: learning rate, [B, T, HV, 1], or a number for all.
        scale: default K ** -0.5.
        eps: what is added to variances.
        chunk_size: tokens of a mini-batch.
        initial_state: weights of the model, [N, HV, K, K].
        initial_state_bias: its bias, [N, HV, 1, K].
        output_final_state: also return what the model is after the last token, whose learning rate the step takes.
        cu_seqlens: [N + 1] offsets of packed sequences; needs B = 1.
        cu_seqlens_cpu: taken, and not needed.

    Returns:
        o, [B, T, HV, K] in q's dtype; weights and bias as they are given, in float32, or None twice.

    Raises:
        ValueError: a shape, dtype or device that does not fit, named.
    """
    return _run(
        _ttt_linear.chunk,
        *(q, k, v, _rates(eta, v), w, b),
        like=q,
        scale=scale,
        eps=eps,
        mini_batch_size=chunk_size,
        first=(initial_state, initial_state_bias),
        output_final_state=output_final_state,
        cu_seqlens=cu_seqlens,
    )


@drop_in
def fused_chunk_ttt_linear(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    w: Tensor,
    b: Tensor,
    eta: Tensor | float,
    scale: float | None = None,
    eps: float = 1e-6,
    chunk_size: int = 16,
    initial_state: Tensor | None = None,
    initial_state_bias: Tensor | None = None,
    output_final_state: bool = False,
    cu_seqlens: Tensor | None = None,
) -> Results:
    """What `chunk_ttt_linear` gives, with its arguments."""
    return chunk_ttt_linear(
        *(q, k, v, w, b, eta, scale, eps, chunk_size, initial_state, initial_state_bias, output_final_state),
        cu_seqlens=cu_seqlens,
    )


@drop_in
def chunk_ttt_linear_ref(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    w: Tensor,
    b: Tensor,
    eta: Tensor | float,
    scale: float | None = None,
    eps: float = 1e-6,
    mini_batch_size: int = 16,
    initial_state: Tensor | None = None,
    initial_state_bias: Tensor | None = None,
    output_final_state: bool = False,
) -> Results:
    """The chunk form in PyTorch and in float32; arguments as of `chunk_ttt_linear`."""
    wide = q.to(computing(q))
    return _run(
        _ttt_linear.naive_chunk,
        *(wide, k, v, _rates(eta, v), w, b),
        like=wide,
        scale=scale,
        eps=eps,
        mini_batch_size=mini_batch_size,
        first=(initial_state, initial_state_bias),
        output_final_state=output_final_state,
    )


@drop_in
def ttt_linear(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    w: Tensor,
    b: Tensor,
    eta: Tensor,
    scale: float,
    eps: float,
    mini_batch_size: int,
    initial_state: Tensor | None,
    initial_state_bias: Tensor | None,
    output_final_state: bool,
) -> Results:
    """The recurrence as it is written, in PyTorch, of inputs [B, H, T, ...] of any length; `q` stays as it is."""
    rows = (x.transpose(1, 2) for x in (q, k, v))
    o, weights, bias = _run(
        _ttt_linear.naive_recurrent,
        *(*rows, eta.transpose(1, 2)[..., 0], w, b),
        like=v,
        scale=scale,
        eps=eps,
        mini_batch_size=mini_batch_size,
        first=(initial_state, initial_state_bias),
        output_final_state=output_final_state,
    )
    return o.transpose(1, 2), weights, bias


def _rates(eta: Tensor | float, v: Tensor) -> Tensor:
    """The learning rate of every token and head, [B, T, HV]."""
    return eta[..., 0] if isinstance(eta, Tensor) else torch.full_like(v[..., 0], eta)


def _run(
    form: Form,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    eta: Tensor,
    w: Tensor,
    b: Tensor,
    *,
    first: tuple[Tensor | None, Tensor | None],
    **options: Any,
) -> Results:
    """Run the operator from a model at the beginning of a mini-batch to what it is once it has taken the last step."""
    o, last = run(form, q, k, v, eta, w, b, initial_state=_at_the_beginning(*first), **options)
    if last is None:
        return o, None, None
    W, c, G, d, rate, _ = last
    return o, W - rate[..., None, None] * G, (c - rate[..., None] * d)[..., None, :]


def _at_the_beginning(W: Tensor | None, c: Tensor | None) -> tuple[Tensor, ...] | None:
    """The operator's states before the first token of a mini-batch: no gradients yet, nor tokens."""
    if W is None and c is None:
        return None
    if W is None:
        assert c is not None
        W = c.new_zeros(*c.shape[:2], c.shape[-1], c.shape[-1])
    bias = torch.zeros_like(W[..., 0, :]) if c is None else c[..., 0, :]
    none = torch.zeros_like(W[..., 0, 0])
    return W, bias, torch.zeros_like(W), torch.zeros_like(bias), none, none
