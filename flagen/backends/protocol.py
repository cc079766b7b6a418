"""What a backend is: something that turns a plan into named template contexts. Rendering them is `flagen.emit`'s."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from flagen.kernel import Programs
from flagen.plan.model import Plan


@dataclass(frozen=True)
class Rendering:
    """One file of a generated package: its path inside the package, its template, and every value the template uses."""

    path: str
    template: str
    context: Mapping[str, object]


class Backend(Protocol):
    """One target language."""

    name: str

    def renderings(self, plan: Plan, programs: Programs) -> tuple[Rendering, ...]:
        """The files this backend contributes to the package of `plan`, whose kernels are `programs`."""
        ...
