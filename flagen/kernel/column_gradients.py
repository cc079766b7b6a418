"""What the last kernel of the backward of scalar decays names: rows, their parts, scores; and a vector state that rides
along, which is one more column of the values."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

from flagen.kernel.across import COLUMN_STATE_GRADIENTS, AcrossColumn, RowsFirst
from flagen.kernel.backward_rows import COLUMN_STATE_GRADIENT
from flagen.kernel.ir import Access, Add, Apply, Index, Let, Load, Loop, Statement
from flagen.kernel.mixes import weights
from flagen.kernel.rows import ZERO, local, times
from flagen.kernel.scalar_rows import of_place
from flagen.plan.backward_levels import R_GRADIENT, ROLES
from flagen.plan.rows import ROW, TOKEN, WRITTEN
from flagen.plan.tiles import Along, Arithmetic, Dot, Lane, Product, Select, Size, Sum, Tile, Value, Widened
from flagen.spec.model import Dims

PARTS = {"q": "read_part", "y": "erased_part", "w": "written_part", "k": "values_part"}
"""What each row along the keys gets, before what scales it."""


@dataclass(frozen=True)
class Scores:
    """A matrix of a chunk: what `reader` rows read of what `writer` rows write."""

    name: str
    reader: str
    writer: str

    @property
    def gradient(self) -> str:
        return f"{self.name}_gradient"


class GradientRows(RowsFirst):
    """What the kernel calls the rows of a chunk and what they get."""

    def neighbours(self, over: Literal["earlier", "later"], across: Apply) -> tuple[Loop, ...]:
        """What takes a state, or its gradient, to this chunk, from one whose it was stored for."""
        return () if self.backward.every == 1 else (Loop(over, (across,)),)

    @property
    def roles(self) -> tuple[str, ...]:
        """The rows along the keys that there are."""
        return tuple(role for role in ROLES if self.plan.vector(role) is not None)

    @property
    def matrices(self) -> tuple[Scores, ...]:
        if self.plan.delta is None:
            return (Scores("scores", "q", "k"),)
        own = (Scores("scores", "q", "w"), Scores("erasures", "y", "w"))
        if self.plan.write_key is None:
            return own
        return (*own, Scores("write_scores", "q", "k"), Scores("erased_writes", "y", "k"))

    @property
    def writing_values(self) -> tuple[Scores, ...]:
        """The matrices through which values that are written are read."""
        return tuple(matrix for matrix in self.matrices if matrix.writer == "k")

    def over_keys(self, role: str) -> Dims:
        return (self.axis_of(role), self.key)

    def square(self, matrix: Scores) -> Dims:
        return (self.axis_of(matrix.reader), WRITTEN)

    def part(self, role: str) -> Value:
        """What the rows of `role` get."""
        return local(PARTS[role], self.over_keys(role))

    def values_of(self, role: str) -> Tile:
        """What rows of `role` write, or the gradient of what they read, as an operand over the values."""
        if role == "k":
            return self.operand("v")
        names = {"q": "read_operand", "y": R_GRADIENT, "w": "U"}
        return local(names[role], (self.axis_of(role), self.value))

    def own_scale(self, role: str) -> Tile | None:
        """What scales the rows of `role` and is not in what they get; the values' scale is in what their keys get."""
        return None if role == "k" else self.scale(role)

    def vector(self, role: str) -> Value:
        """The rows of `role`, with what scales them, as an operand."""
        return self.operand(role) if self.own_scale(role) is None else local(f"{role}_scaled", self.over_keys(role))

    def wide(self, tile: Tile) -> Tile:
        return Widened(tile, tile.dims)

    def onto_written(self, matrix: Tile, rows: Tile, onto: Tile) -> Tile:
        """What rows that read give to those that were written, through a matrix."""
        (reader, _), (_, other) = matrix.dims, rows.dims
        product = Dot(matrix, rows, reader, self.written(onto), (WRITTEN, other))
        return Along(product, onto.dims)

    def token_of_rows(self) -> Tile:
        """The token of each row, in the chunk."""
        if not self.grouped:
            return self.lane(TOKEN)
        return Arithmetic("//", Lane(ROW, (ROW,)), Size(self.steps), (ROW,))

    def part_of(self, role: str, place: int | None) -> Value:
        """What the rows of `role` get of the state, or its gradient; of one of several."""
        return local(of_place(PARTS[role], place), self.over_keys(role))

    def decayed(self, matrix: Scores, tile: Tile) -> Tile:
        """A matrix with the decay between its rows, or the weights of several states."""
        if self.plan.mixed is not None:
            return times(tile, weights(matrix.reader, matrix.writer))
        return tile if self.plan.row_decay is None else times(tile, self.between(matrix.reader))

    def masked(self, matrix: Scores, tile: Tile) -> Tile:
        """A matrix without what is not seen, of which the weights of several states are zero."""
        if self.plan.mixed is not None:
            return tile
        return Select(self.seen(matrix.reader), tile, ZERO, self.square(matrix))


