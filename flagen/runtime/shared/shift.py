"""The token before each token, across calls and packed sequences."""

from __future__ import annotations

import torch
from torch import Tensor


def shift(
    x: Tensor,
    cache: Tensor | None = None,
    output_final_state: bool | None = False,
    cu_seqlens: Tensor | None = None,
) -> tuple[Tensor, Tensor | None]:
    """The token before each token; before the first one of a sequence, `cache`.

    Args:
        x: [B, T, D].
        cache: [N, D], the last token that each sequence had in an earlier call; default zero.
        output_final_state: also return what the next call is given as `cache`.
        cu_seqlens: [N + 1], offsets of packed sequences in a batch of 1; else N is B.

    Returns:
        [B, T, D] in x's dtype; the last token of each sequence, [N, D], or None. An empty sequence keeps its `cache`.

    Raises:
        ValueError: `cache` is not of these sequences, or packed sequences are not in a batch of 1.
    """
    batch, length, channels = x.shape
    if cu_seqlens is not None and batch != 1:
        raise ValueError(f"x: expected packed sequences in a batch of 1, got a batch of {batch}")
    sequences = batch if cu_seqlens is None else len(cu_seqlens) - 1
    if cache is None:
        first = x.new_zeros(sequences, channels)
    elif cache.shape == (sequences, channels):
        first = cache.to(x.dtype)
    else:
        raise ValueError(f"cache: expected [N, D] = [{sequences}, {channels}], got {tuple(cache.shape)}")
    if cu_seqlens is None:
        stream = torch.cat([first.unsqueeze(1), x], dim=1)
        # A copy, for a view would keep the whole stream as long as a cache has it.
        return stream[:, :-1], stream[:, -1].clone() if output_final_state else None
    if not length:
        return x, first if output_final_state else None
    begins, ends = cu_seqlens[:-1], cu_seqlens[1:]
    index = torch.arange(length, device=x.device)
    owner = torch.bucketize(index, ends, right=True)
    before = torch.where((index == begins[owner]).unsqueeze(-1), first[owner], x[0].roll(1, dims=0))
    last = None
    if output_final_state:
        last = torch.where((ends > begins).unsqueeze(-1), x[0, (ends - 1).clamp(min=0)], first)
    return before.unsqueeze(0), last
