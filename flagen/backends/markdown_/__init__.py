"""The documentation backend: the derivation of an operator, as a page to read beside its code."""

from __future__ import annotations

from flagen.backends.markdown_.derivation import derivation_file
from flagen.backends.protocol import Rendering
from flagen.plan.model import Plan


class MarkdownBackend:
    """Emits what was derived, in LaTeX that code hosts render."""

    name = "markdown"

    def renderings(self, plan: Plan) -> tuple[Rendering, ...]:
        return (derivation_file(plan),)
