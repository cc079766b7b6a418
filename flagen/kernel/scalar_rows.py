"""What lowerings of kernels with scalar decays, or none, have in common: decays, scores, where walks find rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property

from flagen.algebra.equations import System
from flagen.kernel import walks
from flagen.kernel.ir import Access, Bind, Index, Let, Space, Statement
from flagen.kernel.mixes import END, START, WHOLE, Mixes, weights
from flagen.kernel.rows import ZERO, RowLowering, call, common, local, rounded, times, whole
from flagen.kernel.walks import Product
from flagen.kernel.walks import Tile as Carried
from flagen.plan.chunk_kernel import ChunkKernelPlan
from flagen.plan.rows import ROW, TOKEN, WRITTEN
from flagen.plan.tiles import Arithmetic, Cumulative, Function, Select, Size, Sum, Tile, Value, Widened

PARTS = ("coarse", "fine")
"""A log decay in powers of two, in multiples of a small one and what is left of them."""

BEFORE = "from_start_before"
"""The decay from a chunk's start to where erasures read, before that of their own token."""


class ScalarDecayRows(RowLowering[ChunkKernelPlan]):
    """What the kernels of a plan have in common."""

    @cached_property
    def mixes(self) -> Mixes | None:
        """The numbers of states that these mix."""
        return None if self.plan.mixed is None else Mixes(self, self.plan.mixed)

    @property
    def slots(self) -> Space:
        """What the states that are stored are counted by."""
        return "counted_chunk" if self.plan.states_every == 1 else "slot"

    # -------------------------------------------------------------------------------------------------- several states

    @property
    def places(self) -> tuple[int | None, ...]:
        """The matrix states by their places among several; of one alone None."""
        return (None,) if self.plan.mixed is None else tuple(self.plan.mixed.places)

    def of_place(self, access: Access, place: int | None) -> Access:
        """What an array has of each of several states."""
        if place is None:
            return access
        array = replace(access.array, spaces=(*access.array.spaces, "loop"), loops=len(self.places))
        return replace(access, array=array, at=(*access.at, Index("loop", place)))

    @property
    def chunk_system(self) -> System:
        """The equations of a walk forward."""
        return self._of_each(self.plan.chunk.form.system)

    @property
    def adjoint_system(self) -> System:
        """Those of a walk in reverse."""
        return self._of_each(self.plan.chunk.adjoint)

    def _of_each(self, system: System) -> System:
        if self.mixes is None:
            return system
        present = {*map(tensor_of, self.mixes.of_rows), *map(tensor_of, self.mixes.of_chunk)}
        return walks.of_each_register(system, len(self.places), present.__contains__)

    # ---------------------------------------------------------------------------------------------------------- decays

    def decays(self) -> Iterator[Statement]:
        """Sums of the log decays of a chunk, and the factors at its ends."""
        if self.plan.row_decay is None:
            return
        row, token = (self.row,), (TOKEN,)
        if self.plan.token_decay is not None:
            yield Bind(
                ("coarse", "fine"), (call("split_log_decay", self.tile(self.plan.token_decay, TOKEN), dims=token),)
            )
            yield self._both("read", lambda name: Cumulative(local(name, token), TOKEN, False, token))
        decay = self.tile(self.plan.row_decay, self.row)
        if self.plan.token_decay is not None:
            # The decay comes before the first row of each token.
            within = Arithmetic("%", self.lane(ROW), Size(self.steps), row)
            decay = Select(self.compared(within, "==", whole(0)), decay, ZERO, row)
        yield Bind(PARTS, (call("split_log_decay", decay, dims=row),))
        yield self._both("sum", lambda name: Cumulative(local(name, row), self.row, False, row))
        yield self._both("end", lambda name: Sum(local(name, row), self.row, ()))
        if self.plan.erases_before:
            yield self._both("before", lambda n: Arithmetic("-", local(f"{n}_sum", row), local(n, row), row))

    def _both(self, of: str, value: Callable[[str], Tile]) -> Statement:
        """The same of both parts of log decays."""
        return Bind(tuple(f"{part}_{of}" for part in PARTS), tuple(map(value, PARTS)))

    def exponent(self, of: str, axis: str) -> Tile:
        """Two to the sum of both parts of a log decay."""
        dims = (axis,) if axis else ()
        total = Arithmetic("+", local(f"coarse_{of}", dims), local(f"fine_{of}", dims), dims)
        return Function("exp2", (total,), dims)

    def factors(self) -> Iterator[Statement]:
        """The decays of each row from the chunk's start and to its end."""
        row = (self.row,)
        yield Let("from_start", self.exponent("sum", self.row))
        coarse, fine = (Arithmetic("-", local(f"{p}_end", ()), local(f"{p}_sum", row), row) for p in PARTS)
        yield Let("to_end", Function("exp2", (Arithmetic("+", coarse, fine, row),), row))

    def to_end(self) -> Tile | None:
        """The decay from each row to the end of the chunk."""
        return None if self.plan.row_decay is None else local("to_end", (self.row,))

    def across(self, state: Tile) -> Tile:
        """A state, or its gradient, decayed across the chunk."""
        return state if self.plan.row_decay is None else times(local("whole", ()), state)

    def between(self, reader: str) -> Tile:
        """The decay from each row to where the rows of `reader` read: a matrix."""
        after = "read" if reader == "q" and self.grouped else "sum"
        moment = "before" if self.reads_before(reader) else after
        axis = self.axis_of(reader)
        dims = (axis, WRITTEN)

        def part(name: str) -> Tile:
            written = self.written(local(f"{name}_sum", (self.row,)))
            return Arithmetic("-", local(f"{name}_{moment}", (axis,)), written, dims)

        return Function("exp2", (Arithmetic("+", part("coarse"), part("fine"), dims),), dims)

    def reads_before(self, reader: str) -> bool:
        """Whether the rows of `reader` read before their token's decay."""
        return reader == "y" and self.plan.erases_before

    def start_of(self, reader: str) -> Tile | None:
        """The decay from the chunk's start to where the rows of `reader` read."""
        if self.plan.row_decay is None:
            return None
        if reader == "q":
            return local("from_start_read" if self.grouped else "from_start", (TOKEN,))
        return local(BEFORE if self.reads_before(reader) else "from_start", (self.row,))

    def seen(self, reader: str) -> Tile:
        """Which of the rows that were written those of `reader` see."""
        if reader != "q":
            return self.compared(self.lane(self.row), ">", self.lane(WRITTEN))
        column = self.lane(WRITTEN)
        if self.grouped:
            column = Arithmetic("//", column, Size(self.steps), (TOKEN, WRITTEN))
        return self.compared(self.lane(TOKEN), ">=" if self.plan.reads_itself else ">", column)

    def scores(
        self, name: str, reader: str, writer: str, of_reader: Tile | None, of_writer: Tile | None
    ) -> Iterator[Statement]:
        """Masked products of each reading row with each writing row, scaled and decayed."""
        dims = (self.axis_of(reader), WRITTEN)
        products: Tile = local(f"{name}_products", dims)
        if self._sides(reader) and self._sides(writer):
            yield from self.products(f"{name}_products", reader, writer)
        else:
            products = self.dot(self.operand(reader), self.written(self.operand(writer)), self.plan.key)
        decay: Tile | None = None if self.plan.row_decay is None else local("decay", dims)
        if self.mixes is not None:
            decay = weights(reader, writer)
        # Factors first: a product of products would hold two more tiles at a time.
        factors = [f for f in (of_reader, of_writer and self.written(of_writer), decay) if f is not None]
        yield Let(name, times(products, times(*factors) if factors else None))
        if self.mixes is None:  # Weights of rows that are not seen are zero.
            yield Let(name, Select(self.seen(reader), local(name, dims), ZERO, dims))

    # ----------------------------------------------------------------------------- the vector state that rides along

    def column_scale(self, decay: Tile | None) -> Tile | None:
        """What the column is for each row, decayed; None where it is 1."""
        rider = self.plan.rider
        return common(None if rider is None or rider.scale is None else self.tile(rider.scale, self.row), decay)

    def column_written(self) -> Tile:
        """What a chunk writes to the vector state."""
        key = self.operand("k")
        return Sum(times(Widened(key, key.dims), self.column_scale(self.to_end())), self.row, (self.plan.key,))

    def next_column_state(self, written: Tile | None = None) -> Iterator[Statement]:
        """The vector state after the chunk, in which `written` is written to it."""
        if self.plan.rider is None:
            return
        name, dims = self.name(self.plan.rider.state.name), (self.plan.key,)
        kept = self.across(local(name, dims))
        yield Let(name, Arithmetic("+", kept, self.column_written() if written is None else written, dims))


