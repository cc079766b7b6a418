"""Rows with padding to packed tokens, and back."""

from __future__ import annotations

import torch
from torch import Tensor

from .index import prepare_lens

__all__ = ["pack_sequence", "unpack_sequence"]


def pack_sequence(x: Tensor, cu_seqlens: Tensor, padding_side: str = "left") -> Tensor:
    """The tokens of [B, T, ...] without what pads each row on that side: [sum of lengths, ...]."""
    return x[_tokens(cu_seqlens, x.shape[1], padding_side)]


def unpack_sequence(
    x: Tensor, cu_seqlens: Tensor, padding_side: str = "left", desired_shape: torch.Size | None = None
) -> Tensor:
    """Packed tokens as rows [N, T, ...], with zeros on that side, as long as the longest or as `desired_shape` says."""
    longest = int(prepare_lens(cu_seqlens).max()) if desired_shape is None else desired_shape[1]
    rows = x.new_zeros(desired_shape or (len(cu_seqlens) - 1, longest, *x.shape[1:]))
    return rows.index_put(_tokens(cu_seqlens, longest, padding_side).nonzero(as_tuple=True), x)


def _tokens(cu_seqlens: Tensor, length: int, padding_side: str) -> Tensor:
    """Where in rows of that length tokens are, [N, T]."""
    if padding_side not in ("left", "right"):
        raise ValueError(f"padding_side: expected 'left' or 'right', got {padding_side!r}")
    at, lengths = torch.arange(length, device=cu_seqlens.device), prepare_lens(cu_seqlens)[:, None]
    return at >= length - lengths if padding_side == "left" else at < lengths
