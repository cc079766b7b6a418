"""Kernels at all sizes, by z3: no access leaves its array, and no two programs of a launch meet in one element.

Exact execution proves what a kernel computes at sizes of a few elements; this proves where it reads and writes at any:
symbolic numbers and lengths of sequences, heads and groups of heads, dims, blocks, micro-steps, tokens of a segment or
a chunk.

A program stands somewhere in the grid, in one turn of each loop around an access, and looks at one lane of each dim:
integers with facts about them. A lane along the axis of tokens is one of the chunk's. Where a sequence, a segment or a
block begins is such an integer, too, and not a product: what there is to know is their order, which keeps arithmetic
linear; so it is with the rows of a sequence's chunks. `tests.kernel.lemmas` has what comes from products, proved
from the formulas that are printed. Of what a launcher hands on, three things are taken for granted: that `cu_seqlens`
does not decrease and ends with the number of tokens, which a call checks, and that `first_segment` and `first_stretch`
count the segments and the stretches of the sequences before. So is that a program finds its place from its number.

An address is what a row's number comes to, times the elements of a row, and the lanes: in 64 bits where the row counts
sequences, segments, chunks or tokens first, as those are; in 32 bits otherwise, and the lanes always. `fits` says
which, and the last of the lemmas that it fits where an array without tokens has less than 2^31 elements, and dims are
up to 2^15.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Literal

import z3

from flagen.kernel.ir import (
    Access,
    Alone,
    Condition,
    FirstBlock,
    Given,
    HasEnd,
    HasStart,
    If,
    Index,
    Kernel,
    LastToken,
    Load,
    Loop,
    Space,
    Statement,
    Store,
)
from flagen.plan.rows import TOKEN

Number = z3.ArithRef
Fact = z3.BoolRef

_TIMEOUT_MS = 10_000
WIDE: frozenset[Space] = frozenset({"sequence", "segment", "chunk", "stretch", "counted_chunk", "slot", "token", "row"})
"""What is counted in 64 bits: there may be 2^31 of it, or of it times the elements of a row."""


@dataclass(frozen=True)
class Stretch:
    """The tokens of a sequence or a segment, `number` being which."""

    number: Number
    start: Number
    end: Number

    @property
    def numbers(self) -> tuple[Number, Number, Number]:
        return self.number, self.start, self.end

    def before(self, other: Stretch) -> Fact:
        return z3.Implies(self.number < other.number, self.end <= other.start)

    def same(self, other: Stretch) -> Fact:
        both = z3.And(self.start == other.start, self.end == other.end)
        return z3.Implies(self.number == other.number, both)


@dataclass(frozen=True)
class Place:
    """Where a program stands: its coordinates, its segment if it is in one, the first token of its chunk if it is in
    one, what holds there, and which of it is so of the launch, for all programs alike, or is not."""

    at: Mapping[Space, Number]
    facts: tuple[Fact, ...]
    segment: Stretch | None = None
    chunk: Number | None = None
    launch: frozenset[tuple[tuple[Condition, ...], bool]] = frozenset()

    def where(self, *facts: Fact) -> Place:
        return replace(self, facts=(*self.facts, *facts))

    def of_launch(self, conditions: tuple[Condition, ...], hold: bool) -> Place:
        """Where these hold, or do not, if they are conditions on the launch."""
        if not all(isinstance(condition, Given | Alone) for condition in conditions):
            return self
        return replace(self, launch=self.launch | {(conditions, hold)})


@dataclass(frozen=True)
class Touch:
    """An access where it happens: its coordinates, and that of one lane of each of its dims, how many there are of
    each, what holds of them, and what of lanes that are not masked."""

    access: Access
    stores: bool
    place: Place
    at: tuple[Number, ...]
    extents: tuple[Number, ...]
    facts: tuple[Fact, ...]
    unmasked: tuple[Fact, ...]


@dataclass(frozen=True)
class _Stands:
    """Where a program stands that touches an element: what holds there, the element, what tells programs apart, and
    what follows one another, of all there are and inside of a sequence."""

    facts: tuple[Fact, ...]
    at: tuple[Number, ...]
    grid: tuple[Number, ...]
    stretches: tuple[Stretch, ...]
    inside: tuple[Stretch, ...]


@dataclass
class Bounds:
    """What can be proved of a kernel, and what cannot."""

    kernel: Kernel
    arrays: Collection[str] | None = None
    """The arrays that are asked about; all of them by default."""
    asked: Access | None = None
    """The access that is, up to the first refusal, if not each of theirs is."""
    proved: int = 0
    refused: list[str] = field(default_factory=list)
    touches: list[Touch] = field(default_factory=list)
    _own: list[tuple[Number, Number]] = field(default_factory=list)
    """Numbers of a program, and the same of another one."""
    _others: dict[int, _Stands] = field(default_factory=dict)
    """Where other programs stand, by the identity of what they touch."""

    def __post_init__(self) -> None:
        self.size = {
            name: z3.Int(name)
            for name in "SEQUENCES SEGMENTS CHUNKS STRETCHES TOKENS SEGMENT H HV STEPS BLOCKS".split()
        }
        self.dim = {dim: z3.Int(dim) for dim in self.kernel.dims}
        self.lanes_of = {dim: z3.Int(f"BLOCK_{dim}") for dim in self.kernel.order}
        program = self._program()
        self._walk(self.kernel.body, program)
        for claim, touches in self._claims():
            if self.asked is None or (self.asked in [touch.access for touch in touches] and not self.refused):
                claim(*touches)

    def _claims(self) -> Iterator[tuple[Callable[..., None], tuple[Touch, ...]]]:
        yield from ((self._within, (touch,)) for touch in self.touches)
        for number, touch in enumerate(self.touches):
            for other in self.touches[number:]:
                if (touch.stores or other.stores) and touch.access.array.name == other.access.array.name:
                    yield self._apart, (touch, other)

    # --------------------------------------------------------------------------------------------------------- program

    def own(self, name: str) -> Number:
        """A number that one program, or one turn of a loop, has for itself."""
        name = f"{name}.{len(self._own)}"
        self._own.append((z3.Int(name), z3.Int(f"{name}'")))
        return self._own[-1][0]

    def _program(self) -> Place:
        size, kernel = self.size, self.kernel
        number, start, end = self.own("sequence"), self.own("start"), self.own("end")
        self.first, self.count = self.own("first_segment"), self.own("segments")
        self.sequence = Stretch(number, start, end)
        head, key_head = self.own("head"), self.own("key_head")
        self.block, self.base = self.own("block"), self.own("block_start")
        self.chunks = Stretch(number, self.own("first_chunk"), self.own("chunks_end"))
        self.rows = Stretch(number, self.own("first_stretch"), self.own("stretches_end"))
        facts = [
            *(x >= 1 for x in (*self.dim.values(), *self.lanes_of.values())),
            *(size[name] >= 1 for name in ("SEGMENT", "H", "STEPS", "BLOCKS")),
            *(self.lanes_of[dim] >= self.dim[dim] for dim in self.dim if dim != kernel.block_of),
            *from_zero(number, size["SEQUENCES"]),
            start >= 0,
            start <= end,
            end <= size["TOKENS"],
            self.first >= 0,
            self.count >= 0,
            self.first + self.count <= size["SEGMENTS"],
            self.chunks.start >= 0,
            self.chunks.start <= self.chunks.end,
            self.chunks.end <= size["CHUNKS"],
            self.rows.start >= 0,
            self.rows.start < self.rows.end,
            self.rows.end <= size["STRETCHES"],
            *from_zero(head, size["HV"]),
            *from_zero(key_head, size["H"]),
            *from_zero(self.block, size["BLOCKS"]),
            self.base >= 0,
        ]
        if kernel.block_of is None:
            facts += [size["BLOCKS"] == 1, self.base == 0]
        at: dict[Space, Number] = {"sequence": number, "head": head, "key_head": key_head, "block": self.block}
        place = Place(at, tuple(facts))
        if kernel.run == "stretch":
            return self._in_stretch(place)
        return self._in_segment(place) if kernel.run == "segment" else place

    def _in_stretch(self, place: Place) -> Place:
        """A stretch begins with a place of its sequence, be it the one behind the last token; tokens beyond are
        masked."""
        number, start = self.own("stretch"), self.own("stretch_start")
        inside = replace(place, at={**place.at, "stretch": number}, chunk=start)
        rows = (self.rows.start <= number, number < self.rows.end)
        return inside.where(*rows, self.sequence.start <= start, start <= self.sequence.end)

    def _in_segment(self, place: Place) -> Place:
        number, start, end = self.own("segment"), self.own("segment_start"), self.own("segment_end")
        facts = (
            number >= self.first,
            number < self.first + self.count,
            self.sequence.start <= start,
            start < end,
            end <= start + self.size["SEGMENT"],
            end <= self.sequence.end,
        )
        inside = replace(place, at={**place.at, "segment": number}, segment=Stretch(number, start, end))
        return inside.where(*facts)

    def _in_chunk(self, place: Place) -> Place:
        """A chunk begins with a token of its sequence; where it ends, its tokens are masked."""
        number, start = self.own("chunk"), self.own("chunk_start")
        inside = replace(place, at={**place.at, "chunk": number}, chunk=start)
        rows = (self.chunks.start <= number, number < self.chunks.end)
        return inside.where(*rows, self.sequence.start <= start, start < self.sequence.end)

    # ------------------------------------------------------------------------------------------------------ statements

    def _walk(self, body: Iterable[Statement], place: Place) -> None:
        for statement in body:
            match statement:
                case Load(_, source):
                    self._touch(source, place, stores=False)
                case Store(target):
                    self._touch(target, place, stores=True)
                case Loop(_, inner):
                    self._walk(inner, self._turn(statement, place))
                case If():
                    for branch, inside in self._branches(statement, place):
                        self._walk(branch, inside)

    def _branches(self, statement: If, place: Place) -> Iterator[tuple[Iterable[Statement], Place]]:
        """Both branches, and what holds in each."""
        conditions = statement.conditions
        holds = z3.And(*(self._condition(condition, place) for condition in conditions))
        yield statement.then, place.where(holds).of_launch(conditions, True)
        yield statement.otherwise, place.where(z3.Not(holds)).of_launch(conditions, False)

    def _turn(self, loop: Loop, place: Place) -> Place:
        """In one turn of a loop."""
        if loop.over == "segment":
            return self._in_segment(place)
        if loop.over == "chunk":
            return self._in_chunk(place)
        turn = self.own(loop.over)
        inside = replace(place, at={**place.at, loop.over: turn})
        if loop.over == "micro_step":
            return inside.where(*from_zero(turn, self.size["STEPS"]))
        if place.segment is None:
            return inside.where(self.sequence.start <= turn, turn < self.sequence.end)
        inside = replace(inside, at={**inside.at, "place": turn - place.segment.start})
        if loop.but_last:
            inside = inside.where(place.segment.number < self.first + self.count - 1)
        return inside.where(place.segment.start <= turn, turn < place.segment.end)

    def _condition(self, condition: Condition, place: Place) -> Fact:
        match condition:
            case Given(array, given):
                return z3.Bool(f"given {array.name}") == given
            case FirstBlock():
                return self.block == 0
            case LastToken():
                assert place.segment is not None
                return place.at["token"] == place.segment.end - 1
            case HasStart():
                assert place.chunk is not None
                return place.chunk == self.sequence.start
            case HasEnd():
                assert place.chunk is not None
                return self.sequence.end < place.chunk + self.lanes_of[TOKEN]
            case Alone(dim):
                return z3.And(self.size["H"] == self.size["HV"], self.dim[dim] <= self.lanes_of[dim])

    def _touch(self, access: Access, place: Place, *, stores: bool) -> None:
        if self.arrays is not None and access.array.name not in self.arrays:
            return
        at, facts, unmasked = [], list(place.facts), []
        for index in access.at:
            there = self._coordinate(index, place, facts)
            if there is None:
                self.refused.append(f"{access.array.name}: a coordinate that there is none of here")
                return
            at.append(there)
            if index.axis in access.within:
                unmasked += [there < self.sequence.end, *([there >= self.sequence.start] if index.ago else [])]
        lanes = []
        for dim in access.array.dims:
            lane = self._lane(dim, facts)
            lanes.append(self.base + lane if dim == self.kernel.block_of else lane)
        unmasked += [
            lane < self.dim[dim] for dim, lane in zip(access.array.dims, lanes, strict=True) if dim in access.within
        ]
        spaces = self._extents(access)
        extents = (*(spaces[space] for space in access.array.spaces), *(self.dim[dim] for dim in access.array.dims))
        self.touches.append(Touch(access, stores, place, (*at, *lanes), extents, tuple(facts), tuple(unmasked)))

    def _coordinate(self, index: Index, place: Place, facts: list[Fact]) -> Number | None:
        """Where an access stands in a space: a lane of an axis has its own token of the chunk."""
        if index.number is not None:
            return z3.IntVal(index.number)
        if index.axis is None:
            return place.at.get(index.space)
        return None if place.chunk is None else place.chunk + self._lane(index.axis, facts) - index.ago

    def _lane(self, axis: str, facts: list[Fact]) -> Number:
        """One of the lanes of an axis."""
        lane = self.own(f"lane of {axis}")
        facts += from_zero(lane, self.lanes_of[axis])
        return lane

    # ---------------------------------------------------------------------------------------------------------- claims

    def _within(self, touch: Touch) -> None:
        """Every coordinate is one of its space, every lane one of its dim."""
        array, places = touch.access.array, zip(touch.at, touch.extents, strict=True)
        inside = [fact for x, extent in places for fact in from_zero(x, extent)]
        self._claim(f"{array.name} is left", (*touch.facts, *touch.unmasked), z3.And(*inside))
        if not fits(touch.access):
            self.refused.append(f"{array.name}: its rows are counted in 32 bits")

    def _extents(self, access: Access) -> Mapping[Space, Number]:
        return {
            "sequence": self.size["SEQUENCES"],
            "segment": self.size["SEGMENTS"],
            "chunk": self.size["CHUNKS"],
            "stretch": self.size["STRETCHES"],
            "token": self.size["TOKENS"],
            "micro_step": self.size["STEPS"],
            "head": self.size["HV"],
            "key_head": self.size["H"],
            "block": self.size["BLOCKS"],
            "place": self.size["SEGMENT"],
            "loop": z3.IntVal(access.array.loops),
        }

    def _apart(self, touch: Touch, other: Touch) -> None:
        """No other program touches the element that one does, where one of the two stores."""
        if any((conditions, not hold) in other.place.launch for conditions, hold in touch.place.launch):
            self.proved += 1  # No launch has both.
            return
        here, there = self._stands(touch), self._of_other(other)
        facts = [*here.facts, *there.facts]
        for one, two in zip(
            here.stretches, there.stretches, strict=False
        ):  # Where only one has a last one, it is left.
            facts += (one.before(two), two.before(one), one.same(two))
        for one, two in zip(here.inside, there.inside, strict=True):
            together = here.grid[0] == there.grid[0]
            facts.append(z3.Implies(together, z3.And(one.before(two), two.before(one), one.same(two))))
        facts.append(z3.Or(*(x != y for x, y in zip(here.grid, there.grid, strict=True))))
        same = z3.And(*(x == y for x, y in zip(here.at, there.at, strict=True)))
        self._claim(f"{touch.access.array.name} is met by two programs", facts, z3.Not(same))

    def _stands(self, touch: Touch) -> _Stands:
        stretches, grid = tuple(self._stretches(touch.place)), tuple(self._grid(touch.place))
        return _Stands((*touch.facts, *touch.unmasked), touch.at, grid, stretches, tuple(self._inside(touch.place)))

    def _of_other(self, touch: Touch) -> _Stands:
        """Where another program stands that touches the same: all in one expression, for it takes time to go through
        one."""
        if id(touch) not in self._others:
            own = self._stands(touch)
            follow = (*own.stretches, *own.inside)
            parts = [*own.facts, *own.at, *own.grid, *(x for each in follow for x in each.numbers)]
            together = z3.Function("together", *(x.sort() for x in parts), z3.BoolSort())
            found = iter(z3.substitute(together(*parts), *self._own).children())
            facts, at, grid = (tuple(islice(found, len(each))) for each in (own.facts, own.at, own.grid))
            stretches = tuple(Stretch(*islice(found, 3)) for _ in own.stretches)
            inside = tuple(Stretch(*islice(found, 3)) for _ in own.inside)
            self._others[id(touch)] = _Stands(facts, at, grid, stretches, inside)
        return self._others[id(touch)]

    def _grid(self, place: Place) -> Iterator[Number]:
        """What tells programs apart."""
        yield from (self.sequence.number, place.at["head"], self.block)
        if self.kernel.run in ("segment", "stretch"):
            yield place.at[self.kernel.run]

    def _stretches(self, place: Place) -> Iterator[Stretch]:
        """What follows one another: sequences, their segments and rows of chunks, blocks; segments of one."""
        number = self.sequence.number
        segments = Stretch(number, self.first, self.first + self.count)
        yield from (self.sequence, segments, self.chunks, self.rows, self._block)
        if place.segment is not None:
            yield place.segment

    def _inside(self, place: Place) -> Iterator[Stretch]:
        """What follows one another in one sequence."""
        if self.kernel.run == "stretch":
            assert place.chunk is not None
            yield Stretch(place.at["stretch"], place.chunk, place.chunk + self.lanes_of[TOKEN])

    @property
    def _block(self) -> Stretch:
        lanes = self.lanes_of.get(self.kernel.block_of or "", z3.IntVal(1))
        return Stretch(self.block, self.base, self.base + lanes)

    def _claim(self, refused: str, facts: Sequence[Fact], claim: Fact) -> None:
        match verdict(facts, claim):
            case "follows":
                self.proved += 1
            case "does not follow":
                self.refused.append(refused)
            case other:
                self.refused.append(f"{refused}: {other}")


def fits(access: Access) -> bool:
    """Whether what may be long is counted first, in 64 bits, or there is none of it."""
    spaces = access.array.spaces
    return spaces[:1] == () or spaces[0] in WIDE or WIDE.isdisjoint(spaces)


def from_zero(x: Number, extent: Number) -> tuple[Fact, Fact]:
    """x is one of 0 to `extent`."""
    return x >= 0, x < extent


Verdict = Literal["follows", "does not follow", "nothing can be there", "not known"]


def verdict(facts: Sequence[Fact], claim: Fact) -> Verdict:
    """Whether a claim follows from facts, which have to be possible: from what cannot be, everything does."""
    key = _renumbered("\n".join(map(_text, (*facts, claim))))
    if key not in _KNOWN:
        _KNOWN[key] = _verdict(facts, claim)
    return _KNOWN[key]


_KNOWN: dict[str, Verdict] = {}
"""What is known by now: many an access is like one in another place, or kernel."""
_TEXTS: dict[int, tuple[Fact, str]] = {}
"""How expressions are written, by their identity, which they keep for as long as they are here."""


def _text(fact: Fact) -> str:
    if fact.get_id() not in _TEXTS:
        _TEXTS[fact.get_id()] = fact, fact.sexpr()
    return _TEXTS[fact.get_id()][1]


def _renumbered(text: str) -> str:
    """A claim whose numbers have names that do not say how many there were before, nor which arrays are given."""
    names: dict[str, str] = {}
    return re.sub(r"given \w+|\.\d+", lambda found: names.setdefault(found[0], f".{len(names)}"), text)


def _verdict(facts: Sequence[Fact], claim: Fact) -> Verdict:
    solver = z3.Solver()
    solver.set("timeout", _TIMEOUT_MS)
    solver.add(*facts)
    solver.push()
    solver.add(z3.Not(claim))
    answer = solver.check()
    if answer != z3.unsat:
        return "does not follow" if answer == z3.sat else "not known"
    solver.pop()
    possible = solver.check()
    if possible == z3.sat:
        return "follows"
    return "nothing can be there" if possible == z3.unsat else "not known"
