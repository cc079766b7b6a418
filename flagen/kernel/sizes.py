"""The sizes of a launch, as small as a proof has them."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

from flagen.kernel.ir import Array
from flagen.plan.rows import ROW, TOKEN, WRITTEN
from flagen.spec.model import Dims


class Illegal(Exception):
    """A program does what none may: it leaves an array, meets another program, or takes a name that has no value."""


@dataclass(frozen=True)
class Sizes:
    """The sizes of a launch: lengths of sequences, heads, dims, micro-steps, the tokens of a segment, and the lanes of
    tiles, by dim; by `TOKEN` those of a chunk.

    cut: the lanes along a dim of which a program has a block at a time.
    words: other sizes that kernels are compiled for.
    pairs: the dims that have all pairs of two others, which these are.
    """

    lengths: tuple[int, ...]
    H: int
    HV: int
    dims: Mapping[str, int]
    blocks: Mapping[str, int]
    steps: Mapping[str, int]
    segment: int
    cut: Mapping[str, int] = field(default_factory=dict)
    words: Mapping[str, int] = field(default_factory=dict)
    pairs: Mapping[str, Dims] = field(default_factory=dict)

    def place(self, dim: str, lane: int) -> int | None:
        """The place in memory of a lane along a dim, counted from the dim's start; None where it lies beyond an end."""
        if dim not in self.pairs:
            return lane if lane < self.of(dim) else None
        first, second = self.pairs[dim]
        one, other = divmod(lane, self.blocks[second])
        return one * self.dims[second] + other if one < self.dims[first] and other < self.dims[second] else None

    def is_inside(self, dim: str, lane: int, limit: int) -> bool:
        """Whether a lane along a dim is among the first that lie within it, which are `limit`, or all of those of pairs
        that pad neither side."""
        return self.place(dim, lane) is not None if dim in self.pairs else lane < limit

    def of(self, dim: str) -> int:
        """The size of a dim in memory: of the rows of a chunk, as many as a tile has lanes."""
        return self.dims[dim] if dim in self.dims else self.blocks[dim]

    @cached_property
    def chunk(self) -> int:
        """How many tokens a chunk has."""
        if ROW not in self.blocks:
            return self.blocks[TOKEN]
        return self.blocks[ROW] // next(iter(self.steps.values()))

    @cached_property
    def first_chunks(self) -> tuple[int, ...]:
        """How many chunks there are before each sequence, and in all."""
        return (0, *itertools.accumulate(-(-length // self.chunk) for length in self.lengths))

    @cached_property
    def first_stretches(self) -> tuple[int, ...]:
        """How many stretches there are before each sequence, and in all."""
        return (0, *itertools.accumulate(length // self.chunk + 1 for length in self.lengths))

    @cached_property
    def borders(self) -> tuple[int, ...]:
        return (0, *itertools.accumulate(self.lengths))

    @cached_property
    def segments(self) -> tuple[int, ...]:
        """How many segments each sequence has."""
        return tuple(-(-length // self.segment) for length in self.lengths)

    def blocks_of(self, dim: str | None) -> int:
        return 1 if dim is None else -(-self.dims[dim] // self.cut.get(dim, self.blocks[dim]))

    def extents(self, array: Array, block_of: str | None) -> tuple[int, ...]:
        """How many coordinates there are in each space of an array of programs that have a block of a dim."""
        own = {"block": self.blocks_of(block_of), "loop": array.loops}
        return tuple([own[space] if space in own else self._extents[space] for space in array.spaces])

    @cached_property
    def _extents(self) -> dict[str, int]:
        """Those that are the same for all arrays."""
        (steps,) = self.steps.values() or (1,)
        return {
            "sequence": len(self.lengths),
            "segment": sum(self.segments),
            "chunk": self._chunks,
            "stretch": self.first_stretches[-1] if TOKEN in self.blocks else 0,
            "counted_chunk": self.first_chunks[-1] if TOKEN in self.blocks else 0,
            "slot": (self.first_chunks[-1] + len(self.lengths)) // 2 if TOKEN in self.blocks else 0,
            "token": self.borders[-1],
            "row": self.borders[-1] * steps,
            "micro_step": steps,
            "head": self.HV,
            "key_head": self.H,
            "place": self.segment,
        }

    @property
    def _chunks(self) -> int:
        """Room for the chunks of all sequences: where they end anywhere, for one more of each; where they begin
        anywhere, too, for two."""
        if "LENGTH" in self.words:
            return self.borders[-1] // self.words["LENGTH"] + 2 * len(self.lengths)
        return self.borders[-1] // self.blocks.get(TOKEN, 1) + len(self.lengths)

    def chunk_at(self, sequence: int, start: int) -> int:
        """Which chunk it is that starts at a token of a sequence: each sequence has room for one that is not full."""
        chunk, first = self.blocks[TOKEN], self.borders[sequence]
        return first // chunk + sequence + (start - first) // chunk

    def aligned_chunks(self, sequence: int, before: int) -> list[tuple[int, range]]:
        """The chunks of a sequence, each with its tokens, counted from those `before` it: the first and the last may
        not be full."""
        (start, stop), length = self.borders[sequence : sequence + 2], self.words["LENGTH"]
        first, row = start - before % length, start // length + 2 * sequence
        starts = range(first, stop, length) if start < stop else ()
        return [(row + n, range(max(at, start), min(at + length, stop))) for n, at in enumerate(starts)]

    def named(self, name: str) -> int:
        """A size by the name that expressions have for it."""
        sizes = {"H": self.H, "HV": self.HV, **self.dims, **self.steps, **self.words}
        if name == "CHUNK":
            return self.blocks[WRITTEN]
        if name not in sizes:
            raise Illegal(f"no size {name} here")
        return sizes[name]
