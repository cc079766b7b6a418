"""The tokens of a call in mini-batches, which are run one after another."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

import torch
from torch import Tensor

from .arguments import Arguments
from .positions import positions_of


@dataclass(frozen=True)
class MiniBatches:
    """A mini-batch of every sequence, then the next one of every sequence, and so on.

    Where all sequences of a batch begin them together these are slices of it. Others are packed: `offsets` has their
    cu_seqlens, and `order` which token of a batch of one stands where.
    """

    args: Arguments
    lengths: Sequence[int]
    offsets: Sequence[Tensor | None]
    order: Tensor | None

    @classmethod
    def of(cls, args: Arguments, count: Tensor | None, every: float) -> MiniBatches:
        """Those of `every` tokens in a call, before which there were `count` tokens, [N, HV], or none.

        Raises:
            ValueError: a mini-batch is not of a whole number of tokens, or `count` differs between heads.
        """
        size = int(every)
        if size != every or size < 1:
            raise ValueError(f"mini-batches: expected a whole number of tokens, at least 1, got {every!r}")
        begun = [position % size for position in positions_of(args, count)]
        ends = args.offsets or tuple(args.tokens * run for run in range(args.runs + 1))
        tokens = [stop - start for start, stop in pairwise(ends)]
        pieces = [list(_pieces(length, first, size)) for length, first in zip(tokens, begun, strict=True)]
        if args.offsets is None and len(set(begun)) <= 1:
            lengths = pieces[0] if pieces else [args.tokens]
            return cls(args, lengths, [None] * len(lengths), None)
        done, order, lengths, offsets = list(ends[:-1]), [], [], []
        for number in range(max(map(len, pieces))):
            own = [piece[number] if number < len(piece) else 0 for piece in pieces]
            order += [torch.arange(start, start + length) for start, length in zip(done, own, strict=True)]
            done = [start + length for start, length in zip(done, own, strict=True)]
            lengths.append(sum(own))
            offsets.append(torch.tensor([0, *accumulate(own)], device=args.device))
        return cls(args, lengths, offsets, torch.cat(order).to(args.device))

    def split(self, *inputs: Tensor) -> Iterator[tuple[tuple[Tensor, ...], Tensor | None]]:
        """The rows of one mini-batch after another, of inputs [batch, tokens, ...], and its cu_seqlens, if it has
        any."""
        rows = inputs if self.order is None else [x.flatten(0, 1)[self.order].unsqueeze(0) for x in inputs]
        by_input = (torch.split(x, list(self.lengths), 1) for x in rows)
        return zip(zip(*by_input, strict=True), self.offsets, strict=True)

    def joined(self, outputs: Sequence[Tensor]) -> Tensor:
        """The outputs of all mini-batches, [batch, tokens, ...]."""
        o = torch.cat(list(outputs), 1)
        if self.order is None:
            return o
        return o[0][self.order.argsort()].reshape(self.args.batch, self.args.tokens, *o.shape[2:])


def _pieces(tokens: int, begun: int, size: int) -> Iterator[int]:
    """How many of a sequence's tokens are in each mini-batch; none in one where there are none."""
    first = min(tokens, size - begun)
    yield first
    for start in range(first, tokens, size):
        yield min(size, tokens - start)
