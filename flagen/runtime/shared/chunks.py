"""What the launches of kernels over chunks have in common."""

from __future__ import annotations

from functools import reduce
from itertools import pairwise

import torch
from torch import Tensor

from .arguments import Arguments


def chunks_of(args: Arguments, cu_seqlens: Tensor | None, size: int) -> tuple[int, Tensor | None, Tensor | None]:
    """How many chunks of `size` tokens there are; of packed sequences, also each chunk's sequence and each sequence's
    first chunk."""
    if cu_seqlens is None or args.offsets is None:
        return args.runs * -(-args.tokens // size), None, None
    chunks = sum(-(-(end - start) // size) for start, end in pairwise(args.offsets))
    counts = (cu_seqlens.long().diff() + size - 1) // size
    return chunks, torch.repeat_interleave(counts, output_size=chunks), counts.cumsum(0) - counts


def products_of(*tensors: Tensor, narrow: str = "tf32") -> tuple[torch.dtype, str]:
    """The dtype of the operands of matrix products, and how those of float32 are taken: `narrow` where inputs have 16
    bits. tf32 does unless the inverse of a chunk may have large entries.

    It is that of the tensors, but for float16: states are sums over tokens, and soon beyond its 65504. tf32 has as many
    digits, and the range of float32.
    """
    dtype = reduce(torch.promote_types, (x.dtype for x in tensors))
    precision = "tf32x3" if dtype == torch.float32 else narrow
    if torch.version.hip or not torch.cuda.is_available():
        precision = "ieee"
    return torch.float32 if dtype == torch.float16 else dtype, precision


def capability() -> int:
    """The major compute capability of the GPU, by which tiles are chosen: 9 where warp groups multiply; 0 where there
    is none, and for AMD's."""
    if torch.version.hip or not torch.cuda.is_available():
        return 0
    return torch.cuda.get_device_capability()[0]


def largest_matrix() -> int:
    """How many keys, and values, a matrix may have of which a program has all: its operands lie in shared memory."""
    return 128 if not torch.cuda.is_available() or capability() >= 9 else 64
