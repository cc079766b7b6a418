"""The documentation backend: the derivation of an operator, as a page to read beside its code."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import chain

from flagen.backends.markdown_.derivation import derivation_file
from flagen.backends.markdown_.printer import symbol
from flagen.backends.protocol import Rendering
from flagen.backends.stages import (
    PACKAGE_OF_COLUMNS,
    PACKAGE_OF_MINI_BATCH,
    PACKAGE_OF_READ,
    PACKAGE_OF_ROWS,
    inside,
    package_of,
)
from flagen.kernel import Programs
from flagen.plan.model import LevelPlan, MiniBatchPlan, Plan, RankPlan, SolvedPlan, StagedPlan


def symbols(written: Mapping[str, str]) -> dict[str, str]:
    """The names of a spec in formulas, by those that it is printed with."""
    return {symbol(new): symbol(old) for new, old in written.items()}


class MarkdownBackend:
    """Emits what was derived, in LaTeX that code hosts render."""

    name = "markdown"

    def renderings(self, plan: Plan, programs: Programs) -> tuple[Rendering, ...]:
        page = (derivation_file(plan),)
        if isinstance(plan.chunk, MiniBatchPlan):
            return (*page, *inside(PACKAGE_OF_MINI_BATCH, self.renderings(plan.chunk.within, programs)))
        if isinstance(plan.chunk, LevelPlan):
            return (*page, *inside(PACKAGE_OF_COLUMNS, self.renderings(plan.chunk.columns, programs)))
        if isinstance(plan.chunk, RankPlan):
            return (*page, *inside(PACKAGE_OF_ROWS, self.renderings(plan.chunk.within, programs)))
        if isinstance(plan.chunk_kernel, SolvedPlan):
            return (*page, *inside(PACKAGE_OF_READ, self.renderings(plan.chunk_kernel.read, programs)))
        if not isinstance(plan.chunk, StagedPlan):
            return page
        stages = plan.chunk.every
        of_stages = (inside(package_of(each, plan.spec.name), self.renderings(each.plan, programs)) for each in stages)
        return (*page, *chain.from_iterable(of_stages))
