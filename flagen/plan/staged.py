"""The plan of a spec that runs in stages: a plan for each of them, and what passes between.

A stage's functions are planned, printed and launched as those of any spec are, in a package of their own inside the
spec's. The functions of the whole call them one after another.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace

from flagen.algebra.rewrite import map_children
from flagen.algebra.staged import StagedForm
from flagen.plan.model import Plan, PlannedStage, StagedPlan
from flagen.spec.model import Expr, Name


def plan_stages(form: StagedForm, plans: tuple[Plan, ...]) -> StagedPlan:
    """The plan of `form`, whose stages have `plans`."""
    seen: set[str] = set()
    stages = []
    for stage, plan in zip(form.stages, plans, strict=True):
        names = {state.name for state in stage.states}
        stages.append(PlannedStage(stage, plan, names <= seen))
        seen |= names
    return StagedPlan(form, tuple(stages))


def as_locals(expr: Expr, names: Collection[str]) -> Expr:
    """`expr` with `names` as something that is there already, in the dtype that is computed in."""
    if isinstance(expr, Name) and expr.name in names:
        return replace(expr, kind="local")
    return map_children(expr, lambda child: as_locals(child, names))


def renamed_locals(expr: Expr, names: Mapping[str, str]) -> Expr:
    """The same with other names for them."""
    if isinstance(expr, Name) and expr.name in names:
        return replace(expr, name=names[expr.name], kind="local")
    return map_children(expr, lambda child: renamed_locals(child, names))
