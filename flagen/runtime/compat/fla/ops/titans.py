"""fla.ops.titans: a linear memory that is trained, with momentum, while it is read."""

from __future__ import annotations

import torch
from torch import Tensor

from ....shared.forms import Form
from ...adapt import computing, drop_in, forms, run

__all__ = ["chunk_titans_linear", "chunk_titans_linear_ref", "titans_linear"]

_titans_linear = forms("titans_linear")
Results = tuple[Tensor, Tensor | None]


@drop_in
def chunk_titans_linear(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    w: Tensor,
    b: Tensor,
    theta: Tensor,
    alpha: Tensor,
    eta: Tensor,
    eps: float,
    chunk_size: int,
    initial_state: Tensor | None,
    output_final_state: bool,
) -> Results:
    """Titans with a linear memory in chunks, in PyTorch, of any length; a call begins a mini-batch, without momentum.

    The gradient is that of the layer norm, (D * e - sum(e)) / (D * std) and so on; fla's divides the sum alone, and its
    results are others.

    Args:
        q: [B, H, T, K].
        k: [B, H, T, K].
        v: [B, HV, T, K]; HV is a multiple of H.
        w: weight of the layer norm, [HV, K].
        b: its bias, [HV, K].
        theta: learning rate, [B, HV, T, 1].
        alpha: weight decay, [B, HV, T, 1].
        eta: momentum, [B, HV, T, 1].
        eps: what is added to variances.
        chunk_size: tokens of a mini-batch.
        initial_state: the memory, [B, HV, K, K].
        output_final_state: also return the memory after the last token.

    Returns:
        o, [B, HV, T, K] in q's dtype; the memory, [B, HV, K, K] in float32, or None.

    Raises:
        ValueError: a shape, dtype or device that does not fit, named.
    """
    rows, rates = _turned(q, k, v), _turned(theta, alpha, eta)
    form = _titans_linear.naive_chunk
    o, last = _run(form, rows, rates, w, b, eps, chunk_size, initial_state, output_final_state)
    return o.transpose(1, 2), last


@drop_in
def titans_linear(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    w: Tensor,
    b: Tensor,
    theta: Tensor,
    alpha: Tensor,
    eta: Tensor,
    eps: float,
    chunk_size: int,
    initial_state: Tensor | None,
    output_final_state: bool,
) -> Results:
    """The recurrence as it is written, in PyTorch; arguments and results as of `chunk_titans_linear`."""
    rows, rates = _turned(q, k, v), _turned(theta, alpha, eta)
    form = _titans_linear.naive_recurrent
    o, last = _run(form, rows, rates, w, b, eps, chunk_size, initial_state, output_final_state)
    return o.transpose(1, 2), last


@drop_in
def chunk_titans_linear_ref(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    w: Tensor,
    b: Tensor,
    theta: Tensor,
    alpha: Tensor,
    eta: Tensor,
    eps: float = 1e-6,
    chunk_size: int = 16,
    initial_state: Tensor | None = None,
    output_final_state: bool = False,
    use_chunk: bool = True,
) -> Results:
    """What `chunk_titans_linear` or else `titans_linear` gives, of inputs [B, T, H, ...] and in float32."""
    form = _titans_linear.naive_chunk if use_chunk else _titans_linear.naive_recurrent
    rows = (q.to(computing(q)), k, v)
    return _run(form, rows, (theta, alpha, eta), w, b, eps, chunk_size, initial_state, output_final_state)


def _turned(*tensors: Tensor) -> tuple[Tensor, ...]:
    """Heads before tokens to tokens before heads."""
    return tuple(x.transpose(1, 2) for x in tensors)


def _run(
    form: Form,
    rows: tuple[Tensor, ...],
    rates: tuple[Tensor, ...],
    w: Tensor,
    b: Tensor,
    eps: float,
    chunk_size: int,
    memory: Tensor | None,
    output_final_state: bool,
) -> Results:
    """Run the operator from a memory at the beginning of a mini-batch; momentum is not carried.

    Args:
        form: of the operator.
        rows: q, k and v, [B, T, H, K]; o gets the dtype of q.
        rates: theta, alpha and eta, [B, T, HV, 1].
        w: weight of the layer norm, [HV, K].
        b: its bias, [HV, K].
        eps: what is added to variances.
        chunk_size: tokens of a mini-batch.
        memory: [B, HV, K, K].
        output_final_state: also return the memory after the last token.
    """
    initial_state = None
    if memory is not None:
        none = torch.zeros_like(memory)
        initial_state = (memory, none, none, none[..., 0, 0])
    o, last = run(
        form,
        *(*rows, *(x[..., 0] for x in rates), w, b),
        like=rows[0],
        initial_state=initial_state,
        output_final_state=output_final_state,
        eps=eps,
        mini_batch_size=chunk_size,
    )
    return o, None if last is None else last[0]
