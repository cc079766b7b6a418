"""From what was derived to what is emitted: which forms a spec gets, and how each is laid out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from flagen.algebra import Derivation, NoChunkForm
from flagen.plan.backward_families import plan_chunk_backward
from flagen.plan.chunk import plan_chunk
from flagen.plan.chunk_families import plan_chunk_kernel, plan_rider
from flagen.plan.chunk_kernel import ChunkKernelPlan
from flagen.plan.expansion import ExpandedPlan
from flagen.plan.fused import plan_fused_recurrent
from flagen.plan.fused_backward import plan_fused_backward
from flagen.plan.model import LevelPlan, MiniBatchPlan, Plan, RankPlan, SolvedPlan, StagedPlan
from flagen.plan.pieces import plan_piece_kernels
from flagen.plan.row_planner import NoKernel
from flagen.plan.scan import ScanPlan, plan_scan
from flagen.plan.scan_backward import plan_scan_kernels
from flagen.plan.staged import plan_stages
from flagen.plan.unavailable import Unavailable
from flagen.spec.model import Spec

__all__ = [
    "ExpandedPlan",
    "LevelPlan",
    "MiniBatchPlan",
    "Plan",
    "RankPlan",
    "ScanPlan",
    "SolvedPlan",
    "StagedPlan",
    "Unavailable",
    "make_plan",
    "with_layer",
]


def with_layer(plan: Plan, others: Mapping[str, Plan]) -> Plan:
    """`plan` with that of the spec's layer, if it has one; `others` are the plans of what the layer uses beside."""
    if plan.spec.layer is None:
        return plan
    from flagen.plan.layer_planner import plan_layer
    from flagen.plan.own_names import layer_for_generated_code

    return replace(plan, layer=plan_layer(layer_for_generated_code(plan.spec.layer), plan, others))


def make_plan(spec: Spec, derivation: Derivation) -> Plan:
    """Plan every form of `spec`; one it cannot have says why. The layer comes after (`with_layer`)."""
    fused = plan_fused_recurrent(derivation.spec if derivation.whole is not None else spec, _few(derivation))
    fused_backward = plan_fused_backward(fused, derivation)
    if derivation.scan is not None:
        scan = plan_scan(derivation.scan)
        return Plan(spec, derivation, scan, fused, fused_backward, *plan_scan_kernels(scan))
    if derivation.levels is not None:
        (of_columns,) = derivation.stages
        levels = LevelPlan(derivation.levels, make_plan(of_columns.spec, of_columns))
        columns = levels.columns.chunk_kernel
        by_kernels = columns if isinstance(columns, Unavailable) else levels
        return Plan(spec, derivation, levels, fused, fused_backward, by_kernels, by_kernels)
    if derivation.mini_batches is not None:
        (within,) = derivation.stages
        none = Unavailable("mini-batches run one after another in PyTorch", derivation.mini_batches.first.span)
        batches = MiniBatchPlan(derivation.mini_batches, _without_kernels(make_plan(within.spec, within), none))
        return Plan(spec, derivation, batches, fused, fused_backward, *plan_piece_kernels(derivation.mini_batches))
    if derivation.ranks is not None:
        (within,) = derivation.stages
        rows = RankPlan(derivation.ranks, make_plan(within.spec, within))
        by_rows = rows.missing or rows
        return Plan(spec, derivation, rows, fused, fused_backward, by_rows, by_rows)
    if derivation.staged is not None:
        stages = tuple(make_plan(each.spec, each) for each in derivation.stages)
        riding = None if derivation.riding is None else plan_rider(derivation.riding)
        backward = None if riding is None else plan_chunk_backward(riding)
        if riding is None or backward is None or isinstance(backward, Unavailable):
            staged = replace(plan_stages(derivation.staged, stages), inference=_plan_inference(derivation.inference))
            missing = [each for _, each in staged.without_kernels()]
            if len(missing) == len(stages):
                return Plan(spec, derivation, staged, fused, fused_backward, missing[0], missing[0])
            return Plan(spec, derivation, staged, fused, fused_backward, staged, staged)
        none = Unavailable("the kernels are those of all states at once", spec.states[0].span)
        stages = tuple(_without_kernels(stage, none) for stage in stages)
        staged = plan_stages(derivation.staged, stages)
        return Plan(spec, derivation, staged, fused, fused_backward, riding, backward)
    if derivation.chunk_form is None:
        assert derivation.no_chunk_form is not None
        chunk = Unavailable(derivation.no_chunk_form.reason, derivation.no_chunk_form.span)
        return Plan(spec, derivation, chunk, fused, fused_backward, chunk, chunk)
    form = plan_chunk(derivation.chunk_form, derivation.solved)
    if derivation.solved is not None:
        return Plan(spec, derivation, form, fused, fused_backward, *_plan_solution(derivation))
    kernels = plan_chunk_kernel(form)
    return Plan(spec, derivation, form, fused, fused_backward, kernels, plan_chunk_backward(kernels))


def _plan_solution(derivation: Derivation) -> tuple[SolvedPlan | Unavailable, SolvedPlan | Unavailable]:
    """The kernels that solve a system, and those of its gradients."""
    from flagen.plan.solves import plan_solution

    if isinstance(derivation.system_read, NoChunkForm):
        none = Unavailable(derivation.system_read.reason, derivation.system_read.span)
        return none, none
    read, of_read = derivation.system_read, derivation.of_read
    assert read is not None
    assert of_read is not None
    try:
        kernels = SolvedPlan(plan_solution(read), make_plan(read.spec, of_read))
    except NoKernel as missing:
        none = Unavailable(missing.reason, missing.span)
        return none, none
    backward = kernels.read.chunk_backward
    return kernels, backward if isinstance(backward, Unavailable) else kernels


def _plan_inference(derivation: Derivation | None) -> StagedPlan | None:
    """The stages of calls without gradients, where kernels evaluate their rows."""
    if derivation is None or derivation.staged is None:
        return None
    staged = plan_stages(derivation.staged, tuple(make_plan(each.spec, each) for each in derivation.stages))
    own = isinstance(staged.stages[-1].plan.chunk_kernel, ChunkKernelPlan)
    return staged if own and not any(staged.without_kernels()) else None


def _few(derivation: Derivation) -> frozenset[str]:
    """The dims of rows of a token, which are few."""
    own = frozenset() if derivation.ranks is None else derivation.ranks.few
    return own.union(*map(_few, derivation.stages))


def _without_kernels(plan: Plan, why: Unavailable) -> Plan:
    """`plan` with its forms by chunks in PyTorch alone."""
    chunk = plan.chunk
    if isinstance(chunk, StagedPlan):
        stages = (replace(stage, plan=_without_kernels(stage.plan, why)) for stage in chunk.stages)
        chunk = replace(chunk, stages=tuple(stages))
    return replace(plan, chunk=chunk, chunk_kernel=why, chunk_backward=why)
