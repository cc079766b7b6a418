"""Rows of the token before as rows of their own tokens: what is written with a number of the next token, [B, T, HV],
before the first one of each sequence and behind the last."""

from __future__ import annotations

import torch
from torch import Tensor


def of_next(number: Tensor, cu_seqlens: Tensor | None) -> Tensor:
    """The number of the next token, [B, T, HV]; 0 behind the last one of a sequence."""
    following = torch.cat([number[:, 1:], torch.zeros_like(number[:, :1])], 1)
    if cu_seqlens is None:
        return following
    begins = torch.zeros(number.shape[1] + 1, dtype=torch.bool, device=number.device)
    return following.masked_fill(begins.index_fill(0, cu_seqlens.long(), True)[1:, None], 0.0)


def before_first(
    state: Tensor | None, number: Tensor, key: Tensor, value: Tensor, cu_seqlens: Tensor | None
) -> Tensor | None:
    """A state, [N, HV, K, V], with the row of what each sequence had last, [N, HV, K] and [N, HV, V], times the number
    of its first token; as it is where there is no token. None is a state of zeros with a row of zeros."""
    if state is None:
        return None
    if cu_seqlens is None:
        first = number[:, :1].sum(1)
    else:
        begins, ends = cu_seqlens[:-1].long(), cu_seqlens[1:]
        rows = torch.cat([number[0], number.new_zeros(1, number.shape[2])])  # An empty sequence may begin behind all.
        first = rows[begins].masked_fill((ends <= begins)[:, None], 0.0)
    return state + first[..., None, None] * key[..., None] * value[..., None, :]


def last(rows: Tensor, first: Tensor | None, cu_seqlens: Tensor | None) -> Tensor:
    """The last row of each sequence, [N, HV, D] of [B, T, HV, D], at least in float32; `first` where there is none."""
    kept = torch.promote_types(rows.dtype, torch.float32)
    runs = rows.shape[0] if cu_seqlens is None else len(cu_seqlens) - 1
    before = rows.new_zeros(runs, *rows.shape[2:], dtype=kept) if first is None else first.to(kept, copy=True)
    if not rows.shape[1]:
        return before
    if cu_seqlens is None:
        return rows[:, -1].to(kept, copy=True)  # A cache that is updated in place has it.
    begins, ends = cu_seqlens[:-1], cu_seqlens[1:].long()
    return torch.where((ends > begins)[:, None, None], rows[0, (ends - 1).clamp(min=0)].to(kept), before)
