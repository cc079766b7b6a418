"""Rows of length one."""

import torch
from torch import Tensor, nn

from ..shared.functional import l2norm

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
