"""What the kernels of the backward for decays of each key have in common: the arrays between them."""

from __future__ import annotations

from flagen.kernel.ir import Array
from flagen.kernel.key_rows import KeyRows
from flagen.kernel.key_walks import walked
from flagen.plan.backward_levels import OUTPUT, R_GRADIENT
from flagen.plan.key_backward import KeyBackwardPlan
from flagen.plan.key_kernel import KeyKernelPlan
from flagen.plan.row_planner import Part
from flagen.plan.rows import TOKEN


class BackwardRows(KeyRows):
    """Rows of a block of keys; `rows`: how a kernel has those of a chunk."""

    def __init__(self, plan: KeyBackwardPlan, rows: KeyKernelPlan, *parts: Part) -> None:
        super().__init__(rows, *parts)
        self.backward = plan
        self.walked = walked(plan.forward, life="residual")
        """What a walk forward leaves."""
        self.output_gradient = Array("do", ("token", "head"), (self.value,), "cotangent", OUTPUT, own_dtype=True)
        self.state_gradients = Array("state_gradients", ("counted_chunk", "head"), (self.value, self.key))
        """Those of the states after the chunks."""
        self.right_gradient = Array(R_GRADIENT, ("counted_chunk", "head"), (self.value, TOKEN))
        """That of the right side of the triangular solve."""
