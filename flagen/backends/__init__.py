"""The target languages. A backend turns a plan into named template contexts; `flagen.emit` renders them."""

from __future__ import annotations

from flagen.backends.markdown_ import MarkdownBackend
from flagen.backends.protocol import Backend, Rendering
from flagen.backends.torch_ import TorchBackend, layer_alone
from flagen.backends.triton_ import TritonBackend
from flagen.kernel import Programs
from flagen.plan.model import Plan

BACKENDS: tuple[Backend, ...] = (TorchBackend(), TritonBackend(), MarkdownBackend())

__all__ = ["BACKENDS", "Backend", "Rendering", "renderings"]


def renderings(plan: Plan, programs: Programs | None) -> tuple[Rendering, ...]:
    """Every file of the package of `plan`; without programs, those of a layer around another package's operators."""
    if programs is None:
        return layer_alone(plan)
    return tuple(rendering for backend in BACKENDS for rendering in backend.renderings(plan, programs))
