"""What the launches of kernels have in common, beside chunks: segments, and room for gradients."""

from __future__ import annotations

import math
from itertools import pairwise

import torch
from torch import Tensor

from .arguments import Arguments


def splits(programs: int, device: torch.device) -> bool:
    """Whether to compute the outputs in a kernel of their own, all chunks at once.

    The walk has one program for each block of values of each head of each sequence, and goes from chunk to chunk.
    Where that leaves half of the multiprocessors idle, the less it does the better, although the states before all
    chunks then go through memory.
    """
    if not torch.cuda.is_available():
        return False
    return 2 * programs <= torch.cuda.get_device_properties(device.index).multi_processor_count


def segments_of(args: Arguments, cu_seqlens: Tensor | None, size: int) -> tuple[int, Tensor | None, Tensor | None]:
    """How many segments of `size` tokens there are; of packed sequences, also each segment's sequence and each
    sequence's first."""
    if cu_seqlens is None or args.offsets is None:
        return args.runs * -(-args.tokens // size), None, None
    segments = sum(-(-(end - start) // size) for start, end in pairwise(args.offsets))
    counts = (cu_seqlens.long().diff() + size - 1) // size
    return segments, torch.repeat_interleave(counts, output_size=segments), counts.cumsum(0) - counts


def segments_by_length(args: Arguments, cu_seqlens: Tensor | None) -> tuple[int, int, Tensor | None]:
    """Tokens of a segment, and how many segments there are; of packed sequences, also the first one of each.

    A state is kept for each segment, and for each token of one: both are about the root of the longest sequence.
    """
    longest = args.tokens if args.offsets is None else max(end - start for start, end in pairwise(args.offsets))
    size = 1 << longest.bit_length() // 2
    segments, _, first_segment = segments_of(args, cu_seqlens, size)
    return size, segments, first_segment


def stretches_of(args: Arguments, cu_seqlens: Tensor | None, size: int) -> tuple[int, Tensor | None, Tensor | None]:
    """How many stretches of `size` places there are, of which each sequence has as many as its tokens, and the place
    behind them, take; of packed sequences, also each stretch's sequence and each sequence's first."""
    if cu_seqlens is None or args.offsets is None:
        return args.runs * (args.tokens // size + 1), None, None
    stretches = sum((end - start) // size + 1 for start, end in pairwise(args.offsets))
    counts = cu_seqlens.long().diff() // size + 1
    return stretches, torch.repeat_interleave(counts, output_size=stretches), counts.cumsum(0) - counts


def room(argument: Tensor, *heads: int) -> Tensor:
    """Room for the gradient of an argument from every head and block; in float32 where several of them are summed."""
    batch, rows, _, *channels = argument.shape
    shape = (batch, rows, *heads, *channels)
    dtype = argument.dtype if math.prod(shape) == argument.numel() else torch.float32
    return torch.empty(shape, dtype=dtype, device=argument.device)


def total(shares: Tensor | None, argument: Tensor) -> Tensor | None:
    """The gradient of an argument: shares are added up in their order, whatever the device does."""
    if shares is None or shares.numel() == argument.numel():
        return shares if shares is None else shares.view(argument.shape)
    batch, rows, heads, *channels = argument.shape
    return shares.view(batch, rows, heads, -1, *channels).sum(3).to(argument.dtype)


def of_key_heads(gradient: Tensor | None, x: Tensor) -> Tensor | None:
    """The gradient of an input of key heads from those of its value heads; in float32 where these are more."""
    if gradient is None or gradient.shape == x.shape:
        return gradient
    return torch.unflatten(gradient, 2, (x.shape[2], -1)).sum(3).to(x.dtype)


def of_value_heads(x: Tensor, heads: int) -> Tensor:
    """An input of key heads as each of so many value heads has it."""
    return x if x.shape[2] == heads else x.repeat_interleave(heads // x.shape[2], 2)


def added(first: Tensor | None, second: Tensor | None) -> Tensor | None:
    """The sum of two gradients of one argument, of which either may be none."""
    if first is None or second is None:
        return second if first is None else first
    return first + second
