"""Lowers the plans of chunk kernels whose decays are a scalar, or none: preparation, and the walks forward."""

from __future__ import annotations

from collections.abc import Iterator

from flagen.kernel.chunk_walk import Walk
from flagen.kernel.forward_rows import DECAYS, ForwardRows, scratch
from flagen.kernel.ir import Kernel, Let, Note, Operands, Program, Statement
from flagen.kernel.passes import live, rounds
from flagen.kernel.rows import CHUNK, PACKING, PRECISION, call, local
from flagen.kernel.scalar_rows import BEFORE, ScalarDecayRows, ScalarPlacement
from flagen.kernel.state_walk import Form
from flagen.plan.chunk_kernel import ChunkKernelPlan
from flagen.plan.rows import WRITTEN

__all__ = ["BEFORE", "Prepare", "ScalarDecayRows", "ScalarPlacement", "scalar_chunk"]


def scalar_chunk(plan: ChunkKernelPlan, *, keeps: bool) -> Program:
    """The kernels of `chunk_<name>`: one walks and puts out, or a walk leaves states to one that puts out all chunks at
    once. What `keeps` leaves what a backward takes beside what is prepared, where it is given arrays for that."""
    prepare = () if plan.prepare is None else (Prepare(plan, keeps=keeps).kernel(),)
    fused, output = (Walk(plan, form, keeps=keeps).kernel() for form in (Form.FUSED, Form.OUTPUT))
    states = Walk(plan, Form.STATES).kernel()
    first = tuple(kernel.name for kernel in prepare)
    return Program(
        f"chunk_{plan.spec.name}",
        (*prepare, fused, states, output),
        ((*first, fused.name), (*first, states.name, output.name)),
    )


class Prepare(ForwardRows):
    """The kernel that prepares all chunks at once. It loads nothing before it is needed: registers are scarce. It can
    leave the weights of states that numbers mix, which a backward `keeps`."""

    def __init__(self, plan: ChunkKernelPlan, *, keeps: bool) -> None:
        assert plan.prepare is not None
        super().__init__(plan, *plan.prepare)
        self.keeps = keeps

    def kernel(self) -> Kernel:
        plan = self.plan
        order = (*(array.name for array in PACKING), *scratch(plan))
        levels = () if plan.mixed is None else ("LEVELS",)
        return self.assembled("prepare", "chunk", live(tuple(self._body()), ()), (plan.key,), order, levels=levels)

    def _body(self) -> Iterator[Statement]:
        first, second, third = self.parts
        decays = (Note(), *self.decays(), *self._ends(), Note()) if self.plan.row_decay is not None else ()
        sections = (
            (*self.once(*self.parts), *self.loads(first), *decays, *self._mixed(), *self.loads(second)),
            tuple(self.operands("q", "w", "k")),
            (Note(), *self._scores(), Note()),
            (*self.loads(third), *self.operands("y"), *self._erasures()),
        )
        rounding = next((section for section in sections if rounds(section)), None)
        for section in sections:
            if section is rounding:
                yield Operands(self.prepared(self.matrices()[0]).array)
            yield from section

    def _mixed(self) -> Iterator[Statement]:
        """The numbers of states that these mix."""
        if self.mixes is not None:
            yield from (Note(), *self.mixes.weights(), *self.mixes.store(), Note())
            if self.keeps:
                yield self.mixes.store_weights()

    def _ends(self) -> Iterator[Statement]:
        yield from self.factors()
        yield from map(self.store_prepared, DECAYS)

    def _scores(self) -> Iterator[Statement]:
        if self.plan.row_decay is not None:
            yield Let("decay", self.between("q"))
        if self.plan.delta is not None:
            yield from self.scores("scores", "q", "w", None, self.scale("w"))
            yield self.store_prepared("scores")
        if self.plan.write_key is not None:
            yield from self.scores("write_scores", "q", "k", None, self.scale("v"))
            yield self.store_prepared("write_scores")

    def _erasures(self) -> Iterator[Statement]:
        if self.plan.delta is None:
            return
        if self.plan.row_decay is not None and (self.grouped or self.plan.erases_before):
            yield Let("decay", self.between("y"))
        if self.plan.write_key is not None:
            yield from self.scores("erased_writes", "y", "k", self.scale("y"), self.scale("v"))
            yield self.store_prepared("erased_writes")
        yield from self.scores("L", "y", "w", self.scale("y"), self.scale("w"))
        square = (self.row, WRITTEN)
        yield Let("inverse", call("invert", local("L", square), CHUNK, PRECISION, dims=square))
        yield self.store_prepared("inverse")
