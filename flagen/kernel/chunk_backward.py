"""Lowers the walks of the backward of chunk kernels whose decays are a scalar, or none: of the states, which are kept,
and in reverse of their gradients."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from flagen.kernel import walks
from flagen.kernel.backward_rows import COLUMN_STATE_GRADIENT, STATE_GRADIENT, BackwardRows
from flagen.kernel.forward_rows import ForwardRows, kept
from flagen.kernel.ir import (
    Access,
    Apply,
    Array,
    Fill,
    Given,
    If,
    Index,
    Kernel,
    Let,
    Load,
    Loop,
    Note,
    Operands,
    Routine,
    Row,
    Space,
    Statement,
    Store,
    access,
    accesses_in,
)
from flagen.kernel.parameters import routine_of
from flagen.kernel.passes import live
from flagen.kernel.rows import local, rounded, times, whole
from flagen.kernel.scalar_rows import ScalarPlacement, of_place
from flagen.kernel.state_walk import start_of
from flagen.kernel.walk import WalkLowering
from flagen.plan.backward_levels import OUTPUT, R_GRADIENT, READ_GRADIENT, ROLES
from flagen.plan.chunk_backward import ChunkBackwardPlan
from flagen.plan.free_names import initial_of
from flagen.plan.row_planner import Part
from flagen.plan.rows import TOKEN, WRITTEN
from flagen.plan.tiles import (
    Arithmetic,
    Both,
    Compare,
    Coordinate,
    Either,
    Select,
    Size,
    Tile,
    Value,
)
from flagen.spec.model import Dims

OF_RUN: tuple[Space, ...] = ("sequence", "head")


class BackwardWalk(BackwardRows, ForwardRows):
    """What both walks have in common: a program has a block of the values of one head of one sequence, transposed."""

    def __init__(self, plan: ChunkBackwardPlan, part: Part) -> None:
        super().__init__(plan, plan.forward, part)

    def walk(self, name: str, body: Sequence[Statement], order: Iterable[str]) -> Kernel:
        """The kernel; `order`: that of its arrays beside the tensors of the call."""
        return self.assembled(name, "sequence", body, (self.key, self.value), order, self.value)

    def routine(
        self, name: str, carried: tuple[str, ...], docs: str, body: Iterable[Statement], order: Iterable[str]
    ) -> Routine:
        """What a walk does with one chunk."""
        needed = live(tuple(body), carried)
        spaces = {space for access in accesses_in(needed) for space in access.array.spaces}
        told: tuple[Space, ...] = ("counted_chunk", "block")
        return routine_of(
            self,
            needed,
            name=name,
            carried=carried,
            docs=docs,
            dims=(self.key, self.value),
            tiles=(*self.tiles, f"BLOCK_{self.key}", "PRECISION", "dtype"),
            order=order,
            place=("head", *(space for space in told if space in spaces)),
            lanes=(self.value,),
        )

    # ---------------------------------------------------------------------------------------------------------- states

    def at(
        self, array: Array, within: Dims, *, end: tuple[str, Tile] | None = None, in_memory_order: bool = False
    ) -> Access:
        """A row where the program stands; nothing of it behind the `end` of a dim."""
        ends = () if end is None else (end,)
        return Access(array, tuple(map(Index, array.spaces)), within, ends=ends, in_memory_order=in_memory_order)


def end_where(holds: Tile, dim: str) -> tuple[str, Tile]:
    """An end of a dim of which there is all where a condition holds, and nothing where it does not."""
    return dim, Select(holds, Size(dim), whole(0), ())


def _end(where: Tile | None, dim: str) -> tuple[str, Tile] | None:
    """The same; without a condition there is all of it."""
    return None if where is None else end_where(where, dim)


def _equals(of: Tile, number: int) -> Tile:
    return Compare("==", of, whole(number), ())


_WITHIN = Coordinate("chunk of sequence")
_PLACE_IN_SLOT = Arithmetic("%", _WITHIN, whole(2), ())
_IS_FIRST_OF_SLOT = _equals(_PLACE_IN_SLOT, 0)
_IS_LAST_OF_SEQUENCE = Compare("==", _WITHIN, Arithmetic("-", Coordinate("chunks of sequence"), whole(1), ()), ())
_IS_LAST_OF_SLOT = Either(_equals(_PLACE_IN_SLOT, 1), _IS_LAST_OF_SEQUENCE, ())
_IS_FIRST_BLOCK = _equals(Coordinate("block"), 0)


class KeptStates(BackwardWalk):
    """The kernel that walks the chunks forward and stores the states between them."""

    def __init__(self, plan: ChunkBackwardPlan) -> None:
        super().__init__(plan, plan.states)

    def kernel(self) -> Kernel:
        routine = self._after()
        states = self.plan.matrices if self.rider is None else self.plan.spec.states
        first = [initial_of(self.plan.spec, state) for state in states]
        body = (
            Row("state_start", ("sequence", "head"), self.plan.state.dims),
            Operands(self.of_slot("states", self.plan.state, self.over_state)),
            *self._first(),
            Note(),
            Loop("chunk", (*self._kept(), Apply(routine)), counted=True),
        )
        order = (*first, "cu_seqlens", "first_chunk", *kept(self.plan), "states", "U", "column_states")
        return self.walk("kept_states", body, order)

    @property
    def carried(self) -> tuple[str, ...]:
        """What goes from chunk to chunk."""
        states = tuple(self.state_of(place).name for place in self.places)
        return states if self.rider is None else (*states, self.column_state)

    def _first(self) -> Iterator[Statement]:
        """The states that a run starts from."""
        yield from (start_of(self, state) for state in self.plan.matrices)
        if self.rider is not None:
            yield start_of(self, self.rider.state)

    def _kept(self) -> Iterator[Statement]:
        """The states before every chunk, or every second one."""
        states = self.of_slot("states", self.plan.state, self.over_state)
        end: tuple[str, Tile] | None = None
        if self.backward.every > 1:
            _, rows = end_where(_IS_FIRST_OF_SLOT, self.value)
            yield Let("rows_stored", rows)
            end = self.value, local("rows_stored", ())
        target = self.at(states, self.over_state, end=end)
        for place in self.places:
            yield Store(self.of_place(target, place), rounded(self.state_of(place)))
        if self.rider is not None:
            columns = self.of_slot("column_states", self.rider.state, (self.key,))
            where: Tile = _IS_FIRST_BLOCK
            if self.backward.every > 1:
                where = Both(_IS_FIRST_OF_SLOT, where, ())
            target = self.at(columns, (self.key,), end=end_where(where, self.key))
            yield Store(target, local(self.column_state, (self.key,)))

    def _after(self) -> Routine:
        """The states after a chunk, from those before it."""
        several = len(self.carried) > 1
        docs = (
            f"The {'states' if several else 'state'} after the chunk at `start`, from the"
            f" {'ones' if several else 'one'} before it; {'matrices' if several else 'both'} transposed."
        )
        return self.routine("state_after_chunk", self.carried, docs, self._body(), (*kept(self.plan), "U"))

    def _body(self) -> Iterator[Statement]:
        plan, erases = self.plan, self.plan.delta is not None
        if erases:
            yield from self.operands_of_states()
        yield from self.once(*self.parts)
        yield from self.loads(self.parts[0])
        yield from (self.load_prepared(name) for name in self.matrices() if name in kept(plan))
        if self.mixes is not None:
            yield from self.mixes.load(*self.mixes.starts)
        if erases and plan.row_decay is not None:
            yield from (self.load_prepared("from_start"), *self.load_decays())
        yield from self.operands(*(role for role in ROLES if role != "q"), "v")
        if not erases:
            yield from self.chunk_decays()
        updates = local("U_operand", (self.value, self.row))
        equations = self.equations_of_chunk(updates, {"R": "R", "U": "U"})
        if (found := walks.solved(self.chunk_system)) is not None:
            yield from equations.solved(found)
            yield Let("U_operand", rounded(local("U", updates.dims)))
            yield self.store_rows("U", "residual")
            if plan.row_decay is not None:
                # Not before they are needed: registers are scarce until here.
                yield from (self.load_prepared("to_end"), self.load_whole())
        if self.mixes is not None:
            yield from self.mixes.load(*self.mixes.ends, *self.mixes.of_chunk)
        yield from equations.states(walks.next_states(self.chunk_system))
        yield from self.next_column_state()


class Reverse(BackwardWalk):
    """The kernel that walks the chunks backward with the gradient of the state."""

    def __init__(self, plan: ChunkBackwardPlan) -> None:
        super().__init__(plan, plan.reverse)

    def kernel(self) -> Kernel:
        routine = self._before()
        gradients = self.of_slot("state_gradients", self.plan.state, self.over_state)
        body = (
            Row("state_start", ("sequence", "head"), self.plan.state.dims),
            Operands(gradients),
            *self._first(),
            Note(),
            Loop("chunk", (*self._left(gradients), Apply(routine)), reverse=True, counted=True),
            Note(),
            *self._last(),
        )
        final, first = (
            [of_place(name, place) for place in self.places] for name in ("final_gradient", "initial_gradient")
        )
        order = (*final, *"column_final_gradient cu_seqlens first_chunk o column".split(), *kept(self.plan))
        order += ("state_gradients", "column_state_gradients", "column_gradients", R_GRADIENT)
        return self.walk("reverse", body, ("do", *order, *first, "column_initial_gradient"))

    @property
    def carried(self) -> tuple[str, ...]:
        """What goes from chunk to chunk."""
        gradients = tuple(self._gradient(place).name for place in self.places)
        return gradients if self.rider is None else (*gradients, COLUMN_STATE_GRADIENT)

    def _gradient(self, place: int | None) -> Value:
        """The gradient of the matrix state, or of one of several."""
        return local(of_place(STATE_GRADIENT, place), self.over_state)

    def _first(self) -> Iterator[Statement]:
        """The gradients of the states that a run ends with; that of a vector is the first block's."""
        for place, state in zip(self.places, self.plan.matrices, strict=True):
            name = self._gradient(place).name
            called = of_place("final_gradient", place)
            final = Array(called, OF_RUN, state.dims, "cotangent", state.name, optional=True)
            loaded = Load(name, access(final), wide=True)
            yield If((Given(final, False),), (Fill(name, self.over_state),), (loaded,))
        if self.rider is not None:
            column = self.rider.state
            given = Array("column_final_gradient", OF_RUN, column.dims, "cotangent", column.name, optional=True)
            source = self.at(given, (self.key,), end=end_where(_IS_FIRST_BLOCK, self.key))
            yield If(
                (Given(given, False),),
                (Fill(COLUMN_STATE_GRADIENT, (self.key,)),),
                (Load(COLUMN_STATE_GRADIENT, source, wide=False),),
            )

    def _left(self, gradients: Array) -> Iterator[Statement]:
        """The gradients of the states after every chunk, or every second one and the last: each block has its share of
        that of a vector."""
        last = None if self.backward.every == 1 else local("is_last", ())
        if last is not None:
            yield Let(last.name, _IS_LAST_OF_SLOT)
        target = self.at(gradients, self.over_state, end=_end(last, self.value))
        for place in self.places:
            yield Store(self.of_place(target, place), rounded(self._gradient(place)))
        if self.rider is not None:
            shares = self.of_slot("column_state_gradients", self.rider.state, (self.key,), "block")
            target = self.at(shares, (self.key,), end=_end(last, self.key))
            yield Store(target, local(COLUMN_STATE_GRADIENT, (self.key,)))

    def _last(self) -> Iterator[Statement]:
        """The gradients of the states that a run starts from."""
        for place, state in zip(self.places, self.plan.matrices, strict=True):
            called = of_place("initial_gradient", place)
            first = Array(called, OF_RUN, state.dims, "gradient", state.name, own_dtype=True, optional=True)
            target = self.at(first, state.dims, in_memory_order=True)
            yield If((Given(first),), (Store(target, self._gradient(place)),))
        if self.rider is not None:
            column = self.rider.state
            shares = Array(
                "column_initial_gradient", (*OF_RUN, "block"), column.dims, "gradient", column.name, optional=True
            )
            store = Store(self.at(shares, (self.key,)), local(COLUMN_STATE_GRADIENT, (self.key,)))
            yield If((Given(shares),), (store,))

    def _before(self) -> Routine:
        """The gradients of the states before a chunk, from those after it."""
        several = len(self.carried) > 1
        docs = (
            f"The {'gradients of the states' if several else 'gradient of the state'} before the chunk at `start`, from"
            f" {'those' if several else 'that of the one'} after it; {'matrices' if several else 'both'} transposed."
        )
        order = ("do", "o", "column", *kept(self.plan), "column_gradients", R_GRADIENT)
        return self.routine("gradient_before_chunk", self.carried, docs, self._body(), order)

    def _body(self) -> Iterator[Statement]:
        erases = self.plan.delta is not None
        if erases:
            yield from (Let(self.operand_of_state(x).name, rounded(self._gradient(x))) for x in self.places)
        yield from self.once(*self.parts)
        yield from self.loads(self.parts[0])
        yield from self.operands("q", *(("w", "y") if erases else ()))
        yield from self.chunk_decays()
        if self.mixes is not None:
            yield from self.mixes.load(*self.mixes.of_rows, *self.mixes.of_chunk)
        if erases:
            yield from self._scores()
        yield from self._read_gradient()
        yield from self._equations()

    def _scores(self) -> Iterator[Statement]:
        """What tokens read of the rows of a chunk: a product more, and a matrix less to hand on and to read. Weights of
        states that numbers mix would be one, too."""
        if self.plan.mixed is not None:
            yield self.load_prepared("scores")
            return
        if self.plan.row_decay is not None:
            yield Let("decay", self.between("q"))
        # The scores have the scale of w in them, which the state's part lacks.
        yield from self.scores("scores", "q", "w", None, self.scale("w"))
        yield Let("scores", rounded(local("scores", (TOKEN, WRITTEN))))

    def _read_gradient(self) -> Iterator[Statement]:
        yield self.output_gradient()
        yield from self._column_gradient()
        yield Let(READ_GRADIENT, self.tile(self.backward.walk_read, TOKEN))
        if (scale := self.scale("q")) is not None:
            yield Let(READ_GRADIENT, times(local(READ_GRADIENT, (self.value, TOKEN)), scale))

    def _equations(self) -> Iterator[Statement]:
        """The gradient of the state before a chunk, from that of the state after it."""
        read, right = local(READ_GRADIENT, (self.value, TOKEN)), local(R_GRADIENT, (self.value, self.row))
        states = {of_place("dS1", place): self._gradient(place) for place in self.places}
        given: dict[str, Tile] = {of_place("dS1", place): self.operand_of_state(place) for place in self.places}
        given |= {"dO0": rounded(read), "dR": rounded(right)}
        placement = ScalarPlacement(self, states, given, {"dO0": read, "dR": right})
        called = {of_place("dS0", place): self._gradient(place).name for place in self.places}
        called |= {"dU": "U_gradient", "dR": R_GRADIENT}
        equations = WalkLowering(placement, called, self.value, self.row)
        adjoint = self.adjoint_system
        if (found := walks.solved_back(adjoint)) is not None:
            of_updates, solution = found
            yield self.load_prepared("inverse")
            yield from equations.sum(of_updates)
            yield equations.inverted(solution)
            yield self.store_rows(R_GRADIENT, "scratch")
        yield from equations.states(walks.states_before(adjoint))

    def _column_gradient(self) -> Iterator[Statement]:
        """The block's share of the gradient of what is read of the vector state that rides along, and of the state's
        before the chunk."""
        if self.backward.rider is None:
            return
        yield Load(OUTPUT, self.rows_of(self.rows_of_values(OUTPUT, "residual", TOKEN), TOKEN), wide=True)
        yield self.column_of_tokens()
        yield Let("column_gradient", self.tile(self.backward.rider.read, TOKEN))
        shares = Array("column_gradients", ("token", "head", "block"))
        yield Store(self.rows_of(shares, TOKEN), local("column_gradient", (TOKEN,)))
        yield self.column_gradient_before()
