"""Tokens that write a state by several rows, or read it by several: their rows as those of a recurrence, one after
another, in which a token's first row decays the state."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional


@dataclass(frozen=True)
class TokenRows:
    """The rows of each token, `count` of them, [batch, tokens, heads, count, channels].

    The first `written` rows of a token write `values` along `keys`, and the last ones read by `queries`, as many as
    each of `reads` says; the others are zeros.
    """

    queries: Tensor
    keys: Tensor
    values: Tensor
    count: int
    written: int
    reads: tuple[int, ...]

    @classmethod
    def of(
        cls, queries: Sequence[Tensor], keys: Sequence[Tensor], values: Sequence[Tensor], dtype: torch.dtype
    ) -> TokenRows:
        """From what reads and what is written, [batch, tokens, heads, rows, channels] each, in `dtype`."""
        reads = tuple(rows.shape[3] for rows in queries)
        written = sum(rows.shape[3] for rows in keys)
        count = max(sum(reads), written)
        behind = count - written
        return cls(
            _joined(queries, count - sum(reads), 0, dtype),
            _joined(keys, 0, behind, dtype),
            _joined(values, 0, behind, dtype),
            count,
            written,
            reads,
        )

    def in_line(self, rows: Tensor) -> Tensor:
        """Rows as those of a recurrence, one after another: [batch, tokens * count, heads, channels]."""
        return rows.transpose(2, 3).flatten(1, 2)

    def first(self, log_decay: Tensor) -> Tensor:
        """Log decays of tokens, [batch, tokens, heads, ...], as those of rows: 0 behind a token's first row."""
        rest = log_decay.new_zeros(*log_decay.shape[:2], self.count - 1, *log_decay.shape[2:])
        return torch.cat((log_decay.unsqueeze(2), rest), dim=2).flatten(1, 2)

    def offsets(self, cu_seqlens: Tensor | None) -> Tensor | None:
        """Where sequences of tokens begin, in rows."""
        return None if cu_seqlens is None else cu_seqlens * self.count

    def read(self, outputs: Tensor) -> tuple[Tensor, ...]:
        """What each read has of its token's state, [batch, tokens, heads, rows, channels], from the `outputs` of the
        recurrence of rows, which lack what later rows of the token write: no decay stands between."""
        first = self.count - sum(self.reads)
        read = outputs.reshape(*self.queries.shape[:2], self.count, *outputs.shape[2:]).transpose(2, 3)[..., first:, :]
        if self.written > first + 1:
            queries, keys, values = (x.to(outputs.dtype) for x in (self.queries, self.keys, self.values))
            scores = queries[..., first:, :] @ keys[..., : self.written, :].mT
            read = read + scores.triu(first + 1) @ values[..., : self.written, :]
        return torch.split(read, list(self.reads), dim=3)


def _joined(parts: Sequence[Tensor], before: int, behind: int, dtype: torch.dtype) -> Tensor:
    """The rows of all parts, behind `before` rows of zeros a token, and with others `behind` them."""
    rounded = tuple(rows.to(dtype) for rows in parts)
    rows = rounded[0] if len(rounded) == 1 else torch.cat(rounded, dim=3)
    return functional.pad(rows, (0, 0, before, behind)) if before or behind else rows
