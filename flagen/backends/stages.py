"""What the packages of stages are called, and how their files are put into them.

What no spec decides stands once, in the package of the whole: a stage checks its arguments with the functions of that
package's `arguments.py`, and its kernels become operators by that package's `operators.py`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

from flagen.backends.protocol import Rendering
from flagen.backends.range_check import NO_CHECK, RANGES
from flagen.plan.staged import PlannedStage

SHARED = "shared"
"""The value of a context that says where what stands once is imported from."""

HERE, OUTSIDE = ".", ".."


def package_of(stage: PlannedStage, name: str) -> str:
    """The package of a stage of the spec `name`, inside that of the spec."""
    return f"stage{stage.spec.name.removeprefix(name)}"


def inside(package: str, renderings: Iterable[Rendering]) -> tuple[Rendering, ...]:
    """`renderings` as files of `package`."""
    return tuple(replace(r, path=f"{package}/{r.path}", context=_of_the_whole(r.context)) for r in renderings)


def _of_the_whole(context: Mapping[str, object]) -> Mapping[str, object]:
    """`context` with what is `shared` found one package further out, where the operators of all stages have names."""
    if SHARED not in context:
        return context
    names = {"registered": f"{context['operator']}_{context['name']}"} if "registered" in context else {}
    checked = {RANGES: NO_CHECK} if RANGES in context else {}
    return {**context, SHARED: OUTSIDE, **names, **checked}
