"""What the packages of stages are called, and how their files are put into them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from flagen.backends.protocol import Rendering
from flagen.plan.staged import PlannedStage


def package_of(stage: PlannedStage, name: str) -> str:
    """The package of a stage of the spec `name`, inside that of the spec."""
    return f"stage{stage.spec.name.removeprefix(name)}"


def inside(package: str, renderings: Iterable[Rendering]) -> tuple[Rendering, ...]:
    """`renderings` as files of `package`."""
    return tuple(replace(rendering, path=f"{package}/{rendering.path}") for rendering in renderings)
