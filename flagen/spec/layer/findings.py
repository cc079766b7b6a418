"""What does not fit in a layer with one config."""

from __future__ import annotations

from dataclasses import dataclass, field

from flagen.diagnostics import Span
from flagen.spec.layer.numbers import NoValue


@dataclass(frozen=True)
class Finding:
    """Something that does not fit."""

    code: str
    span: Span
    message: str
    hint: str = ""


@dataclass
class Findings:
    """The list of them; a name that has no value is found once, and not wherever it is used."""

    found: list[Finding] = field(default_factory=list)
    _valueless: frozenset[str] = frozenset()
    """The names that have been found to have no value, or none that is a number."""

    def add(self, code: str, span: Span, message: str, hint: str = "") -> None:
        self.found.append(Finding(code, span, message, hint))

    def no_value(self, problem: NoValue) -> None:
        if problem.name in self._valueless:
            return
        self._valueless |= {problem.name} - {""}
        self.add("E802", problem.span, problem.message, problem.hint)
