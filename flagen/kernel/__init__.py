"""Kernels as data, between what is planned and what is printed."""

from __future__ import annotations

from dataclasses import dataclass

from flagen.kernel.ir import Program
from flagen.kernel.recurrent import fused_recurrent
from flagen.plan import Plan, Unavailable


@dataclass(frozen=True)
class Programs:
    """The programs of a package's operators; None where a spec does not get one."""

    fused_recurrent: Program | None


def lower(plan: Plan) -> Programs:
    """The programs of `plan`."""
    if isinstance(plan.fused, Unavailable) or isinstance(plan.fused_backward, Unavailable):
        return Programs(None)  # Whatever has the one has the other.
    return Programs(fused_recurrent(plan.fused))
