"""Where the gradient of a log decay is a running difference: the inner products of rows that read with their
gradients, less those of rows that write.

Pairs of rows that both come after a decay are in both sums and cancel but for their rounding, which is then the same
for every decay before. Other gradients of log decays sum over the pairs that have the decay between them: there
nothing cancels.
"""

from __future__ import annotations

from flagen.plan.fused_backward import FusedBackwardPlan
from flagen.plan.key_backward import KeyBackwardPlan
from flagen.plan.model import LevelPlan, Plan, RankPlan, SolvedPlan, StagedPlan
from flagen.plan.right_backward import RightBackwardPlan


def differs_in_segments(plan: Plan) -> bool:
    """Whether the backward of the recurrent kernel has a running difference."""
    backward = plan.fused_backward
    return isinstance(backward, FusedBackwardPlan) and any(vector.per == "segment" for vector in backward.vectors)


def differs_in_chunks(plan: Plan) -> bool:
    """Whether the backward of the chunk kernels has one, of any stage where there are several."""
    match plan.chunk_backward:
        case KeyBackwardPlan() as backward:
            return backward.decays
        case RightBackwardPlan(turned=turned):
            return turned.decays
        case LevelPlan(_, columns):
            return differs_in_chunks(columns)
        case RankPlan(within=within) | SolvedPlan(read=within):
            return differs_in_chunks(within)
        case StagedPlan(stages=stages):
            return any(differs_in_chunks(stage.plan) for stage in stages)
    return False
