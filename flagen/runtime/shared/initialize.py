"""How the parameters of layers start."""

from __future__ import annotations

import math
from numbers import Integral

import torch
from torch import Tensor, nn


def uniform(like: Tensor, low: float, high: float) -> Tensor:
    """Uniform between `low` and `high`, in the shape, dtype and place of `like`."""
    return torch.empty_like(like).uniform_(low, high)


def log_uniform(like: Tensor, low: float, high: float) -> Tensor:
    """Uniform in its logarithm between `low` and `high`, both above 0, in the shape, dtype and place of `like`."""
    return uniform(like, math.log(low), math.log(high)).exp()


def normal(like: Tensor, mean: float, std: float) -> Tensor:
    """Normal, in the shape, dtype and place of `like`."""
    return torch.empty_like(like).normal_(mean, std)


def inverse_softplus(x: Tensor) -> Tensor:
    """What softplus takes to x, which is above 0."""
    return x + torch.log(-torch.expm1(-x))


def positions(like: Tensor) -> Tensor:
    """0, 1, ... along the last dim, in the shape, dtype and place of `like`."""
    return torch.arange(like.shape[-1], dtype=like.dtype, device=like.device).expand_as(like).clone()


def no_weight_decay(*parameters: nn.Parameter) -> None:
    """Mark parameters for optimizers that leave those alone."""
    for parameter in parameters:
        parameter._no_weight_decay = True  # type: ignore[attr-defined]


def integer(size: float, name: str) -> int:
    """A size that is computed with fractions, as the integer that it has to be.

    Raises:
        ValueError: it is none, or not positive.
    """
    if not math.isclose(size, round(size), rel_tol=1e-5):
        raise ValueError(f"{name}: expected an integer, got {size}")
    if size <= 0:
        raise ValueError(f"{name}: expected a positive integer, got {size}")
    return round(size)


def check_sizes(**sizes: object) -> None:
    """Check what counts channels, heads and the like.

    Raises:
        ValueError: one of them is no positive integer.
    """
    for name, size in sizes.items():
        if isinstance(size, bool) or not isinstance(size, Integral) or size < 1:
            raise ValueError(f"{name}: expected a positive integer, got {size!r}")


def check_sizes_or_none(**sizes: object) -> None:
    """The same of those that may be None."""
    check_sizes(**{name: size for name, size in sizes.items() if size is not None})
