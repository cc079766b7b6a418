"""The program of `chunk_backward_<name>` where decays are a scalar, or none."""

from __future__ import annotations

from flagen.kernel.chunk import Prepare
from flagen.kernel.chunk_backward import KeptStates, Reverse
from flagen.kernel.chunk_gradients import Gradients
from flagen.kernel.chunk_walk import Walk
from flagen.kernel.ir import Program
from flagen.kernel.state_walk import Form
from flagen.plan.chunk_backward import ChunkBackwardPlan


def scalar_chunk_backward(plan: ChunkBackwardPlan) -> Program:
    """The kernels, and how they are launched: with nothing of the forward, with what it has prepared, or with its
    states. What is read of a vector state that rides along, and the output, every forward leaves; else its walk runs
    again."""
    forward = plan.forward
    prepare = () if forward.prepare is None else (Prepare(forward, keeps=True).kernel(),)
    kernels = (*prepare, KeptStates(plan).kernel(), Reverse(plan).kernel(), Gradients(plan).kernel())
    names = tuple(kernel.name for kernel in kernels)
    ways = tuple(names[taken:] for taken in range(len(names) - 1))
    if plan.rider is not None:
        walk = Walk(forward, Form.FUSED, keeps=True).kernel()
        kernels, ways = (walk, *kernels), ((walk.name, *ways[-1]), *ways)
    return Program(f"chunk_backward_{forward.spec.name}", kernels, ways)
