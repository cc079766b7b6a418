"""Where the programs of a launch stand that take the same way through a kernel, and what that tells of their tiles.

Where a program stands in a space is a number of its own, which stays, and one that all have in common, which loops
change.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from flagen.diagnostics import InternalError
from flagen.kernel.ir import Kernel, Space
from flagen.kernel.sizes import Sizes
from flagen.plan.rows import ROW, TOKEN

Place = tuple[Tensor, int]
"""A number of each program, and what is added to all of them."""

NOWHERE = torch.zeros(1, dtype=torch.int64)


@dataclass(frozen=True)
class Launch:
    """A kernel, and what it is launched with: arrays by name, as they lie in memory; numbers; what it is compiled for.

    dtype: what programs compute in.
    """

    kernel: Kernel
    arrays: Mapping[str, Tensor]
    numbers: Mapping[str, float]
    sizes: Sizes
    words: Mapping[str, object]
    dtype: torch.dtype


@dataclass(frozen=True)
class Way:
    """What programs have in common: how many tokens their run has, if it is no chunk, and whether it is the last one of
    its sequence; whether the chunk before theirs has a slot with it, and whether the one behind has; whether their
    stretch has the first place of the sequence, and whether it has that behind the last token; how many tokens of its
    first chunk there were before the sequence."""

    tokens: int = 0
    last: bool = True
    earlier: bool = False
    later: bool = False
    start: bool = False
    end: bool = False
    begun: int = 0


@dataclass
class Standing:
    """Programs of some runs, of all heads, and of some blocks; tensors have a number for each program.

    start: the first token of its run.
    block: the number of its block.
    within: the number of its chunk, or stretch, in its sequence, out of `chunks`.
    length: the tokens of its sequence.
    rows: the tokens of its chunk, if it has one, and of the chunk behind that.
    """

    launch: Launch
    way: Way
    at: dict[Space, Place]
    start: Tensor
    block: Tensor
    within: Tensor = NOWHERE
    chunks_of_sequence: Tensor = NOWHERE
    rows: tuple[Tensor, Tensor] = (NOWHERE, NOWHERE)
    length: Tensor = NOWHERE
    size: dict[str, object] = field(default_factory=dict)
    span: range = range(0)
    """The tokens that a loop over tokens has, counted from `start`."""
    first_token: int | None = None
    """The first of those that lie along the axis of tokens, counted from there."""
    tokens_of_chunk: int | Tensor = 0
    """How many these are."""
    turns: dict[str, int] = field(default_factory=dict)
    """The first index of a dim in a turn of a loop over blocks of it."""
    token: int = 0
    moved: int = 0
    """How many chunks it is from the first one of a program to that where it stands."""

    def __post_init__(self) -> None:
        sizes = self.launch.sizes
        self.size |= {"H": sizes.H, "HV": sizes.HV, **sizes.dims, **sizes.steps, **self.launch.words}
        if "LEAF_LEVELS" in self.launch.words:
            self.size["LEAF"] = 1 << self.word("LEAF_LEVELS")
        self.span = range(self.way.tokens)
        if self.launch.kernel.run in ("chunk", "stretch"):
            self.first_token, self.tokens_of_chunk = 0, self.rows[0]

    def word(self, name: str) -> int:
        """A whole number that the kernel is compiled for."""
        word = self.size[name]
        assert isinstance(word, int), name
        return word

    # ------------------------------------------------------------------------------------------------------ conditions

    def is_given(self, name: str) -> bool:
        return name in self.launch.arrays

    @property
    def is_first_block(self) -> bool:
        return bool(self.block[0] == 0)

    def is_alone(self, dim: str) -> bool:
        sizes = self.launch.sizes
        return sizes.H == sizes.HV and sizes.dims[dim] <= sizes.blocks[dim]

    @property
    def is_last_token(self) -> bool:
        return self.token == self.span[-1]

    def if_wanted(self, choice: str, turns: Iterable[int]) -> Iterable[int]:
        return turns if self.size[choice] else ()

    # ----------------------------------------------------------------------------------------------------------- loops

    def segments(self, *, reverse: bool) -> Iterator[int]:
        whole, size = self.span, self.launch.sizes.segment
        base, _ = self.at["segment"]
        for number in _ordered(-(-len(whole) // size), reverse=reverse):
            self.span = whole[number * size : (number + 1) * size]
            self.at["segment"] = base, number
            yield number
        self.span = whole

    def tokens(self, *, reverse: bool, but_last: bool) -> Iterator[int]:
        if but_last and self._has_last_segment:
            return
        for place in _ordered(len(self.span), reverse=reverse):
            self.token = self.span[place]
            self.at |= {"token": (self.start, self.token), "place": (NOWHERE, place)}
            yield self.token
        self._leave("token", "place")

    @property
    def _has_last_segment(self) -> bool:
        """Whether it stands in the last segment of the sequence."""
        return self.way.last if self.launch.kernel.run == "segment" else self.span.stop == self.way.tokens

    def micro_steps(self, *, reverse: bool) -> Iterator[int]:
        for step in _ordered(self.steps, reverse=reverse):
            self.at["micro_step"] = NOWHERE, step
            yield step
        self._leave("micro_step")

    def chunks(self, *, reverse: bool) -> Iterator[int]:
        """Each chunk of a sequence, whose tokens are then those along the axis of tokens."""
        size, bases = self.launch.sizes.chunk, {**self.at}
        for number in _ordered(-(-len(self.span) // size), reverse=reverse):
            tokens = self.span[number * size : (number + 1) * size]
            self.first_token, self.tokens_of_chunk, self.moved = tokens.start, len(tokens), number
            self.at["counted_chunk"] = bases["counted_chunk"][0], number
            self.at["chunk"] = bases["chunk"][0], number
            self.at["slot"] = bases["slot"][0], number // 2
            yield number
        self.first_token, self.at = None, bases

    def aligned_chunks(self, *, reverse: bool) -> Iterator[int]:
        """The same of chunks that are counted from the tokens before the sequence."""
        size, begun, base = self.word("LENGTH"), self.way.begun, self.at["chunk"][0]
        count = -(-(begun + len(self.span)) // size) if self.span else 0
        for number in _ordered(count, reverse=reverse):
            tokens = self.span[max(number * size - begun, 0) : (number + 1) * size - begun]
            self.first_token, self.tokens_of_chunk, self.moved = tokens.start, len(tokens), number
            self.at["chunk"] = base, number
            yield number
        self.first_token, self.at["chunk"] = None, (base, 0)

    def earlier(self) -> Iterator[int]:
        """The chunk before, if it has a slot with this one: it is full."""
        if self.way.earlier:
            yield from self._neighbour(-1, torch.full_like(self.rows[0], self.launch.sizes.chunk))

    def later(self) -> Iterator[int]:
        if self.way.later:
            yield from self._neighbour(1, self.rows[1])

    def _neighbour(self, away: int, tokens: Tensor) -> Iterator[int]:
        """Stand at another chunk."""
        base, _ = self.at["counted_chunk"]
        self.first_token, self.tokens_of_chunk, self.moved = away * self.launch.sizes.chunk, tokens, away
        self.at["counted_chunk"] = base, away
        yield away
        self.first_token, self.tokens_of_chunk, self.moved = 0, self.rows[0], 0
        self.at["counted_chunk"] = base, 0

    def members(self) -> Iterator[int]:
        """The value heads of the key head."""
        base, _ = self.at["key_head"]
        group = self.launch.sizes.HV // self.launch.sizes.H
        for member in range(group):
            self.at["head"] = base * group, member
            yield member
        self._leave("head")

    def blocks(self, dim: str) -> Iterator[int]:
        size = self.launch.sizes.blocks[dim]
        for block in range(-(-self.launch.sizes.dims[dim] // size)):
            self.turns[dim] = block * size
            yield block
        del self.turns[dim]

    def levels(self, first: str, *, reverse: bool) -> Iterator[int]:
        levels = range(self.word(first) if first else 0, self.word("LEVELS"))
        yield from reversed(levels) if reverse else levels

    def _leave(self, *spaces: Space) -> None:
        for space in spaces:
            self.at.pop(space, None)

    # ----------------------------------------------------------------------------------------------------------- tiles

    @property
    def steps(self) -> int:
        """The micro-steps of a token."""
        return next(iter(self.launch.sizes.steps.values()), 1)

    def place(self, space: Space) -> Place:
        if space not in self.at:
            raise InternalError(f"no {space} here")
        return self.at[space]

    def first_row(self, space: Space) -> Place:
        """The token, or row, of the first lane along an axis of them."""
        if self.first_token is None:
            raise InternalError("no chunk here")
        steps = self.steps if space == "row" else 1
        return self.start * steps if steps > 1 else self.start, self.first_token * steps

    def first_index(self, dim: str) -> Place:
        """The index in memory of the first lane along a dim: of a chunk's rows, as a dim, the first is the first."""
        if dim == self.launch.kernel.block_of:
            return self.block * self.launch.sizes.blocks[dim], 0
        return NOWHERE, self.turns.get(dim, 0)

    def rest(self, dim: str) -> int | Tensor:
        """How many lanes it is to the end of a dim, or of the chunk, be they more than there are."""
        if dim in (TOKEN, ROW):
            if self.first_token is None:
                raise InternalError("no chunk here")
            return self.tokens_of_chunk * self.steps if dim == ROW else self.tokens_of_chunk
        base, offset = self.first_index(dim)
        rest = self.launch.sizes.of(dim) - offset
        return rest - base if dim == self.launch.kernel.block_of else rest

    def indices(self, dim: str) -> Tensor:
        """The place of each lane: of a row in its chunk, of an index in its dim."""
        base, offset = self.first_index(dim)
        return base[:, None] + (offset + self.lanes(dim))

    def lanes(self, dim: str) -> Tensor:
        """How far the place of each lane is from that of the first."""
        sizes = self.launch.sizes
        if dim not in sizes.pairs:
            return torch.arange(sizes.blocks[dim])
        return torch.tensor([sizes.place(dim, lane) or 0 for lane in range(sizes.blocks[dim])])

    def in_sequence(self, place: str, ago: int) -> Tensor:
        """Which lanes of a stretch have a token that many tokens before; or are at a place of the sequence."""
        size = self.launch.sizes.chunk
        lanes, length = self.within[:, None] * size + torch.arange(size) - ago, self.length[:, None]
        if place == "token":
            return (lanes >= 0) & (lanes < length)
        return lanes == (length if place == "end" else 0)

    def inside(self, dim: str) -> Tensor:
        """Which lanes are no padding."""
        sizes = self.launch.sizes
        if dim in sizes.pairs:
            return torch.tensor([[sizes.place(dim, lane) is not None for lane in range(sizes.blocks[dim])]])
        rest = self.rest(dim)
        lanes = torch.arange(self.launch.sizes.blocks[dim])[None]
        return lanes < (rest[:, None] if isinstance(rest, Tensor) else rest)


def _ordered(count: int, *, reverse: bool) -> Iterable[int]:
    return reversed(range(count)) if reverse else range(count)
