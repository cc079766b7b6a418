"""What reaches what of states that numbers mix, lowered: the weights of a chunk, level by level.

A chunk is cut in halves, these again, and so on. What a row of an upper half reads of one of its lower half is a number
of each register for the one, `start`, times one for the other, `end`: from the middle to the row that reads, and from
the row that wrote to the middle. One level up, starts of the upper half take what registers `carry` across the lower
one, and ends of the lower half what they carry across the upper one; across both that is a product of the two. At the
last level starts and ends are those of the chunk. All of that are sums of products: nothing is divided by, and no
logarithm taken.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property

from flagen.kernel.ir import (
    Access,
    Array,
    Bind,
    Fill,
    Given,
    If,
    Index,
    Let,
    Load,
    Loop,
    Space,
    Statement,
    Store,
)
from flagen.kernel.rows import ZERO, RowLowering, call, local, times
from flagen.plan.chunk_kernel import ChunkKernelPlan
from flagen.plan.mixed import Mixed, into_name, is_one, mix_name, of_name, varies
from flagen.plan.rows import TOKEN, WRITTEN
from flagen.plan.tiles import (
    Along,
    Arithmetic,
    Compare,
    Constant,
    Lane,
    Masked,
    Product,
    Select,
    Spread,
    Sum,
    Tile,
    Value,
    Whole,
)
from flagen.spec.model import Dims

ROW: Dims = (TOKEN,)
SQUARE: Dims = (TOKEN, WRITTEN)
LEVEL = Value("level", "local", ())
FIRST_ROW = Compare("<", Lane(TOKEN, ROW), Whole(1), ROW)
"""One of those that all have what registers carry across the chunk."""

START, END, WHOLE, WEIGHTS = "start", "end", "whole", "weights"


def start(role: str, place: int) -> Value:
    """What rows of `role` read of a register, as it is before the chunk."""
    return local(f"{role}_{START}_{place}", ROW)


def end(role: str, place: int) -> Value:
    """What a register has of the rows of `role` behind the chunk."""
    return local(f"{role}_{END}_{place}", ROW)


def carry(p: int, r: int) -> Value:
    """What a register gets of one over the tokens of a half, which all have that."""
    return local(f"carry_{p}_{r}", ROW)


def across(p: int, r: int) -> Value:
    """The same of the chunk."""
    return local(f"{WHOLE}_{p}_{r}", ())


def weights(reader: str, writer: str) -> Value:
    """What rows of `reader` have of those of `writer`."""
    return local(f"{WEIGHTS}_{reader}{writer}", SQUARE)


def pairs_of(mixed: Mixed) -> tuple[tuple[str, str], ...]:
    """The rows that read, with those that they read."""
    return tuple((reader, writer) for writer in mixed.into for reader in mixed.of)


def arrays_of(plan: ChunkKernelPlan) -> tuple[Array, ...]:
    """What there is of the numbers of each chunk: float32, but for weights, which a backward alone needs."""
    mixed = plan.mixed
    if mixed is None:
        return ()
    spaces: tuple[Space, ...] = ("counted_chunk", "head", "loop")
    count = len(mixed.states)
    rows = (*(f"{role}_{START}" for role in mixed.of), *(f"{role}_{END}" for role in mixed.into))
    squares = len(pairs_of(mixed))
    return (
        *(Array(name, spaces, ROW, "residual", loops=count) for name in rows),
        Array(WHOLE, spaces, (), "residual", loops=count * count),
        Array(WEIGHTS, spaces, SQUARE, "residual", own_dtype=True, optional=True, loops=squares),
    )


class Mixes:
    """Lowers the numbers of a chunk; `rows`: what has the numbers of tokens."""

    def __init__(self, rows: RowLowering[ChunkKernelPlan], mixed: Mixed) -> None:
        self.rows, self.mixed = rows, mixed
        self.arrays = {array.name: array for array in arrays_of(rows.plan)}
        self.pairs = sorted(mixed.reaches)

    # ----------------------------------------------------------------------------------------------------------- memory

    @cached_property
    def of_rows(self) -> tuple[Value, ...]:
        """The numbers of rows that a chunk has."""
        return (*self.starts, *self.ends)

    @cached_property
    def starts(self) -> tuple[Value, ...]:
        return tuple(start(role, place) for role in self.mixed.of for place in self.mixed.starts(role))

    @cached_property
    def ends(self) -> tuple[Value, ...]:
        return tuple(end(role, place) for role in self.mixed.into for place in self.mixed.ends(role))

    @cached_property
    def of_chunk(self) -> tuple[Value, ...]:
        """The numbers that it has beside."""
        return tuple(across(p, r) for p, r in self.pairs)

    @property
    def present(self) -> frozenset[str]:
        """The names of all of them."""
        return frozenset(value.name for value in (*self.of_rows, *self.of_chunk))

    def access(self, value: Value) -> Access:
        """Where a number is kept."""
        name, *places = value.name.rsplit("_", 2 if value.dims == () else 1)
        if value.dims == SQUARE:
            return self._at(WEIGHTS, [f"{WEIGHTS}_{r}{w}" for r, w in pairs_of(self.mixed)].index(value.name))
        number = 0
        for place in places:
            number = number * len(self.mixed.states) + int(place)
        return self._at(name, number)

    def _at(self, name: str, number: int) -> Access:
        array = self.arrays[name]
        at = tuple(Index(space, number if space == "loop" else None) for space in array.spaces)
        return Access(array, at, ())

    def load(self, *values: Value) -> Iterator[Statement]:
        yield from (Load(value.name, self.access(value), wide=value.dims == SQUARE) for value in values)

    def store(self) -> Iterator[Statement]:
        """Keep what there is of a chunk, but for weights."""
        yield from (Store(self.access(value), value) for value in self.of_rows)
        for value, (p, r) in zip(self.of_chunk, self.pairs, strict=True):
            yield Store(self.access(value), Sum(Select(FIRST_ROW, carry(p, r), ZERO, ROW), TOKEN, ()))

    def store_weights(self) -> Statement:
        """Keep the weights where there are arrays for them."""
        stores = tuple(Store(self.access(weights(*pair)), weights(*pair)) for pair in pairs_of(self.mixed))
        return If((Given(self.arrays[WEIGHTS]),), stores)

    # ---------------------------------------------------------------------------------------------------------- states

    def mixed_states(self, states: Sequence[Value], *, back: bool) -> Statement:
        """States across the chunk, but for what is written to them; or the gradients of states, in reverse."""
        places = self.mixed.places
        found = [
            plus(
                *(
                    times(across(*((r, p) if back else (p, r))), states[r])
                    for r in places
                    if self._meet(p, r, back=back)
                )
            )
            for p in places
        ]
        return Bind(tuple(state.name for state in states), tuple(tile for tile in found if tile is not None))

    def _meet(self, p: int, r: int, *, back: bool) -> bool:
        return ((r, p) if back else (p, r)) in self.mixed.reaches

    # ----------------------------------------------------------------------------------------------------------- levels

    def numbers(self) -> Iterator[Statement]:
        """The numbers of tokens that are none of the program's text."""
        for name, tile in self.mixed.named():
            if varies(tile):
                yield Let(name, self.rows.tile(tile, TOKEN))

    def tokens(self) -> Iterator[Statement]:
        """The numbers of tokens, each of which is a chunk of its own: all that goes up from level to level."""
        mixed = self.mixed
        for p, r in self.pairs:
            # Beyond the end of a sequence a register that takes nothing of itself stays what it is.
            kept = Masked(ZERO, TOKEN, 1.0, ROW) if p == r else None
            found = self.number(mix_name(p, r), mixed.mix[p][r])
            yield from self._named(carry(p, r), kept if found is None else found)
        for role, of in mixed.of.items():
            read = [self.number(of_name(role, p), tile) for p, tile in enumerate(of)]
            for place in mixed.starts(role):
                yield from self._named(start(role, place), self._after(read, place) if role == "q" else read[place])
        for role, into in mixed.into.items():
            for place in mixed.ends(role):
                yield from self._named(end(role, place), self.number(into_name(role, place), into[place]))

    def _after(self, read: Sequence[Tile | None], place: int) -> Tile | None:
        """What is read behind the token's own mix of what a register was before it."""
        return plus(*(product(read[p], carry(p, place)) for p in self.mixed.places if (p, place) in self.mixed.reaches))

    def number(self, name: str, tile: Tile | None) -> Tile | None:
        """A number of each token by its name, if it has one."""
        return local(name, tile.dims) if tile is not None and varies(tile) else tile

    def _named(self, value: Value, tile: Tile | None) -> Iterator[Statement]:
        """A number of each row by the name that it has from level to level."""
        if tile is None or isinstance(tile, Constant):
            yield Fill(value.name, ROW, None if tile is None else float(tile.value))
        else:
            yield Let(value.name, tile if tile.dims else Spread(tile, ROW))

    def weights(self) -> Iterator[Statement]:
        """What rows have of others, what is read of the chunk's start, and what is left at its end."""
        yield from (*self.numbers(), *self.tokens())
        yield from (Fill(weights(*pair).name, SQUARE) for pair in pairs_of(self.mixed))
        yield Loop("level", (*self._squares(), *self.level(LEVEL)))
        for writer in self.mixed.into:
            # What tokens read of their own rows.
            if (own := self.own(writer)) is not None:
                target = weights("q", writer)
                yield Let(target.name, Select(OWN, own, target, SQUARE))

    def own(self, writer: str) -> Tile | None:
        """What a token reads of its own row."""
        of, into = self.mixed.of["q"], self.mixed.into[writer]
        found = (
            product(self.number(of_name("q", p), of[p]), self.number(into_name(writer, p), into[p]))
            for p in self.mixed.places
        )
        return plus(*found)

    def _squares(self) -> Iterator[Statement]:
        """What rows of upper halves have of those of their lower halves."""
        yield Let(SEEN.name, call("seen_across_cut", Lane(TOKEN, ROW), LEVEL, dims=SQUARE))
        for reader, writer in pairs_of(self.mixed):
            target = weights(reader, writer)
            met = [place for place in self.mixed.starts(reader) if place in self.mixed.ends(writer)]
            found = plus(*(Product((start(reader, p), written(end(writer, p))), SQUARE) for p in met))
            if found is not None:
                yield Let(target.name, Select(SEEN, found, target, SQUARE))

    def level(self, level: Tile) -> Iterator[Statement]:
        """The numbers of halves as those of both together."""
        upper, reaches = local("upper", ROW), self.mixed.reaches
        yield Let("upper", call("is_upper", Lane(TOKEN, ROW), level, dims=ROW))
        for p, r in self.pairs:
            yield Let(other(p, r).name, call("of_other_half", carry(p, r), Lane(TOKEN, ROW), level, dims=ROW))
        for role in self.mixed.of:
            places = self.mixed.starts(role)
            taken = [plus(*(times(start(role, p), other(p, r)) for p in places if (p, r) in reaches)) for r in places]
            yield self._both(upper, [start(role, r) for r in places], taken, None)
        for role in self.mixed.into:
            places = self.mixed.ends(role)
            left = [plus(*(times(other(p, r), end(role, r)) for r in places if (p, r) in reaches)) for p in places]
            yield self._both(upper, [end(role, p) for p in places], None, left)
        through = {(p, r): [k for k in self.mixed.places if {(p, k), (k, r)} <= reaches] for p, r in self.pairs}
        later = [plus(*(times(carry(p, k), other(k, r)) for k in through[p, r])) for p, r in self.pairs]
        earlier = [plus(*(times(other(p, k), carry(k, r)) for k in through[p, r])) for p, r in self.pairs]
        yield self._both(upper, [carry(p, r) for p, r in self.pairs], later, earlier)

    def _both(
        self,
        upper: Tile,
        values: Sequence[Value],
        above: Sequence[Tile | None] | None,
        below: Sequence[Tile | None] | None,
    ) -> Statement:
        """What there is of rows of upper halves, and of lower ones: of either it may stay what it is."""
        tops, bottoms = (values if of is None else of for of in (above, below))
        found = [self._either(upper, top, bottom) for top, bottom in zip(tops, bottoms, strict=True)]
        return Bind(tuple(value.name for value in values), tuple(found))

    def _either(self, upper: Tile, top: Tile | None, bottom: Tile | None) -> Tile:
        alike = isinstance(top, Product) and isinstance(bottom, Product) and set(top.factors) == set(bottom.factors)
        return top if alike and top is not None else Select(upper, top or ZERO, bottom or ZERO, ROW)


SEEN = local("seen", SQUARE)
OWN = Compare("==", Lane(TOKEN, ROW), Lane(WRITTEN, (WRITTEN,)), SQUARE)
"""A row, and its own column."""


def other(p: int, r: int) -> Value:
    """The mix of the other half."""
    return local(f"other_{p}_{r}", ROW)


def written(tile: Tile) -> Tile:
    """A number of each row as that of the columns of scores."""
    return Along(tile, (WRITTEN,))


def product(left: Tile | None, right: Tile | None) -> Tile | None:
    """The product of two numbers; None is zero, and 1 no factor."""
    if left is None or right is None:
        return None
    if is_one(left):
        return right
    return left if is_one(right) else times(left, right)


def plus(*tiles: Tile | None) -> Tile | None:
    """The sum of those that are not zero; None of none."""
    found = [tile for tile in tiles if tile is not None]
    total = found[0] if found else None
    for tile in found[1:]:
        assert total is not None
        total = Arithmetic("+", total, tile, total.dims if len(total.dims) >= len(tile.dims) else tile.dims)
    return total
