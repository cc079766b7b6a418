"""Rows of length one."""

import torch
from torch import Tensor, nn

from .precision import upcast


def l2norm(x: Tensor, eps: float = 1e-6, output_dtype: torch.dtype | None = None) -> Tensor:
    """x / sqrt(sum of squares of the last dim + eps), computed in float32.

    Args:
        x: [..., D].
        eps: added to the sum of squares, inside the root: a row of zeros stays zero.
        output_dtype: of the result; x's by default.

    Returns:
        [..., D].
    """
    wide = upcast(x)
    normed = wide * torch.rsqrt(wide.square().sum(-1, keepdim=True) + eps)
    return normed.to(x.dtype if output_dtype is None else output_dtype)


l2_norm = l2norm


class L2Norm(nn.Module):
    """l2norm as a module; it has no parameters.

    Args:
        eps: added to the sum of squares.
        output_dtype: of the result; the input's by default.
    """

    def __init__(self, eps: float = 1e-6, output_dtype: torch.dtype | None = None) -> None:
        super().__init__()
        self.eps = eps
        self.output_dtype = output_dtype

    def forward(self, x: Tensor) -> Tensor:
        """[..., D] to [..., D]."""
        return l2norm(x, self.eps, self.output_dtype)

    def extra_repr(self) -> str:
        return f"eps={self.eps}, output_dtype={self.output_dtype}"


__all__ = ["L2Norm", "l2_norm", "l2norm"]
