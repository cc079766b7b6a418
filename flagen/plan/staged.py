"""The plan of a spec that runs in stages: a plan for each of them, and what passes between.

A stage's functions are planned, printed and launched as those of any spec are, in a package of their own inside the
spec's. The functions of the whole call them one after another.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace

from flagen.algebra.rewrite import map_children
from flagen.algebra.staged import Stage, StagedForm
from flagen.plan.model import Plan, Unavailable
from flagen.spec.model import Expr, Name, Spec, walk


@dataclass(frozen=True)
class PlannedStage:
    """A stage and the plan of its functions. `repeats`: an earlier stage has the same state, and this walks it again
    for another read of it."""

    stage: Stage
    plan: Plan
    repeats: bool

    @property
    def spec(self) -> Spec:
        return self.stage.spec

    @property
    def has_kernels(self) -> bool:
        return not isinstance(self.plan.chunk_kernel, Unavailable)


@dataclass(frozen=True)
class StagedPlan:
    """The stages of a spec in the order in which they run."""

    form: StagedForm
    stages: tuple[PlannedStage, ...]

    @property
    def spec(self) -> Spec:
        return self.form.spec

    @property
    def size(self) -> int:
        """Tokens per chunk, unless a call says."""
        return min(stage.plan.chunk.size for stage in self.stages if not isinstance(stage.plan.chunk, Unavailable))

    def without_kernels(self) -> Iterator[tuple[PlannedStage, Unavailable]]:
        """The stages that run in PyTorch, and why."""
        for stage in self.stages:
            if isinstance(stage.plan.chunk_kernel, Unavailable):
                yield stage, stage.plan.chunk_kernel

    def dump(self) -> str:
        """The plan as text: what each stage gets and gives, then its own plan."""
        lines = []
        for number, planned in enumerate(self.stages, start=1):
            given = [decl.name for decl in self.form.given(planned.stage)]
            gives = [result.name for result in planned.stage.results]
            takes = f"{', '.join(given)} -> " if given else ""
            lines.append(f"stage {number}, of {planned.stage.state.name}: {takes}{', '.join(gives)}")
            lines += [f"    {line}" for line in planned.plan.chunk_dump().splitlines()]
        if self.form.output is not None:
            names = {node.name for node in walk(self.form.output) if isinstance(node, Name)}
            given = [decl.name for decl in self.form.passed if decl.name in names]
            lines.append(f"then the output, of {', '.join(given)}, in PyTorch")
        return "\n".join(lines)


def plan_stages(form: StagedForm, plans: tuple[Plan, ...]) -> StagedPlan:
    """The plan of `form`, whose stages have `plans`."""
    seen: set[str] = set()
    stages = []
    for stage, plan in zip(form.stages, plans, strict=True):
        stages.append(PlannedStage(stage, plan, stage.state.name in seen))
        seen.add(stage.state.name)
    return StagedPlan(form, tuple(stages))


def as_locals(expr: Expr, names: Collection[str]) -> Expr:
    """`expr` with `names` as something that is there already, in the dtype that is computed in."""
    if isinstance(expr, Name) and expr.name in names:
        return replace(expr, kind="local")
    return map_children(expr, lambda child: as_locals(child, names))
