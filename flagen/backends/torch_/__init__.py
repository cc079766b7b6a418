"""The PyTorch backend: the argument check, the recurrence as it is defined, the chunk form, and the module or layer."""

from __future__ import annotations

from itertools import chain

from flagen.backends.protocol import Rendering
from flagen.backends.stages import (
    PACKAGE_OF_COLUMNS,
    PACKAGE_OF_MINI_BATCH,
    PACKAGE_OF_READ,
    PACKAGE_OF_ROWS,
    inside,
    package_of,
)
from flagen.backends.torch_.arguments import arguments_file
from flagen.backends.torch_.chunk import chunk_file
from flagen.backends.torch_.module import layer_package_file, module_file, package_file, stage_package_file
from flagen.backends.torch_.naive import naive_file
from flagen.kernel import Programs
from flagen.plan.chunk import ChunkPlan
from flagen.plan.model import LevelPlan, MiniBatchPlan, Plan, RankPlan, SolvedPlan, StagedPlan
from flagen.plan.scan import ScanPlan
from flagen.plan.unavailable import Unavailable


class TorchBackend:
    """Emits what runs anywhere PyTorch does."""

    name = "torch"

    def renderings(self, plan: Plan, programs: Programs) -> tuple[Rendering, ...]:
        return (arguments_file(plan), naive_file(plan), *_chunk(plan), _module(plan), package_file(plan))


def layer_alone(plan: Plan) -> tuple[Rendering, ...]:
    """The package of a layer around the operators of another."""
    return (_module(plan), layer_package_file(plan))


# What prints a form that few specs have is imported for them.


def _module(plan: Plan) -> Rendering:
    if plan.layer is None:
        return module_file(plan)
    from flagen.backends.torch_.layer import layer_file

    return layer_file(plan.layer, plan.spec)


def _chunk(plan: Plan) -> tuple[Rendering, ...]:
    """`naive_chunk.py`, where there is a chunk form, and the packages of the stages, where it has such."""
    match plan.chunk:
        case Unavailable():
            return ()
        case ScanPlan():
            from flagen.backends.torch_.scan import scan_renderings

            return scan_renderings(plan.chunk)
        case MiniBatchPlan(_, within):
            from flagen.backends.torch_.mini_batches import mini_batch_file

            return (mini_batch_file(plan, plan.chunk), *inside(PACKAGE_OF_MINI_BATCH, _stage(within)))
        case LevelPlan(_, columns):
            from flagen.backends.torch_.levels import level_file

            return (level_file(plan, plan.chunk), *inside(PACKAGE_OF_COLUMNS, _stage(columns)))
        case RankPlan(_, within):
            from flagen.backends.torch_.ranks import rank_file

            return (rank_file(plan, plan.chunk), *inside(PACKAGE_OF_ROWS, _stage(within)))
        case StagedPlan(every=stages):
            from flagen.backends.torch_.staged import staged_file

            packages = (inside(package_of(stage, plan.spec.name), _stage(stage.plan)) for stage in stages)
            return (staged_file(plan, plan.chunk), *chain.from_iterable(packages))
        case ChunkPlan(solved=solved) if solved is not None:
            from flagen.backends.torch_.solved import solved_file

            solved_by_steps = solved_file(plan, plan.chunk, solved)
            if not isinstance(plan.chunk_kernel, SolvedPlan):
                return (solved_by_steps,)
            return (solved_by_steps, *inside(PACKAGE_OF_READ, _stage(plan.chunk_kernel.read)))
        case ChunkPlan():
            return (chunk_file(plan, plan.chunk),)


def _stage(plan: Plan) -> tuple[Rendering, ...]:
    return (arguments_file(plan), *_chunk(plan), stage_package_file(plan))
