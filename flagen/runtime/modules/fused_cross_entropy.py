"""Cross entropy with label smoothing, a scale and a cap of the logits, and the z-loss, in float32, chunk by chunk.

Z-loss: PaLM, Chowdhery et al. 2022, https://arxiv.org/abs/2204.02311. Softcap: Gemma 2, 2024,
https://arxiv.org/abs/2408.00118.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .chunked import loss_of_logits


def refuse_process_group(process_group: Any) -> None:
    """Raises NotImplementedError if there is a process group."""
    if process_group is not None:
        raise NotImplementedError(
            "process_group: a vocabulary that is split over processes is not supported; "
            "torch.distributed.tensor.parallel.loss_parallel is torch's way"
        )


def check_target(target: Tensor, rows: int) -> None:
    """Raises ValueError if target is not one index a row."""
    if tuple(target.shape) != (rows,):
        raise ValueError(f"target: expected [N] = [{rows}], got {list(target.shape)}")


def token_losses(
    logits: Tensor,
    target: Tensor,
    label_smoothing: float,
    logit_scale: float,
    lse_square_scale: float,
    logit_softcapping: float | None,
    ignore_index: int,
) -> tuple[Tensor, Tensor]:
    """The loss of each row of [N, V], z-loss included, and the z-loss; both [N] and zero where target is ignored."""
    if logit_scale != 1.0:
        logits = logits * logit_scale
    if logit_softcapping is not None:
        logits = logit_softcapping * torch.tanh(logits / logit_softcapping)
    target = target.long()
    loss = F.cross_entropy(logits, target, ignore_index=ignore_index, label_smoothing=label_smoothing, reduction="none")
    if lse_square_scale == 0.0:
        return loss, torch.zeros_like(loss)
    z_loss = lse_square_scale * logits.logsumexp(-1).square()
    z_loss = torch.where(target == ignore_index, 0.0, z_loss)
    return loss + z_loss, z_loss


def cross_entropy_loss(
    logits: Tensor,
    target: Tensor,
    label_smoothing: float = 0.0,
    logit_scale: float = 1.0,
    lse_square_scale: float = 0.0,
    logit_softcapping: float | None = None,
    ignore_index: int = -100,
    inplace_backward: bool = False,
    process_group: Any = None,
) -> tuple[Tensor, Tensor]:
    """The cross entropy of each row, and the z-loss that it has in it.

    Args:
        logits: [N, V].
        target: [N], the index of the right column.
        label_smoothing: how much of the target is spread over all columns.
        logit_scale: what logits are multiplied by at first.
        lse_square_scale: the factor of the squared log-sum-exp, the z-loss.
        logit_softcapping: logits then become softcap * tanh(logits / softcap); None for none.
        ignore_index: a target whose row costs nothing.
        inplace_backward: whether the backward pass overwrites logits with their gradient.
        process_group: for a vocabulary that is split over processes, which is not supported.

    Returns:
        The loss and the z-loss, [N], in float32 (float64 for float64). The z-loss has no gradient of its own.

    Raises:
        ValueError: shapes do not fit.
        NotImplementedError: process_group is given.
    """
    refuse_process_group(process_group)
    if logits.ndim != 2:
        raise ValueError(f"logits: expected [N, V], got {list(logits.shape)}")
    check_target(target, logits.shape[0])

    def row_losses(chunk: Tensor, rows: slice) -> Tensor:
        loss, z_loss = token_losses(
            chunk, target[rows], label_smoothing, logit_scale, lse_square_scale, logit_softcapping, ignore_index
        )
        return torch.stack([loss, z_loss.detach()])

    loss, z_loss = loss_of_logits(logits, row_losses, inplace_backward).unbind(0)
    return loss, z_loss.detach()


class FusedCrossEntropyLoss(nn.Module):
    """cross_entropy_loss, reduced over the rows whose target is not ignored.

    Args:
        ignore_index: a target whose row costs nothing.
        reduction: `mean`, `sum` or `none`.
        label_smoothing: how much of the target is spread over all columns.
        logit_scale: what logits are multiplied by at first.
        lse_square_scale: the factor of the squared log-sum-exp, the z-loss.
        logit_softcapping: logits then become softcap * tanh(logits / softcap); None for none.
        inplace_backward: whether the backward pass overwrites logits with their gradient.
        process_group: for a vocabulary that is split over processes, which is not supported.
        return_z_loss: whether the z-loss is returned too, to be looked at.

    Raises:
        ValueError: an unknown reduction.
        NotImplementedError: process_group is given.
    """

    def __init__(
        self,
        ignore_index: int = -100,
        reduction: str = "mean",
        label_smoothing: float = 0.0,
        logit_scale: float = 1.0,
        lse_square_scale: float = 0.0,
        logit_softcapping: float | None = None,
        inplace_backward: bool = False,
        process_group: Any = None,
        return_z_loss: bool = False,
    ) -> None:
        super().__init__()
        if reduction not in ("mean", "sum", "none"):
            raise ValueError(f"reduction: expected 'mean', 'sum' or 'none', got {reduction!r}")
        refuse_process_group(process_group)
        self.ignore_index = ignore_index
        self.reduction = reduction
        self.label_smoothing = label_smoothing
        self.logit_scale = logit_scale
        self.lse_square_scale = lse_square_scale
        self.logit_softcapping = logit_softcapping
        self.inplace_backward = inplace_backward
        self.process_group = process_group
        self.return_z_loss = return_z_loss

    def forward(self, input: Tensor, target: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """Logits [N, V] and targets [N] to a scalar, or [N] without a reduction; with return_z_loss, two of them.

        The mean of no rows at all is not a number, as torch's.
        """
        losses = cross_entropy_loss(
            input,
            target,
            self.label_smoothing,
            self.logit_scale,
            self.lse_square_scale,
            self.logit_softcapping,
            self.ignore_index,
            self.inplace_backward,
        )
        if self.reduction != "none":
            losses = losses[0].sum(), losses[1].sum()
        if self.reduction == "mean":
            count = (target != self.ignore_index).sum()
            losses = losses[0] / count, losses[1] / count
        return losses if self.return_z_loss else losses[0]


__all__ = ["FusedCrossEntropyLoss", "cross_entropy_loss"]
