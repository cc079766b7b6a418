"""Triton: `fused_recurrent_<name>`, its kernel, and the launch around it."""

from __future__ import annotations

from flagen.backends.protocol import Rendering
from flagen.backends.triton_.kernel import kernel_context
from flagen.backends.triton_.launcher import launcher_context
from flagen.plan.model import Plan, Unavailable


class TritonBackend:
    """Writes the kernels of a package and what launches them."""

    name = "triton"

    def renderings(self, plan: Plan) -> tuple[Rendering, ...]:
        """`kernels.py` and `fused_recurrent.py`, where the plan has a fused form."""
        if isinstance(plan.fused, Unavailable):
            return ()
        return (
            Rendering("kernels.py", "triton/kernels.py.j2", kernel_context(plan.fused)),
            Rendering("fused_recurrent.py", "triton/fused_recurrent.py.j2", launcher_context(plan.fused)),
        )
