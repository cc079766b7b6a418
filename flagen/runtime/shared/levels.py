"""Reads of a state that is kept in levels, from what chunks of a power of two do to columns of it.

The level of token j for a later token i is the number of binary digits of i xor j; what is older than the last level
is at the last level. A chunk begins at a multiple of its size, so the level of a pair inside one is in a table, and all
of a block of chunks is at one level for every token of the block beside it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, groupby, pairwise

import torch
from torch import Tensor
from torch.nn import functional

from .arguments import Arguments
from .positions import positions_of


@dataclass(frozen=True)
class Levels:
    """The chunks of a call. Each is run on columns: one for each of its tokens, whose value is one there, and one for
    each key, whose first state is one there. What its tokens read and what is left at its end is a sum of these.

    Attributes:
        size: places of a chunk, a power of two, C; the first and the last one of a sequence may have fewer tokens.
        keys: the size of the state's dim that is not that of values, K.
        begun, lengths: the position of each sequence's first token, and how many tokens it has.
        chunks: how many there are in all, n.
        offsets: the cu_seqlens of chunks that are packed; None where a batch of them has all places taken.
        slots: where each token is among the places of all chunks; None where each place has one.
    """

    args: Arguments
    size: int
    keys: int
    begun: Sequence[int]
    lengths: Sequence[int]
    chunks: int
    offsets: Tensor | None
    slots: Tensor | None

    @classmethod
    def of(cls, args: Arguments, keys: int, count: Tensor | None, chunk_size: int) -> Levels:
        """Those of a call before which there were `count` tokens, [N, HV], or none, with at most `chunk_size` places.

        Raises:
            ValueError: `chunk_size` is no positive int, or `count` differs between heads.
        """
        if not isinstance(chunk_size, int) or chunk_size < 1:
            raise ValueError(f"chunk_size: expected a positive int, got {chunk_size!r}")
        size = 1 << (chunk_size.bit_length() - 1)
        begun = positions_of(args, count)
        ends = args.offsets or tuple(args.tokens * run for run in range(args.runs + 1))
        lengths = [stop - start for start, stop in pairwise(ends)]
        every = [list(cut(first, length, size)) for first, length in zip(begun, lengths, strict=True)]
        chunks = sum(map(len, every))
        if all(length == size for pieces in every for length in pieces):
            return cls(args, size, keys, begun, lengths, chunks, None, None)
        offsets = torch.tensor([0, *accumulate(length for pieces in every for length in pieces)], device=args.device)
        before = accumulate((len(pieces) for pieces in every), initial=0)
        slots = [
            torch.arange(length) + first % size + done * size
            for first, length, done in zip(begun, lengths, before, strict=False)
        ]
        return cls(args, size, keys, begun, lengths, chunks, offsets, torch.cat(slots).to(args.device))

    def rows(self, x: Tensor) -> Tensor:
        """An input [B, T, ...] as chunks have it: a batch of chunks, or all packed in a batch of one."""
        if self.offsets is None:
            return x.reshape(self.chunks, self.size, *x.shape[2:])
        return x.reshape(1, -1, *x.shape[2:])

    def values(self, like: Tensor) -> Tensor:
        """The values of the columns, as `rows` has them, [.., .., HV, C + K]; in float32 in the place of float16, whose
        range what they read has, and not its gradient, which is as large as states are."""
        dtype = torch.float32 if like.dtype == torch.float16 else like.dtype
        ones = torch.eye(self.size, self.size + self.keys, dtype=dtype, device=like.device)
        if self.slots is None:
            return ones[:, None].expand(self.chunks, -1, self.args.HV, -1)
        return ones[self.slots % self.size][None, :, None].expand(-1, -1, self.args.HV, -1)

    def starts(self) -> Tensor:
        """The states that the columns start from, [n, HV, K, C + K]."""
        ones = torch.eye(self.keys, dtype=self.args.dtype, device=self.args.device)
        start: Tensor = functional.pad(ones, (self.size, 0))
        return start.expand(self.chunks, self.args.HV, -1, -1)

    def counted(self, count: Tensor | None) -> Tensor:
        """The state that counts tokens behind the call, [N, HV]."""
        more = torch.tensor(self.lengths, dtype=self.args.dtype, device=self.args.device)
        return more[:, None].repeat(1, self.args.HV) if count is None else count + more[:, None]

    def read(
        self, columns: Tensor, last: Tensor, values: Tensor, scales: Tensor, state: Tensor | None, *, final: bool
    ) -> tuple[Tensor, Tensor | None]:
        """What the tokens of the call read, [B, T, HV, V], and, if `final`, the state behind it, [N, HV, L, K, V].

        Args:
            columns: what the columns of all chunks read, as `rows` has them, [.., .., HV, C + K].
            last: their last states, [n, HV, K, C + K].
            values: [B, T, HV, V].
            scales: what each level counts for each token, [B, T, HV, L].
            state: before the call, [N, HV, L, K, V]; None for zero.
        """
        placed = [self.placed(x.to(self.args.dtype)) for x in (columns, values, scales)]
        reads, finals, chunks, runs = [], [], 0, 0
        for (first, tokens), alike in groupby(zip(self.begun, self.lengths, strict=True)):
            count = len(list(alike))
            own = count * len(list(cut(first, tokens, self.size)))
            parts = (torch.unflatten(x[chunks : chunks + own], 0, (count, -1)) for x in (*placed, last))
            before = None if state is None else state[runs : runs + count]
            if tokens:
                call = _Call(first, tokens, *parts, final=final)
                reads.append(call.run(before).flatten(0, 2))
                finals.append(call.final)
            else:
                finals.append(self._untouched(before, count, scales, values))
            chunks, runs = chunks + own, runs + count
        o = _joined(reads) if reads else placed[1].flatten(0, 1)
        return self.tokens(o), _joined(finals) if final else None

    def tokens(self, x: Tensor) -> Tensor:
        """What all places of chunks have, [n * C, ...] or [n, C, ...], as tokens have it, [B, T, ...]."""
        x = x.flatten(0, x.dim() - 3)
        x = x if self.slots is None else x[self.slots]
        return x.reshape(self.args.batch, self.args.tokens, *x.shape[1:])

    def _untouched(self, state: Tensor | None, runs: int, scales: Tensor, values: Tensor) -> Tensor:
        """The state of sequences without a token."""
        if state is not None:
            return state.clone()
        shape = (runs, self.args.HV, scales.shape[-1], self.keys, values.shape[-1])
        return torch.zeros(shape, dtype=self.args.dtype, device=self.args.device)

    def placed(self, x: Tensor) -> Tensor:
        """Rows [.., .., ...] of tokens at their places in chunks, [n, C, ...]; 0 where there is none."""
        if self.slots is None:
            return x.reshape(self.chunks, self.size, *x.shape[2:])
        places = x.new_zeros(self.chunks * self.size, *x.shape[2:])
        placed: Tensor = places.index_copy(0, self.slots, x.flatten(0, 1))
        return placed.reshape(self.chunks, self.size, *x.shape[2:])


def cut(first: int, tokens: int, size: int) -> Iterator[int]:
    """How many of a sequence's tokens are in each chunk."""
    edges = (first, *range(first - first % size + size, first + tokens, size), first + tokens)
    return (stop - start for start, stop in pairwise(edges)) if tokens else iter(())


