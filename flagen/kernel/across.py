"""Lowers how the backward of scalar decays comes by the states that its walks do not store: from that before a chunk to
that after it, and with gradients the other way round."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from flagen.kernel.backward_rows import COLUMN_STATE_GRADIENT, STATE_GRADIENT, BackwardRows
from flagen.kernel.ir import Access, Array, Let, Life, Load, Routine, Statement
from flagen.kernel.mixes import arrays_of, end, start
from flagen.kernel.parameters import routine_of
from flagen.kernel.passes import live, rounds
from flagen.kernel.rows import common, local, rounded, times
from flagen.kernel.scalar_rows import of_place
from flagen.plan.backward_levels import (
    BLOCK,
    HEAD,
    KEYS,
    R_GRADIENT,
    READ_GRADIENT,
    SHARED,
    Level,
)
from flagen.plan.chunk_backward import ChunkBackwardPlan
from flagen.plan.row_planner import Part, RowLoad, RowSet
from flagen.plan.rows import TOKEN
from flagen.plan.schedule import Load as Loaded
from flagen.plan.schedule import Set
from flagen.plan.tiles import Dot, Tile, Value
from flagen.spec.model import Input, Param

COLUMN_GRADIENTS, COLUMN_STATE_GRADIENTS = "column_gradients", "column_state_gradients"


class RowsFirst(BackwardRows):
    """What works on rows of a chunk that come first in every tile: blocks of keys, blocks of values."""

    def __init__(self, plan: ChunkBackwardPlan, *parts: Part) -> None:
        super().__init__(plan, plan.rows, *parts)

    def array(self, source: Input | Param) -> Array:
        """What lies along the keys is that of a key head: where heads are all of one kind, that is the value head."""
        array = super().array(source)
        if set(self.plan.keys).isdisjoint(source.dims):
            return array
        return replace(array, spaces=tuple("key_head" if space == "head" else space for space in array.spaces))

    def rows_of(self, array: Array, axis: str) -> Access:
        """Rows whose addresses are short: there is one for each row of each array, and registers are scarce."""
        return replace(super().rows_of(array, axis), address="from start")

    def given(self, part: Part, *levels: Level) -> Iterator[Statement]:
        """What of `part` is loaded and evaluated on `levels`."""
        of_names = self.backward.levels.of_names
        once = tuple(action for action in part.once if of_names[_named(action)] in levels)
        rows = tuple(action for action in part.rows if of_names[_named(action)] in levels)
        yield from self.fixed(once)
        yield from self.of_rows(rows)

    @property
    def states(self) -> tuple[Value, ...]:
        """The matrix states."""
        return tuple(local(self.name(state.name), self.over_state) for state in self.plan.matrices)

    @property
    def gradients(self) -> tuple[Value, ...]:
        """Their gradients."""
        return tuple(local(of_place(STATE_GRADIENT, place), self.over_state) for place in self.places)

    def is_left(self, role: str, place: int | None) -> bool:
        """Whether rows of `role` read or write something of a state at the chunk's start, or at its end."""
        mixed = self.plan.mixed
        return mixed is None or place in (mixed.starts(role) if role in mixed.of else mixed.ends(role))

    def left_of(self, role: str, place: int | None) -> Tile | None:
        """How much of that there is: a decay, or a number of one of several states."""
        if place is None:
            return self.to_end() if role in ("w", "k") else self.start_of(role)
        return start(role, place) if role in ("q", "y") else end(role, place)

    def read_gradient(self) -> Iterator[Statement]:
        """The gradient of the read, of a block of values."""
        yield self.output_gradient()
        if self.backward.rider is not None:
            yield self.column_of_tokens()
        yield Let(READ_GRADIENT, self.tile(self.backward.read, TOKEN))
        yield Let("read_operand", rounded(local(READ_GRADIENT, (TOKEN, self.value))))

    def stored_rows(self, name: str, *, wide: bool = False) -> Iterator[Statement]:
        """What a walk found for each row, of a block of values."""
        if self.plan.delta is not None:
            life: Life = "residual" if name == "U" else "scratch"
            array = self.rows_of_values(name, life, self.row)
            yield Load(name, self.rows_of(array, self.row), wide=wide)

    def column_gradient(self) -> Statement:
        """The gradient of what is read of the vector state that rides along: the sum of what the walk's blocks have."""
        shares = Array(COLUMN_GRADIENTS, ("token", "head", "block"))
        return Load("column_gradient", self.rows_of(shares, TOKEN), shares=True)

    def scaled(self, tile: Tile, *factors: Tile | None) -> Tile:
        """An operand over rows and values, with factors of its rows."""
        factor = common(*factors)
        return tile if factor is None else rounded(times(tile, factor))


