"""How far a student's distribution is from a teacher's, both given by a linear map whose logits are never there whole.

Hinton et al. 2015, https://arxiv.org/abs/1503.02531.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .chunked import loss_of_linear
from .precision import upcast


def check_kl_reduction(reduction: str) -> None:
    """Raises ValueError for a reduction that there is not."""
    if reduction != "batchmean":
        raise ValueError(f"reduction: expected 'batchmean', got {reduction!r}")


def fused_kl_div_loss(
    x: Tensor,
    target_x: Tensor,
    weight: Tensor,
    target_weight: Tensor,
    reduction: str = "batchmean",
    accumulate_grad_in_fp32: bool = True,
) -> Tensor:
    """KL(softmax(target_x target_weight^T) || softmax(x weight^T)), the mean over rows.

    The gradients are computed in the forward pass, chunk by chunk. First derivatives only.

    Args:
        x: [N, D], the student's.
        target_x: [N, E], the teacher's, which is not trained.
        weight: [V, D].
        target_weight: [V, E].
        reduction: `batchmean`.
        accumulate_grad_in_fp32: whether weight's gradient is summed in float32 where it is narrower.

    Returns:
        A scalar in float32 (float64 for float64).

    Raises:
        RuntimeError: target_x or target_weight wants a gradient.
        ValueError: shapes do not fit, or an unknown reduction.
    """
    check_kl_reduction(reduction)
    for name, tensor in (("target_x", target_x), ("target_weight", target_weight)):
        if tensor.requires_grad:
            raise RuntimeError(f"{name}: expected a teacher that requires no gradient, got one that does: detach it")
    if target_x.shape[0] != x.shape[0] or target_weight.shape[0] != weight.shape[0]:
        raise ValueError(
            f"target_x, target_weight: expected {x.shape[0]} rows and {weight.shape[0]} columns as x and weight, "
            f"got {target_x.shape[0]} and {target_weight.shape[0]}"
        )

    def row_losses(logits: Tensor, rows: slice) -> Tensor:
        with torch.no_grad():
            teacher = upcast(F.linear(target_x[rows], target_weight)).log_softmax(-1)
        student = logits.log_softmax(-1)
        return F.kl_div(student, teacher, reduction="sum", log_target=True) / x.shape[0]

    return loss_of_linear(x, weight, None, row_losses, accumulate_grad_in_fp32=accumulate_grad_in_fp32)


class FusedKLDivLoss(nn.Module):
    """fused_kl_div_loss as a module; arguments as there.

    Raises:
        ValueError: an unknown reduction.
    """

    def __init__(self, reduction: str = "batchmean", accumulate_grad_in_fp32: bool = True) -> None:
        super().__init__()
        check_kl_reduction(reduction)
        self.reduction = reduction
        self.accumulate_grad_in_fp32 = accumulate_grad_in_fp32

    def forward(self, x: Tensor, target_x: Tensor, weight: Tensor, target_weight: Tensor) -> Tensor:
        """x [N, D], target_x [N, E], weight [V, D] and target_weight [V, E] to a scalar."""
        return fused_kl_div_loss(x, target_x, weight, target_weight, self.reduction, self.accumulate_grad_in_fp32)


__all__ = ["FusedKLDivLoss", "fused_kl_div_loss"]
