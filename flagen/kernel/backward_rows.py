"""What the kernels of the backward have in common whose decays are a scalar, or none: decays, arrays, the vector state
that rides along."""

from __future__ import annotations

from collections.abc import Iterator

from flagen.kernel.chunk import BEFORE, ScalarDecayRows
from flagen.kernel.ir import Array, Let, Life, Load, Space, Statement, Store
from flagen.kernel.rows import common, local, rounded, times
from flagen.plan.backward_levels import OUTPUT, OUTPUT_GRADIENT
from flagen.plan.chunk_backward import ChunkBackwardPlan
from flagen.plan.chunk_kernel import ChunkKernelPlan
from flagen.plan.row_planner import Part
from flagen.plan.rows import ROW, TOKEN
from flagen.plan.tiles import Arithmetic, Sum, Widened
from flagen.spec.model import Dims, State

STATE_GRADIENT, COLUMN_STATE_GRADIENT = "S_gradient", "column_state_gradient"
SAVED = ("states", "column_states")
"""What a forward may leave of the states; the gradients of these are between kernels of the backward."""


class BackwardRows(ScalarDecayRows):
    """What the kernels of the backward have in common; `rows`: how they have the rows of a chunk."""

    def __init__(self, plan: ChunkBackwardPlan, rows: ChunkKernelPlan, *parts: Part) -> None:
        super().__init__(rows, *parts)
        self.backward = plan
        self.key, self.value = rows.key, rows.value
        self.state = self.name(rows.state.name)
        self.rider = rows.rider
        self.column_state = "" if rows.rider is None else self.name(rows.rider.state.name)
        self.over_state = (self.value, self.key)
        self.tiles = ("CHUNK", *(("BLOCK_TOKENS",) if self.steps else ()))

    # ---------------------------------------------------------------------------------------------------------- states

    def of_slot(self, name: str, state: State, dims: Dims, *shares: Space) -> Array:
        """What there is of a state, or its gradient, for every chunk, or every two."""
        life: Life = "residual" if name in SAVED else "scratch"
        return Array(name, (self.slots, "head", *shares), dims, life, state.name)

    # ---------------------------------------------------------------------------------------------------------- decays

    def chunk_decays(self) -> Iterator[Statement]:
        """The factors of a decay, where nothing was prepared of it."""
        if self.plan.row_decay is None:
            return
        yield from self.decays()
        yield from self.factors()
        if self.grouped:
            yield Let("from_start_read", self.exponent("read", TOKEN))
        if self.plan.erases_before:
            yield Let(BEFORE, self.exponent("before", self.row))
        yield Let("whole", self.exponent("end", ""))

    # ---------------------------------------------------------------------------------------------------- rows, tokens

    def rows_of_values(self, name: str, life: Life, axis: str) -> Array:
        """What there is of each token, or row, and value."""
        space: Space = "row" if axis == ROW else "token"
        return Array(name, (space, "head"), (self.value,), life)

    def store_rows(self, name: str, life: Life) -> Statement:
        """The store of what a walk finds for each row and value."""
        target = self.rows_of(self.rows_of_values(name, life, self.row), self.row)
        return Store(target, rounded(local(name, self.sorted((self.value, self.row)))))

    def output_gradient(self) -> Statement:
        """The load of the gradient of the output."""
        array = Array("do", ("token", "head"), (self.value,), "cotangent", OUTPUT, own_dtype=True)
        return Load(OUTPUT_GRADIENT, self.rows_of(array, TOKEN), wide=True)

    # ----------------------------------------------------------------------------- the vector state that rides along

    def column_of_tokens(self) -> Statement:
        """The load of what tokens read of the vector state."""
        return Load("column", self.rows_of(Array("column", ("token", "head"), (), "residual"), TOKEN), wide=False)

    def column_gradient_before(self) -> Statement:
        """The gradient of the vector state before a chunk, from that after it and those of what is read."""
        name = COLUMN_STATE_GRADIENT
        q, gradient = self.operand("q"), local("column_gradient", (TOKEN,))
        read = times(Widened(q, q.dims), times(gradient, common(self.scale("q"), self.start_of("q"))))
        kept = self.across(local(name, (self.key,)))
        return Let(name, Arithmetic("+", kept, Sum(read, TOKEN, (self.key,)), (self.key,)))
