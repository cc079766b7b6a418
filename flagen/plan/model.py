"""What the planner decides, as frozen data: the backends read it and decide nothing."""

from __future__ import annotations

from dataclasses import dataclass

from flagen.diagnostics import Span


@dataclass(frozen=True)
class Unavailable:
    """A form this spec does not get, why, and which part of the spec keeps it from having one."""

    reason: str
    span: Span
