"""How many turns kernels make of their loops, counted while the interpreter runs them.

    with counted_turns() as report:
        chunk_gated_delta_rule(q, k, v, g, beta)
    report["chunk_gated_delta_rule_kernel"][("…/chunk_kernels.py", 107)].each     # the turns each time it came there

A loop goes by the file and line of its `for`, which a compiled kernel's line information has, too.
"""

from __future__ import annotations

import ast
import sys
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

from flagen.triton_cpu.border import Patch, interpreter, patched, stock
from flagen.triton_cpu.repair import repair

Place = tuple[str, int]
"""A file, and the line of a `for`."""


@dataclass
class Turns:
    """How often a loop was come to, and its turns in all."""

    entries: int = 0
    turns: int = 0

    @property
    def each(self) -> float:
        return self.turns / self.entries if self.entries else 0.0


@dataclass(frozen=True)
class Span:
    """The lines of a loop: its `for`, the first of what it repeats, and the last."""

    line: int
    body: int
    end: int


@contextmanager
def counted_turns() -> Iterator[Mapping[str, Mapping[Place, Turns]]]:
    """Count turns of the loops of all kernels within, by kernel and loop; repairs the interpreter first."""
    repair()
    report: dict[str, dict[Place, Turns]] = {}
    executor = stock(interpreter, "GridExecutor")
    call = stock(executor, "__call__")

    # Positional only, for a kernel's argument may have any name.
    def launched(self: Any, /, *arguments: Any, **named: Any) -> Any:
        before = sys.gettrace()
        sys.settrace(_Tracer(report.setdefault(self.fn.__name__, defaultdict(Turns))))
        try:
            return call(self, *arguments, **named)
        finally:
            sys.settrace(before)

    with patched([Patch(executor, "__call__", launched)]):
        yield report


class _Tracer:
    """What Python calls at each call of a function."""

    def __init__(self, counts: dict[Place, Turns]) -> None:
        self._counts = counts

    def __call__(self, frame: FrameType, event: str, _: Any) -> Any:
        spans = _spans_of(frame.f_code)
        if not spans:
            return None
        frame.f_trace_opcodes = False
        return self._of_frame(frame.f_code.co_filename, spans, 0)

    def _of_frame(self, file: str, spans: tuple[Span, ...], before: int) -> Any:
        """What Python calls at each line of a function; it was at line `before`."""

        def at_line(frame: FrameType, event: str, _: Any) -> Any:
            nonlocal before
            if event == "line":
                line = frame.f_lineno
                for span in spans:
                    if span.line <= line < span.body and not span.line <= before <= span.end:
                        self._counts[file, span.line].entries += 1
                    elif line == span.body and span.line <= before < span.body:
                        self._counts[file, span.line].turns += 1
                before = line
            return at_line

        return at_line


@cache
def _spans_of(code: CodeType) -> tuple[Span, ...]:
    """The loops of a function, if it is a kernel's or one that kernels call."""
    functions = _functions_of(code.co_filename)
    return next((found for first, end, found in functions if first <= code.co_firstlineno <= end), ())


@cache
def _functions_of(file: str) -> tuple[tuple[int, int, tuple[Span, ...]], ...]:
    """Each function of a file that Triton compiles: its first line, its last, and the loops in it."""
    path = Path(file)
    if path.suffix != ".py" or not path.is_file():
        return ()
    functions = (node for node in ast.walk(ast.parse(path.read_text("utf-8"))) if isinstance(node, ast.FunctionDef))
    return tuple(
        (min([node.lineno, *(each.lineno for each in node.decorator_list)]), node.end_lineno or 0, _loops_in(node))
        for node in functions
        if any(map(_is_jit, node.decorator_list))
    )


def _is_jit(decorator: ast.expr) -> bool:
    """Whether it is `jit` or `triton.jit`, called or not."""
    named = decorator.func if isinstance(decorator, ast.Call) else decorator
    return getattr(named, "attr", getattr(named, "id", "")) == "jit"


def _loops_in(function: ast.FunctionDef) -> tuple[Span, ...]:
    loops = (node for node in ast.walk(function) if isinstance(node, ast.For))
    return tuple(Span(node.lineno, node.body[0].lineno, node.end_lineno or 0) for node in loops)