class Across(RowsFirst):
    """Takes a block of a state across the chunk after it, or of its gradient across the chunk before it."""

    def __init__(self, plan: ChunkBackwardPlan, *, after: bool) -> None:
        super().__init__(plan, plan.after if after else plan.before)
        self.after = after

    def routine(self) -> Routine:
        carried = self.states if self.after else self.gradients
        names = tuple(state.name for state in carried)
        what, last, first = ("state", "after", "before") if self.after else ("gradient of the state", "before", "after")
        one, that = "A block", "that"
        if self.plan.mixed is not None:
            what, one, that = what.replace("state", "states"), "Blocks", "those"
            what = what.replace("gradient", "gradients")
        body = live(tuple(self._body(carried)), names)
        return routine_of(
            self,
            body,
            name="state_across" if self.after else "gradient_across",
            carried=names,
            docs=f"{one} of the {what} {last} the chunk at `start`, from {that} {first} it, transposed.",
            dims=(self.key, self.value),
            tiles=(*self.tiles, "PRECISION", "dtype"),
            order=("do", "U", R_GRADIENT, "column", *(array.name for array in arrays_of(self.plan))),
            place=("key_head", "head", *(() if self.plan.mixed is None else ("counted_chunk",))),
            lanes=(self.key, self.value),
        )

    def _body(self, carried: Sequence[Value]) -> Iterator[Statement]:
        yield from self.given(self.parts[0], SHARED, HEAD, KEYS, BLOCK)
        yield from self.operands(*(("w", "k", "v") if self.after else ("q", "y")))
        yield from self.chunk_decays()
        if self.after:
            yield from self.stored_rows("U")
        else:
            yield from self.read_gradient()
            yield from self.stored_rows(R_GRADIENT)
        mixes = self.mixes
        if mixes is not None:
            yield from mixes.load(*(mixes.ends if self.after else mixes.starts), *mixes.of_chunk)
            yield mixes.mixed_states(carried, back=not self.after)
        for place, state in zip(self.places, carried, strict=True):
            onto = self.across(state)
            for operand, role in self._written(place) if self.after else self._read(place):
                yield Let(state.name, Dot(operand, self.operand(role), self.axis_of(role), onto, self.over_state))
                onto = state

    def _written(self, place: int | None) -> Iterator[tuple[Tile, str]]:
        """What rows write, with the role of what they write it along."""
        if self.plan.delta is not None and self.is_left("w", place):
            yield self.scaled(local("U", (self.row, self.value)), self.scale("w"), self.left_of("w", place)), "w"
        if self.plan.write_key is not None and self.is_left("k", place):
            yield self.scaled(self.operand("v"), self.scale("v"), self.left_of("k", place)), "k"

    def _read(self, place: int | None) -> Iterator[tuple[Tile, str]]:
        """The gradients of what rows read, with the role of what they read along."""
        read, right = local("read_operand", (TOKEN, self.value)), local(R_GRADIENT, (self.row, self.value))
        if self.is_left("q", place):
            yield self.scaled(read, self.scale("q"), self.left_of("q", place)), "q"
        if self.plan.delta is not None and self.is_left("y", place):
            yield self.scaled(right, self.scale("y"), self.left_of("y", place)), "y"


class AcrossColumn(RowsFirst):
    """Takes a block of the vector state that rides along across the chunk after it, or of its gradient across the chunk
    before it."""

    def __init__(self, plan: ChunkBackwardPlan, *, after: bool) -> None:
        assert plan.rider is not None
        super().__init__(plan, plan.rider.after if after else plan.rider.before)
        self.after = after

    def routine(self) -> Routine:
        carried = self.column_state if self.after else COLUMN_STATE_GRADIENT
        what, end, start = ("", "after", "before") if self.after else ("gradient of the ", "before", "after")
        body = live(tuple(self._body()), (carried,))
        return routine_of(
            self,
            body,
            name="column_across" if self.after else "column_gradient_across",
            carried=(carried,),
            docs=f"A block of the {what}vector state {end} the chunk at `start`, from that {start} it.",
            dims=(self.key,),
            tiles=(*self.tiles, *(("dtype",) if rounds(body) else ())),
            order=(COLUMN_GRADIENTS,),
            place=("key_head", "head"),
            lanes=(self.key,),
        )

    def _body(self) -> Iterator[Statement]:
        yield from self.given(self.parts[0], SHARED, HEAD, KEYS)
        yield from self.operands("k" if self.after else "q")
        yield from self.chunk_decays()
        if self.after:
            yield from self.next_column_state()
        else:
            yield self.column_gradient()
            yield self.column_gradient_before()


def _named(action: Loaded | Set | RowLoad | RowSet) -> str:
    """The name that a load or an evaluation gives a value."""
    return action.source.name if isinstance(action, Loaded | RowLoad) else action.target
