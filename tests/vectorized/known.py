"""Which kernel a Triton function of a package is printed from: those of specs/ are derived where they are asked for."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

from flagen.counting.known import KNOWN, Launchable, known, remember, remember_spec
from flagen.spec import load_spec
from tests.specs import SPECS

__all__ = ["KNOWN", "Launchable", "kernels_of", "launchable", "remember"]


@cache
def kernels_of(name: str) -> dict[str, Launchable]:
    """Those of a spec in specs/, all of them."""
    return remember_spec(load_spec(SPECS / f"{name}.yaml"))


def launchable(function: Callable[..., object]) -> Launchable | None:
    """The kernel of that name in the spec that a Triton function comes from."""
    if function.__module__.startswith("generated."):
        kernels_of(function.__module__.split(".")[1])
    return known(function)
