"""Which chunk kernels have a backward, and what keeps the others from having one.

flagen.plan.chunk_backward  kernels for decays of no channel's own
flagen.plan.key_backward    kernels for decays of each key channel
flagen.plan.right_backward  kernels that read the state from its other side
"""

from __future__ import annotations

from flagen.plan.chunk_backward import ChunkBackwardPlan, plan_scalar_backward
from flagen.plan.chunk_kernel import ChunkKernelPlan
from flagen.plan.expansion import ExpandedPlan
from flagen.plan.key_backward import KeyBackwardPlan, plan_key_backward
from flagen.plan.key_kernel import KeyKernelPlan
from flagen.plan.model import Unavailable
from flagen.plan.right_backward import RightBackwardPlan, plan_right_backward
from flagen.plan.row_planner import NoKernel


def plan_chunk_backward(
    kernels: ChunkKernelPlan | KeyKernelPlan | ExpandedPlan | Unavailable,
) -> ChunkBackwardPlan | KeyBackwardPlan | RightBackwardPlan | Unavailable:
    """The backward of these kernels, or why there is none yet."""
    if isinstance(kernels, Unavailable):
        return kernels
    try:
        if isinstance(kernels, ExpandedPlan):
            raise NoKernel(f"the rows of a token are evaluated before the kernels: {kernels.reason}", kernels.span)
        if isinstance(kernels, KeyKernelPlan):
            return plan_right_backward(kernels) if kernels.right else plan_key_backward(kernels)
        return plan_scalar_backward(kernels)
    except NoKernel as missing:
        return Unavailable(f"no backward kernels yet: {missing.reason}", missing.span)