def _joined(parts: Sequence[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(list(parts))


def level_of(places: Tensor, others: Tensor, highest: int) -> Tensor:
    """The level of each of `others` for each of `places`, [places, others], at most `highest`."""
    apart = places.int()[:, None] ^ others.int()
    return torch.frexp(apart.float()).exponent.clamp(max=highest).long()  # How many binary digits a number has.


def weighed(weights: Tensor, scales: Tensor, values: Tensor) -> Tensor:
    """What the places of chunks read of one another, [..., C, HV, V].

    Args:
        weights: what each reads of each other, whatever its level is, [..., C, HV, C].
        scales: what each level counts for each place, [..., C, HV, L].
        values: [..., C, HV, V].
    """
    places = torch.arange(values.shape[-3], device=values.device)
    table = level_of(places, places, scales.shape[-1] - 1)
    counts = scales.gather(-1, table[:, None, :].expand_as(weights))
    return torch.einsum("...ihj,...jhv->...ihv", weights * counts, values)


class _Call:
    """Sequences [G] that have had as many tokens before the call, and have as many in it; n chunks each.

    In the letters of einsums g is a sequence, n a chunk, i and j places in it, h a head, l and p levels, k and x keys,
    v values.
    """

    def __init__(
        self, first: int, tokens: int, columns: Tensor, values: Tensor, scales: Tensor, last: Tensor, *, final: bool
    ) -> None:
        size = columns.shape[2]
        self.first, self.end = first, first + tokens - 1
        self.size, self.scales, self.values = size, scales, values
        self.highest = scales.shape[-1] - 1
        self.inside = size.bit_length() - 1
        """The levels up to this one are those of tokens inside a chunk, c with C = 2^c."""
        self.weights, self.reader = columns[..., :size], columns[..., size:]
        self.left, self.carried = last[..., :size], last[..., size:]
        self.places = torch.arange(size, device=columns.device)
        self.chunks = range(first // size, self.end // size + 1)
        """The numbers of the chunks."""
        self.final = values.new_zeros(0)
        """The state behind the call, [G, HV, L, K, V], if it is wanted."""
        self.wants_final = final

    def run(self, state: Tensor | None) -> Tensor:
        """What all places read, [G, n, C, HV, V]."""
        if state is not None and self.first == 0:  # Whatever is there is older than all levels.
            state = functional.pad(state.sum(2, keepdim=True), (0, 0, 0, 0, self.highest, 0))
        self.o = self._inside()
        written = torch.einsum("gnhkj,gnjhv->gnhkv", self.left, self.values)
        carried, numbers = self.carried, self.chunks
        if state is not None and (self.first == 0 or self.first % self.size):
            written = self._begun(state, written)
        elif state is not None:  # The chunk before has had all its tokens, and levels up to its own with it.
            low = state[:, :, : self.inside + 1].sum(2)
            written = torch.cat((low[:, None], written), 1)
            ones = torch.eye(low.shape[-2], dtype=low.dtype, device=low.device)
            carried = torch.cat((ones.expand_as(carried[:, :1]), carried), 1)
            numbers = range(numbers.start - 1, numbers.stop)
        self._over_chunks(numbers, written, carried, state)
        return self.o

    def _inside(self) -> Tensor:
        """What tokens read of those of their own chunk; those of the last one are at several levels at its end."""
        if self.wants_final:
            table = level_of(self.places, self.places, self.highest)
            at_end = functional.one_hot(table[self.end % self.size], self.highest + 1).to(self.left.dtype)
            self.final = torch.einsum("ghkj,jl,gjhv->ghlkv", self.left[:, -1], at_end, self.values[:, -1])
        return weighed(self.weights, self.scales, self.values)

    def _begun(self, state: Tensor, written: Tensor) -> Tensor:
        """The first chunk has begun before the call, or there was none: its tokens read the levels inside it. `written`
        with what is left of them."""
        within = state[:, :, : self.inside + 1]
        levels = torch.arange(within.shape[2], device=state.device)
        if self.first == 0:
            table = torch.full_like(self.places[:, None] * levels, self.highest)
        else:
            seen = level_of(self.places, self.places[self.first % self.size - 1 :][:1], self.highest)
            table = torch.maximum(seen, levels)
        counts = self.scales[:, 0].gather(-1, table[:, None, :].expand(*self.scales[:, 0].shape[:-1], -1))
        read = torch.einsum("gihl,gihk,ghlkv->gihv", counts, self.reader[:, 0], within)
        self.o = torch.cat((self.o[:, :1] + read[:, None], self.o[:, 1:]), 1)
        left = torch.einsum("ghkx,ghlxv->ghlkv", self.carried[:, 0], within)
        if len(self.chunks) == 1 and self.wants_final:
            at_end = functional.one_hot(table[self.end % self.size], self.highest + 1).to(left.dtype)
            self.final = self.final + torch.einsum("ghlkv,lp->ghpkv", left, at_end)
        return torch.cat((written[:, :1] + left.sum(2)[:, None], written[:, 1:]), 1)

    def _over_chunks(self, numbers: range, written: Tensor, carried: Tensor, state: Tensor | None) -> None:
        """Blocks of chunks, twice as many at each level: what one has `written` and what it has `carried` from its
        start to its end, [G, blocks, HV, K, ...]."""
        reader, level = self.reader, self.inside + 1
        keys = carried.shape[-1]
        apart = torch.eye(keys, dtype=carried.dtype, device=carried.device).expand(len(carried), 1, *carried.shape[2:])
        while len(numbers) > 1 or (state is not None and level <= self.highest):
            shift, at = level - self.inside - 1, min(level, self.highest)
            block = [number >> shift for number in self.chunks]
            if state is not None and level <= self.highest:
                # The first block has begun, and what is at this level was there.
                mine = [place for place, number in enumerate(block) if number == numbers.start]
                self._add(at, reader, mine, state[:, :, level][:, None].expand(-1, len(mine), -1, -1, -1))
                left = carried[:, 0] @ state[:, :, level]
                if len(numbers) == 1:
                    self._leave(at, left)
                written = torch.cat((written[:, :1] + left[:, None], written[:, 1:]), 1)
            right = [place for place, number in enumerate(block) if number % 2 and number > numbers.start]
            if numbers[-1] % 2 and len(numbers) > 1:
                self._leave(at, carried[:, -1] @ written[:, -2])
            written = _in_pairs(numbers, written, torch.zeros_like(written[:, :1]))
            carried = _in_pairs(numbers, carried, apart)
            numbers = range(numbers.start >> 1, (numbers[-1] >> 1) + 1)
            beside = [(block[place] >> 1) - numbers.start for place in right]
            self._add(at, reader, right, written[:, ::2][:, beside])
            if right:
                moved = torch.einsum("gnihx,gnhxk->gnihk", reader[:, right], carried[:, ::2][:, beside])
                reader = reader.index_copy(1, torch.tensor(right, device=reader.device), moved)
            written = written[:, 1::2] + carried[:, 1::2] @ written[:, ::2]
            carried = carried[:, 1::2] @ carried[:, ::2]
            level += 1

    def _add(self, level: int, reader: Tensor, chunks: list[int], state: Tensor) -> None:
        """The tokens of some chunks read a state of one level, [G, chunks, HV, K, V]."""
        if not chunks:
            return
        read = torch.einsum("gnihk,gnhkv->gnihv", reader[:, chunks] * self.scales[:, chunks, :, :, level, None], state)
        self.o = self.o.index_add(1, torch.tensor(chunks, device=read.device), read)

    def _leave(self, level: int, state: Tensor) -> None:
        """Something is at one level behind the call, [G, HV, K, V]."""
        if self.wants_final:
            place = torch.tensor([level], device=state.device)
            self.final = self.final.index_add(2, place, state[:, :, None])


def _in_pairs(numbers: range, blocks: Tensor, missing: Tensor) -> Tensor:
    """`blocks` from an even number to an odd one, with what is `missing` at either end."""
    before, behind = [missing] * (numbers.start % 2), [missing] * (1 - numbers[-1] % 2)
    return torch.cat((*before, blocks, *behind), 1)
