"""What the planner decides, as frozen data: the backends read it and decide nothing.

A spec that runs in stages has a plan for each of them, so plans and those of stages are defined together.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

from flagen.algebra import Derivation
from flagen.algebra.levels import LevelForm
from flagen.algebra.mini_batches import MiniBatchForm
from flagen.algebra.ranks import RankForm
from flagen.algebra.staged import Stage, StagedForm
from flagen.plan.chunk import ChunkPlan
from flagen.plan.chunk_backward import ChunkBackwardPlan
from flagen.plan.chunk_kernel import ChunkKernelPlan
from flagen.plan.expansion import ExpandedPlan
from flagen.plan.fused import FusedPlan
from flagen.plan.fused_backward import FusedBackwardPlan
from flagen.plan.key_backward import KeyBackwardPlan
from flagen.plan.key_kernel import KeyKernelPlan
from flagen.plan.layer import LayerPlan
from flagen.plan.pieces import PieceBackwardPlan, PieceKernelPlan
from flagen.plan.recurrent_tiling import (
    fused_backward_tiling,
    fused_tiling,
    piece_tiling,
    reverse_mode_tiling,
    scan_tiling,
)
from flagen.plan.reverse_mode import ReversePlan
from flagen.plan.right_backward import RightBackwardPlan
from flagen.plan.scan import ScanPlan
from flagen.plan.scan_backward import ScanBackwardPlan
from flagen.plan.scan_kernel import ScanKernelPlan
from flagen.plan.solution_tiling import solution_tiling
from flagen.plan.solves import SolutionRows
from flagen.plan.tiling import Tiling, gradients_tiling, reverse_tiling, tiling
from flagen.plan.unavailable import Unavailable
from flagen.spec.model import Name, Spec, walk
from flagen.spec.printer import to_source


@dataclass(frozen=True)
class Plan:
    """Every form a spec gets. The recurrent PyTorch form is the spec itself and needs no plan."""

    spec: Spec
    derivation: Derivation
    chunk: ChunkPlan | ScanPlan | StagedPlan | MiniBatchPlan | LevelPlan | RankPlan | Unavailable
    fused: FusedPlan | Unavailable
    fused_backward: FusedBackwardPlan | ReversePlan | Unavailable
    chunk_kernel: (
        ChunkKernelPlan
        | KeyKernelPlan
        | ExpandedPlan
        | ScanKernelPlan
        | StagedPlan
        | LevelPlan
        | RankPlan
        | SolvedPlan
        | Unavailable
    )
    chunk_backward: (
        ChunkBackwardPlan
        | KeyBackwardPlan
        | RightBackwardPlan
        | ScanBackwardPlan
        | StagedPlan
        | LevelPlan
        | RankPlan
        | SolvedPlan
        | Unavailable
    )
    layer: LayerPlan | None = None

    def dump(self) -> str:
        """The plan as text, a section a form."""
        sections = [
            ("naive_chunk", self.chunk.dump()),
            ("fused_recurrent", _dumped(self.fused)),
            ("fused_recurrent_backward", _dumped(self.fused_backward)),
        ]
        if self.chunk_kernel is not self.chunk:
            sections += [("chunk", _dumped(self.chunk_kernel)), ("chunk_backward", _dumped(self.chunk_backward))]
        if self.layer is not None:
            sections.append(("layer", self.layer.dump()))
        return "\n\n".join(f"{name}_{self.spec.name}\n{text}" for name, text in sections)

    def chunk_dump(self) -> str:
        """The plans of the forms by chunks alone: all that a stage has."""
        kernels = () if self.chunk_kernel is self.chunk else (self.chunk_kernel, self.chunk_backward)
        return "\n".join((self.chunk.dump(), *map(_dumped, kernels)))


class _Form(Protocol):
    """How a spec runs, or why it does not."""

    def dump(self) -> str: ...


def _dumped(form: _Form) -> str:
    """A form as text, then the rules for its tiles and warps."""
    return "\n".join((form.dump(), *(rule.dump() for rule in tilings(form))))


def tilings(form: _Form) -> tuple[Tiling, ...]:
    """The rules for the tiles and warps of a form's kernels; of stages each has its own."""
    match form:
        case FusedPlan():
            return (fused_tiling(form),)
        case FusedBackwardPlan():
            return (fused_backward_tiling(form),)
        case ReversePlan():
            return (reverse_mode_tiling(form),)
        case ExpandedPlan(kernels=kernels):
            return tilings(kernels)
        case ChunkKernelPlan() | KeyKernelPlan():
            return (tiling(form),)
        case RightBackwardPlan(turned=turned):
            return tilings(turned)
        case ChunkBackwardPlan() if (reverse := reverse_tiling(form)) is not None:
            return reverse, gradients_tiling(form)
        case ChunkBackwardPlan() | KeyBackwardPlan():
            return (gradients_tiling(form),)
        case SolvedPlan(rows):
            return (solution_tiling(rows),)
        case PieceKernelPlan():
            return (piece_tiling(form),)
        case PieceBackwardPlan(forward=forward):
            return (piece_tiling(forward),)
        case ScanKernelPlan():
            return (scan_tiling(form, backward=False),)
        case ScanBackwardPlan(forward=forward):
            return (scan_tiling(forward, backward=True),)
    return ()


