"""The kernels of a call whose decays are of each key."""

from __future__ import annotations

from flagen.kernel.ir import Program
from flagen.kernel.key_output import RightOutput
from flagen.kernel.key_prepare import Prepare
from flagen.kernel.key_walks import Walk
from flagen.kernel.state_walk import Form
from flagen.plan.key_kernel import KeyKernelPlan


def key_chunk(plan: KeyKernelPlan, *, keeps: bool) -> Program:
    """The kernels of `chunk_<name>`: what prepares the chunks; then one walk, if there is one, or a walk over states
    and the outputs of all chunks. The one walk `keeps` what a backward takes from it."""
    prepare, states = Prepare(plan).kernel(), Walk(plan, Form.STATES).kernel()
    name, split = f"chunk_{plan.spec.name}", ("prepare", "states", "output")
    if plan.right:
        return Program(name, (prepare, states, RightOutput(plan).kernel()), (split,))
    fused, output = Walk(plan, Form.FUSED, keeps=keeps).kernel(), Walk(plan, Form.OUTPUT).kernel()
    return Program(name, (prepare, fused, states, output), (("prepare", ""), split))
