"""What the kernels of a call have in common whose decays are a scalar, or none: what is prepared of a chunk, and their
parameters."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

from flagen.kernel.ir import Access, Array, Kernel, Load, Run, Statement, Store, accesses_in, values_of
from flagen.kernel.passes import counts_chunks
from flagen.kernel.rows import CHUNK, CHUNK_SEQUENCE, CU_SEQLENS, PACKING, local, whole
from flagen.kernel.scalar_rows import BEFORE, ScalarDecayRows
from flagen.plan.chunk_kernel import ChunkKernelPlan
from flagen.plan.kernel_names import kernel_name
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
        return Kernel(
            name=name,
            run=run,
            block_of=block_of,
            order=self.order,
            arrays=tuple(self._arrays(run, body, order)),
            numbers=self._numbers(body),
            lengths=("T",),
            sizes=self._sizes(body, dims),
            names=self.names,
            body=tuple(body),
            steps=self.steps,
        )

    def _arrays(self, run: Run, body: Sequence[Statement], order: Iterable[str]) -> Iterator[Array]:
        """Those that a body names, and what says where sequences and their chunks begin."""
        found = {access.array.name: access.array for access in accesses_in(body)}
        found[CU_SEQLENS.name] = CU_SEQLENS
        if counts_chunks(run, body):
            found |= {array.name: array for array in PACKING if run == "chunk" or array != CHUNK_SEQUENCE}
        spec = self.plan.spec
        tensors = [*(decl.name for decl in spec.inputs), *(param.name for param in spec.params if param.is_tensor)]
        for name in (*map(kernel_name, tensors), *order):
            if name in found:
                yield found[name]

    def _numbers(self, body: Iterable[Statement]) -> tuple[str, ...]:
        """The Python numbers among the params that expressions read."""
        read = {tile.name for tile in values_of(body) if isinstance(tile, Value)}
        declared = (kernel_name(param.name) for param in self.plan.spec.params if not param.is_tensor)
        return tuple(name for name in declared if name in read)

    def _sizes(self, body: Sequence[Statement], dims: Dims) -> tuple[str, ...]:
        """Other sizes that expressions name, micro-steps, heads, then `dims` and tiles."""
        named = {tile.name for tile in values_of(body) if isinstance(tile, Size)}
        key_heads = any("key_head" in access.array.spaces for access in accesses_in(body))
        heads = ("H", "HV") if key_heads or "H" in named else ("HV",)
        tokens = ("BLOCK_TOKENS",) if self.steps else ()
        tiles = ("CHUNK", *tokens, *(f"BLOCK_{dim}" for dim in dims), "PRECISION")
        known = (*((self.steps,) if self.steps else ()), *heads, *dims, *tiles)
        return (*sorted(named - {*known}), *known)
