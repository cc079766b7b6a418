"""What the packages of stages are called, and how their files are put into them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

from flagen.backends.protocol import Rendering
from flagen.backends.range_check import NO_CHECK, RANGES
from flagen.plan.model import PlannedStage

PACKAGE_OF_MINI_BATCH = "mini_batch"
"""The package of what a mini-batch does, inside that of the spec."""

PACKAGE_OF_COLUMNS = "columns"
"""The package of what chunks do to columns of a state in levels, inside that of the spec."""

PACKAGE_OF_ROWS = "rows"
"""The package of the recurrence of the rows of tokens, inside that of the spec."""


PACKAGE_OF_READ = "read"
"""The package of the read that a system is solved by, inside that of the stage that solves it."""


def package_of(stage: PlannedStage, name: str) -> str:
    """The package of a stage of the spec `name`, inside that of the spec."""
    return f"stage{stage.spec.name.removeprefix(name)}"


def inside(package: str, renderings: Iterable[Rendering]) -> tuple[Rendering, ...]:
    """`renderings` as files of `package`."""
    return tuple(replace(r, path=f"{package}/{r.path}", context=_unchecked(r.context)) for r in renderings)


def _unchecked(context: Mapping[str, object]) -> Mapping[str, object]:
    """`context` without the check of ranges: the whole makes it."""
    return {**context, RANGES: NO_CHECK} if RANGES in context else context
