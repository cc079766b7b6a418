"""Pairs of channels turned by angles, as rotary embeddings turn them."""

from __future__ import annotations

import torch
from torch import Tensor


def rotate(x: Tensor, angle: Tensor) -> Tensor:
    """Turn each pair of neighbouring channels of x, (x[2 i], x[2 i + 1]), by angle[i]; pairs without an angle stay.

    Args:
        x: [..., D].
        angle: in radians, [..., R] with R at most D / 2.

    Returns:
        [..., D].
    """
    turned = 2 * angle.shape[-1]
    pairs = _turned(x[..., 0:turned:2], x[..., 1:turned:2], angle)
    return _joined(torch.stack(pairs, dim=-1).flatten(-2), x[..., turned:])


def rotate_half(x: Tensor, angle: Tensor) -> Tensor:
    """Turn the pairs of channels of x that lie half of them apart, (x[i], x[i + D / 2]), by angle[i]; pairs without an
    angle stay.

    Args:
        x: [..., D].
        angle: in radians, [..., R] with R at most D / 2.

    Returns:
        [..., D].
    """
    turned, half = angle.shape[-1], x.shape[-1] // 2
    first, second = _turned(x[..., :turned], x[..., half : half + turned], angle)
    return _joined(first, x[..., turned:half], second, x[..., half + turned :])


def _turned(x: Tensor, y: Tensor, angle: Tensor) -> tuple[Tensor, Tensor]:
    cos, sin = angle.cos(), angle.sin()
    return x * cos - y * sin, x * sin + y * cos


def _joined(first: Tensor, *others: Tensor) -> Tensor:
    """Channels side by side; the others are the same along axes that only the first has."""
    leading = first.shape[:-1]
    return torch.cat((first, *(other.expand(*leading, -1) for other in others)), dim=-1)
