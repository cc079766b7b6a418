"""Changes of the statements of a kernel, made one by one wherever they stand."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace

from flagen.kernel.ir import Apply, If, Kernel, Loop, Program, Statement, Store, statements_in

Change = Callable[[Statement], Iterable[Statement]]
"""What stands in the place of a statement."""


def changed(program: Program, name: str, change: Change) -> Program:
    """The program with a change of one of its kernels, and of the routines of that."""
    kernels = (replace(k, body=_changed(k.body, change)) if k.name == name else k for k in program.kernels)
    return replace(program, kernels=tuple(kernels))


def made(kernels: Iterable[Kernel]) -> set[str]:
    """The arrays that kernels store."""
    return {s.target.array.name for kernel in kernels for s in statements_in(kernel.body) if isinstance(s, Store)}


def _changed(body: Iterable[Statement], change: Change) -> tuple[Statement, ...]:
    found = (_within(statement, change) for statement in body)
    return tuple(new for statement in found for new in change(statement))


def _within(statement: Statement, change: Change) -> Statement:
    match statement:
        case Loop(_, inner):
            return replace(statement, body=_changed(inner, change))
        case If(_, then, otherwise):
            return replace(statement, then=_changed(then, change), otherwise=_changed(otherwise, change))
        case Apply(routine):
            return Apply(replace(routine, body=_changed(routine.body, change)))
    return statement
