"""The token before each token, across calls and packed sequences."""

from __future__ import annotations

import torch
import torch.nn.functional as F
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
        ValueError: `cache` is not of these sequences.
    """
    runs = x.shape[0] if cu_seqlens is None else cu_seqlens.shape[0] - 1
    if cache is None:
        cache = x.new_zeros(runs, x.shape[-1])
    elif cache.shape != (runs, x.shape[-1]):
        raise ValueError(f"cache: expected [N, D] = [{runs}, {x.shape[-1]}], got {tuple(cache.shape)}")
    cache = cache.to(x.dtype)
    if cu_seqlens is None:
        rows = torch.cat([cache.unsqueeze(1), x], dim=1)
        return rows[:, :-1], rows[:, -1] if output_final_state else None
    before = F.pad(x[0], (0, 0, 1, 0))[:-1]
    some = (cu_seqlens.diff() > 0).nonzero().flatten()
    before = before.index_copy(0, cu_seqlens[some].long(), cache[some])
    last = None
    if output_final_state:
        last = cache.index_copy(0, some, x[0, cu_seqlens[some + 1].long() - 1])
    return before.unsqueeze(0), last
