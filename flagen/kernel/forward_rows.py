"""What the kernels of a call have in common whose decays are a scalar, or none: what is prepared of a chunk, and their
parameters."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

from flagen.kernel.ir import Access, Kernel, Let, Load, Run, Statement, Store
from flagen.kernel.mixes import arrays_of
from flagen.kernel.parameters import assembled
from flagen.kernel.rows import CHUNK, local, rounded, whole
from flagen.kernel.scalar_rows import BEFORE, ScalarDecayRows, ScalarPlacement, of_place
from flagen.kernel.walk import WalkLowering
from flagen.plan.chunk_kernel import ChunkKernelPlan
from flagen.plan.rows import TOKEN, WRITTEN
from flagen.plan.tiles import Arithmetic, Product, Size, Tile, Value
from flagen.spec.model import Dims

DECAYS = ("from_start", "to_end")
READ_SCORES = ("scores", "write_scores")
"""Scores of what tokens read; those of erasures have a row for each row that erases."""


def scratch(plan: ChunkKernelPlan) -> tuple[str, ...]:
    """What the prepared chunks are kept in."""
    if plan.prepare is None:
        return ()
    erases, writes = plan.delta is not None, plan.write_key is not None
    matrices = [
        *(("inverse", "scores") if erases else ()),
        *(("write_scores",) if writes else ()),
        *(("erased_writes",) if erases and writes else ()),
    ]
    numbers = (array.name for array in arrays_of(plan))
    return (*matrices, *(DECAYS if plan.row_decay is not None else ()), *numbers)


def kept(plan: ChunkKernelPlan) -> tuple[str, ...]:
    """What of it the backward needs: scores where it would need weights for them, which are as many."""
    again = READ_SCORES if plan.mixed is None else ("write_scores",)
    return tuple(name for name in scratch(plan) if name not in again)


class ForwardRows(ScalarDecayRows):
    """What the kernels of a call have in common."""

    # -------------------------------------------------------------------------------------------------------- prepared

    def over(self, name: str) -> Dims:
        """The axes of what is prepared."""
        if name in DECAYS:
            return (self.row,)
        return (TOKEN if name in READ_SCORES else self.row, WRITTEN)

    def prepared(self, name: str) -> Access:
        """What is prepared of a chunk: decays in float32, matrices in the dtype of the products."""
        access = self.of_chunk(name, self.over(name), "residual")
        return replace(access, array=replace(access.array, own_dtype=name not in DECAYS))

    def store_prepared(self, name: str) -> Statement:
        return Store(self.prepared(name), local(name, self.over(name)))

    def load_prepared(self, name: str) -> Statement:
        return Load(name, self.prepared(name), wide=False)

    def matrices(self) -> tuple[str, ...]:
        """The matrices that are prepared of a chunk."""
        numbers = {array.name for array in arrays_of(self.plan)}
        return tuple(name for name in scratch(self.plan) if name not in DECAYS and name not in numbers)

    def load_decays(self) -> Iterator[Statement]:
        """The decays from the chunk's start to where rows read that read at another moment than they write."""
        lane = self.lane(self.row)
        if self.grouped:
            first: Tile = Product((self.lane(TOKEN), Size(self.steps)), (TOKEN,))
            yield self._placed("from_start_read", first, self.compared(first, "<", CHUNK), fill=0.0)
        if self.plan.erases_before:
            before = Arithmetic("-", lane, whole(1), lane.dims)
            yield self._placed(BEFORE, before, self.compared(lane, ">", whole(0)), fill=1.0)

    def load_whole(self) -> Statement:
        """The decay across the chunk."""
        return self._placed("whole", Arithmetic("-", CHUNK, whole(1), ()), None)

    def _placed(self, name: str, place: Tile, where: Tile | None, fill: float = 0.0) -> Statement:
        """Decays from the chunk's start up to other rows."""
        source = replace(self.prepared("from_start"), places=((self.row, place),), where=where)
        return Load(name, source, fill=fill, wide=False)

    # ---------------------------------------------------------------------------------------------------------- states

    @property
    def over_values(self) -> tuple[Dims, Dims]:
        """The axes of the state, transposed, and of what rows have of the values."""
        return (self.plan.value, self.plan.key), (self.plan.value, self.row)

    def state_of(self, place: int | None) -> Value:
        """The matrix state, or one of several."""
        return local(self.name(self.plan.matrices[place or 0].name), self.over_values[0])

    def operand_of_state(self, place: int | None) -> Value:
        return local("S_operand" if place is None else f"S_operand_{place}", self.over_values[0])

    def operands_of_states(self) -> Iterator[Statement]:
        yield from (Let(self.operand_of_state(place).name, rounded(self.state_of(place))) for place in self.places)

    def equations_of_chunk(self, updates: Tile, called: Mapping[str, str]) -> WalkLowering:
        """The lowering of the equations of a walk forward; `updates`: U as an operand."""
        states = {of_place("S0", place): self.state_of(place) for place in self.places}
        given = {of_place("S0", place): self.operand_of_state(place) for place in self.places} | {"U": updates}
        placement = ScalarPlacement(self, states, given, {"U": local("U", self.over_values[1])})
        after = {of_place("S1", place): self.state_of(place).name for place in self.places}
        return WalkLowering(placement, {**called, **after}, self.plan.value, self.row)

    # ------------------------------------------------------------------------------------------------------ parameters

    def assembled(
        self,
        name: str,
        run: Run,
        body: Sequence[Statement],
        dims: Dims,
        order: Iterable[str],
        block_of: str | None = None,
        levels: Dims = (),
    ) -> Kernel:
        """A kernel whose tiles have `dims`; `order`: that of its arrays behind the tensors of the call; `levels`: of
        halves of a chunk, if it counts those."""
        tokens = ("BLOCK_TOKENS",) if self.steps else ()
        tiles = ("CHUNK", *tokens, *(f"BLOCK_{dim}" for dim in dims), *levels, "PRECISION")
        return assembled(self, body, name=name, run=run, dims=dims, tiles=tiles, order=order, block_of=block_of)
