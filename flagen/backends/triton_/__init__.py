"""Triton: `fused_recurrent_<name>` and `chunk_<name>`, their kernels, and the launches around them."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import chain
from typing import TYPE_CHECKING

from flagen.backends.notes import chunk_notes, fused_notes
from flagen.backends.protocol import Rendering
from flagen.backends.range_check import RANGES, range_check
from flagen.backends.stages import PACKAGE_OF_COLUMNS, PACKAGE_OF_READ, PACKAGE_OF_ROWS, inside, package_of
from flagen.backends.triton_.backward_kernel import backward_kernel_contexts
from flagen.backends.triton_.backward_launcher import backward_launcher_context
from flagen.backends.triton_.chunk_kernel import chunk_kernel_context, chunk_prepare_context
from flagen.backends.triton_.chunk_launcher import (
    chunk_kept_context,
    chunk_launcher_context,
    chunk_tuning_context,
)
from flagen.backends.triton_.fused_backward import backward_kernels_context, reverse_kernels_context
from flagen.backends.triton_.fused_backward_launcher import fused_backward_launcher_context
from flagen.backends.triton_.handed_on import backward_of
from flagen.backends.triton_.kernel import kernel_context
from flagen.backends.triton_.key_kernel import key_kernel_context, key_prepare_context
from flagen.backends.triton_.launcher import launcher_context
from flagen.kernel import Programs
from flagen.plan.expansion import ExpandedPlan
from flagen.plan.key_backward import KeyBackwardPlan
from flagen.plan.key_kernel import KeyKernelPlan
from flagen.plan.model import LevelPlan, Plan, RankPlan, SolvedPlan, StagedPlan
from flagen.plan.reverse_mode import ReversePlan
from flagen.plan.right_backward import RightBackwardPlan
from flagen.plan.scan_backward import ScanBackwardPlan
from flagen.plan.scan_kernel import ScanKernelPlan
from flagen.plan.unavailable import Unavailable

if TYPE_CHECKING:
    from flagen.backends.triton_.key_backward import Contexts


# What prints a form that few specs have is imported for them.


class TritonBackend:
    """Writes the kernels of a package and what launches them."""

    name = "triton"

    def renderings(self, plan: Plan, programs: Programs) -> tuple[Rendering, ...]:
        """`fused_recurrent.py` and `chunk.py`, their kernels and their backward: what the plan has of both."""
        return (*_fused_recurrent(plan, programs), *_by_chunks(plan, programs))


def _by_chunks(plan: Plan, programs: Programs) -> tuple[Rendering, ...]:
    match plan.chunk_kernel:
        case StagedPlan() as staged:
            return _staged(plan, staged, programs)
        case LevelPlan() as levels:
            return _of_levels(plan, levels, programs)
        case RankPlan() as ranks:
            return _of_rows(plan, ranks, programs)
        case SolvedPlan() as solved:
            return _of_solutions(plan, solved, programs)
    return (*_chunk(plan, programs), *_chunk_backward(plan, programs))


def _about_chunk(plan: Plan) -> Mapping[str, object]:
    """What `chunk` says and checks of the values that it is given."""
    return {"notes": chunk_notes(plan), RANGES: range_check(plan.spec)}


def _of_levels(plan: Plan, levels: LevelPlan, programs: Programs) -> tuple[Rendering, ...]:
    from flagen.backends.triton_.levels import level_launcher_context

    (of_columns,) = programs.stages
    whole = Rendering("chunk.py", "triton/levels.py.j2", {**level_launcher_context(levels), **_about_chunk(plan)})
    return (whole, *inside(PACKAGE_OF_COLUMNS, _by_chunks(levels.columns, of_columns)))


def _staged(plan: Plan, staged: StagedPlan, programs: Programs) -> tuple[Rendering, ...]:
    from flagen.backends.triton_.staged import staged_launcher_context

    whole = Rendering("chunk.py", "triton/staged.py.j2", {**staged_launcher_context(staged), **_about_chunk(plan)})
    packages = (
        inside(package_of(stage, plan.spec.name), _by_chunks(stage.plan, of_stage))
        for stage, of_stage in zip(staged.every, programs.stages, strict=True)
    )
    return (whole, *chain.from_iterable(packages))


def _of_rows(plan: Plan, ranks: RankPlan, programs: Programs) -> tuple[Rendering, ...]:
    from flagen.backends.triton_.ranks import rank_launcher_context

    whole = Rendering("chunk.py", "triton/ranks.py.j2", {**rank_launcher_context(ranks), **_about_chunk(plan)})
    (of_rows,) = programs.stages
    return (whole, *inside(PACKAGE_OF_ROWS, _by_chunks(ranks.within, of_rows)))


def _of_solutions(plan: Plan, solved: SolvedPlan, programs: Programs) -> tuple[Rendering, ...]:
    from flagen.backends.triton_.solution import solution_renderings

    assert programs.chunk is not None
    (of_read,) = programs.stages
    files = solution_renderings(plan, solved, programs.chunk, _about_chunk(plan))
    return (*files, *inside(PACKAGE_OF_READ, _by_chunks(solved.read, of_read)))


def _fused_recurrent(plan: Plan, programs: Programs) -> tuple[Rendering, ...]:
    backward = plan.fused_backward
    if isinstance(plan.fused, Unavailable) or isinstance(backward, Unavailable):
        return ()  # Whatever has the one has the other.
    program, back = programs.fused_recurrent, programs.fused_recurrent_backward
    assert program is not None
    assert back is not None
    about = {"notes": fused_notes(plan), RANGES: range_check(plan.spec)}
    launcher = {**launcher_context(plan.fused, program, backward.keeps), **about}
    forward = (
        Rendering(
            "fused_recurrent_kernels.py", "triton/fused_recurrent_kernels.py.j2", kernel_context(plan.fused, program)
        ),
        Rendering("fused_recurrent.py", "triton/fused_recurrent.py.j2", launcher),
    )
    module, kernels = "fused_recurrent_backward", "fused_recurrent_backward_kernels"
    if isinstance(backward, ReversePlan):
        from flagen.backends.triton_.reverse_launcher import reverse_launcher_context

        return (
            *forward,
            Rendering(f"{kernels}.py", "triton/reverse_kernels.py.j2", reverse_kernels_context(backward, back)),
            Rendering(f"{module}.py", "triton/reverse.py.j2", reverse_launcher_context(backward, back)),
        )
    return (
        *forward,
        Rendering(f"{kernels}.py", f"triton/{kernels}.py.j2", backward_kernels_context(backward, back)),
        Rendering(f"{module}.py", f"triton/{module}.py.j2", fused_backward_launcher_context(backward, back)),
    )


def _chunk(plan: Plan, programs: Programs) -> tuple[Rendering, ...]:
    kernels = plan.chunk_kernel
    if isinstance(kernels, Unavailable | StagedPlan | LevelPlan | RankPlan | SolvedPlan):
        return ()
    planned = plan.chunk_backward
    if isinstance(kernels, ScanKernelPlan):
        from flagen.backends.triton_.scan import scan_kernel_renderings

        assert isinstance(planned, ScanBackwardPlan), "scans have no kernels without a backward"
        assert programs.chunk is not None
        assert programs.chunk_backward is not None
        return scan_kernel_renderings(kernels, planned, programs.chunk, programs.chunk_backward)
    assert not isinstance(planned, ScanBackwardPlan | StagedPlan | LevelPlan | RankPlan | SolvedPlan)
    assert programs.chunk is not None
    backward = None if isinstance(planned, Unavailable) else backward_of(planned, programs.chunk)
    keeps = backward is not None and backward.walk_keeps
    if isinstance(kernels, ExpandedPlan):
        from flagen.backends.triton_.expansion import expanded_launcher_context

        context, kernels = expanded_launcher_context(kernels, programs.chunk), kernels.kernels
    else:
        context = chunk_launcher_context(kernels, programs.chunk, backward)
    kept: tuple[Rendering, ...] = ()
    if backward is not None and backward.kept:
        of_kept = chunk_kept_context(kernels, programs.chunk, backward)
        kept = (Rendering("chunk_residuals.py", "triton/chunk_residuals.py.j2", of_kept),)
    launchers = (
        Rendering("chunk.py", "triton/chunk.py.j2", {**context, **_about_chunk(plan)}),
        Rendering("chunk_tuning.py", "triton/chunk_tuning.py.j2", chunk_tuning_context(kernels, backward)),
        *kept,
    )
    if isinstance(kernels, KeyKernelPlan):
        walks_of_keys = key_kernel_context(kernels, programs.chunk, keeps=keeps)
        return (
            Rendering("chunk_prepare.py", "triton/key_prepare.py.j2", key_prepare_context(kernels, programs.chunk)),
            Rendering("chunk_kernels.py", "triton/key_kernels.py.j2", walks_of_keys),
            *launchers,
        )
    of_walks = chunk_kernel_context(kernels, programs.chunk, keeps=keeps)
    walks = Rendering("chunk_kernels.py", "triton/chunk_kernels.py.j2", of_walks)
    if kernels.prepare is None:
        return walks, *launchers
    return (
        Rendering("chunk_prepare.py", "triton/chunk_prepare.py.j2", chunk_prepare_context(kernels, programs.chunk)),
        walks,
        *launchers,
    )


def _chunk_backward(plan: Plan, programs: Programs) -> tuple[Rendering, ...]:
    backward = plan.chunk_backward
    if isinstance(backward, Unavailable | ScanBackwardPlan | StagedPlan | LevelPlan | RankPlan | SolvedPlan):
        return ()
    assert programs.chunk is not None
    assert programs.chunk_backward is not None
    if isinstance(backward, KeyBackwardPlan):
        from flagen.backends.triton_.key_backward import key_backward_contexts

        return _rendered(key_backward_contexts(backward, programs.chunk, programs.chunk_backward))
    if isinstance(backward, RightBackwardPlan):
        from flagen.backends.triton_.right_backward import right_backward_contexts

        return _rendered(right_backward_contexts(backward, programs.chunk, programs.chunk_backward))
    kernels = (
        Rendering(f"{module}.py", f"triton/{module}.py.j2", context)
        for module, context in backward_kernel_contexts(backward, programs.chunk_backward).items()
    )
    return (
        *kernels,
        Rendering(
            "chunk_backward.py",
            "triton/chunk_backward.py.j2",
            backward_launcher_context(backward, programs.chunk, programs.chunk_backward),
        ),
    )


def _rendered(contexts: Contexts) -> tuple[Rendering, ...]:
    return tuple(
        Rendering(f"{module}.py", f"triton/{template}.py.j2", context)
        for module, (template, context) in contexts.items()
    )
