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


def ends(cu_seqlens: Tensor | None, *rows: Tensor) -> tuple[Tensor, ...]:
    """The last row of each sequence, [N, 1, heads, D] of [B, T, heads, D]; any where there is none."""
    padded = (torch.cat([x, x.new_zeros(x.shape[0], 1, *x.shape[2:])], 1) if not x.shape[1] else x for x in rows)
    if cu_seqlens is None:
        return tuple(x[:, -1:] for x in padded)
    index = (cu_seqlens[1:].long() - 1).clamp(min=0)
    return tuple(x[0, index].unsqueeze(1) for x in padded)


def last(row: Tensor, first: Tensor | None, cu_seqlens: Tensor | None, tokens: int) -> Tensor:
    """What a sequence had last, [N, HV, D] of [N, 1, HV, D]; `first`, or zeros, where it has no token. A copy, for a
    cache may be updated in place."""
    before = torch.zeros_like(row[:, 0]) if first is None else first.to(row.dtype)
    if cu_seqlens is None:
        return (row[:, 0] if tokens else before).clone()
    return torch.where((cu_seqlens[1:] > cu_seqlens[:-1])[:, None, None], row[:, 0], before)
