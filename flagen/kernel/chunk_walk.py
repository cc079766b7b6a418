"""The kernels between the preparation of chunks and the output, where decays are a scalar, or none.

Fused, one kernel walks over the chunks of a sequence and puts out what its tokens read. Split, a walk leaves the state
before each chunk (and U, where rows erase) in memory, and a kernel of its own puts out all chunks at once: more bytes,
but less to do one after the other, where there are too few sequences and heads to fill a GPU.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cached_property

from flagen.kernel import walks
from flagen.kernel.forward_rows import ForwardRows, scratch
from flagen.kernel.ir import (
    Access,
    Add,
    Array,
    Given,
    If,
    Kernel,
    Let,
    Load,
    Loop,
    Note,
    Operands,
    Row,
    Run,
    Scale,
    Space,
    Statement,
    Store,
    access,
    accesses_in,
)
from flagen.kernel.passes import live, rounds
from flagen.kernel.recurrent import final_array
from flagen.kernel.rows import PACKING, ROLES, local, rounded, times, whole
from flagen.kernel.state_walk import Form, end_of, put, start_of
from flagen.kernel.walk import WalkLowering
from flagen.plan.chunk_kernel import ChunkKernelPlan
from flagen.plan.free_names import final_of, initial_of
from flagen.plan.kernel_names import kernel_name
from flagen.plan.row_planner import others_of
from flagen.plan.rows import TOKEN, WRITTEN
from flagen.plan.schedule import OUTPUT
from flagen.plan.tiles import Arithmetic, Both, Compare, Coordinate, Product, Select, Size, Sum, Tile, Widened
from flagen.spec.model import Dims, State


class Walk(ForwardRows):
    """A kernel of `form` that has the state; one that `keeps` can leave behind, besides, what the backward would have
    to compute again."""

    def __init__(self, plan: ChunkKernelPlan, form: Form, *, keeps: bool = False) -> None:
        super().__init__(plan, plan.walk)
        self.form, self.keeps = form, keeps
        self.key, self.value, self.rider = plan.key, plan.value, plan.rider
        self.state = self.name(plan.state.name)
        self.over_state, self.over_updates = (self.value, self.key), (self.value, self.row)

    def kernel(self) -> Kernel:
        first, last = ([of(self.plan.spec, state) for state in self.states] for of in (initial_of, final_of))
        left = ("states", "U", "column_states", "column", OUTPUT, *last)
        order = (*first, *(array.name for array in PACKING), *scratch(self.plan), *left)
        run: Run = "chunk" if self.form is Form.OUTPUT else "sequence"
        body = live(tuple(self._body()), ())
        if rounds(body):
            body = (Operands(self._of_operands(body)), *body)
        dims = (*others_of(self.plan.chunk.normal_form), self.key, self.value)
        return self.assembled(self.form.value, run, body, dims, order, self.value)

    @property
    def states(self) -> tuple[State, ...]:
        return self.plan.matrices if self.rider is None else self.plan.spec.states

    def _of_operands(self, body: Sequence[Statement]) -> Array:
        """An array of the dtype of the products: a tensor of the call, or the states that another kernel has left."""
        found = {access.array.name: access.array for access in accesses_in(body)}
        tensors = (kernel_name(decl.name) for decl in self.plan.spec.inputs if decl.dims)
        return next(found[name] for name in (*tensors, "states") if name in found)

    def _body(self) -> Iterator[Statement]:
        yield from self.once(*self.parts)
        if self.form is Form.OUTPUT:
            yield from self._chunk()
            return
        yield from (Note(), *self._start(), Note())
        yield Loop("chunk", live(tuple(self._chunk()), [self.name(state.name) for state in self.states]))
        yield from (Note(), *self._finish())

    def _chunk(self) -> Iterator[Statement]:
        """The statements for one chunk; an empty line between the parts of its equations."""
        yield from self._loaded()
        match self.form:
            case Form.FUSED:
                yield from self.operands_of_states()
                yield from self._if_kept(*self._kept_states())
                yield from self.next_column_state(local("column_written", (self.key,)))
                yield from self._solved()
                if self.plan.delta is not None:
                    yield from self._if_kept(Store(self._kept_updates(), self._updates))
                yield from self._put()
                yield from self._next_state()
            case Form.STATES:
                yield from self.operands_of_states()
                yield from (Store(self._state_before(place), self.operand_of_state(place)) for place in self.places)
                yield from self._solved()
                if self.plan.delta is not None:
                    yield Store(self._updates_of_chunk(), self._updates)
                yield from self._next_state()
            case Form.OUTPUT:
                for place in self.places:
                    yield Load(self.operand_of_state(place).name, self._state_before(place), wide=False)
                if self.plan.delta is not None:
                    yield Load("U_operand", self._updates_of_chunk(), wide=False)
                yield from self._put()

    # ---------------------------------------------------------------------------------------------------------- states

    def _start(self) -> Iterator[Statement]:
        """The states that a run starts from."""
        yield Row("state_start", ("sequence", "head"), self.plan.state.dims)
        yield from (start_of(self, state) for state in self.states)

    def _finish(self) -> Iterator[Statement]:
        """The states that it ends with; all blocks have the vector that rides along, and the first one stores it."""
        for state in self.states:
            if state in self.plan.matrices:
                yield end_of(self, state)
            else:
                last = final_array(state, final_of(self.plan.spec, state))
                stored = Store(self._in_first_block(last), local(self.name(state.name), state.dims))
                yield If((Given(last),), (stored,))

    def _in_first_block(self, array: Array, *, of: Tile | None = None) -> Access:
        """A vector over the keys that every block of values has, and the first one stores; `of`: only where this
        holds."""
        first: Tile = Compare("==", Coordinate("block"), whole(0), ())
        where = first if of is None else Both(of, first, ())
        return replace(access(array), ends=((self.key, Select(where, Size(self.key), whole(0), ())),))

    def _state_before(self, place: int | None) -> Access:
        """The state before a chunk, as one kernel leaves it for another."""
        return self.of_place(self.of_chunk("states", self.over_state), place)

    def _updates_of_chunk(self) -> Access:
        return self.of_chunk("U", self.over_updates)

    @property
    def _updates(self) -> Tile:
        return local("U_operand", self.over_updates)

    # ------------------------------------------------------------------------------------------- what a backward takes

    def _if_kept(self, *statements: Statement) -> Iterator[Statement]:
        """What a kernel does where it is given arrays that are not there for its outputs."""
        stored = next((s.target.array for s in statements if isinstance(s, Store)), None)
        if self.keeps and stored is not None:
            yield If((Given(stored),), statements)

    def _kept_states(self) -> Iterator[Statement]:
        """As the walk over states of a backward stores them: every one, or every second one of a sequence, the first
        one too."""
        if self.plan.states_every == 1:
            every = access(self._residual("states", (self.slots, "head"), self.over_state))
            yield from (Store(self.of_place(every, place), self.operand_of_state(place)) for place in self.places)
            if self.rider is not None:
                columns = self._residual("column_states", (self.slots, "head"), (self.key,))
                yield Store(self._in_first_block(columns), self._column_state)
            return
        within = Arithmetic("%", Coordinate("chunk of sequence"), whole(2), ())
        first = Compare("==", within, whole(0), ())
        yield Let("rows_stored", Select(first, Size(self.value), whole(0), ()))
        yield Row("state_row", (self.slots, "head"))
        states = self._residual("states", (self.slots, "head"), self.over_state)
        target = replace(access(states), ends=((self.value, local("rows_stored", ())),))
        yield from (Store(self.of_place(target, place), self.operand_of_state(place)) for place in self.places)
        if self.rider is not None:
            stored = Compare(">", local("rows_stored", ()), whole(0), ())
            columns = self._residual("column_states", (self.slots, "head"), (self.key,))
            yield Store(self._in_first_block(columns, of=stored), self._column_state)

    def _kept_updates(self) -> Access:
        """As the walk over states of a backward stores them: by tokens, like the values."""
        rows: Space = "row" if self.grouped else "token"
        return self.rows_of(self._residual("U", (rows, "head"), (self.value,)), self.row)

    def _residual(self, name: str, spaces: tuple[Space, ...], dims: Dims) -> Array:
        return Array(name, spaces, dims, "residual", optional=True)

    # ----------------------------------------------------------------------------- the vector state that rides along

    @property
    def _column_state(self) -> Tile:
        assert self.rider is not None
        return local(self.name(self.rider.state.name), (self.key,))

    def _column(self) -> Iterator[Statement]:
        """What tokens read of the vector state that rides along, as it is before the chunk, and what that writes to
        it. All of that before the matrix products, which take the registers."""
        if self.rider is None:
            return
        q, state = self.operand("q"), self._column_state
        product = Product((Widened(q, q.dims), state), q.dims)
        read = Let("column", times(Sum(product, self.key, (TOKEN,)), self.start_of("q")))
        before = self.of_chunk("column_states", (self.key,))
        match self.form:
            case Form.FUSED:
                yield from (read, Let("column_written", self.column_written()))
            case Form.STATES:
                yield Store(self._in_first_block(before.array), state)
                yield from self.next_column_state()
            case Form.OUTPUT:
                yield from (Load(self.name(self.rider.state.name), before, wide=False), read)

    # -------------------------------------------------------------------------------------------------- rows and scores

    def _loaded(self) -> Iterator[Statement]:
        """What a chunk reads, and what is evaluated from it before the state is needed."""
        yield from self.loads(self.plan.walk)
        if self.plan.prepare is None:
            yield from (*self.operands(*ROLES), Note(), *self._decays(), Note(), *self._column(), *self._scores())
            return
        early = ("from_start",) if self.plan.row_decay is not None and not self.plan.erases_before else ()
        yield from (self.load_prepared(name) for name in (*self.matrices(), *early))
        if self.mixes is not None:
            yield from self.mixes.load(*self.mixes.starts)
        if self.plan.row_decay is not None:
            yield from self.load_decays()
        yield from (*self.operands(*ROLES), Note())

    def _decays(self) -> Iterator[Statement]:
        if self.plan.row_decay is not None:
            yield from (*self.decays(), *self.factors(), Let("whole", self.exponent("end", "")))
            yield Let("decay", self.between("q"))

    def _scores(self) -> Iterator[Statement]:
        rider, scale, dims = self.rider, self.scale("v"), (TOKEN, WRITTEN)
        if rider is None:
            yield from self.scores("scores", "q", "k", None, scale)
            return
        # What scales the values alone comes after the sum.
        shared = rider.scale is None or rider.shares
        yield from self.scores("scores", "q", "k", None, scale if rider.shares else None)
        scaled = None if shared else self.column_scale(None)
        column = None if scaled is None else self.written(scaled)
        yield Add("column", Sum(times(local("scores", dims), column), WRITTEN, (TOKEN,)), (TOKEN,))
        if scale is not None and not rider.shares:
            yield Scale("scores", self.written(scale), dims)

    # ------------------------------------------------------------------------------------------------------- equations

    @cached_property
    def _equations(self) -> WalkLowering:
        return self.equations_of_chunk(self._updates, {"R": "R", "U": "U", "O0": "read"})

    def _solved(self) -> Iterator[Statement]:
        """R = z + N v + e^Γ S y, and U = (I - L)^{-1} R."""
        found = walks.solved(self.chunk_system)
        if found is not None:
            yield from self._equations.solved(found)
            yield Let("U_operand", rounded(local("U", self.over_updates)))

    def _put(self) -> Iterator[Statement]:
        """What tokens read, and put out."""
        if self.plan.erases_before:  # Not at once: the erasures have another, and registers are scarce.
            yield self.load_prepared("from_start")
        yield from self._equations.sum(walks.read(self.chunk_system))
        scale, over = self.scale("q"), (self.value, TOKEN)
        if scale is not None:
            yield Let("read", times(local("read", over), scale))
        if self.rider is not None:
            column = self._residual("column", ("token", "head"), ())
            first = Compare("==", Coordinate("block"), whole(0), ())
            if scale is not None:
                yield Scale("column", scale, (TOKEN,))
            yield from self._if_kept(
                Store(replace(self.rows_of(column, TOKEN), where=first), local("column", (TOKEN,)))
            )
        yield from put(self)

    def _next_state(self) -> Iterator[Statement]:
        if self.plan.delta is not None and self.plan.row_decay is not None:
            # Not before they are needed: registers are scarce until here.
            yield from (self.load_prepared("to_end"), self.load_whole())
        if self.mixes is not None:
            yield from self.mixes.load(*self.mixes.ends, *self.mixes.of_chunk)
        yield from self._equations.states(walks.next_states(self.chunk_system))
