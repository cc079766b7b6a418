"""A form that a spec does not get. Its own module, since every plan of a form may be this instead."""

from __future__ import annotations

from dataclasses import dataclass

from flagen.diagnostics import Span


@dataclass(frozen=True)
class Unavailable:
    """A form this spec does not get, why, and which part of the spec keeps it from having one."""

    reason: str
    span: Span

    def dump(self) -> str:
        return f"not available: {self.reason} ({self.span})"
