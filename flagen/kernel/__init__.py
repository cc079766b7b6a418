"""Kernels as data, between what is planned and what is printed."""

from __future__ import annotations

from dataclasses import dataclass, replace

from flagen.kernel.check import check
from flagen.kernel.chunk import scalar_chunk
from flagen.kernel.ir import Program
from flagen.kernel.key_backward import key_chunk_backward, with_keeping
from flagen.kernel.key_chunk import key_chunk
from flagen.kernel.pieces import piece_backward, piece_forward
from flagen.kernel.recurrent import fused_recurrent
from flagen.kernel.reverse import reverse_backward
from flagen.kernel.right_backward import right_chunk_backward
from flagen.kernel.scalar_backward import scalar_chunk_backward
from flagen.kernel.scan import scan_backward, scan_forward
from flagen.kernel.segments import segment_backward
from flagen.kernel.solves import solution_chunk
from flagen.kernel.window import window_backward, window_forward
from flagen.plan import LevelPlan, Plan, RankPlan, SolvedPlan, StagedPlan, Unavailable
from flagen.plan.chunk_backward import ChunkBackwardPlan
from flagen.plan.chunk_kernel import ChunkKernelPlan
from flagen.plan.expansion import ExpandedPlan
from flagen.plan.key_backward import KeyBackwardPlan
from flagen.plan.key_kernel import KeyKernelPlan
from flagen.plan.pieces import PieceBackwardPlan, PieceKernelPlan
from flagen.plan.reverse_mode import ReversePlan
from flagen.plan.right_backward import RightBackwardPlan
from flagen.plan.scan_backward import ScanBackwardPlan
from flagen.plan.scan_kernel import ScanKernelPlan
from flagen.spec.model import Spec


@dataclass(frozen=True)
class Programs:
    """The programs of the operators of a spec; None where it does not get one, or one that is not data yet.

    stages: by chunks alone, those of each stage, where a spec runs in stages, or of columns, or of the recurrence of
        its rows, where it runs on these.
    rows: the spec whose tokens the chunk kernels take, where those are rows of tokens, which are evaluated first.
    """

    spec: Spec
    fused_recurrent: Program | None
    fused_recurrent_backward: Program | None
    chunk: Program | None
    chunk_backward: Program | None
    stages: tuple[Programs, ...] = ()
    rows: Spec | None = None

    @property
    def every(self) -> tuple[Programs, ...]:
        """These, then those of the stages and of what these consist of."""
        return (self, *(each for stage in self.stages for each in stage.every))


def lower(plan: Plan) -> Programs:
    """The programs of `plan`."""
    fused, fused_backward = _fused_recurrent(plan)
    return replace(_of_chunks(plan), fused_recurrent=fused, fused_recurrent_backward=fused_backward)


def _of_chunks(plan: Plan) -> Programs:
    """The programs of the operators by chunks, those of stages and rows among them."""
    stages = tuple(map(_of_chunks, _plans_within(plan)))
    return Programs(plan.derivation.spec, None, None, *_by_chunks(plan), stages, _rows_of(plan))


def _plans_within(plan: Plan) -> tuple[Plan, ...]:
    match plan.chunk_kernel:
        case StagedPlan(every=stages):
            return tuple(stage.plan for stage in stages)
        case LevelPlan(_, columns):
            return (columns,)
        case RankPlan(_, within):
            return (within,)
        case SolvedPlan(read=read):
            return (read,)
    return ()


def _rows_of(plan: Plan) -> Spec | None:
    """The recurrence of the rows of tokens, where it has the kernels."""
    return plan.chunk_kernel.kernels.spec if isinstance(plan.chunk_kernel, ExpandedPlan) else None


def _fused_recurrent(plan: Plan) -> tuple[Program, Program] | tuple[None, None]:
    if isinstance(plan.fused, Unavailable) or isinstance(plan.fused_backward, Unavailable):
        return None, None  # Whatever has the one has the other.
    backward = plan.fused_backward
    back = reverse_backward(backward) if isinstance(backward, ReversePlan) else segment_backward(backward)
    return _checked(fused_recurrent(plan.fused), plan.fused.spec), _checked(back, plan.fused.spec)


def _by_chunks(plan: Plan) -> tuple[Program | None, Program | None]:
    kernel, backward = plan.chunk_kernel, plan.chunk_backward
    if isinstance(kernel, PieceKernelPlan):
        assert isinstance(backward, PieceBackwardPlan), "mini-batches have no kernels without a backward"
        return _checked(piece_forward(kernel, backward), plan.spec), _checked(piece_backward(backward), plan.spec)
    if isinstance(kernel, ScanKernelPlan):
        assert isinstance(backward, ScanBackwardPlan), "scans have no kernels without a backward"
        if kernel.is_window:
            return _checked(window_forward(kernel), plan.spec), _checked(window_backward(backward), plan.spec)
        return _checked(scan_forward(kernel, backward), plan.spec), _checked(scan_backward(backward), plan.spec)
    if isinstance(kernel, SolvedPlan):
        return _checked(solution_chunk(kernel.rows, plan.spec.name), plan.spec), None
    forward, back, spec = _over_rows(plan), _of_rows_back(plan), plan.derivation.spec
    return forward and _checked(forward, spec), back and _checked(back, spec)


def _over_rows(plan: Plan) -> Program | None:
    """The kernels over the rows of chunks, or over those of tokens, which are evaluated first."""
    kernel, backward = plan.chunk_kernel, plan.chunk_backward
    match kernel.kernels if isinstance(kernel, ExpandedPlan) else kernel:
        case ChunkKernelPlan() as rows:
            return scalar_chunk(rows, keeps=isinstance(backward, ChunkBackwardPlan))
        case KeyKernelPlan() as rows:
            if not isinstance(backward, KeyBackwardPlan):
                return key_chunk(rows, keeps=False)
            return with_keeping(key_chunk(rows, keeps=not backward.prepares), backward)
    return None


def _of_rows_back(plan: Plan) -> Program | None:
    """The kernels of the gradients of those."""
    match plan.chunk_backward:
        case ChunkBackwardPlan() as backward:
            return scalar_chunk_backward(backward)
        case KeyBackwardPlan() as backward:
            return key_chunk_backward(backward)
        case RightBackwardPlan() as backward:
            return right_chunk_backward(backward)
    return None


def _checked(program: Program, spec: Spec) -> Program:
    pairs = tuple(spec.pairs.items())
    return replace(program, kernels=tuple(check(replace(kernel, pairs=pairs)) for kernel in program.kernels))
