"""Lowers the plans of chunk kernels whose decays are a scalar, or none: preparation, and the walks forward."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from flagen.kernel.ir import Kernel, Let, Note, Statement, Store
from flagen.kernel.rows import CHUNK, PRECISION, call, local
from flagen.kernel.scalar_rows import ScalarDecayRows, ScalarPlacement
from flagen.plan.chunk_kernel import ChunkKernelPlan
from flagen.plan.rows import TOKEN, WRITTEN

__all__ = ["Prepare", "ScalarDecayRows", "ScalarPlacement"]


class Prepare(ScalarDecayRows):
    """The kernel that prepares all chunks at once. It loads nothing before it is needed: registers are scarce."""

    def __init__(self, plan: ChunkKernelPlan) -> None:
        assert plan.prepare is not None
        super().__init__(plan, *plan.prepare)

    def kernel(self) -> Kernel:
        first, second, third = self.parts
        plan = self.plan
        decays = [*self.decays(), *self._ends()]
        body: list[Statement] = [
            *self.once(*self.parts),
            *self.loads(first),
            *([Note(), *decays, Note()] if decays else []),
            *self.loads(second),
            *self.operands("q", "w", "k"),
            Note(),
            *self._scores(),
            Note(),
            *self._erasures(third),
        ]
        return Kernel(
            name="prepare",
            run="chunk",
            block_of=None,
            order=self.order,
            arrays=(),
            numbers=(),
            lengths=("T",),
            sizes=("H", "HV", plan.key, "CHUNK", f"BLOCK_{plan.key}", "PRECISION"),
            names=self.names,
            body=tuple(body),
            steps=self.steps,
        )

    def _ends(self) -> Iterator[Statement]:
        if self.plan.row_decay is None:
            return
        yield from self.factors()
        for name in ("from_start", "to_end"):
            yield Store(self.of_chunk(name, (self.row,)), local(name, (self.row,)))

    def _scores(self) -> Iterator[Statement]:
        if self.plan.row_decay is not None:
            yield Let("decay", self.between("q"))
        yield from self.scores("scores", "q", "w", None, self.scale("w"))
        yield self.stored("scores", TOKEN)
        if self.plan.write_key is not None:
            yield from self.scores("write_scores", "q", "k", None, self.scale("v"))
            yield self.stored("write_scores", TOKEN)

    def _erasures(self, part: object) -> Iterator[Statement]:
        yield from self.loads(self.parts[2])
        yield from self.operands("y")
        if self.plan.row_decay is not None and (self.grouped or self.plan.erases_before):
            yield Let("decay", self.between("y"))
        if self.plan.write_key is not None:
            yield from self.scores("erased_writes", "y", "k", self.scale("y"), self.scale("v"))
            yield self.stored("erased_writes", self.row)
        yield from self.scores("L", "y", "w", self.scale("y"), self.scale("w"))
        square = (self.row, WRITTEN)
        yield Let("inverse", call("invert", local("L", square), CHUNK, PRECISION, dims=square))
        yield self.stored("inverse", self.row)

    def stored(self, name: str, axis: str) -> Statement:
        target = self.of_chunk(name, (axis, WRITTEN))
        return Store(replace(target, array=replace(target.array, own_dtype=True)), local(name, (axis, WRITTEN)))
