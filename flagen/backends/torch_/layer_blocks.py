"""Steps of a layer as lines of a method: each under its conditions, those of one condition under one `if`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from flagen.backends.torch_.layer_printer import LayerPrinter
from flagen.plan.layer import Choose, Set, Step

Write = Callable[[Set], str]
"""Writes a step that has no condition, as lines or none."""


def block(steps: Iterable[Step], write: Write, printer: LayerPrinter) -> Iterator[str]:
    """The lines of `steps`, whose conditions `printer` prints."""
    for step in steps:
        if isinstance(step, Set):
            yield from (line for line in write(step).split("\n") if line)
        else:
            yield from _choice(step, write, printer)


def _choice(step: Choose, write: Write, printer: LayerPrinter) -> Iterator[str]:
    then = [f"    {line}" for line in block(step.then, write, printer)]
    otherwise = list(block(step.otherwise, write, printer))
    if not then:
        if otherwise:
            yield f"if {printer.negated(step.condition)}:"
            yield from (f"    {line}" for line in otherwise)
        return
    yield f"if {printer.text(step.condition)}:"
    yield from then
    if not otherwise:
        return
    if len(step.otherwise) == 1 and isinstance(step.otherwise[0], Choose) and otherwise[0].startswith("if "):
        yield f"el{otherwise[0]}"
        yield from otherwise[1:]
        return
    yield "else:"
    yield from (f"    {line}" for line in otherwise)


def path(text: str) -> str:
    """A parameter by its path: `self.x_proj[0].mu` of `x_proj.0.mu`."""
    return "self" + "".join(f"[{part}]" if part.isdigit() else f".{part}" for part in text.split("."))
