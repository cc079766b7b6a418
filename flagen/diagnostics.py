"""Positions, diagnostics and the two kinds of failure: the user's spec is wrong, or flagen is.

Imported by every layer; imports nothing but the standard library.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, order=True)
class Span:
    """A place in a source file. Lines and columns count from 1; `length` characters are underlined."""

    file: str
    line: int
    column: int
    length: int = 1

    def __str__(self) -> str:
        return f"{self.file}:{self.line}:{self.column}"


NOWHERE = Span("<generated>", 1, 1, 0)


@dataclass(frozen=True)
class Source:
    """A spec's text and the name it is reported under."""

    file: str
    text: str

    def line(self, number: int) -> str:
        """The text of line `number` (from 1), without its line break; empty past the end."""
        lines = self.text.splitlines()
        return lines[number - 1] if 0 < number <= len(lines) else ""


@dataclass(frozen=True)
class Diagnostic:
    """One thing to tell the user: a stable code, where, what was wrong, and what to do about it."""

    code: str
    span: Span
    message: str
    hint: str = ""
    severity: Literal["error", "warning", "note"] = "error"

    def render(self, source: Source) -> str:
        """The diagnostic as plain text: location, message, the offending line with a caret, the hint."""
        rows = [f"{self.span}: {self.severity}[{self.code}]: {self.message}"]
        if line := source.line(self.span.line):
            line, column = _window(line, self.span.column)
            # Tabs stay tabs under the caret line, so the caret stays under its column.
            pad = "".join("\t" if char == "\t" else " " for char in line[: column - 1])
            room = max(1, len(line) - column + 1)
            rows += [f"    {line}", f"    {pad}{'^' * max(1, min(self.span.length, room))}"]
        if self.hint:
            rows.append(f"    hint: {self.hint}")
        return "\n".join(rows)


def _window(line: str, column: int, width: int = 160) -> tuple[str, int]:
    """The part of a very long line around `column`, printable, and the column there."""
    start = 0 if len(line) <= width else min(max(0, column - 1 - width // 2), len(line) - width)
    shown = "".join(char if char.isprintable() or char == "\t" else "\N{REPLACEMENT CHARACTER}" for char in line)
    ends = ("..." if start else "", "..." if start + width < len(line) else "")
    return f"{ends[0]}{shown[start : start + width]}{ends[1]}", column - start + len(ends[0])


class SpecError(Exception):
    """A spec is wrong. Carries every diagnostic found in the file, in order of position."""

    def __init__(self, source: Source, diagnostics: Iterable[Diagnostic]) -> None:
        self.source = source
        self.diagnostics = tuple(sorted(diagnostics, key=lambda d: (d.span, d.code)))
        super().__init__("\n".join(d.render(source) for d in self.diagnostics))


class InternalError(Exception):
    """flagen is wrong: a derivation failed its proof, or a stage met what an earlier one should have refused."""
