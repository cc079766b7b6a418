"""What the kernels of a call have in common whose decays are a scalar, or none: what is prepared of a chunk, and their
parameters."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

from flagen.kernel.ir import Access, Kernel, Load, Run, Statement, Store
from flagen.kernel.parameters import assembled
from flagen.kernel.rows import CHUNK, local, whole
from flagen.kernel.scalar_rows import BEFORE, ScalarDecayRows
from flagen.plan.chunk_kernel import ChunkKernelPlan
from flagen.plan.rows import TOKEN, WRITTEN
from flagen.plan.tiles import Arithmetic, Product, Size, Tile
from flagen.spec.model import Dims

DECAYS = ("from_start", "to_end")
READ_SCORES = ("scores", "write_scores")
"""Scores of what tokens read; those of erasures have a row for each row that erases."""


def scratch(plan: ChunkKernelPlan) -> tuple[str, ...]:
    """What the prepared chunks are kept in."""
    if plan.prepare is None:
        return ()
    writes = ("write_scores", "erased_writes") if plan.write_key is not None else ()
    return ("inverse", "scores", *writes, *(DECAYS if plan.row_decay is not None else ()))


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

    # ------------------------------------------------------------------------------------------------------ parameters

    def assembled(
        self,
        name: str,
        run: Run,
        body: Sequence[Statement],
        dims: Dims,
        order: Iterable[str],
        block_of: str | None = None,
    ) -> Kernel:
        """A kernel whose tiles have `dims`; `order`: that of its arrays behind the tensors of the call."""
        tokens = ("BLOCK_TOKENS",) if self.steps else ()
        tiles = ("CHUNK", *tokens, *(f"BLOCK_{dim}" for dim in dims), "PRECISION")
        return assembled(self, body, name=name, run=run, dims=dims, tiles=tiles, order=order, block_of=block_of)
