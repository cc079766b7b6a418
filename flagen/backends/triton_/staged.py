"""The context of `chunk.py` where a spec runs in stages: their functions, one after another."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from flagen.backends.signature import Parameter, parameters
from flagen.backends.solutions import iterations
from flagen.backends.torch_.common import check_call, common_context
from flagen.backends.torch_.staged import staged_context
from flagen.backends.triton_.chunk_launcher import SAVE_STATES
from flagen.backends.triton_.handed_on import keeps_states
from flagen.plan.chunk_families import SIZES
from flagen.plan.model import PlannedStage, StagedPlan
from flagen.spec.model import Spec


def staged_launcher_context(plan: StagedPlan) -> Mapping[str, object]:
    """Every value `triton/staged.py.j2` uses."""
    spec = plan.spec
    size = Parameter("chunk_size", "int", str(plan.size), True, f"the most tokens per chunk: {sizes_in_words()}.")
    steps = tuple(dict.fromkeys(parameter for stage in plan.stages for parameter in iterations(stage.plan)))
    modes = [SAVE_STATES] if any(keeps_states(stage.plan) for stage in plan.stages) else []
    common = common_context(spec, size, *steps, *modes)
    del common["output_dtype"]  # The stages' lines have it.
    return {
        **common,
        **staged_context(plan, _function, _modes, promotes=False),
        "check": check_call(spec, shapes_only="torch.compiler.is_compiling()"),
        "pytorch_call": f"naive_chunk_{spec.name}({', '.join(as_passed(spec, size, *steps))})",
        "sizes": SIZES,
        "in_pytorch": [stage.stage.called for stage, _ in plan.without_kernels()],
    }


def as_passed(spec: Spec, *extra: Parameter) -> Iterator[str]:
    """The arguments of the function as they are handed to another of the same signature."""
    for parameter in (*parameters(spec), *extra):
        yield f"{parameter.name}={parameter.name}" if parameter.keyword else parameter.name


def sizes_in_words() -> str:
    *most, last = map(str, SIZES)
    return f"{', '.join(most)} or {last}"


def _function(stage: PlannedStage) -> str:
    return f"{'chunk' if stage.has_kernels else 'naive_chunk'}_{stage.spec.name}"


def _modes(stage: PlannedStage) -> Iterator[str]:
    yield from (parameter.name for parameter in iterations(stage.plan))
    if keeps_states(stage.plan):
        yield SAVE_STATES.name
