"""The program of `chunk_backward_<name>` where decays are a scalar, or none."""

from __future__ import annotations

from flagen.kernel.chunk import Prepare
from flagen.kernel.chunk_backward import KeptStates, Reverse
from flagen.kernel.chunk_gradients import Gradients
from flagen.kernel.ir import Program
from flagen.plan.chunk_backward import ChunkBackwardPlan


def scalar_chunk_backward(plan: ChunkBackwardPlan) -> Program:
    """The kernels, and how they are launched: with nothing of the forward, with what it has prepared, or with its
    states."""
    forward = plan.forward
    prepare = () if forward.prepare is None else (Prepare(forward).kernel(),)
    kernels = (*prepare, KeptStates(plan).kernel(), Reverse(plan).kernel(), Gradients(plan).kernel())
    names = tuple(kernel.name for kernel in kernels)
    ways = tuple(names[taken:] for taken in range(len(names) - 1))
    return Program(f"chunk_backward_{forward.spec.name}", kernels, ways)
