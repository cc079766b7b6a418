"""The launches on which kernels are proved: of a few elements each, and each there for some things.

What they are was chosen by mistakes made in kernels (tests/kernel), not by thought: sizes that all differ, blocks that
pad and blocks that end within a dim, packed sequences with an empty one and one that ends within a segment, value heads
in groups, micro-steps, with and without all that a call may leave out.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, replace

from flagen.kernel.sizes import Sizes
from flagen.plan.rows import BETWEEN, MEMBER, ROW, TOKEN, WRITTEN
from flagen.spec.model import Spec
from flagen.spec.sizes import small_fitting


@dataclass(frozen=True)
class Setting:
    """What it is called; lengths of sequences, packed or as a batch; heads; micro-steps; whether there are states
    before the first token, whether those after the last one are wanted, and whether gradients of all arguments are, or
    of every other one.

    whole: sizes of the dims that a program has all of, in turn.
    cut: the size of the dim that blocks are cut from, and of a block.
    segment: tokens of a segment.
    chunk: tokens of a chunk.
    rows: rows of a chunk where tokens have several, if not as many.
    leaf: rows at which halving a chunk ends.
    asked_from: the argument from which on every other gradient is asked for.
    mini_batch, length: tokens of a mini-batch, and of the chunks that it has, for which a tile has room.
    left: of each sequence in turn, how many tokens of a mini-batch are left at its first one.
    """

    title: str
    lengths: tuple[int, ...]
    packed: bool
    H: int
    HV: int
    steps: int
    initial: bool
    final: bool
    everything: bool
    whole: tuple[int, ...]
    cut: tuple[int, int]
    segment: int = 2
    chunk: int = 2
    rows: int = 0
    leaf: int = 2
    asked_from: int = 0
    mini_batch: int = 0
    length: int = 0
    left: tuple[int, ...] = (0,)

    def sizes(self, spec: Spec, block_of: str | None) -> Sizes:
        """The sizes of a launch of programs that have a block of a dim."""
        whole = dict(zip((dim for dim in spec.dims if dim != block_of), itertools.cycle(self.whole)))
        dims = self._fitting(spec, whole if block_of is None else {**whole, block_of: self.cut[0]})
        blocks = {dim: _lanes(dims[dim]) for dim in whole}
        blocks |= {TOKEN: self.chunk} if block_of is None else {TOKEN: self.chunk, block_of: self.cut[1]}
        blocks |= {pair: blocks[one] * blocks[other] for pair, (one, other) in spec.pairs.items()}
        steps = {} if spec.steps is None else {spec.steps.symbol: self.steps}
        key_heads = self._key_heads(spec)
        words = {} if not self.length else {"LENGTH": self.length}
        blocks |= {WRITTEN: self.chunk} if self.length else {}
        return Sizes(self.lengths, key_heads, self.HV, dims, blocks, steps, self.segment, words=words, pairs=spec.pairs)

    def row_sizes(self, spec: Spec, rows: str) -> Sizes:
        """The sizes of a launch of programs that multiply rows of a chunk, each for a token, or for one micro-step if
        `rows` says so; they have blocks of any dim."""
        chunk = self.rows or self.chunk if rows == ROW else self.chunk
        dims = self._fitting(spec, dict(zip(spec.dims, itertools.cycle(self.whole))))
        steps = {} if spec.steps is None else {spec.steps.symbol: self.steps}
        key_heads = self._key_heads(spec)
        blocks = {dim: _lanes(size) for dim, size in dims.items()}
        blocks |= {pair: blocks[one] * blocks[other] for pair, (one, other) in spec.pairs.items()}
        blocks |= {BETWEEN: chunk, WRITTEN: chunk, MEMBER: _lanes(self.HV // key_heads)}
        blocks |= {TOKEN: _lanes(chunk // self.steps), ROW: chunk} if rows == ROW else {TOKEN: chunk}
        words = {"LEVELS": chunk.bit_length() - 1, "LEAF_LEVELS": self.leaf.bit_length() - 1, "LEAF": self.leaf}
        cut = dict.fromkeys(dims, self.cut[1])
        return Sizes(self.lengths, key_heads, self.HV, dims, blocks, steps, self.segment, cut, words, spec.pairs)

    def _fitting(self, spec: Spec, wanted: Mapping[str, int]) -> dict[str, int]:
        """The sizes nearest to those that are wanted of which each is what it follows from."""
        sizes = small_fitting(spec, {**wanted, "H": self._key_heads(spec), "HV": self.HV})
        return {dim: sizes[dim] for dim in wanted}

    def _key_heads(self, spec: Spec) -> int:
        return self.H if len({decl.heads for decl in spec.inputs}) > 1 else self.HV

    def of_mini_batches(self, tokens: int) -> Setting:
        """The same with mini-batches of so many tokens."""
        length = max(size for size in range(1, self.chunk + 1) if tokens % size == 0)
        return replace(self, mini_batch=tokens, length=length, left=tuple(left % tokens for left in self.left))

    def widened(self) -> Setting:
        """The same with all sizes larger, for a spec that divides by a size less one."""
        whole, (size, block) = tuple(size + 1 for size in self.whole), self.cut
        return replace(self, HV=2 * self.HV, steps=self.steps + 1, whole=whole, cut=(size + 1, block))

    def __str__(self) -> str:
        return f"{self.title}: lengths {', '.join(map(str, self.lengths))}"


def _lanes(size: int) -> int:
    """The next power of two."""
    return 1 << (size - 1).bit_length()


_WITHOUT_TOKENS = Setting(
    "no token from no state",
    (0,),
    packed=False,
    H=1,
    HV=1,
    steps=1,
    initial=False,
    final=True,
    everything=True,
    whole=(2, 3),
    cut=(3, 2),
)

SETTINGS = (
    Setting(
        "packed with an empty sequence",
        (2, 0, 3),
        packed=True,
        H=2,
        HV=4,
        steps=2,
        initial=True,
        final=True,
        everything=True,
        whole=(3, 2),
        cut=(3, 2),
    ),
    Setting(
        "a batch from no state",
        (3, 3),
        packed=False,
        H=1,
        HV=2,
        steps=3,
        initial=False,
        final=True,
        everything=True,
        whole=(1, 3),
        cut=(1, 1),
    ),
    Setting(
        "one sequence to no state",
        (5,),
        packed=False,
        H=1,
        HV=1,
        steps=1,
        initial=True,
        final=False,
        everything=False,
        whole=(2, 3),
        cut=(3, 4),
        asked_from=1,
    ),
    Setting(
        "two tokens for every other gradient",
        (2,),
        packed=False,
        H=1,
        HV=1,
        steps=1,
        initial=False,
        final=False,
        everything=False,
        whole=(1, 2),
        cut=(2, 2),
    ),
    _WITHOUT_TOKENS,
)

CHUNKS = (
    Setting(
        "packed with an empty sequence and a ragged chunk",
        (3, 0, 2, 1),
        packed=True,
        H=2,
        HV=4,
        steps=1,
        initial=True,
        final=True,
        everything=True,
        whole=(3, 2),
        cut=(5, 4),
        chunk=2,
    ),
    Setting(
        "a batch of full chunks from no state",
        (6, 6),
        packed=False,
        H=1,
        HV=2,
        steps=1,
        initial=False,
        final=True,
        everything=False,
        whole=(2, 5),
        cut=(1, 1),
        chunk=3,
    ),
    Setting(
        "one sequence of several chunks to no state",
        (9,),
        packed=False,
        H=1,
        HV=1,
        steps=1,
        initial=True,
        final=False,
        everything=False,
        whole=(2, 1),
        cut=(3, 4),
        chunk=4,
        asked_from=1,
    ),
    Setting(
        "two chunks from no state to no state",
        (3,),
        packed=False,
        H=1,
        HV=1,
        steps=1,
        initial=False,
        final=False,
        everything=True,
        whole=(1, 2),
        cut=(2, 2),
        chunk=2,
    ),
    _WITHOUT_TOKENS,
)
"""For kernels that take all tokens of a chunk at once."""

MINI_BATCHES = (
    Setting(
        "packed with an empty sequence, each begun elsewhere in a mini-batch",
        (3, 0, 6, 1),
        packed=True,
        H=2,
        HV=4,
        steps=1,
        initial=True,
        final=True,
        everything=True,
        whole=(3, 2),
        cut=(1, 1),
        chunk=2,
        mini_batch=4,
        length=2,
        left=(3, 1, 2, 0),
    ),
    Setting(
        "a batch of whole mini-batches from no state",
        (6, 6),
        packed=False,
        H=1,
        HV=2,
        steps=1,
        initial=False,
        final=True,
        everything=False,
        whole=(2, 3),
        cut=(1, 1),
        chunk=4,
        mini_batch=3,
        length=3,
    ),
    Setting(
        "one sequence begun within a mini-batch to no state",
        (7,),
        packed=False,
        H=1,
        HV=1,
        steps=1,
        initial=True,
        final=False,
        everything=False,
        whole=(2, 1),
        cut=(1, 1),
        chunk=2,
        asked_from=1,
        mini_batch=2,
        length=2,
        left=(1,),
    ),
    Setting(
        "mini-batches of one token",
        (3,),
        packed=False,
        H=1,
        HV=1,
        steps=1,
        initial=False,
        final=False,
        everything=True,
        whole=(1, 2),
        cut=(1, 1),
        chunk=2,
        mini_batch=1,
        length=1,
    ),
    replace(_WITHOUT_TOKENS, chunk=2, mini_batch=2, length=2),
)
"""For kernels whose chunks are those of mini-batches."""

ROWS = (
    Setting(
        "packed with an empty sequence, one of five chunks and a ragged last one",
        (9, 0, 3),
        packed=True,
        H=1,
        HV=2,
        steps=1,
        initial=True,
        final=True,
        everything=True,
        whole=(2, 3),
        cut=(0, 2),
        chunk=2,
    ),
    Setting(
        "groups of heads from no state",
        (5,),
        packed=False,
        H=2,
        HV=4,
        steps=2,
        initial=False,
        final=True,
        everything=True,
        whole=(3, 1),
        cut=(0, 2),
        chunk=2,
    ),
    Setting(
        "one sequence in leaves and halves to no state",
        (11,),
        packed=False,
        H=1,
        HV=1,
        steps=3,
        initial=True,
        final=False,
        everything=True,
        whole=(3, 2),
        cut=(0, 2),
        chunk=8,
        rows=16,
        leaf=4,
    ),
    Setting(
        "halves of halves for every other gradient",
        (7,),
        packed=False,
        H=1,
        HV=2,
        steps=2,
        initial=False,
        final=False,
        everything=False,
        whole=(1, 2),
        cut=(0, 1),
        chunk=8,
    ),
    Setting(
        "packed heads without groups to no state",
        (1, 3),
        packed=True,
        H=2,
        HV=2,
        steps=1,
        initial=True,
        final=False,
        everything=True,
        whole=(3, 1),
        cut=(0, 2),
    ),
    Setting(
        "three tokens for the other gradients",
        (3,),
        packed=False,
        H=1,
        HV=1,
        steps=1,
        initial=True,
        final=False,
        everything=False,
        whole=(2, 1),
        cut=(0, 1),
        asked_from=1,
    ),
    _WITHOUT_TOKENS,
)
"""For kernels that multiply rows of a chunk."""
