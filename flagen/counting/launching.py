"""Launches of Triton kernels that something else than the interpreter takes."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from flagen.counting.known import Launchable
from flagen.triton_cpu.border import Patch, interpreter, patched, stock


class NotCountedError(Exception):
    """What a launch does cannot be told without numbers."""


@contextmanager
def instead_of_interpreting(
    take: Callable[[Launchable, int, Mapping[str, Any]], None], find: Callable[[Any], Launchable | None]
) -> Iterator[None]:
    """Within it, kernels that `find` knows are handed to `take`, with the number of programs and the values of all
    parameters; the interpreter has the others."""
    function = stock(interpreter, "InterpretedFunction")
    interpret = stock(function, "run")
    known: dict[object, Launchable | None] = {}

    def run(self: Any, *arguments: Any, grid: Any, warmup: bool, **named: Any) -> Any:
        if self.fn not in known:
            known[self.fn] = find(self.fn)
        found = known[self.fn]
        if found is None or warmup:
            return interpret(self, *arguments, grid=grid, warmup=warmup, **named)
        given = dict(zip(self.arg_names, arguments, strict=False))
        given |= {name: value for name, value in named.items() if name in self.arg_names}
        values = dict(zip(found.parameters, (given[name] for name in self.arg_names), strict=True))
        take(found, math.prod(grid), values)
        return None

    with patched([Patch(function, "run", run)]):
        yield
