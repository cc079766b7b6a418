"""Runs a kernel over its whole grid in exact arithmetic.

Memory that nobody has written, and what no number is, is poison: whatever is computed from it is poison, and only a
mask leaves it out. A program that reads or writes beyond an array, an element that two programs write, or that one
reads and another writes, is an error where it happens.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import reduce

from gmpy2 import mpq

from flagen.kernel.elementary import number
from flagen.kernel.elements import Element, add, multiply, subtract
from flagen.kernel.ir import (
    Access,
    Add,
    Apply,
    Array,
    Barrier,
    Bind,
    Choose,
    Condition,
    Fill,
    FirstBlock,
    Given,
    If,
    Index,
    Kernel,
    LastToken,
    Let,
    Load,
    Loop,
    Note,
    Operands,
    Row,
    Scale,
    Space,
    Statement,
    Store,
    statements_in,
)
from flagen.kernel.memory import Memory
from flagen.kernel.registers import Data, Lanes
from flagen.kernel.sizes import Illegal
from flagen.plan.rows import ROW
from flagen.plan.tiles import Call, Tile
from flagen.spec.model import Dims


@dataclass
class _Use:
    """Who has written and read the elements of an array during a launch, and between which barriers."""

    writer: dict[int, int] = field(default_factory=dict)
    readers: dict[int, set[int]] = field(default_factory=dict)
    written: dict[int, int] = field(default_factory=dict)
    read: dict[int, int] = field(default_factory=dict)


def launch(kernel: Kernel, memory: Memory) -> None:
    """Run a kernel over its grid, unless it ran before and found the same arrays."""
    stored = {s.target.array.name for s in statements_in(kernel.body) if isinstance(s, Store)}
    named = [array.name for array in kernel.arrays if array.name in memory.arrays]
    found = tuple(None if name in memory.fresh else memory.arrays[name] for name in named)
    known = (id(kernel), *named, *map(id, found))
    if known not in memory.launched:
        # What an earlier launch left is not written over: others may find it, too.
        memory.arrays |= {name: list(memory.arrays[name]) for name in named if name in stored}
        Launch(kernel, memory).run()
        memory.launched[known] = (kernel, *found), {name: memory.arrays[name] for name in named if name in stored}
    memory.arrays |= memory.launched[known][1]
    memory.fresh -= stored


class Launch:
    """One kernel over its grid."""

    def __init__(self, kernel: Kernel, memory: Memory) -> None:
        self.kernel, self.memory, self.registers = kernel, memory, memory.registers_of(kernel)
        self.sizes = self.registers.sizes
        self.uses: dict[str, _Use] = {}
        self.stored = {s.target.array.name for s in statements_in(kernel.body) if isinstance(s, Store)}
        self._extents_of: dict[str, tuple[int, ...]] = {}
        self._lanes: dict[tuple[Dims, Dims, tuple[int, ...]], list[int | None]] = {}
        self.barriers = 0
        self.program = 0

    def run(self) -> None:
        blocks = self.sizes.blocks_of(self.kernel.block_of)
        grid = itertools.product(self._runs(), self._heads(), range(blocks))
        for program, (run, heads, block) in enumerate(grid):
            self.program = program
            self.registers.at = {**run, **heads, "block": block}
            self.registers.chunk = None
            if self.kernel.run == "chunk":
                self._stand_at(self.at["sequence"], self.at["counted_chunk"])
            self.registers.values = {}
            self._body(self.kernel.body)

    def _heads(self) -> Iterator[dict[Space, int]]:
        if self.kernel.of_key_heads:
            for head in range(self.sizes.H):
                yield {"key_head": head}
            return
        for head in range(self.sizes.HV):
            yield {"head": head, "key_head": head // (self.sizes.HV // self.sizes.H)}

    @property
    def at(self) -> dict[Space, int]:
        """Where the program stands."""
        return self.registers.at

    # ------------------------------------------------------------------------------------------------------------ runs

    def _runs(self) -> Iterator[dict[Space, int]]:
        if self.kernel.run == "chunk":
            for sequence, (start, end) in enumerate(itertools.pairwise(self.sizes.first_chunks)):
                for chunk in range(start, end):
                    yield {"sequence": sequence, "counted_chunk": chunk}
            return
        first = 0
        for sequence, segments in enumerate(self.sizes.segments):
            if self.kernel.run == "sequence":
                yield {"sequence": sequence}
                continue
            for segment in range(first, first + segments):
                yield {"sequence": sequence, "segment": segment}
            first += segments

    def _segments(self) -> range:
        """The segments of the sequence."""
        first = sum(self.sizes.segments[: self.at["sequence"]])
        return range(first, first + self.sizes.segments[self.at["sequence"]])

    def _span(self) -> range:
        """The tokens of the sequence, or of the segment that the program stands in."""
        start, end = self.sizes.borders[self.at["sequence"] :][:2]
        if "segment" not in self.at:
            return range(start, end)
        start += (self.at["segment"] - self._segments().start) * self.sizes.segment
        return range(start, min(start + self.sizes.segment, end))

    def _chunks(self, reverse: bool) -> Iterator[int]:
        """Each chunk of the sequence, whose tokens are then those along the axis of tokens."""
        sequence = self.at["sequence"]
        chunks = range(*self.sizes.first_chunks[sequence : sequence + 2])
        for chunk in reversed(chunks) if reverse else chunks:
            self._stand_at(sequence, chunk)
            yield self.sizes.chunk_at(sequence, self.registers.tokens.start)
        self.registers.chunk = None
        for space in ("counted_chunk", "slot"):
            self.at.pop(space, None)

    def _stand_at(self, sequence: int, chunk: int) -> None:
        """Have the tokens of a chunk along the axis of tokens."""
        start, end = self.sizes.borders[sequence : sequence + 2]
        within = chunk - self.sizes.first_chunks[sequence]
        start += within * self.sizes.chunk
        self.registers.chunk = range(start, min(start + self.sizes.chunk, end))
        self.at["counted_chunk"] = chunk
        self.at["slot"] = (self.sizes.first_chunks[sequence] + sequence) // 2 + within // 2

    def _neighbours(self, later: bool) -> Iterator[int]:
        """The chunks before this one, or behind it, that have a slot with it: it is stood at each of them in turn."""
        sequence, chunk = self.at["sequence"], self.at["counted_chunk"]
        first, end = self.sizes.first_chunks[sequence : sequence + 2]
        start = first + (chunk - first) // 2 * 2
        for other in reversed(range(chunk + 1, min(start + 2, end))) if later else range(start, chunk):
            self._stand_at(sequence, other)
            yield other
        self._stand_at(sequence, chunk)

    def _blocks(self, dim: str) -> Iterator[int]:
        for block in range(-(-self.sizes.dims[dim] // self.sizes.blocks[dim])):
            self.registers.turns[dim] = block
            yield block
        self.registers.turns.pop(dim, None)

    def _members(self) -> Iterator[int]:
        """The value heads of the key head."""
        group = self.sizes.HV // self.sizes.H
        for member in range(group):
            self.at["head"] = self.at["key_head"] * group + member
            yield member
        self.at.pop("head", None)

    def _turns(self, loop: Loop) -> Iterable[int]:
        if loop.wanted and not self.memory.asked - {*dict(self.kernel.choices)[loop.wanted]}:
            return ()
        match loop.over:
            case "segment":
                turns = self._segments()
            case "chunk":
                return self._chunks(loop.reverse)
            case "earlier" | "later":
                return self._neighbours(loop.over == "later")
            case "block":
                return self._blocks(loop.dim)
            case "member":
                return self._members()
            case "level":
                first = self.sizes.named(loop.first) if loop.first else 0
                return range(first, self.sizes.named("LEVELS"))
            case "token":
                left_out = loop.but_last and self.at["segment"] == self._segments()[-1]
                turns = range(0) if left_out else self._span()
            case "micro_step":
                turns = range(next(iter(self.sizes.steps.values())))
        return reversed(turns) if loop.reverse else turns

    # ------------------------------------------------------------------------------------------------------ statements

    def _body(self, body: Sequence[Statement]) -> None:
        for statement in body:
            self._statement(statement)

    def _statement(self, statement: Statement) -> None:
        match statement:
            case Load(target):
                self.registers.values[target] = self._load(statement)
            case Let(target, value):
                self.registers.values[target] = self.registers.value(value)
            case Add(target, value, dims, subtracts):
                old, over = self.registers.named(target), self.registers.sorted(dims)
                if old.dims != over:
                    raise Illegal(f"{target} is over {old.dims}, and is added to as if it were over {over}")
                added = subtract if subtracts else add
                self.registers.values[target] = self.registers.map(added, over, (old, self.registers.value(value)))
            case Bind(targets, values):
                found = [lanes for value in values for lanes in self._returned(value)]
                self.registers.values |= dict(zip(targets, found, strict=True))
            case Scale(target, value, dims):
                old, over = self.registers.named(target), self.registers.sorted(dims)
                if old.dims != over:
                    raise Illegal(f"{target} is over {old.dims}, and is scaled as if it were over {over}")
                self.registers.values[target] = self.registers.map(multiply, over, (old, self.registers.value(value)))
            case Apply(routine):
                outside = self.registers.values
                self.registers.values = {name: self.registers.named(name) for name in routine.carried}
                self._body(routine.body)
                self.registers.values = outside | {name: self.registers.named(name) for name in routine.carried}
            case Fill():
                self.registers.values[statement.target] = self._fill(statement)
            case Choose(condition, target, value):
                new = self.registers.value(value)
                self.registers.values[target] = self.registers.named(target) if self._holds(condition) else new
            case Store(target, value):
                self._store(target, self.registers.value(value))
            case Loop(over, body):
                for turn in self._turns(statement):
                    self._enter(statement, turn)
                    if over == "token":
                        self.at["place"] = turn - self._span().start
                    self._body(body)
                self._leave(statement)
            case If(conditions, then, otherwise):
                self._body(then if all(map(self._holds, conditions)) else otherwise)
            case Barrier():
                self.barriers += 1
            case Row() | Note() | Operands():
                pass

    def _enter(self, loop: Loop, turn: int) -> None:
        """Stand where a turn of a loop has its program."""
        match loop.over:
            case "segment" | "chunk" | "token" | "micro_step" as space:
                self.at[space] = turn
            case "member" | "level" as name:
                self.registers.values[name] = Lanes((), [number(turn)])

    def _leave(self, loop: Loop) -> None:
        spaces: tuple[Space, ...] = ("segment", "chunk", "token", "micro_step", "place")
        for space in spaces:
            if space != self.kernel.run and space in (loop.over, "place"):
                self.at.pop(space, None)

    def _returned(self, value: Tile) -> tuple[Lanes, ...]:
        """What several names are given: all that a function returns, or one tile."""
        return self.registers.called(value) if isinstance(value, Call) else (self.registers.value(value),)

    def _holds(self, condition: Condition) -> bool:
        match condition:
            case Given(array, given):
                return (array.name in self.memory.arrays) == given
            case FirstBlock():
                return self.at["block"] == 0
            case LastToken():
                return self.at["token"] == self._span()[-1]

    def _fill(self, fill: Fill) -> Lanes:
        dims, value = self.registers.sorted(fill.dims), mpq(0) if fill.number is None else number(fill.number)
        data: Data = [value for _ in self.registers.points(dims)]
        if fill.ends:
            data = [value if inside else mpq(0) for inside in self.registers.inside(dims, dims)]
        return Lanes(dims, data)

    # ---------------------------------------------------------------------------------------------------------- memory

    def _load(self, load: Load) -> Lanes:
        source, dims = load.source, self.registers.sorted(load.source.dims)
        if source.array.name not in self.memory.arrays:
            raise Illegal(f"{source.array.name} is not given")
        elements, fill = self.memory.arrays[source.array.name], number(load.fill)
        if load.shares:
            return self._load_shares(source, elements, fill)
        at = self._elements(source)
        if source.array.name in self.stored:
            self._read(source.array, at)
        data: Data = [fill if flat is None else elements[flat] for flat in at]
        if load.once and self.at["block"] != 0:
            data = [mpq(0) for _ in data]
        return Lanes(dims, data)

    def _load_shares(self, source: Access, elements: Data, fill: Element) -> Lanes:
        """The sum of what each block of the kernel that stored it has left."""
        bare = source.of_first_share
        size = math.prod(map(self.sizes.of, bare.array.dims))
        shares = len(elements) // (math.prod(self.sizes.extents(bare.array, None)) * size)
        data: Data = []
        for flat in self._elements(bare):
            row, lane = divmod(0 if flat is None else flat, size)
            places = ((row * shares + share) * size + lane for share in range(shares))
            data.append(fill if flat is None else reduce(add, (elements[place] for place in places)))
        return Lanes(self.registers.sorted(source.dims), data)

    def _read(self, array: Array, at: Iterable[int | None]) -> None:
        """Remember who reads elements of an array that this kernel writes."""
        use = self._use(array)
        for flat in at:
            if flat is None:
                continue
            if use.writer.get(flat, self.program) != self.program:
                raise Illegal(f"{array.name}: read while another program writes it")
            if use.written.get(flat, -1) == self.barriers:
                raise Illegal(f"{array.name}: read without a barrier behind the write")
            use.readers.setdefault(flat, set()).add(self.program)
            use.read[flat] = self.barriers

    def _store(self, target: Access, value: Lanes) -> None:
        name, dims = target.array.name, self.registers.sorted(target.dims)
        if name not in self.memory.arrays:
            raise Illegal(f"{name} is not given")
        if not set(value.dims) <= set(dims):
            raise Illegal(f"{name} is over {dims}, and is given a tile over {value.dims}")
        elements, use, places = (
            self.memory.arrays[name],
            self._use(target.array),
            self.registers.places(value.dims, dims),
        )
        for lane, flat in enumerate(self._elements(target)):
            if flat is None:
                continue
            others = use.readers.get(flat, set()) - {self.program}
            if others or use.writer.setdefault(flat, self.program) != self.program:
                raise Illegal(f"{name}: an element that two programs have, and one writes")
            if flat in use.written and not _is_own(target.array):
                raise Illegal(f"{name}: an element written twice")
            if use.written.get(flat, -1) == self.barriers or use.read.get(flat, -1) == self.barriers:
                raise Illegal(f"{name}: written without a barrier behind the last use")
            use.written[flat] = self.barriers
            elements[flat] = value.data[places[lane]]

    def _use(self, array: Array) -> _Use:
        return self.uses.setdefault(array.name, _Use())

    def _elements(self, access: Access) -> list[int | None]:
        """The element of each lane; None where it lies beyond an end."""
        if access.tiles:
            return list(self._placed(access))
        array = access.array
        key = array.dims, access.within, tuple(map(self.registers.first, array.dims))
        if key not in self._lanes:
            self._lanes[key] = list(self._lanes_of_row(access))
        lanes, size = self._lanes[key], math.prod(map(self.sizes.of, array.dims))
        rows = [self._fixed(access)] if not access.rows else list(self._rows_along(access))
        found = [None if row is None or lane is None else row * size + lane for row in rows for lane in lanes]
        rows_first, over = (*access.rows, *self.registers.sorted(array.dims)), self.registers.sorted(access.dims)
        if rows_first == over:
            return found
        return [found[place] for place in self.registers.places(rows_first, over)]

    def _rows_along(self, access: Access) -> Iterator[int | None]:
        """The row of each lane of the axis along which there are rows; None beyond its end."""
        (axis,) = access.rows
        base, stride, extent = self._fixed(access), *self._along(access)
        steps = self.registers.steps if axis == ROW and any(index.space == "token" for index in access.at) else 1
        first = self.registers.first(axis)
        end = self.registers.end(axis) if axis in access.within else None
        for place in range(first, first + self.sizes.blocks[axis]):
            if end is not None and place >= end:
                yield None
                continue
            at = place // steps
            if not 0 <= at < extent:
                raise Illegal(f"{access.array.name}: {axis} {at} of {extent}")
            yield base + at * stride

    def _along(self, access: Access) -> tuple[int, int]:
        """How far apart the rows along an axis are, and how many there are."""
        place = next(number for number, index in enumerate(access.at) if index.axis is not None)
        extents = self._extents(access.array)
        return math.prod(extents[place + 1 :]), extents[place]

    def _extents(self, array: Array) -> tuple[int, ...]:
        if array.name not in self._extents_of:
            self._extents_of[array.name] = self.sizes.extents(array, self.kernel.block_of)
        return self._extents_of[array.name]

    def _fixed(self, access: Access) -> int:
        """The number of a row, but for the coordinates that vary along an axis."""
        row = 0
        for index, extent in zip(access.at, self._extents(access.array), strict=True):
            at = self._coordinate(index) if index.axis is None else 0
            if not 0 <= at < extent:
                raise Illegal(f"{access.array.name}: {index.space} {at} of {extent}")
            row = row * extent + at
        return row

    def _lanes_of_row(self, access: Access) -> Iterator[int | None]:
        """The element of its row that each lane has."""
        array, dims = access.array, self.registers.sorted(access.array.dims)
        sizes = [self.sizes.of(dim) for dim in array.dims]
        first = [self._first_index(dim) for dim in array.dims]
        for point in self.registers.points(dims):
            flat: int | None = 0
            for dim, size, start in zip(array.dims, sizes, first, strict=True):
                at = start + point[dims.index(dim)]
                if at >= size:
                    if dim not in access.within:
                        raise Illegal(f"{array.name}: {dim} {at} of {size}")
                    flat = None
                    break
                assert flat is not None
                flat = flat * size + at
            yield flat

    def _first_index(self, dim: str) -> int:
        """The index in memory of the first lane along a dim: of a chunk's rows, as a dim, the first is the first."""
        return self.registers.first(dim) if dim in self.sizes.dims else 0

    def _placed(self, access: Access) -> Iterator[int | None]:
        """The same, of lanes whose index, or whose end, is an expression."""
        array, over = access.array, self.registers.sorted(access.dims)
        placed, ends = dict(access.places), dict(access.ends)

        def lanes(tile: Tile) -> Sequence[Element]:
            found = self.registers.value(tile)
            return [found.data[place] for place in self.registers.places(found.dims, over)]

        indices = {dim: lanes(placed[dim]) if dim in placed else None for dim in array.dims}
        limits = {dim: lanes(ends[dim]) if dim in ends else None for dim in access.within}
        there = lanes(access.where) if access.where is not None else None
        rows = list(self._rows_along(access)) if access.rows else [self._fixed(access)]
        for lane, point in enumerate(self.registers.points(over)):
            at = dict(zip(over, point, strict=True))
            if there is not None and not there[lane]:
                yield None
                continue
            flat = rows[at[access.rows[0]]] if access.rows else rows[0]
            for dim in array.dims:
                index, limit = indices[dim], limits.get(dim)
                place = self._first_index(dim) + at[dim] if index is None else int(index[lane])
                end = self.sizes.of(dim) if limit is None else int(limit[lane])
                if dim in access.within and place >= end:
                    flat = None
                    break
                if not 0 <= place < self.sizes.of(dim):
                    raise Illegal(f"{array.name}: {dim} {place} of {self.sizes.of(dim)}")
                flat = None if flat is None else flat * self.sizes.of(dim) + place
            yield flat

    def _coordinate(self, index: Index) -> int:
        if index.number is not None:
            return index.number
        at = self.registers.at.get(index.space)
        if at is None:
            raise Illegal(f"no {index.space} here")
        return at


def _is_own(array: Array) -> bool:
    """Whether each program uses its part of the array again and again, for itself."""
    return "place" in array.spaces or ("micro_step" in array.spaces and "token" not in array.spaces)
