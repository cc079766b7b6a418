"""Functions of tensors that layers need and torch has under no name of its own."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": F.silu,
    "swish": F.silu,
    "sigmoid": torch.sigmoid,
    "relu": F.relu,
    "sqrelu": lambda x: F.relu(x).square(),
    "tanh": torch.tanh,
    "gelu": lambda x: F.gelu(x, approximate="tanh"),
    "identity": lambda x: x,
}


def activate(x: Tensor, name: str) -> Tensor:
    """The activation called `name` of x, [...], in x's dtype; gelu is its tanh form, as in `modules`.

    Raises:
        ValueError: there is none of that name.
    """
    if name not in _ACTIVATIONS:
        raise ValueError(f"activation: expected one of {', '.join(_ACTIVATIONS)}, got {name!r}")
    return _ACTIVATIONS[name](x)


def l2norm(x: Tensor, eps: float = 1e-6, output_dtype: torch.dtype | None = None) -> Tensor:
    """x / sqrt(sum of squares of the last dim + eps), computed in float32, or in float64 where x is.

    Args:
        x: [..., D].
        eps: added to the sum of squares, inside the root: a row of zeros stays zero.
        output_dtype: of the result; x's by default.

    Returns:
        [..., D].
    """
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    normed = wide * torch.rsqrt(wide.square().sum(-1, keepdim=True) + eps)
    return normed.to(x.dtype if output_dtype is None else output_dtype)
