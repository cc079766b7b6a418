"""Which chunk kernels have a backward, and what keeps the others from having one.

flagen.plan.chunk_backward  kernels for one decay of all channels
flagen.plan.key_backward    kernels for decays of each key channel
flagen.plan.right_backward  kernels that read the state from its other side
"""

from __future__ import annotations

from flagen.diagnostics import Span
from flagen.plan.chunk_backward import ChunkBackwardPlan, plan_scalar_backward
from flagen.plan.chunk_kernel import ChunkKernelPlan
from flagen.plan.expansion import ExpandedPlan
from flagen.plan.key_backward import KeyBackwardPlan, plan_key_backward
from flagen.plan.key_kernel import KeyKernelPlan, plan_key_decay
from flagen.plan.right_backward import RightBackwardPlan, plan_right_backward
from flagen.plan.row_planner import NoKernel
from flagen.plan.unavailable import Unavailable


def plan_chunk_backward(
    kernels: ChunkKernelPlan | KeyKernelPlan | ExpandedPlan | Unavailable,
) -> ChunkBackwardPlan | KeyBackwardPlan | RightBackwardPlan | Unavailable:
    """The backward of these kernels, or why there is none yet."""
    if isinstance(kernels, Unavailable):
        return kernels
    try:
        if isinstance(kernels, ExpandedPlan):
            raise NoKernel(f"every row of a token is evaluated before the kernels: {kernels.reason}", kernels.span)
        if isinstance(kernels, KeyKernelPlan):
            return plan_right_backward(kernels) if kernels.right else plan_key_backward(kernels)
        return plan_scalar_backward(kernels)
    except NoKernel as missing:
        last = _last_obstacle(kernels) if isinstance(kernels, ChunkKernelPlan) else None
        return Unavailable(*(last or (missing.reason, missing.span)))


def _last_obstacle(kernels: ChunkKernelPlan) -> tuple[str, Span] | None:
    """What keeps the kernels for decays of each key channel, which take one decay for all channels as well, from having
    a backward for this spec; None where they do not take it, or have one."""
    if kernels.rider is not None or kernels.mixed is not None:
        return None
    try:
        others = plan_key_decay(kernels.chunk, kernels.size)
    except NoKernel:
        return None
    try:
        plan_key_backward(others)
    except NoKernel as missing:
        return missing.reason, missing.span
    return None
