"""What the planner decides, as frozen data: the backends read it and decide nothing.

A spec that runs in stages has a plan for each of them, so plans and those of stages are defined together.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from flagen.algebra import Derivation
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
from flagen.plan.reverse_mode import ReversePlan
from flagen.plan.right_backward import RightBackwardPlan
from flagen.plan.scan import ScanPlan
from flagen.plan.scan_backward import ScanBackwardPlan
from flagen.plan.scan_kernel import ScanKernelPlan
from flagen.plan.unavailable import Unavailable
from flagen.spec.model import Name, Spec, walk


@dataclass(frozen=True)
class Plan:
    """Every form a spec gets. The recurrent PyTorch form is the spec itself and needs no plan."""

    spec: Spec
    derivation: Derivation
    chunk: ChunkPlan | ScanPlan | StagedPlan | Unavailable
    fused: FusedPlan | Unavailable
    fused_backward: FusedBackwardPlan | ReversePlan | Unavailable
    chunk_kernel: ChunkKernelPlan | KeyKernelPlan | ExpandedPlan | ScanKernelPlan | StagedPlan | Unavailable
    chunk_backward: (
        ChunkBackwardPlan | KeyBackwardPlan | RightBackwardPlan | ScanBackwardPlan | StagedPlan | Unavailable
    )
    layer: LayerPlan | None = None

    def dump(self) -> str:
        """The plan as text, a section a form."""
        sections = [
            ("naive_chunk", self.chunk.dump()),
            ("fused_recurrent", self.fused.dump()),
            ("fused_recurrent_backward", self.fused_backward.dump()),
        ]
        if self.chunk_kernel is not self.chunk:
            sections += [("chunk", self.chunk_kernel.dump()), ("chunk_backward", self.chunk_backward.dump())]
        if self.layer is not None:
            sections.append(("layer", self.layer.dump()))
        return "\n\n".join(f"{name}_{self.spec.name}\n{text}" for name, text in sections)

    def chunk_dump(self) -> str:
        """The plans of the forms by chunks alone: all that a stage has."""
        return "\n".join((self.chunk.dump(), self.chunk_kernel.dump(), self.chunk_backward.dump()))


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
class StagedPlan:
    """The stages of a spec in the order in which they run."""

    form: StagedForm
    stages: tuple[PlannedStage, ...]

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
            lines.append(f"stage {number}, of {planned.stage.state.name}: {takes}{', '.join(gives)}")
            lines += [f"    {line}" for line in planned.plan.chunk_dump().splitlines()]
        if self.form.output is not None:
            names = {node.name for node in walk(self.form.output) if isinstance(node, Name)}
            given = [decl.name for decl in self.form.passed if decl.name in names]
            lines.append(f"then the output, of {', '.join(given)}, in PyTorch")
        return "\n".join(lines)
