"""What the kernels of the backward have in common whose decays are a scalar, or none: decays, arrays, the vector state
that rides along."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from flagen.kernel.chunk import BEFORE, ScalarDecayRows
from flagen.kernel.ir import Array, Let, Life, Load, Space, Statement, Store, accesses_in, statements_in, values_of
from flagen.kernel.recurrent import tensors_of
from flagen.kernel.rows import local, rounded, times
from flagen.plan.backward_levels import OUTPUT, OUTPUT_GRADIENT
from flagen.plan.chunk_backward import ChunkBackwardPlan
from flagen.plan.chunk_kernel import ChunkKernelPlan
from flagen.plan.kernel_names import kernel_name
from flagen.plan.row_planner import Part
from flagen.plan.rows import ROW, TOKEN
from flagen.plan.tiles import Arithmetic, Sum, Tile, Value, Widened


def common(*factors: Tile | None) -> Tile | None:
    """The product of those factors that there are; None where there are none."""
    found = [factor for factor in factors if factor is not None]
    return times(*found) if found else None


SHARES = "shares"
"""How many blocks there are that have shares of a sum."""


def kept(plan: ChunkKernelPlan) -> tuple[str, ...]:
    """What the backward needs of the prepared chunks."""
    if plan.prepare is None:
        return ()
    writes = ("erased_writes",) if plan.write_key is not None else ()
    decays = ("from_start", "to_end") if plan.row_decay is not None else ()
    return ("inverse", *writes, *decays)


class BackwardRows(ScalarDecayRows):
    """What the kernels of the backward have in common; `rows`: how they have the rows of a chunk."""

    def __init__(self, plan: ChunkBackwardPlan, rows: ChunkKernelPlan, *parts: Part) -> None:
        super().__init__(rows, *parts)
        self.backward = plan
        self.key, self.value = rows.key, rows.value
        self.state = self.name(rows.state.name)
        self.rider = rows.rider
        self.column_state = "" if rows.rider is None else self.name(rows.rider.state.name)
        tokens = ("BLOCK_TOKENS",) if self.steps else ()
        tiles = ("CHUNK", *tokens, f"BLOCK_{self.key}", f"BLOCK_{self.value}", "PRECISION")
        self.sizes = (*((self.steps,) if self.steps else ()), "H", "HV", self.key, self.value, *tiles)

    # ------------------------------------------------------------------------------------------------------ parameters

    def arrays(self, body: Iterable[Statement], order: Iterable[str], *others: Array) -> tuple[Array, ...]:
        """Those that a body names, and `others`: the tensors of the call as its signature has them, the rest in this
        order."""
        found = {access.array.name: access.array for access in accesses_in(body)}
        found |= {array.name: array for array in others}
        tensors = (array.name for array in tensors_of(self.plan.spec))
        names = (*map(kernel_name, tensors), *order)
        return tuple(found[name] for name in names if name in found)

    def numbers(self, body: Iterable[Statement]) -> tuple[str, ...]:
        """The Python numbers among the params that expressions read."""
        read = {tile.name for tile in values_of(body) if isinstance(tile, Value)}
        declared = (kernel_name(param.name) for param in self.plan.spec.params if not param.is_tensor)
        shares = any(isinstance(statement, Load) and statement.shares for statement in statements_in(body))
        return (*(name for name in declared if name in read), *((SHARES,) if shares else ()))

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

    def across(self, state: Tile) -> Tile:
        """A state, or its gradient, decayed across the chunk."""
        return state if self.plan.row_decay is None else times(local("whole", ()), state)

    def to_end(self) -> Tile | None:
        """The decay from each row to the end of the chunk."""
        return None if self.plan.row_decay is None else local("to_end", (self.row,))

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

    def column_scale(self, decay: Tile | None) -> Tile | None:
        """What the column is for each row, decayed; None where it is 1."""
        rider = self.rider
        scale = None if rider is None or rider.scale is None else self.tile(rider.scale, self.row)
        return common(scale, decay)

    def next_column_state(self) -> Iterator[Statement]:
        """The vector state that rides along, after the chunk."""
        if self.rider is None:
            return
        key = self.operand("k")
        written = times(Widened(key, key.dims), self.column_scale(self.to_end()))
        kept = self.across(local(self.column_state, (self.key,)))
        yield Let(self.column_state, Arithmetic("+", kept, Sum(written, self.row, (self.key,)), (self.key,)))

    def column_gradient_before(self) -> Statement:
        """The gradient of the vector state before a chunk, from that after it and those of what is read."""
        name = "column_state_gradient"
        q, gradient = self.operand("q"), local("column_gradient", (TOKEN,))
        read = times(Widened(q, q.dims), times(gradient, common(self.scale("q"), self.start_of("q"))))
        kept = self.across(local(name, (self.key,)))
        return Let(name, Arithmetic("+", kept, Sum(read, TOKEN, (self.key,)), (self.key,)))
