"""Kernels as data, between what is planned and what is printed."""

from __future__ import annotations

from dataclasses import dataclass, replace

from flagen.kernel.check import check
from flagen.kernel.ir import Program
from flagen.kernel.recurrent import fused_recurrent
from flagen.kernel.reverse import reverse_backward
from flagen.kernel.segments import segment_backward
from flagen.plan import Plan, Unavailable
from flagen.plan.reverse_mode import ReversePlan


@dataclass(frozen=True)
class Programs:
    """The programs of a package's operators; None where a spec does not get one."""

    fused_recurrent: Program | None
    fused_recurrent_backward: Program | None


def lower(plan: Plan) -> Programs:
    """The programs of `plan`."""
    if isinstance(plan.fused, Unavailable) or isinstance(plan.fused_backward, Unavailable):
        return Programs(None, None)  # Whatever has the one has the other.
    backward = plan.fused_backward
    back = reverse_backward(backward) if isinstance(backward, ReversePlan) else segment_backward(backward)
    return Programs(_checked(fused_recurrent(plan.fused)), _checked(back))


def _checked(program: Program) -> Program:
    return replace(program, kernels=tuple(map(check, program.kernels)))
