"""liger-kernel's cross entropy of a linear map, where the environment asks for it: FLAGEN_LIGER=1, and a GPU.

It keeps logits and their gradients in the dtype of x, and a loss of it can be differentiated once only.
Hsu et al. 2024, https://arxiv.org/abs/2410.10989.
"""

import os
from importlib import import_module

import torch
from torch import Tensor


def wanted(x: Tensor, logit_scale: float, use_l2warp: bool) -> bool:
    """Whether liger-kernel is asked for, and has what is needed: no scale, no penalty, no float64."""
    asked = os.environ.get("FLAGEN_LIGER") == "1" and x.is_cuda
    return asked and logit_scale == 1.0 and not use_l2warp and x.dtype != torch.float64


def linear_cross_entropy(
    x: Tensor,
    target: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    ignore_index: int,
    label_smoothing: float,
    logit_softcapping: float | None,
    reduction: str,
    accumulate_grad_in_fp32: bool,
) -> Tensor:
    """A scalar in float32; arguments as for fused_linear_cross_entropy_loss.

    Raises:
        ImportError: liger-kernel is not installed.
    """
    loss: Tensor = import_module("liger_kernel.transformers.functional").liger_fused_linear_cross_entropy(
        x,
        weight,
        target,
        bias=bias,
        ignore_index=ignore_index,
        label_smoothing=label_smoothing,
        reduction=reduction,
        softcap=logit_softcapping,
        accum_dtype=torch.float32 if accumulate_grad_in_fp32 else None,
    )
    return loss