@dataclass(frozen=True)
class ScalarPlacement:
    """Rows stay as they are; their numbers, decays among them, multiply what comes out of a read, and what goes into a
    write.

    states: the tiles that are carried from chunk to chunk.
    given: what tiles over the values are called as operands; `unrounded` before that, where they were found here.
    """

    kernel: ScalarDecayRows
    states: Mapping[str, Tile]
    given: Mapping[str, Tile]
    unrounded: Mapping[str, Tile]

    @property
    def plan(self) -> ChunkKernelPlan:
        return self.kernel.plan

    def tile(self, tensor: str) -> Tile | None:
        assert tensor == "z"
        delta = self.plan.delta
        return None if delta is None or delta.z is None else self.kernel.tile(delta.z, self.kernel.row)

    def values(self, tensor: str) -> Tile:
        return self.given.get(tensor) or self.kernel.operand(tensor)

    def wide(self, tensor: str) -> Tile:
        return self.unrounded.get(tensor) or self.kernel.operand(tensor)

    def rows(self, tensor: str) -> Tile:
        kernel = self.kernel
        square, read = (kernel.row, WRITTEN), (TOKEN, WRITTEN)
        write_scores = rounded(local("scores", read)) if self.plan.prepare is None else local("write_scores", read)
        matrices = {"N": local("erased_writes", square), "A0": local("scores", read), "B0": write_scores}
        return matrices.get(tensor) or kernel.operand(_role(tensor))

    def factor(self, term: Product) -> Tile | None:
        role, kernel = _role(term.by), self.kernel
        # What tokens read is scaled when all of it is there; a write's number is that of its value.
        scale = None if role == "q" else kernel.scale("v" if role == "k" else role)
        decays = {"from start": kernel.start_of(role), "to end": local("to_end", (kernel.row,)), "none": None}
        number = local(number_of_rows(term.number), (kernel.row,)) if term.number else decays[term.decay]
        return common(scale, number)

    def whole(self, term: Carried) -> Tile:
        state = self.states[term.tensor]
        if term.number:
            return times(local(number_of_chunk(term.number), ()), state)
        return times(local("whole", ()), state) if term.decay == "whole" else state


def _role(tensor: str) -> str:
    """The role of the rows that equations call so."""
    return "q" if tensor == "q0" else tensor


def number_of_rows(tensor: str) -> str:
    """What numbers of rows are called that equations call so: Fy_0 is what y reads of the first register before the
    chunk, Ew_1 what the second one has of w behind it."""
    family, place = tensor.split("_")
    return f"{_role(family[1:])}_{START if family[0] == 'F' else END}_{place}"


def number_of_chunk(tensor: str) -> str:
    """The same of F_0_1, what the first register gets of the second across the chunk."""
    return tensor.replace("F_", f"{WHOLE}_")


def tensor_of(number: Value) -> str:
    """What equations call a number."""
    role, *rest = number.name.split("_")
    if role == WHOLE:
        return "_".join(("F", *rest))
    kind, place = rest
    return f"F{'q0' if role == 'q' else role}_{place}" if kind == START else f"E{role}_{place}"


def of_place(name: str, place: int | None) -> str:
    """What something is called of the state, or of one of several; by equations, too."""
    return name if place is None else f"{name}_{place}"
