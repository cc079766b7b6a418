"""Runs a kernel over its whole grid in exact arithmetic.

Memory that nobody has written, and what no number is, is poison: whatever is computed from it is poison, and only a
mask leaves it out. A program that reads or writes beyond an array, an element that two programs write, or that one
reads and another writes, is an error where it happens.
"""

from __future__ import annotations

import itertools
import operator
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial, reduce

from flagen.kernel.addresses import Addresses, Elements
from flagen.kernel.elementary import number
from flagen.kernel.elements import ZERO, Element, add, multiply, subtract
from flagen.kernel.ir import (
    Access,
    Add,
    Alone,
    Apply,
    Array,
    Barrier,
    Bind,
    Choose,
    Condition,
    Fill,
    FirstBlock,
    Given,
    HasEnd,
    HasStart,
    If,
    Kernel,
    LastToken,
    Let,
    Load,
    Loop,
    Note,
    Operands,
    Routine,
    Row,
    Scale,
    Space,
    Statement,
    Store,
    statements_in,
)
from flagen.kernel.memory import Memory, is_own
from flagen.kernel.registers import Data, Lanes, Registers, whole
from flagen.kernel.sizes import Illegal
from flagen.kernel.tile_values import Evaluator, Operation, TileValues
from flagen.plan.tiles import Call, Tile
from flagen.spec.model import Dims

Step = Callable[[], None]
"""A statement, ready to be run."""


@dataclass
class _Use:
    """Who has written and read the elements of an array during a launch, and between which barriers."""

    writer: dict[int, int] = field(default_factory=dict)
    readers: dict[int, set[int]] = field(default_factory=dict)
    written: dict[int, int] = field(default_factory=dict)
    read: dict[int, int] = field(default_factory=dict)


