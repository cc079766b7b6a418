"""Kernels over the rows of chunks at all sizes: the same claims as `bounds`, of tiles whose rows are those of a chunk.

A chunk is a stretch of tokens, its number one of those of its sequence, and a row of it the micro-step of a token: what
is counted by rows has two coordinates. What an access says of its lanes (where they are, where they end, which there
are) is evaluated for one of them; a name is what it was last given, and anything where that is no matter of sizes.
That this is what is printed, and where programs stand, is shown by `test_printed_rows` and `test_printed_places`.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace

import z3

from flagen.kernel.ir import (
    Access,
    Add,
    Apply,
    Bind,
    Choose,
    Fill,
    If,
    Index,
    Let,
    Load,
    Loop,
    Routine,
    Scale,
    Space,
    Statement,
    Store,
    accesses_in,
    statements_in,
)
from flagen.plan.rows import BETWEEN, ROW, TOKEN, WRITTEN
from flagen.plan.tiles import (
    Arithmetic,
    Both,
    Compare,
    Coordinate,
    Either,
    Lane,
    Product,
    Select,
    Size,
    Spread,
    Tile,
    Value,
    Whole,
)
from tests.kernel.bounds import Bounds, Fact, Number, Place, Stretch, Touch, from_zero

AXES = (TOKEN, ROW, BETWEEN, WRITTEN)
"""Those that rows of a chunk lie along."""


@dataclass(frozen=True)
class Named:
    """What a name holds, and what the names in it did then."""

    tile: Tile
    names: Mapping[str, Named]


@dataclass(frozen=True)
class AtChunk(Place):
    """Where a program stands, beside that: the tokens of its chunk, `number` being the chunk's; the first index of each
    dim that it has lanes of, and what names hold."""

    tokens: Stretch | None = None
    starts: Mapping[str, Number] = field(default_factory=dict)
    names: Mapping[str, Named] = field(default_factory=dict)

    def without(self, names: Iterable[str]) -> AtChunk:
        return replace(self, names={name: tile for name, tile in self.names.items() if name not in set(names)})


class Unplaced(Exception):
    """An access that does not say where it is."""


class RowBounds(Bounds):
    """What can be proved of a kernel over the rows of chunks, and what cannot."""

    # --------------------------------------------------------------------------------------------------------- program

    def _program(self) -> AtChunk:
        kernel = self.kernel
        names = ("SEQUENCES", "CHUNKS", "TOKENS", "H", "HV", "STEPS", "BLOCKS", "CHUNK", "BLOCK_TOKENS")
        self.size = {name: z3.Int(name) for name in (*names, "TOKENS_OF_CHUNK", *self.dim)}
        if kernel.steps:
            self.size[kernel.steps] = self.size["STEPS"]
        size, number = self.size, self.own("sequence")
        self.sequence = Stretch(number, self.own("start"), self.own("end"))
        self.chunks = Stretch(number, self.own("first_chunk"), self.own("chunks_end"))
        self.block, self.base = self.own("block"), self.own("block_start")
        key_head, head = self.own("key_head"), self.own("head")
        self.group = Stretch(key_head, self.own("first_head"), self.own("heads_end"))
        facts = [
            *(x >= 1 for x in (*size.values(), *self.lanes_of.values())),
            *from_zero(number, size["SEQUENCES"]),
            *_among(self.sequence, size["TOKENS"]),
            *_among(self.chunks, size["CHUNKS"]),
            *from_zero(key_head, size["H"]),
            *_among(self.group, size["HV"]),
            *from_zero(self.block, size["BLOCKS"]),
            self.base >= 0,
        ]
        if not kernel.steps:
            facts += [size["TOKENS_OF_CHUNK"] == size["CHUNK"], size["STEPS"] == 1]
        at: dict[Space, Number] = {"sequence": number, "key_head": key_head}
        if not kernel.of_key_heads:
            at["head"] = head
            facts += from_zero(head, size["HV"])
        loops = [s for s in statements_in(kernel.body) if isinstance(s, Loop)]
        in_turn = {loop.dim for loop in loops if loop.over == "block"}
        starts: dict[str, Number] = {dim: z3.IntVal(0) for dim in kernel.dims if dim not in in_turn}
        if kernel.block_of is not None:
            at["block"], starts[kernel.block_of] = self.block, self.base
        self.counted = any(loop.counted for loop in loops)
        place = AtChunk(at, tuple(facts), starts=starts)
        self.own_tokens: Stretch | None = None
        if kernel.run == "chunk":
            place = self._at_chunk(place)
            self.own_tokens = place.tokens
        return place

    def _at_chunk(self, place: AtChunk) -> AtChunk:
        """At a chunk of the sequence; a slot is counted as each kind of kernel has it printed."""
        tokens, first = self._chunk(), self.chunks.start + self.sequence.number
        within = tokens.number - self.chunks.start
        walks = self.kernel.run == "sequence" and not self.counted
        slot = (first + within) / 2 if walks else first / 2 + within / 2
        at: dict[Space, Number] = {**place.at, "counted_chunk": tokens.number, "slot": slot}
        return replace(place, at=at, tokens=tokens, facts=(*place.facts, *self._of_sequence(tokens)))

    def _chunk(self) -> Stretch:
        return Stretch(self.own("chunk"), self.own("chunk_start"), self.own("chunk_end"))

    def _of_sequence(self, tokens: Stretch) -> Iterator[Fact]:
        """A chunk ends where the sequence does, if that has no more tokens for it."""
        full = tokens.start + self.size["TOKENS_OF_CHUNK"]
        yield from (self.chunks.start <= tokens.number, tokens.number < self.chunks.end)
        yield from (self.sequence.start <= tokens.start, tokens.start < self.sequence.end)
        yield tokens.end == z3.If(full < self.sequence.end, full, self.sequence.end)

    # ------------------------------------------------------------------------------------------------------ statements

    def _walk(self, body: Iterable[Statement], place: Place) -> None:
        assert isinstance(place, AtChunk)
        for statement in body:
            match statement:
                case Let(target, value):
                    place = replace(place, names={**place.names, target: Named(value, place.names)})
                    continue
                case Load(_, source) if statement.shares:
                    share = self.own("share")
                    inside = replace(place, at={**place.at, "block": share})
                    self._touch(source, inside.where(*from_zero(share, self.size["BLOCKS"])), stores=False)
                case Load(_, source):
                    self._touch(source, place, stores=False)
                case Store(target):
                    self._touch(target, place, stores=True)
                case Loop() | If() | Apply() if not self._concerns(statement):
                    pass
                case Loop(_, inner):
                    self._walk(inner, self._turn(statement, place.without(_assigned(inner))))
                case If():
                    for branch, inside in self._branches(statement, place):
                        self._walk(branch, inside)
                case Apply(routine):
                    self._walk(routine.body, self._in_routine(routine, place))
            place = place.without(_assigned((statement,)))

    def _concerns(self, statement: Statement) -> bool:
        """Whether it has to do with arrays that are asked about."""
        return self.arrays is None or any(access.array.name in self.arrays for access in accesses_in((statement,)))

    def _in_routine(self, routine: Routine, place: AtChunk) -> AtChunk:
        """A routine knows where it stands from what it is told, and has all lanes of dims that it is not told of."""
        told = (*routine.place, "key_head")
        at = {space: there for space, there in place.at.items() if space in told}
        starts = {dim: place.starts[dim] if dim in routine.lanes else z3.IntVal(0) for dim in self.kernel.dims}
        return replace(place, at=at, starts=starts, names={})

    def _turn(self, loop: Loop, place: Place) -> Place:
        assert isinstance(place, AtChunk)
        match loop.over:
            case "chunk":
                return self._at_chunk(place)
            case "block":
                start = self.own(f"{loop.dim}_start")
                inside = replace(place, starts={**place.starts, loop.dim: start})
                return inside.where(*from_zero(start, self.dim[loop.dim]))
            case "member":
                head = self.own("head")
                inside = replace(place, at={**place.at, "head": head})
                return inside.where(self.group.start <= head, head < self.group.end)
            case "earlier" | "later":
                return self._at_neighbour(place, later=loop.over == "later")
            case "level" | "below" | "iteration":
                return place
        raise AssertionError(f"a loop over {loop.over}")

    def _at_neighbour(self, place: AtChunk, *, later: bool) -> AtChunk:
        """At a chunk that shares a slot: the one beside it, which is in memory where that is, too."""
        assert place.tokens is not None
        own, other = place.tokens, self._chunk()
        at: dict[Space, Number] = {**place.at, "counted_chunk": own.number + (1 if later else -1)}
        order = own.before(other), other.before(own)
        facts = (*place.facts, *self._of_sequence(other), *order, other.number == at["counted_chunk"])
        return replace(place, at=at, tokens=other, facts=facts)

    # ---------------------------------------------------------------------------------------------------------- access

    def _touch(self, access: Access, place: Place, *, stores: bool) -> None:
        if self.arrays is not None and access.array.name not in self.arrays:
            return
        assert isinstance(place, AtChunk)
        lanes = _Lanes(self, place)
        try:
            there = [*lanes.of_row(access), *lanes.in_row(access)]
            unmasked = tuple(lanes.unmasked(access))
        except Unplaced as what:
            self.refused.append(f"{access.array.name}: {what}")
            return
        facts = (*place.facts, *lanes.facts)
        if "slot" in access.array.spaces:
            self._claim(f"{access.array.name} has another slot", (*facts, *unmasked), self._in_slot(place))
        at, extents = zip(*there, strict=True)
        self.touches.append(Touch(access, stores, place, at, extents, facts, unmasked))

    # ---------------------------------------------------------------------------------------------------------- claims

    def _in_slot(self, place: AtChunk) -> Fact:
        """A slot is counted in one way where it is stored, and in another where it is loaded."""
        assert place.tokens is not None
        first, within = self.chunks.start + self.sequence.number, place.tokens.number - self.chunks.start
        return place.at["slot"] == first / 2 + within / 2

    def _grid(self, place: Place) -> Iterator[Number]:
        assert isinstance(place, AtChunk)
        yield self.group.number if self.kernel.of_key_heads else place.at["head"]
        yield self.sequence.number
        if self.kernel.block_of is not None:
            yield self.block
        # A program that walks meets itself at another chunk.
        tokens = self.own_tokens or place.tokens
        if tokens is not None:
            yield tokens.number

    def _stretches(self, place: Place) -> Iterator[Stretch]:
        assert isinstance(place, AtChunk)
        yield from (self.sequence, self.chunks, self.group, self._block)
        if place.tokens is not None:
            yield place.tokens


class _Lanes:
    """One lane of a tile: where it is along each axis."""

    def __init__(self, bounds: RowBounds, place: AtChunk) -> None:
        self.bounds, self.place = bounds, place
        self.grouped = ROW in bounds.kernel.order
        self.facts: list[Fact] = []
        self._along: dict[str, Number] = {}
        self._row: tuple[Number, Number] | None = None

    # ----------------------------------------------------------------------------------------------------------- lanes

    def along(self, axis: str) -> Number:
        """The index of the lane: of a row in its chunk, of an index in its dim."""
        if axis not in self._along:
            lane = self.bounds.own(f"lane of {axis}")
            self.facts += from_zero(lane, self._lanes(axis))
            self._along[axis] = lane if axis in AXES else self._start(axis) + lane
        return self._along[axis]

    def _start(self, dim: str) -> Number:
        if dim not in self.place.starts:
            raise Unplaced(f"no block of {dim} here")
        return self.place.starts[dim]

    def _lanes(self, axis: str) -> Number:
        if axis in AXES:
            return self.bounds.size[self._room(axis)]
        return self.bounds.lanes_of[axis]

    def _room(self, axis: str) -> str:
        """How much of an axis there is in a tile, and in memory."""
        if axis not in AXES or (axis == ROW and not self.grouped):
            raise Unplaced(f"nothing lies along {axis} here")
        return "BLOCK_TOKENS" if axis == TOKEN and self.grouped else "CHUNK"

    def row(self) -> tuple[Number, Number]:
        """Which token of its chunk a row has, and which of its micro-steps."""
        if self._row is None:
            token, step = self.bounds.own("token of row"), self.bounds.own("step of row")
            self.facts += (token >= 0, token <= self.along(ROW), *from_zero(step, self.bounds.size["STEPS"]))
            self._row = token, step
        return self._row

    def token(self, axis: str) -> Number:
        """The token of a lane along an axis."""
        if self.place.tokens is None or axis not in (TOKEN, ROW):
            raise Unplaced(f"no token along {axis}")
        return self.place.tokens.start + (self.along(TOKEN) if axis == TOKEN else self.row()[0])

    # ----------------------------------------------------------------------------------------------------- coordinates

    def of_row(self, access: Access) -> Iterator[tuple[Number, Number]]:
        """Where its row is in each space, and how many there are."""
        extents, size = self._extents(access), self.bounds.size
        for space, index in zip(access.array.spaces, access.at, strict=True):
            if space == "row":
                if index != Index("row", axis=ROW):
                    raise Unplaced("no row")
                yield self.token(ROW), size["TOKENS"]
                yield self.row()[1], size["STEPS"]
            else:
                yield self._coordinate(index), extents[space]

    def _coordinate(self, index: Index) -> Number:
        if index.number is not None:
            return z3.IntVal(index.number)
        if index.space == "token":
            return self.token(index.axis or "")
        if index.axis is not None or index.space not in self.place.at:
            raise Unplaced(f"no {index.space} here")
        return self.place.at[index.space]

    def _extents(self, access: Access) -> Mapping[Space, Number]:
        size = self.bounds.size
        return {
            "sequence": size["SEQUENCES"],
            "counted_chunk": size["CHUNKS"],
            "slot": (size["CHUNKS"] + size["SEQUENCES"]) / 2,
            "token": size["TOKENS"],
            "head": size["HV"],
            "key_head": size["H"],
            "block": size["BLOCKS"],
            "loop": z3.IntVal(access.array.loops),
        }

    def in_row(self, access: Access) -> Iterator[tuple[Number, Number]]:
        """Its index in each dim of the array, and the size of that."""
        placed = dict(access.places)
        for dim in access.array.dims:
            extent = self.bounds.size[self._room(dim) if dim in AXES else dim]
            yield (self.number(placed[dim]) if dim in placed else self.along(dim)), extent

    def unmasked(self, access: Access) -> Iterator[Fact]:
        """What holds of it where it is loaded or stored."""
        ends = dict(access.ends)
        for dim in access.within:
            if dim in ends:
                yield self.along(dim) < self.number(ends[dim])
            elif dim in AXES:
                assert self.place.tokens is not None
                end = self.place.tokens.end if self.grouped else self.bounds.sequence.end
                yield self.token(dim) < end
            else:
                yield self.along(dim) < self.bounds.dim[dim]
        if access.where is not None:
            yield self.holds(access.where)

    # ----------------------------------------------------------------------------------------------------- expressions

    def number(self, tile: Tile) -> Number:
        """What an expression is in this lane."""
        match tile:
            case Lane(axis):
                return self.along(axis)
            case Whole(value):
                return z3.IntVal(value)
            case Size(name) if name in self.bounds.size:
                return self.bounds.size[name]
            case Coordinate("block") if "block" in self.place.at:
                return self.place.at["block"]
            case Coordinate("chunk of sequence") if self.place.tokens is not None:
                return self.place.tokens.number - self.bounds.chunks.start
            case Coordinate("chunks of sequence"):
                return self.bounds.chunks.end - self.bounds.chunks.start
            case Arithmetic("+", left, right):
                return self.number(left) + self.number(right)
            case Arithmetic("-", left, right):
                return self.number(left) - self.number(right)
            case Arithmetic("%", left, Whole(value)):
                return self.number(left) % value
            case Product((left, right)):
                return self.number(left) * self.number(right)
            case Select(where, value, other):
                return z3.If(self.holds(where), self.number(value), self.number(other))
            case Spread(value):
                return self.number(value)
            case Value(name) if name in self.place.names:
                return self._named(name).number(self.place.names[name].tile)
        return self.bounds.own("anything")

    def holds(self, tile: Tile) -> Fact:
        """Whether a comparison, or what is made of some, holds in this lane."""
        match tile:
            case Compare(op, left, right):
                return _COMPARISONS[op](self.number(left), self.number(right))
            case Both(left, right):
                return z3.And(self.holds(left), self.holds(right))
            case Either(left, right):
                return z3.Or(self.holds(left), self.holds(right))
            case Spread(value):
                return self.holds(value)
            case Value(name) if name in self.place.names:
                return self._named(name).holds(self.place.names[name].tile)
        return self.bounds.own("anything") == 0

    def _named(self, name: str) -> _Lanes:
        """The same lane, where the names are those that there were when this one was given its value."""
        there = _Lanes(self.bounds, replace(self.place, names=self.place.names[name].names))
        there.facts, there._along, there._row = self.facts, self._along, self._row
        return there


_COMPARISONS: Mapping[str, Callable[[Number, Number], Fact]] = {
    "==": operator.eq,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}


def _among(stretch: Stretch, extent: Number) -> tuple[Fact, ...]:
    return stretch.start >= 0, stretch.start <= stretch.end, stretch.end <= extent


def _assigned(body: Iterable[Statement]) -> Iterator[str]:
    """The names that are given another value."""
    for statement in statements_in(body):
        match statement:
            case Load(target) | Let(target) | Add(target) | Fill(target) | Scale(target) | Choose(_, target):
                yield target
            case Bind(targets):
                yield from targets
            case Apply(routine):
                yield from routine.carried
