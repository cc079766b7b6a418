"""Which operators run on which path through `forward`: exactly one is to run, exactly once, on each."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import product

from flagen.diagnostics import Span
from flagen.spec.layer.model import Assign, Call, Compare, Expr, IfElse, Logic, Name, Unary, Value, children, walk
from flagen.spec.layer.numbers import shortened

_OPPOSITES = {"!=": "==", "is not": "is", ">=": "<", "<=": ">"}
"""Comparisons that say no where the other one says yes."""
_MOST = 8
"""Conditions, or calls, beyond which paths are not counted any more."""


@dataclass(frozen=True)
class Wrong:
    span: Span
    message: str
    hint: str


@dataclass(frozen=True)
class _Guarded:
    """A call of an operator, and the conditions that lead to it with the way each has to turn out."""

    call: Call
    guards: tuple[tuple[Expr, bool], ...]


def miscounted(forward: tuple[Assign, ...]) -> Wrong | None:
    """The first path on which no operator runs, or more than one; None where there is no such path."""
    calls = [found for statement in forward for found in _calls(statement.value, ())]
    if not calls:
        hint = "call `recurrence(...)` once, with the inputs of the spec in their order"
        return Wrong(forward[-1].span, "no operator runs: `forward` never calls `recurrence`", hint)
    atoms = list(dict.fromkeys(atom for found in calls for guard, _ in found.guards for atom in _atoms(guard)))
    if len(calls) > _MOST or len(atoms) > _MOST:
        message = f"calls of operators under more than {_MOST} conditions, or more than {_MOST} calls"
        return Wrong(calls[-1].call.span, message, "choose the operator once: `recurrence(...) if c else other(...)`")
    # What holds as the spec's conditions are written first: the path that a person would think of first.
    for truths in product((True, False), repeat=len(atoms)):
        assignment = dict(zip(atoms, truths, strict=True))
        if not _possible(assignment):
            continue
        run = [found.call for found in calls if all(_holds(guard, assignment) == way for guard, way in found.guards)]
        if len(run) == 1:
            continue
        where = _where(assignment)
        if run:
            hint = f"the first is on line {run[0].span.line}; on every path exactly one operator runs, once"
            return Wrong(run[1].span, f"a second operator runs here{where}", hint)
        hint = "`recurrence(...) if c else other(...)` chooses between two; `uses` names the other"
        return Wrong(calls[0].call.span, f"no operator runs{where}", hint)
    return None


def _calls(expr: Expr, guards: tuple[tuple[Expr, bool], ...]) -> Iterator[_Guarded]:
    match expr:
        case IfElse(condition, then, otherwise):
            yield from _calls(condition, guards)
            yield from _calls(then, (*guards, (condition, True)))
            yield from _calls(otherwise, (*guards, (condition, False)))
            return
        case Call(_, "recurrence"):
            yield _Guarded(expr, guards)
    for child in children(expr):
        yield from _calls(child, guards)


def _atoms(condition: Expr) -> Iterator[Expr]:
    match condition:
        case Unary("not", value):
            yield from _atoms(value)
        case Logic(_, values):
            for value in values:
                yield from _atoms(value)
        case Value():
            return
        case _:
            yield _plain(condition)


def _plain(condition: Expr) -> Expr:
    """A comparison in the one form of it and its opposite."""
    if isinstance(condition, Compare) and condition.op in _OPPOSITES:
        return Compare(_OPPOSITES[condition.op], condition.left, condition.right)  # type: ignore[arg-type]
    return condition


def _holds(condition: Expr, assignment: Mapping[Expr, bool]) -> bool:
    match condition:
        case Unary("not", value):
            return not _holds(value, assignment)
        case Logic("and", values):
            return all(_holds(value, assignment) for value in values)
        case Logic(_, values):
            return any(_holds(value, assignment) for value in values)
        case Value(value):
            return bool(value)
    plain = _plain(condition)
    return assignment[plain] == (plain == condition)


def _possible(assignment: Mapping[Expr, bool]) -> bool:
    """Whether one value has at most one of the values that it is said to have."""
    said: dict[Expr, list[bool]] = {}
    for atom, holds in assignment.items():
        match atom:
            case Compare("==", left, Value(value)) if holds:
                said.setdefault(left, []).append(bool(value))
            case Compare("is", left, _) if holds:
                said.setdefault(left, []).append(False)
    if any(len(values) > 1 for values in said.values()):
        return False
    return all(holds == said[atom][0] for atom, holds in assignment.items() if atom in said)


def _where(assignment: Mapping[Expr, bool]) -> str:
    parts = []
    for atom, holds in assignment.items():
        match atom:
            case Name(name):
                parts.append(f"`{name}`" if holds else f"not `{name}`")
            case _:
                parts.append(f"`{shortened(atom)}`" if holds else f"not `{shortened(atom)}`")
    return f", where {' and '.join(parts)}" if parts else ""


def operator_calls(forward: tuple[Assign, ...]) -> Iterator[Call]:
    """Every call of an operator, as they are written."""
    for statement in forward:
        for node in walk(statement.value):
            if isinstance(node, Call) and node.kind == "recurrence":
                yield node
