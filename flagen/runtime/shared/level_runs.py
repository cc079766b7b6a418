"""Reads of a state that is kept in levels, of a sequence from its first token, by runs of the whole state's recurrence.

Blocks of 2^l tokens begin at multiples of that, and every token of a block's right half sees all of the left one at
level l. So what there is at a level is one run over its blocks, with the values of left halves alone, each from no
state: tokens of right halves read it. Within chunks, which are blocks too, a run on a column for each token gives what
they read of one another, and the level of a pair is in a table.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from .arguments import Arguments
from .levels import Levels, cut, level_of, weighed

Rows = Callable[[Tensor], Tensor]
"""Inputs [B, T, ...] as a run has them."""

_Left = tuple[Sequence[tuple[int, int]], Tensor]
"""Sequences, each with a level, and what is left there at their ends, [.., HV, K, V]."""


class WholeRun:
    """The recurrence of the whole state: its operator, a call's inputs, the place of values among them, and params."""

    def __init__(
        self, operator: Callable[..., Any], inputs: Sequence[Tensor], place: int, /, *params: Tensor, **numbers: Any
    ) -> None:
        self.operator, self.inputs, self.place = operator, inputs, place
        self.params, self.numbers = params, numbers

    def __call__(self, rows: Rows, columns: Tensor, **given: Any) -> tuple[Tensor, Tensor | None]:
        """Run it over `rows` of the inputs, with these `columns` for the values: the output, and the last states."""
        inputs = [columns if place == self.place else rows(x) for place, x in enumerate(self.inputs)]
        o, last = self.operator(*inputs, *self.params, **self.numbers, **given)
        return o, last


@dataclass(frozen=True)
class LevelRuns:
    """The blocks of a call that begins its sequences.

    Attributes:
        run: the recurrence of the whole state.
        keys: the size of the state's dim that is not that of values, K.
        values: [B, T, HV, V].
        scales: what each level counts for each token, [B, T, HV, L].
        chunks: those of the call.
    """

    args: Arguments
    run: WholeRun
    keys: int
    values: Tensor
    scales: Tensor
    chunks: Levels

    @classmethod
    def of(
        cls, args: Arguments, run: WholeRun, keys: int, values: Tensor, scales: Tensor, chunk_size: int
    ) -> LevelRuns:
        """Those of a call, in chunks of at most `chunk_size` tokens."""
        if values.dtype == torch.float16:
            values = values.float()  # What is read of a level has the range of a state.
        return cls(args, run, keys, values, scales, Levels.of(args, 0, None, chunk_size))

    def read(self, *, final: bool) -> tuple[Tensor, Tensor | None]:
        """What the tokens read, [B, T, HV, V], and, if `final`, the state behind them, [N, HV, L, K, V]."""
        o = self._inside()
        left: list[_Left] = []
        last_place = max(1, *self.chunks.lengths) - 1
        for level in range(self._inner + 1, last_place.bit_length() + 1):
            right = (self._places >> (level - 1) & 1).bool()[..., None]
            rows, offsets, blocks = self._blocks(1 << level)
            columns = self.values.masked_fill(right[..., None], 0)
            found, last = self.run(rows, rows(columns), output_final_state=final, cu_seqlens=offsets)
            at = min(level, self._highest)
            counts = self.scales[..., at].masked_fill(~right, 0).to(self.args.dtype)
            o = torch.addcmul(o, counts[..., None], found.reshape(o.shape))
            if last is not None:
                runs = [run for run, tokens in self._lengths if (tokens - 1) >> (level - 1) & 1]
                ends = torch.tensor([blocks[run] for run in runs], dtype=torch.long, device=last.device)
                left.append(([(run, at) for run in runs], last[ends]))
        return o, self._final([*left, *self._left_inside()]) if final else None

    @property
    def _inner(self) -> int:
        """The levels up to this one are those of tokens inside a chunk."""
        return self.chunks.size.bit_length() - 1

    @property
    def _highest(self) -> int:
        return self.scales.shape[-1] - 1

    @property
    def _lengths(self) -> list[tuple[int, int]]:
        """The sequences that have tokens, and how many."""
        return [(run, tokens) for run, tokens in enumerate(self.chunks.lengths) if tokens]

    @cached_property
    def _places(self) -> Tensor:
        """The place of each token in its sequence, [1, T]."""
        lengths = self.chunks.lengths if self.args.offsets else [self.args.tokens]
        return torch.cat([torch.arange(tokens, device=self.args.device) for tokens in lengths])[None]

    def _blocks(self, size: int) -> tuple[Rows, Tensor | None, Sequence[int]]:
        """Blocks of so many tokens: their rows, the cu_seqlens where they are packed, and which is each sequence's
        last one."""
        every = [list(cut(0, tokens, size)) for tokens in self.chunks.lengths]
        last = [count - 1 for count in accumulate(map(len, every))]
        if all(length == size for pieces in every for length in pieces):
            return lambda x: x.reshape(-1, size, *x.shape[2:]), None, last
        offsets = [0, *accumulate(length for pieces in every for length in pieces)]
        return _packed, torch.tensor(offsets, device=self.args.device), last

    # ---------------------------------------------------------------------------------------------------------- chunks

    def _inside(self) -> Tensor:
        """What tokens read of those of their own chunk."""
        chunks = self.chunks
        weights, _ = self.run(
            chunks.rows, chunks.values(self.values), output_final_state=False, cu_seqlens=chunks.offsets
        )
        placed = (chunks.placed(x.to(weights.dtype)) for x in (weights, self.scales, self.values))
        return chunks.tokens(weighed(*placed))

    def _left_inside(self) -> Iterator[_Left]:
        """What is left of each sequence's last chunk: that is run once for each level, with the values at it."""
        size = self.chunks.size
        if not self._lengths:
            return
        ends = self.args.offsets or tuple(self.args.tokens * run for run in range(self.args.runs + 1))
        own = [torch.arange((length - 1) // size * size, length) for _, length in self._lengths]
        tokens = torch.cat([ends[run] + places for (run, _), places in zip(self._lengths, own, strict=True)])
        level = torch.cat([level_of(places[-1:], places, self._highest)[0] for places in own])
        levels = torch.arange(min(self._inner, self._highest) + 1)
        others = (levels[:, None] != level).flatten().to(self.args.device)
        where = tokens.repeat(len(levels)).to(self.args.device)
        offsets = torch.tensor([0, *accumulate([len(places) for places in own] * len(levels))])
        values = self.values.flatten(0, 1)[where].masked_fill(others[:, None, None], 0)
        _, last = self.run(
            lambda x: x.flatten(0, 1)[where][None],
            values[None],
            output_final_state=True,
            cu_seqlens=offsets.to(self.args.device),
        )
        assert last is not None
        yield [(run, at) for at in levels.tolist() for run, _ in self._lengths], last

    def _final(self, left: Sequence[_Left]) -> Tensor:
        """The state behind the call, of what is `left`."""
        levels, (HV, V) = self._highest + 1, self.values.shape[2:]
        shape = (self.args.runs * levels, HV, self.keys, V)
        state = torch.zeros(shape, dtype=self.args.dtype, device=self.args.device)
        if left:
            places = torch.tensor([run * levels + at for where, _ in left for run, at in where], device=state.device)
            state.index_add_(0, places, torch.cat([last for _, last in left]).to(state.dtype))
        return torch.unflatten(state, 0, (-1, levels)).transpose(1, 2)


def _packed(x: Tensor) -> Tensor:
    return x.reshape(1, -1, *x.shape[2:])
