"""The cross entropy of a linear map, whose logits are never there for more than a few rows."""

from typing import Any

from torch import Tensor, nn

from . import liger
from .chunked import loss_of_linear
from .fused_cross_entropy import check_target, refuse_process_group, token_losses
from .l2warp import largest_logit_penalty


def __getattr__(name: str) -> Any:
    """LinearLossParallel, when it is asked for: importing torch's DTensor takes a second."""
    if name == "LinearLossParallel":
        from .parallel import LinearLossParallel

        return LinearLossParallel
    raise AttributeError(f"module {__name__} has no attribute {name}")


def check_reduction(reduction: str) -> None:
    """Raises ValueError for a reduction that there is not."""
    if reduction not in ("mean", "sum"):
        raise ValueError(f"reduction: expected 'mean' or 'sum', got {reduction!r}")


def fused_linear_cross_entropy_loss(
    x: Tensor,
    target: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    logit_scale: float = 1.0,
    logit_softcapping: float | None = None,
    num_chunks: int = 8,
    reduction: str = "mean",
    use_l2warp: bool = False,
    l2_penalty_factor: float = 1e-4,
    accumulate_grad_in_fp32: bool = True,
    process_group: Any = None,
) -> Tensor:
    """The cross entropy of linear(x, weight, bias), reduced over the rows whose target is not ignored.

    The gradients are computed in the forward pass, chunk by chunk. First derivatives only. With FLAGEN_LIGER=1 in the
    environment, liger-kernel computes on a GPU what it has the options for.

    Args:
        x: [N, D].
        target: [N], the index of the right column.
        weight: [V, D].
        bias: [V], or None.
        ignore_index: a target whose row costs nothing.
        label_smoothing: how much of the target is spread over all columns.
        logit_scale: what logits are multiplied by at first.
        logit_softcapping: logits then become softcap * tanh(logits / softcap); None for none.
        num_chunks: in how many chunks rows are taken at least; large problems are cut finer.
        reduction: `mean` or `sum`.
        use_l2warp: whether the largest logit of each row gets l2_penalty_factor / N of itself as a gradient.
        l2_penalty_factor: how strong that is.
        accumulate_grad_in_fp32: whether weight's and bias's gradients are summed in float32 where they are narrower.
        process_group: for a vocabulary that is split over processes, which is not supported.

    Returns:
        A scalar in float32 (float64 for float64). The mean of no rows at all is zero.

    Raises:
        ValueError: shapes do not fit, or an unknown reduction.
        NotImplementedError: process_group is given.
    """
    refuse_process_group(process_group)
    check_reduction(reduction)
    check_target(target, x.shape[0])
    if liger.wanted(x, logit_scale, use_l2warp):
        return liger.linear_cross_entropy(
            x,
            target,
            weight,
            bias,
            ignore_index,
            label_smoothing,
            logit_softcapping,
            reduction,
            accumulate_grad_in_fp32,
        )
    count = target.ne(ignore_index).sum().clamp(min=1)

    def row_losses(logits: Tensor, rows: slice) -> Tensor:
        losses, _ = token_losses(
            logits, target[rows], label_smoothing, logit_scale, 0.0, logit_softcapping, ignore_index
        )
        total = losses.sum() / count if reduction == "mean" else losses.sum()
        return total + largest_logit_penalty(logits, l2_penalty_factor / x.shape[0]) if use_l2warp else total

    return loss_of_linear(x, weight, bias, row_losses, num_chunks, accumulate_grad_in_fp32)


class FusedLinearCrossEntropyLoss(nn.Module):
    """fused_linear_cross_entropy_loss as a module; arguments as there.

    Raises:
        ValueError: an unknown reduction.
        NotImplementedError: process_group is given.
    """

    def __init__(
        self,
        ignore_index: int = -100,
        label_smoothing: float = 0.0,
        logit_scale: float = 1.0,
        logit_softcapping: float | None = None,
        num_chunks: int = 8,
        reduction: str = "mean",
        use_l2warp: bool = False,
        l2_penalty_factor: float = 1e-4,
        accumulate_grad_in_fp32: bool = True,
        process_group: Any = None,
    ) -> None:
        super().__init__()
        check_reduction(reduction)
        refuse_process_group(process_group)
        self.ignore_index = ignore_index
        self.label_smoothing = label_smoothing
        self.logit_scale = logit_scale
        self.logit_softcapping = logit_softcapping
        self.num_chunks = num_chunks
        self.reduction = reduction
        self.use_l2warp = use_l2warp
        self.l2_penalty_factor = l2_penalty_factor
        self.accumulate_grad_in_fp32 = accumulate_grad_in_fp32
        self.process_group = process_group

    def forward(self, x: Tensor, target: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        """x [..., D], targets [...], weight [V, D] and bias [V] to a scalar."""
        return fused_linear_cross_entropy_loss(
            x.reshape(-1, x.shape[-1]),
            target.reshape(-1),
            weight,
            bias,
            self.ignore_index,
            self.label_smoothing,
            self.logit_scale,
            self.logit_softcapping,
            self.num_chunks,
            self.reduction,
            self.use_l2warp,
            self.l2_penalty_factor,
            self.accumulate_grad_in_fp32,
        )


__all__ = ["FusedLinearCrossEntropyLoss", "fused_linear_cross_entropy_loss"]
