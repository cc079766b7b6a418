"""What the planner decides, as frozen data: the backends read it and decide nothing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from flagen.diagnostics import Span
from flagen.spec.model import Spec

if TYPE_CHECKING:
    from flagen.algebra import Derivation
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
    from flagen.plan.staged import StagedPlan


@dataclass(frozen=True)
class Unavailable:
    """A form this spec does not get, why, and which part of the spec keeps it from having one."""

    reason: str
    span: Span

    def dump(self) -> str:
        return f"not available: {self.reason} ({self.span})"


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