class Executable:
    """A kernel at the sizes of a launch: what is the same for all programs has been found out.

    Programs of all heads run in step, one for each run and block after the other.
    """

    def __init__(self, kernel: Kernel, registers: Registers) -> None:
        self.kernel, self.registers, self.sizes = kernel, registers, registers.sizes
        self.tiles = TileValues(registers)
        self.addresses = Addresses(kernel, self.tiles)
        statements = list(statements_in(kernel.body))
        self.stored = {s.target.array.name for s in statements if isinstance(s, Store)}
        self.loaded = {s.source.array.name for s in statements if isinstance(s, Load)}
        self.body = self._steps(kernel.body)
        self.arrays: dict[str, Data] = {}
        self.asked: frozenset[str] = frozenset()
        self.uses: defaultdict[str, _Use] = defaultdict(_Use)
        self.barriers, self.program = 0, 0

    def run(self, memory: Memory) -> None:
        """Run it over the whole grid.

        Raises:
            Illegal: a program does what none may.
        """
        self.arrays, self.asked = memory.arrays, memory.asked
        self.barriers, self.program, registers = 0, 0, self.registers
        self.uses.clear()
        for run, block in itertools.product(self._runs(), range(self.sizes.blocks_of(self.kernel.block_of))):
            registers.at = {**run, "block": block}
            registers.heads, registers.chunk = self._heads(), None
            if self.kernel.run == "chunk":
                self._stand_at(self.at["sequence"], self.at["counted_chunk"])
            if self.kernel.run == "stretch":
                self._stretch_out()
            registers.values, registers.turns = {}, {}
            self.body()
            self.program += registers.programs

    def _heads(self) -> dict[Space, tuple[int, ...]]:
        programs, group = range(self.registers.programs), self.sizes.HV // self.sizes.H
        if self.kernel.of_key_heads:
            return {"key_head": tuple(programs)}
        return {"head": tuple(programs), "key_head": tuple([head // group for head in programs])}

    @property
    def at(self) -> dict[Space, int]:
        """Where the programs stand."""
        return self.registers.at

    # ------------------------------------------------------------------------------------------------------------ runs

    def _runs(self) -> Iterator[dict[Space, int]]:
        if self.kernel.run == "chunk":
            for sequence, (start, end) in enumerate(itertools.pairwise(self.sizes.first_chunks)):
                for chunk in range(start, end):
                    yield {"sequence": sequence, "counted_chunk": chunk}
            return
        if self.kernel.run == "stretch":
            for sequence, (start, end) in enumerate(itertools.pairwise(self.sizes.first_stretches)):
                for stretch in range(start, end):
                    yield {"sequence": sequence, "stretch": stretch}
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

    def _aligned(self, loop: Loop) -> Iterator[int]:
        """The same where chunks are counted from the tokens before the sequence, as many for all heads."""
        (before,) = {whole(x) for x in self.registers.named(loop.aligned).data}
        chunks = self.sizes.aligned_chunks(self.at["sequence"], before)
        for chunk, tokens in reversed(chunks) if loop.reverse else chunks:
            self.registers.chunk = tokens
            yield chunk
        self.registers.chunk = None

    def _stand_at(self, sequence: int, chunk: int) -> None:
        """Have the tokens of a chunk along the axis of tokens."""
        start, end = self.sizes.borders[sequence : sequence + 2]
        within = chunk - self.sizes.first_chunks[sequence]
        start += within * self.sizes.chunk
        self.registers.chunk = range(start, min(start + self.sizes.chunk, end))
        self.at["counted_chunk"] = chunk
        self.at["slot"] = (self.sizes.first_chunks[sequence] + sequence) // 2 + within // 2

    def _stretch_out(self) -> None:
        """Have the tokens of the stretch along the axis of tokens."""
        whole, size = self._span(), self.sizes.chunk
        start = whole.start + (self.at["stretch"] - self.sizes.first_stretches[self.at["sequence"]]) * size
        self.registers.chunk = range(start, min(start + size, whole.stop))

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
            self.registers.heads["head"] = tuple([head * group + member for head in self.registers.heads["key_head"]])
            yield member
        self.registers.heads.pop("head", None)

    def _turns(self, loop: Loop) -> Iterable[int]:
        if loop.wanted and not self.asked - {*dict(self.kernel.choices)[loop.wanted]}:
            return ()
        match loop.over:
            case "segment":
                turns = self._segments()
            case "chunk":
                return self._aligned(loop) if loop.aligned else self._chunks(loop.reverse)
            case "earlier" | "later":
                return self._neighbours(loop.over == "later")
            case "block":
                return self._blocks(loop.dim)
            case "member":
                return self._members()
            case "level":
                turns = range(self.sizes.named(loop.first) if loop.first else 0, self.sizes.named("LEVELS"))
            case "below":
                turns = range(whole(self.registers.named("level").data[0]))
            case "token":
                left_out = loop.but_last and self.at["segment"] == self._segments()[-1]
                turns = range(0) if left_out else self._span()
            case "micro_step":
                turns = range(next(iter(self.sizes.steps.values())))
            case "iteration":
                return range(max(self.sizes.dims.values()) + 2)  # The last two find that nothing is left.
        return reversed(turns) if loop.reverse else turns

    # ------------------------------------------------------------------------------------------------------ statements

    def _steps(self, body: Sequence[Statement]) -> Step:
        """Statements one after the other, each made ready when it is first run."""
        steps: list[Step] = []

        def run() -> None:
            for step in steps:
                step()
            for statement in body[len(steps) :]:
                steps.append(self._step(statement))
                steps[-1]()

        return run

    def _step(self, statement: Statement) -> Step:
        match statement:
            case Load(target):
                return self._assigns(target, self._load(statement))
            case Let(target, value):
                return self._assigns(target, self.tiles.evaluator(value))
            case Add(target, value, dims, subtracts):
                quick, every = (operator.sub, subtract) if subtracts else (operator.add, add)
                return self._changes(target, value, dims, quick, every)
            case Scale(target, value, dims):
                return self._changes(target, value, dims, operator.mul, multiply)
            case Bind(targets, values):
                return self._binds(targets, values)
            case Apply(routine):
                return self._applies(routine)
            case Fill(target):
                return self._assigns(target, self._fill(statement))
            case Choose(condition, target, value):
                return self._chooses(condition, target, self.tiles.evaluator(value))
            case Store(target, value):
                return self._store(target, value)
            case Loop(_, body):
                return self._loops(statement, self._steps(body))
            case If(conditions, then, otherwise):
                return self._branches(conditions, self._steps(then), self._steps(otherwise))
            case Barrier():
                return self._waits
            case Row() | Note() | Operands():
                return lambda: None

    def _assigns(self, target: str, evaluator: Evaluator) -> Step:
        registers, (dims, data, _) = self.registers, evaluator

        def run() -> None:
            registers.values[target] = Lanes(dims, data())

        return run

    def _changes(self, target: str, value: Tile, dims: Dims, quick: Operation, every: Operation) -> Step:
        registers, over = self.registers, self.registers.sorted(dims)
        new = self.tiles.spread(value, over)

        def run() -> None:
            old = registers.named(target)
            if old.dims != over:
                raise Illegal(f"{target} is over {old.dims}, and is changed as if it were over {over}")
            found = new()
            try:
                data = list(map(quick, old.data, found))
            except TypeError:
                data = list(map(every, old.data, found))
            registers.values[target] = Lanes(over, data)

        return run

    def _binds(self, targets: Sequence[str], values: Sequence[Tile]) -> Step:
        """What several names are given: all that a function returns, or one tile each."""
        returned = [self.tiles.called(v) if isinstance(v, Call) else partial(self._alone, v) for v in values]

        def run() -> None:
            found = [lanes for each in returned for lanes in each()]
            if len(found) != len(targets):
                raise Illegal(f"{len(found)} tiles are given {len(targets)} names: {', '.join(targets)}")
            self.registers.values |= dict(zip(targets, found, strict=True))

        return run

    def _alone(self, value: Tile) -> tuple[Lanes, ...]:
        return (self.tiles.value(value),)

    def _applies(self, routine: Routine) -> Step:
        registers, body = self.registers, self._steps(routine.body)

        def run() -> None:
            outside = registers.values
            registers.values = {name: registers.named(name) for name in routine.carried}
            body()
            registers.values = outside | {name: registers.named(name) for name in routine.carried}

        return run

    def _chooses(self, condition: Condition, target: str, evaluator: Evaluator) -> Step:
        def run() -> None:
            new = Lanes(evaluator.dims, evaluator.data())
            self.registers.values[target] = self.registers.named(target) if self._holds(condition) else new

        return run

    def _loops(self, loop: Loop, body: Step) -> Step:
        def run() -> None:
            for turn in self._turns(loop):
                self._enter(loop, turn)
                if loop.over == "token":
                    self.at["place"] = turn - self._span().start
                body()
            self._leave(loop)

        return run

    def _branches(self, conditions: Sequence[Condition], then: Step, otherwise: Step) -> Step:
        def run() -> None:
            (then if all(map(self._holds, conditions)) else otherwise)()

        return run

    def _waits(self) -> None:
        self.barriers += 1

    def _enter(self, loop: Loop, turn: int) -> None:
        """Stand where a turn of a loop has its programs."""
        match loop.over:
            case "segment" | "chunk" | "token" | "micro_step" as space:
                self.at[space] = turn
            case "member" | "level" | "below" as name:
                self.registers.values[name] = self.registers.everywhere(number(turn))

    def _leave(self, loop: Loop) -> None:
        spaces: tuple[Space, ...] = ("segment", "chunk", "token", "micro_step", "place")
        for space in spaces:
            if space != self.kernel.run and space in (loop.over, "place"):
                self.at.pop(space, None)

    def _holds(self, condition: Condition) -> bool:
        match condition:
            case Given(array, given):
                return (array.name in self.arrays) == given
            case FirstBlock():
                return self.at["block"] == 0
            case LastToken():
                return self.at["token"] == self._span()[-1]
            case HasStart():
                return self.registers.tokens.start == self._span().start
            case HasEnd():
                return self._span().stop < self.registers.tokens.start + self.sizes.chunk
            case Alone(dim):
                return self.sizes.H == self.sizes.HV and self.sizes.dims[dim] <= self.sizes.blocks[dim]

    def _fill(self, fill: Fill) -> Evaluator:
        dims, value = self.registers.sorted(fill.dims), ZERO if fill.number is None else number(fill.number)
        everywhere = [value] * (self.registers.programs * self.registers.lanes(dims))
        if not fill.ends:
            return Evaluator(dims, lambda: everywhere)
        return Evaluator(dims, lambda: [value if inside else ZERO for inside in self.tiles.inside(dims, dims)])

    # ---------------------------------------------------------------------------------------------------------- memory

    def _array(self, name: str) -> Data:
        if name not in self.arrays:
            raise Illegal(f"{name} is not given")
        return self.arrays[name]

    def _load(self, load: Load) -> Evaluator:
        source, name, fill = load.source, load.source.array.name, number(load.fill)
        dims = self.registers.sorted(source.dims)
        if load.shares:
            return Evaluator(dims, self._shares(source, fill))
        elements = self.addresses.of(source)

        def data() -> Data:
            array, at = self._array(name), elements()
            if name in self.stored:
                self._read(source.array, at)
            try:
                data = [fill if flat is None else array[flat] for flat in at]
            except IndexError:
                raise Illegal(f"{name}: beyond its {len(array)} elements") from None
            return data if not load.once or self.at["block"] == 0 else [ZERO] * len(data)

        return Evaluator(dims, data)

    def _shares(self, source: Access, fill: Element) -> Callable[[], Data]:
        """The sum of what each block of the kernel that stored it has left."""
        bare = source.of_first_share
        elements, (rows, size) = self.addresses.of(bare), self.addresses.shares(bare)

        def data() -> Data:
            array = self._array(source.array.name)
            shares = len(array) // (rows * size)
            data: Data = []
            for flat in elements():
                if flat is None:
                    data.append(fill)
                    continue
                row, lane = divmod(flat, size)
                data.append(reduce(add, [array[(row * shares + share) * size + lane] for share in range(shares)]))
            return data

        return data

    def _programs(self, at: Elements) -> Iterator[tuple[int, int]]:
        """Elements that there are, each with the program that has it."""
        size = len(at) // self.registers.programs
        for lane, flat in enumerate(at):
            if flat is not None:
                yield self.program + lane // size, flat

    def _read(self, array: Array, at: Elements) -> None:
        """Remember who reads elements of an array that this kernel writes."""
        use = self.uses[array.name]
        for program, flat in self._programs(at):
            if use.writer.get(flat, program) != program:
                raise Illegal(f"{array.name}: read while another program writes it")
            if use.written.get(flat, -1) == self.barriers:
                raise Illegal(f"{array.name}: read without a barrier behind the write")
            use.readers.setdefault(flat, set()).add(program)
            use.read[flat] = self.barriers

    def _store(self, target: Access, value: Tile) -> Step:
        name, dims = target.array.name, self.registers.sorted(target.dims)
        new, elements = self.tiles.spread(value, dims), self.addresses.of(target)
        written = self._written_again if name in self.loaded or is_own(target.array) else self._written_once

        def run() -> None:
            array, at = self._array(name), elements()
            written(target.array, at)
            for flat, x in zip(at, new(), strict=True):
                if flat is not None:
                    array[flat] = x

        return run

    def _written_once(self, array: Array, at: Elements) -> None:
        """Check a store to an array that this kernel only writes."""
        written = self.uses[array.name].written
        before, flats = len(written), [flat for flat in at if flat is not None]
        written |= dict.fromkeys(flats, self.barriers)
        if len(written) != before + len(flats):
            raise Illegal(f"{array.name}: an element written twice, by one program or by two programs")

    def _written_again(self, array: Array, at: Elements) -> None:
        """Check a store to an array that this kernel also reads, or writes again and again."""
        name, use = array.name, self.uses[array.name]
        for program, flat in self._programs(at):
            others = use.readers.get(flat, set()) - {program}
            if others or use.writer.setdefault(flat, program) != program:
                raise Illegal(f"{name}: an element that two programs have, and one writes")
            if flat in use.written and not is_own(array):
                raise Illegal(f"{name}: an element written twice")
            if use.written.get(flat, -1) == self.barriers or use.read.get(flat, -1) == self.barriers:
                raise Illegal(f"{name}: written without a barrier behind the last use")
            use.written[flat] = self.barriers
