"""Lengths, offsets and places of packed sequences. Where it says so, offsets on a CPU spare a wait for the device."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = [
    "prepare_chunk_indices",
    "prepare_chunk_offsets",
    "prepare_cu_seqlens_from_lens",
    "prepare_cu_seqlens_from_mask",
    "prepare_lens",
    "prepare_lens_from_mask",
    "prepare_position_ids",
    "prepare_sequence_ids",
    "prepare_split_cu_seqlens",
    "prepare_token_indices",
]


def prepare_lens(cu_seqlens: Tensor) -> Tensor:
    """The lengths of sequences, [N], by their offsets, [N + 1]."""
    return torch.diff(cu_seqlens)


def prepare_lens_from_mask(mask: Tensor) -> Tensor:
    """How many tokens each row of a mask [B, T] has: [B], int32."""
    return mask.sum(dim=-1, dtype=torch.int32)


def prepare_cu_seqlens_from_lens(lens: Tensor, dtype: torch.dtype | None = torch.int32) -> Tensor:
    """The offsets of sequences, [N + 1], by their lengths."""
    return F.pad(lens.cumsum(dim=0, dtype=dtype), (1, 0))


def prepare_cu_seqlens_from_mask(mask: Tensor, dtype: torch.dtype | None = torch.int32) -> Tensor:
    """The offsets that the rows of a mask [B, T] have when their tokens are packed."""
    return prepare_cu_seqlens_from_lens(prepare_lens_from_mask(mask), dtype)


def prepare_split_cu_seqlens(
    batch_size: int | None = None,
    seq_len: int | None = None,
    split_size: int | None = None,
    cu_seqlens: Tensor | None = None,
    dtype: torch.dtype | None = torch.int32,
    device: torch.device | str | None = "cpu",
) -> Tensor:
    """The offsets of sequences cut into pieces of `split_size` tokens: those packed, or `batch_size` of `seq_len` each.

    Raises:
        TypeError: something that it takes is missing, named.
    """
    if split_size is None:
        raise TypeError("prepare_split_cu_seqlens: split_size: expected the tokens of a piece, got None")
    if cu_seqlens is None and (batch_size is None or seq_len is None):
        raise TypeError("prepare_split_cu_seqlens: cu_seqlens: expected offsets, or else batch_size and seq_len")
    if cu_seqlens is None:
        assert batch_size is not None and seq_len is not None
        bounds = [seq_len * n for n in range(batch_size + 1)]
    else:
        bounds = cu_seqlens.tolist()
    starts = [at for n, start in enumerate(bounds[:-1]) for at in range(start, bounds[n + 1], split_size)]
    return torch.tensor([*starts, bounds[-1]], dtype=dtype, device=device)


def prepare_position_ids(cu_seqlens: Tensor, cu_seqlens_cpu: Tensor | None = None) -> Tensor:
    """The place of each token in its sequence, from 0."""
    return _places(prepare_lens(_host(cu_seqlens, cu_seqlens_cpu)))[1].to(cu_seqlens)


def prepare_sequence_ids(cu_seqlens: Tensor, cu_seqlens_cpu: Tensor | None = None) -> Tensor:
    """Of which sequence each token is, those counted that have any."""
    return prepare_position_ids(cu_seqlens, cu_seqlens_cpu).eq(0).cumsum(0) - 1


def prepare_token_indices(cu_seqlens: Tensor, cu_seqlens_cpu: Tensor | None = None) -> Tensor:
    """Of each token its sequence and its place in it, [T, 2]."""
    places = prepare_position_ids(cu_seqlens, cu_seqlens_cpu)
    return torch.stack([prepare_sequence_ids(cu_seqlens, cu_seqlens_cpu), places], 1).to(cu_seqlens)


def prepare_chunk_indices(cu_seqlens: Tensor, chunk_size: int, cu_seqlens_cpu: Tensor | None = None) -> Tensor:
    """Of each chunk its sequence and its place in it, [C, 2], where each sequence begins a chunk."""
    chunks = _chunks(_host(cu_seqlens, cu_seqlens_cpu), chunk_size)
    return torch.stack(_places(chunks), 1).to(cu_seqlens)


def prepare_chunk_offsets(cu_seqlens: Tensor, chunk_size: int) -> Tensor:
    """The number of chunks before each sequence, and of all, [N + 1]."""
    return F.pad(_chunks(cu_seqlens, chunk_size), (1, 0)).cumsum(-1)


def _host(cu_seqlens: Tensor, cu_seqlens_cpu: Tensor | None) -> Tensor:
    return cu_seqlens if cu_seqlens_cpu is None else cu_seqlens_cpu


def _chunks(cu_seqlens: Tensor, chunk_size: int) -> Tensor:
    return (prepare_lens(cu_seqlens) + (chunk_size - 1)).div(chunk_size, rounding_mode="floor")


def _places(counts: Tensor) -> tuple[Tensor, Tensor]:
    """Of things counted by sequence, the sequence of each and its place in it."""
    owner = torch.arange(len(counts), device=counts.device, dtype=counts.dtype).repeat_interleave(counts)
    before = counts.cumsum(0) - counts
    return owner, torch.arange(len(owner), device=counts.device, dtype=counts.dtype) - before[owner]