class ColumnGradients(GradientRows):
    """What the kernel does for the column alone; nothing where nothing rides."""

    @property
    def varies_column(self) -> bool:
        """Whether what the column is has a gradient."""
        return self.backward.rider is not None and self.backward.rider.varied

    @property
    def scales_apart(self) -> bool:
        """Whether what scales the values has to go onto the gradient of the scores before the column's share does."""
        rider = self.rider
        return rider is not None and not rider.shares and (rider.scale is not None or self.scale("v") is not None)

    def values_scale(self, matrix: Scores) -> Tile | None:
        """What scales the values that a matrix' columns write, where that is not in its gradient already."""
        return None if matrix.writer == "w" or self.scales_apart else self.scale("v")

    def column_of_values(self) -> Iterator[Statement]:
        if self.varies_column:
            yield self.column_gradient()

    def column_states(self) -> Iterator[Statement]:
        """A block of the vector state before the chunk and of its gradient after it, and the gradient of what is read
        of it."""
        if self.rider is None:
            return
        yield self.column_gradient()
        states = self.of_slot("column_states", self.rider.state, (self.key,))
        yield Load(self.column_state, Access(states, tuple(map(Index, states.spaces)), (self.key,)), wide=False)
        yield from self.neighbours("earlier", Apply(AcrossColumn(self.backward, after=True).routine()))
        yield from self.column_state_gradient()

    def column_state_gradient(self) -> Iterator[Statement]:
        assert self.rider is not None
        shares = self.of_slot(COLUMN_STATE_GRADIENTS, self.rider.state, (self.key,), "block")
        source = Access(shares, tuple(map(Index, shares.spaces)), (self.key,))
        yield Load(COLUMN_STATE_GRADIENT, source, shares=True)
        yield from self.neighbours("later", Apply(AcrossColumn(self.backward, after=False).routine()))

    def column_onto_keys(self, decayed: Iterable[Statement]) -> Iterator[Statement]:
        """What q and k get through the vector state that rides along, around the factors of what the matrix gives."""
        if self.rider is None:
            yield from decayed
            return
        state, gradient = local(self.column_state, (self.key,)), local(COLUMN_STATE_GRADIENT, (self.key,))
        reads, writes = self.over_keys("q"), self.over_keys("k")
        yield Add(PARTS["q"], Product((local("column_gradient", (TOKEN,)), state), reads), reads)
        yield from decayed
        row = self.column_scale(self.to_end())
        keys: Tile = gradient
        if row is not None:
            keys = Product((row, gradient), writes if row.dims else gradient.dims)
        yield Add(PARTS["k"], keys, writes)
        if self.backward.decays:
            yield Add("state_dot", Sum(times(state, gradient), self.key, ()), ())

    def column_onto_scores(self, matrix: Scores) -> Iterator[Statement]:
        """The column's share of the gradient of the scores: as that of one more value."""
        if self.rider is None:
            return
        square, column = self.square(matrix), local("column_gradient", (TOKEN,))
        if not self.scales_apart:
            yield Add(matrix.gradient, column, square)
            return
        scales = (self.scale("v"), self.column_scale(None))
        values, shares = (None if scale is None else self.written(scale) for scale in scales)
        scaled = times(local(matrix.gradient, square), values)
        share = column if shares is None else Product((column, shares), square if shares.dims else column.dims)
        yield Let(matrix.gradient, Arithmetic("+", scaled, share, square))

    def column_of_keys(self) -> Iterator[Statement]:
        """What the gradient of the vector state gives to the column, of a block of keys."""
        if not self.varies_column:
            return
        yield from self.column_state_gradient()
        key = self.operand("k")
        common = times(self.wide(key), local(COLUMN_STATE_GRADIENT, (self.key,)))
        yield Add("column_keys", Sum(common, self.key, (self.row,)), (self.row,))

    def column_scale_gradient(self, scores: Tile) -> Tile:
        """The gradient of what the column is for each row."""
        read = Sum(times(scores, local("column_gradient", (TOKEN,))), TOKEN, (WRITTEN,))
        left = times(local("column_keys", (self.row,)), self.to_end())
        return Arithmetic("+", Along(read, (self.row,)), left, (self.row,))