@dataclass(frozen=True)
class PlannedStage:
    """A stage and the plan of its functions. `repeats`: an earlier stage has the same state, and this walks it again
    for another read of it."""

    stage: Stage
    plan: Plan
    repeats: bool

    @property
    def spec(self) -> Spec:
        return self.stage.spec

    @property
    def has_kernels(self) -> bool:
        return not isinstance(self.plan.chunk_kernel, Unavailable)


@dataclass(frozen=True)
class MiniBatchPlan:
    """A spec that runs mini-batch by mini-batch, and the plan of what one of them does."""

    form: MiniBatchForm
    within: Plan

    @property
    def size(self) -> int:
        """Tokens per chunk, unless a call says."""
        assert not isinstance(self.within.chunk, Unavailable)
        return self.within.chunk.size

    def dump(self) -> str:
        """The plan as text: where mini-batches begin, then the plan of one."""
        copies = ", ".join(f"{copy} as {state}" for copy, state in self.form.copies.items())
        lines = [f"a mini-batch of {to_source(self.form.first.every)} tokens after another, each begun with {copies}"]
        return "\n".join([*lines, *(f"    {line}" for line in self.within.chunk_dump().splitlines())])


@dataclass(frozen=True)
class LevelPlan:
    """A spec that keeps a state in levels, and the plan of what its chunks do to columns of it."""

    form: LevelForm
    columns: Plan

    @property
    def size(self) -> int:
        """Tokens per chunk, unless a call says: a power of two."""
        assert not isinstance(self.columns.chunk, Unavailable)
        return 1 << (self.columns.chunk.size.bit_length() - 1)

    @property
    def has_kernels(self) -> bool:
        return not isinstance(self.columns.chunk_kernel, Unavailable)

    def dump(self) -> str:
        """The plan as text: what is put together, then the plan of columns."""
        return "\n".join([self.form.dump(), *(f"    {line}" for line in self.columns.chunk_dump().splitlines())])


@dataclass(frozen=True)
class RankPlan:
    """A spec whose tokens have several rows, and the plan of the recurrence of these."""

    form: RankForm
    within: Plan

    @property
    def size(self) -> int:
        """Rows per chunk, unless a call says."""
        assert not isinstance(self.within.chunk, Unavailable)
        return self.within.chunk.size

    @property
    def missing(self) -> Unavailable | None:
        """Why the recurrence of the rows has no kernels, or none for its gradients; None where it has both."""
        kernels = self.within.chunk_kernel, self.within.chunk_backward
        return next((each for each in kernels if isinstance(each, Unavailable)), None)

    def dump(self) -> str:
        """The plan as text: the rows of a token, then the plan of their recurrence."""
        lines = [self.form.dump(), "the recurrence of the rows:"]
        return "\n".join([*lines, *(f"    {line}" for line in self.within.chunk_dump().splitlines())])


@dataclass(frozen=True)
class SolvedPlan:
    """The kernels that solve systems, and the plan of the read of their matrices, whose kernels give the gradients."""

    rows: SolutionRows
    read: Plan

    @property
    def size(self) -> int:
        """The most tokens of a chunk."""
        return self.rows.solve.size

    def dump(self) -> str:
        """The plan as text: the kernels, then the plan of the read."""
        lines = [self.rows.dump(), "gradients by another solution, and those of a read:"]
        return "\n".join([*lines, *(f"    {line}" for line in self.read.chunk_dump().splitlines())])


@dataclass(frozen=True)
class StagedPlan:
    """The stages of a spec in the order in which they run. `inference`: those of calls of which nobody asks for
    gradients, where they are others."""

    form: StagedForm
    stages: tuple[PlannedStage, ...]
    inference: StagedPlan | None = None

    @property
    def every(self) -> tuple[PlannedStage, ...]:
        """The stages that have packages, each once."""
        known = {stage.spec.name for stage in self.stages}
        others = () if self.inference is None else self.inference.stages
        return (*self.stages, *(stage for stage in others if stage.spec.name not in known))

    @property
    def spec(self) -> Spec:
        return self.form.spec

    @property
    def size(self) -> int:
        """Tokens per chunk, unless a call says."""
        return min(stage.plan.chunk.size for stage in self.stages if not isinstance(stage.plan.chunk, Unavailable))

    def without_kernels(self) -> Iterator[tuple[PlannedStage, Unavailable]]:
        """The stages that run in PyTorch, and why."""
        for stage in self.stages:
            if isinstance(stage.plan.chunk_kernel, Unavailable):
                yield stage, stage.plan.chunk_kernel

    def dump(self) -> str:
        """The plan as text: what each stage gets and gives, then its own plan."""
        lines = []
        for number, planned in enumerate(self.stages, start=1):
            given = [decl.name for decl in self.form.given(planned.stage)]
            gives = [result.name for result in planned.stage.results]
            takes = f"{', '.join(given)} -> " if given else ""
            lines.append(f"stage {number}, of {planned.stage.called}: {takes}{', '.join(gives)}")
            lines += [f"    {line}" for line in planned.plan.chunk_dump().splitlines()]
        if self.form.output is not None:
            names = {node.name for node in walk(self.form.output) if isinstance(node, Name)}
            given = [decl.name for decl in self.form.passed if decl.name in names]
            lines.append(f"then the output, of {', '.join(given)}, in PyTorch")
        if self.inference is not None:
            lines += ["without gradients:", *self.inference.dump().splitlines()]
        return "\n".join(lines)
