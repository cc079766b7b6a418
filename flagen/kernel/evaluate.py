"""Runs a kernel over its whole grid in exact arithmetic.

Memory that nobody has written, and what no number is, is poison: whatever is computed from it is poison, and only a
mask leaves it out. A program that reads or writes beyond an array, an element that two programs write, or that one
reads and another writes, is an error where it happens.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from gmpy2 import mpq

from flagen.kernel.elementary import Elementary, number
from flagen.kernel.elements import POISON, add
from flagen.kernel.ir import (
    Access,
    Add,
    Array,
    Barrier,
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
    Row,
    Space,
    Statement,
    Store,
    statements_in,
)
from flagen.kernel.registers import Data, Illegal, Lanes, Registers, Sizes
from flagen.plan.rows import TOKEN
from flagen.spec.model import Dims


@dataclass
class Memory:
    """Arrays by name: their elements, row by row. What is not here is not given."""

    sizes: Sizes
    arrays: dict[str, Data]
    numbers: Mapping[str, mpq]
    functions: Elementary

    def allocate(self, array: Array, block_of: str | None) -> Data:
        """Room for an array that nobody has written."""
        rows = math.prod(self.sizes.extents(array, block_of))
        room: Data = [POISON] * (rows * math.prod(self.sizes.dims[dim] for dim in array.dims))
        self.arrays[array.name] = room
        return room


@dataclass
class _Use:
    """Who has written and read the elements of an array during a launch, and between which barriers."""

    writer: dict[int, int] = field(default_factory=dict)
    readers: dict[int, set[int]] = field(default_factory=dict)
    written: dict[int, int] = field(default_factory=dict)
    read: dict[int, int] = field(default_factory=dict)


class Launch:
    """One kernel over its grid."""

    def __init__(self, kernel: Kernel, memory: Memory) -> None:
        self.kernel, self.memory, self.sizes = kernel, memory, memory.sizes
        self.registers = Registers(kernel.order, kernel.block_of, memory.sizes, memory.functions, memory.numbers)
        self.uses: dict[str, _Use] = {}
        self.stored = {s.target.array.name for s in statements_in(kernel.body) if isinstance(s, Store)}
        self._lanes: dict[tuple[Dims, Dims, int], list[int | None]] = {}
        self.barriers = 0
        self.program = 0

    def run(self) -> None:
        blocks = self.sizes.blocks_of(self.kernel.block_of)
        grid = itertools.product(self._runs(), range(self.sizes.HV), range(blocks))
        for program, (run, head, block) in enumerate(grid):
            self.program = program
            key_head = head // (self.sizes.HV // self.sizes.H)
            self.registers.at = {**run, "head": head, "key_head": key_head, "block": block}
            self.registers.values = {}
            self._body(self.kernel.body)

    @property
    def at(self) -> dict[Space, int]:
        """Where the program stands."""
        return self.registers.at

    # ------------------------------------------------------------------------------------------------------------ runs

    def _runs(self) -> Iterator[dict[Space, int]]:
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
        span, length = self._span(), self.sizes.blocks[TOKEN]
        starts = span[::length]
        for start in reversed(starts) if reverse else starts:
            self.registers.chunk = range(start, min(start + length, span.stop))
            yield self.sizes.chunk_at(self.at["sequence"], start)
        self.registers.chunk = None

    def _turns(self, loop: Loop) -> Iterable[int]:
        match loop.over:
            case "segment":
                turns = self._segments()
            case "chunk":
                return self._chunks(loop.reverse)
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
            case Add(target, value, dims):
                old, over = self.registers.named(target), self.registers.sorted(dims)
                if old.dims != over:
                    raise Illegal(f"{target} is over {old.dims}, and is added to as if it were over {over}")
                self.registers.values[target] = self.registers.map(add, over, (old, self.registers.value(value)))
            case Fill():
                self.registers.values[statement.target] = self._fill(statement)
            case Choose(condition, target, value):
                new = self.registers.value(value)
                self.registers.values[target] = self.registers.named(target) if self._holds(condition) else new
            case Store(target, value):
                self._store(target, self.registers.value(value))
            case Loop(over, body):
                for turn in self._turns(statement):
                    self.at[over] = turn
                    if over == "token":
                        self.at["place"] = turn - self._span().start
                    self._body(body)
                for space in (over, "place"):
                    if space != self.kernel.run:
                        self.at.pop(space, None)
            case If(conditions, then, otherwise):
                self._body(then if all(map(self._holds, conditions)) else otherwise)
            case Barrier():
                self.barriers += 1
            case Row() | Note():
                pass

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
        at = self._elements(source)
        if source.array.name in self.stored:
            self._read(source.array, at)
        data: Data = [fill if flat is None else elements[flat] for flat in at]
        if load.once and self.at["block"] != 0:
            data = [mpq(0) for _ in data]
        return Lanes(dims, data)

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
        array = access.array
        key = array.dims, access.within, self.at["block"]
        if key not in self._lanes:
            self._lanes[key] = list(self._lanes_of_row(access))
        lanes, size = self._lanes[key], math.prod(self.sizes.dims[dim] for dim in array.dims)
        found: list[int | None] = []
        for place in self.registers.points(access.rows):
            row = self._row(access, place)
            found += [None if row is None or lane is None else row * size + lane for lane in lanes]
        return found

    def _lanes_of_row(self, access: Access) -> Iterator[int | None]:
        """The element of its row that each lane has."""
        array, dims = access.array, self.registers.sorted(access.array.dims)
        sizes = [self.sizes.dims[dim] for dim in array.dims]
        first = [self.registers.first(dim) for dim in array.dims]
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

    def _row(self, access: Access, lanes: tuple[int, ...]) -> int | None:
        """The number of a row: where the program stands, and these lanes of the axes along which there are rows."""
        places = {axis: self.registers.first(axis) + lane for axis, lane in zip(access.rows, lanes, strict=True)}
        if any(axis in access.within and place >= self.registers.end(axis) for axis, place in places.items()):
            return None
        row = 0
        for index, extent in zip(access.at, self.sizes.extents(access.array, self.kernel.block_of), strict=True):
            at = self._coordinate(index) if index.axis is None else places[index.axis]
            if not 0 <= at < extent:
                raise Illegal(f"{access.array.name}: {index.space} {at} of {extent}")
            row = row * extent + at
        return row

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
