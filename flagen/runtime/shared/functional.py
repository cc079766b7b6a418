"""Functions of tensors that layers need and torch has under no name of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
import torch.nn.functional as F
from torch import Tensor

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": F.silu,
    "swish": F.silu,
    "sigmoid": torch.sigmoid,
    "relu": F.relu,
    "sqrelu": lambda x: F.relu(x.to(torch.promote_types(x.dtype, torch.float32))).square().to(x.dtype),
    "tanh": torch.tanh,
    "gelu": lambda x: F.gelu(x, approximate="tanh"),
    "gelu_exact": F.gelu,
    "identity": lambda x: x,
}
"""The activations that a name stands for, of layers and modules; each of these takes some of them."""


def activate(x: Tensor, name: str) -> Tensor:
    """The activation called `name` of x, [...], in x's dtype.

    Raises:
        ValueError: there is none of that name.
    """
    check_activation(activation=name)
    return ACTIVATIONS[name](x)


def check_activation(among: Iterable[str | None] = tuple(ACTIVATIONS), **given: str | None) -> None:
    """Check the name of an activation, given by that of the argument.

    Raises:
        ValueError: it is not among those that there are.
    """
    for argument, name in given.items():
        if name not in among:
            raise ValueError(f"{argument}: expected one of {', '.join(map(str, among))}, got {name!r}")


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


def lerp(start: Tensor, end: Tensor, weight: Tensor) -> Tensor:
    """start + weight * (end - start), rounded once, in the widest of their dtypes: a parameter may stay in float32."""
    dtype = torch.promote_types(torch.promote_types(start.dtype, end.dtype), weight.dtype)
    return torch.lerp(start.to(dtype), end.to(dtype), weight.to(dtype))
