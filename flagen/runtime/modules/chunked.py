"""Losses of many columns, a few rows at a time, so that what is as large as the logits is there for those rows only.

What a row costs is given as a plain function of its logits in float32; its gradient is autograd's, taken for one chunk
of rows after the other. First derivatives only.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from .precision import upcast

CHUNKS = 64
SMALL = 1 << 22

RowLosses = Callable[[Tensor, slice], Tensor]


def row_chunks(rows: int, columns: int, num_chunks: int = CHUNKS) -> Iterator[slice]:
    """Chunks of rows: at least num_chunks and CHUNKS of them, but none of less than SMALL logits."""
    size = max(-(-rows // max(num_chunks, CHUNKS)), SMALL // max(columns, 1), 1)
    for start in range(0, max(rows, 1), size):
        yield slice(start, min(start + size, rows))


class RowsOfLogits(Function):
    """row_losses of logits that are there: the backward pass computes chunk by chunk again."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, row_losses: RowLosses, inplace: bool, hidden: Tensor | None) -> Tensor:
        ctx.save_for_backward(logits)
        ctx.row_losses, ctx.inplace, ctx.hidden = row_losses, inplace, hidden
        return torch.cat([row_losses(upcast(logits[rows]), rows) for rows in row_chunks(*logits.shape)], dim=-1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dloss: Tensor) -> tuple[Tensor, None, None, None]:
        (logits,) = ctx.saved_tensors
        hidden: Tensor | None = ctx.hidden
        dlogits = logits if ctx.inplace else torch.empty_like(logits)
        for rows in row_chunks(*logits.shape):
            with torch.enable_grad():
                leaf = upcast(logits[rows]).detach().requires_grad_()
                losses = ctx.row_losses(leaf, rows)
            (grad,) = torch.autograd.grad(losses, leaf, dloss[..., rows])
            dlogits[rows] = grad if hidden is None else grad.masked_fill(hidden[rows, None], 0)
        return dlogits, None, None, None


def loss_of_logits(
    logits: Tensor, row_losses: RowLosses, inplace: bool = False, hidden: Tensor | None = None
) -> Tensor:
    """row_losses(logits of a chunk in float32 or wider, which rows) of all chunks.

    Args:
        logits: [N, V].
        row_losses: gives [..., C] for a chunk of C rows.
        inplace: whether the backward pass overwrites logits with their gradient.
        hidden: [N], where the gradient is zero whatever row_losses says.

    Returns:
        [..., N].
    """
    losses: Tensor = RowsOfLogits.apply(logits, row_losses, inplace, hidden)  # type: ignore[no-untyped-call]
    return losses


class RowsOfLinear(Function):
    """The sum of row_losses of linear(x, weight, bias), the gradients taken in the forward pass."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        row_losses: RowLosses,
        num_chunks: int,
        accumulate_grad_in_fp32: bool,
        grad_enabled: bool,
    ) -> Tensor:
        wanted = [grad_enabled and needed for needed in ctx.needs_input_grad[:3]]
        dx = torch.empty_like(x) if wanted[0] else None
        dweight, dbias = (
            torch.zeros_like(parameter, dtype=upcast(parameter[:0]).dtype if accumulate_grad_in_fp32 else None)
            if parameter is not None and needed
            else None
            for parameter, needed in zip((weight, bias), wanted[1:], strict=True)
        )
        loss = x.new_zeros((), dtype=upcast(x[:0]).dtype)
        for rows in row_chunks(x.shape[0], weight.shape[0], num_chunks):
            logits = upcast(F.linear(x[rows], weight, bias))
            with torch.set_grad_enabled(any(wanted)):
                leaf = logits.detach().requires_grad_(any(wanted))
                total = row_losses(leaf, rows)
            loss += total.detach()
            if not any(wanted):
                continue
            (grad,) = torch.autograd.grad(total, leaf)
            if dx is not None:
                dx[rows] = grad.to(weight.dtype) @ weight
            if dweight is not None:
                dweight.addmm_(grad.T.to(dweight.dtype), x[rows].to(dweight.dtype))
            if dbias is not None:
                dbias += grad.sum(0)
        ctx.save_for_backward(
            dx,
            None if dweight is None else dweight.to(weight.dtype),
            None if dbias is None or bias is None else dbias.to(bias.dtype),
        )
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dloss: Tensor) -> tuple[Tensor | None, ...]:
        grads = (None if grad is None else grad * dloss for grad in ctx.saved_tensors)
        return (*grads, None, None, None, None)


def loss_of_linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    row_losses: RowLosses,
    num_chunks: int = CHUNKS,
    accumulate_grad_in_fp32: bool = True,
) -> Tensor:
    """The sum of row_losses(logits of a chunk in float32 or wider, which rows) over chunks of linear(x, weight, bias).

    Args:
        x: [N, D].
        weight: [V, D].
        bias: [V], or None.
        row_losses: gives a scalar for a chunk.
        num_chunks: how many chunks there are at least, if they are not small.
        accumulate_grad_in_fp32: whether weight's and bias's gradients are summed in float32 where they are narrower.

    Returns:
        A scalar in float32 or wider.

    Raises:
        ValueError: shapes do not fit.
    """
    if x.ndim != 2 or weight.ndim != 2 or x.shape[1] != weight.shape[1]:
        raise ValueError(f"x, weight: expected [N, D] and [V, D], got {list(x.shape)} and {list(weight.shape)}")
    loss: Tensor = RowsOfLinear.apply(  # type: ignore[no-untyped-call]
        x, weight, bias, row_losses, num_chunks, accumulate_grad_in_fp32, torch.is_grad_enabled()
    )
    return loss
