"""Where packed sequences begin and end, as numbers: each is read from the device once in a call."""

from __future__ import annotations

from torch import Tensor

_NUMBERS = "_flagen_offsets"


def read_offsets(cu_seqlens: Tensor) -> tuple[int, ...]:
    """The numbers in `cu_seqlens`: read from the device, unless they came with it."""
    known: tuple[int, ...] | None = getattr(cu_seqlens, _NUMBERS, None)
    return tuple(cu_seqlens.tolist()) if known is None else known


def with_numbers(cu_seqlens: Tensor, offsets: tuple[int, ...]) -> Tensor:
    """The same tensor with its numbers, for all who read them: one that nobody else has, and nobody writes to."""
    setattr(cu_seqlens, _NUMBERS, offsets)
    return cu_seqlens
