"""What a spec's statements do as a whole: which states reach the output, and what each decay and gate acts on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Literal

from flagen.diagnostics import Span
from flagen.spec.model import (
    Assign,
    Binary,
    Call,
    Contract,
    Derived,
    Expr,
    Index,
    Name,
    Negate,
    Number,
    Outer,
    Over,
    Pairs,
    Reduce,
    Rotate,
    RowMap,
    Solution,
    Statement,
    StateRead,
    Transpose,
    children,
    walk,
)

Role = Literal["scales a state", "scales a write", "scales a read"]


@dataclass(frozen=True)
class Terms:
    """What the terms of a sum are: whether one of them is a state itself (scaled or mapped elementwise, but under no
    contraction), and whether one of them is not."""

    state: bool
    write: bool


@dataclass(frozen=True)
class _Flow:
    """How the value of an expression gets to the state: `direct` if nothing contracts it on the way, and whether it
    `writes`, which a factor of nothing but a state does not."""

    direct: bool
    writes: bool


_WRITE = Terms(state=False, write=True)


def assignments(statements: tuple[Statement, ...]) -> Iterator[Assign]:
    """All assignments, those of repeats among them, in order."""
    for statement in statements:
        if isinstance(statement, Assign):
            yield statement
        else:
            yield from statement.body


def called_at(statements: tuple[Statement, ...], span: Span) -> str | None:
    """The elementwise function that the author calls at a place of the statements, if one is; what stands there for a
    word that means statements of its own, such as `first`, has several nodes of this place."""
    nodes = (node for assign in assignments(statements) for node in walk(assign.value))
    match [node for node in nodes if node.span == span]:
        case [Call(function=function)]:
            return function
    return None


def names_in(expr: Expr) -> set[str]:
    """Every name that `expr` mentions, states among them."""
    return {node.name for node in walk(expr) if isinstance(node, (Name, StateRead))}


def reaching(targets: set[str], values: Mapping[str, list[Expr]]) -> set[str]:
    """All names that the values of `targets` depend on, through whatever lies between."""
    found: set[str] = set()
    pending = sorted(targets)
    while pending:
        for value in values.get(pending.pop(), ()):
            new = names_in(value) - found
            found |= new
            pending += sorted(new)
    return found


class Roles:
    """What every derived name does to the states: found by following the update's assignments to states, through the
    locals they read. What was kept by `prev` is a value like any other: `kept` are the states that stand for it."""

    def __init__(
        self, update: tuple[Statement, ...], derived: tuple[Derived, ...], kept: frozenset[str] = frozenset()
    ) -> None:
        self.kept = kept
        self.roles: dict[str, set[Role]] = {}
        every = list(assignments(update))
        self._locals = {assign.target: assign.value for assign in every if not assign.to_state}
        self._local_terms: dict[str, Terms] = {}
        self._scaling: dict[str, frozenset[str]] = {}
        """The derived names that each name scales by."""
        # All are defined before they are used, so that no step here goes deeper than one expression.
        for entry in derived:
            self._scaling[entry.name] = frozenset({entry.name} | self._scales(entry.value))
        for name, value in self._locals.items():
            self._local_terms[name] = self._terms(value)
            self._scaling[name] = frozenset(self._scales(value))
        self._pending = [(assign.value, _Flow(True, True)) for assign in every if assign.to_state]
        self._seen: set[tuple[str, _Flow]] = set()
        while self._pending:
            self._visit(*self._pending.pop())

    def of(self, name: str) -> set[Role]:
        return self.roles.get(name, set())

    def _visit(self, expr: Expr, flow: _Flow) -> None:
        match expr:
            case Name(name, "local") if name in self._locals:
                if (name, flow) not in self._seen:
                    self._seen.add((name, flow))
                    self._pending.append((self._locals[name], flow))
            case Binary("*" | "/", left, right) | Outer(left, right):
                for factor, other in ((left, right), (right, left)):
                    terms = self._terms(other)
                    self._scale(factor, terms, flow)
                    self._visit(factor, replace(flow, writes=flow.writes and terms.write))
            case Contract() | Reduce() | Solution():
                for child in children(expr):
                    self._visit(child, replace(flow, direct=False))
            case _:
                for child in children(expr):
                    self._visit(child, flow)

    def _scale(self, factor: Expr, other: Terms, flow: _Flow) -> None:
        roles: set[Role] = set()
        if other.state:
            roles.add("scales a state" if flow.direct else "scales a read")
        if other.write and flow.writes:
            roles.add("scales a write")
        for name in self._scales(factor):
            self.roles.setdefault(name, set()).update(roles)

    def _scales(self, factor: Expr) -> set[str]:
        """The derived names that a factor scales by, through the locals and derived names in it."""
        return {found for name in self._coefficients(factor) for found in self._scaling.get(name, ())}

    def _coefficients(self, factor: Expr) -> set[str]:
        """The names that stand in the terms of `factor` which are no state; what reads a state is no scale either."""
        if not self._terms(factor).write:
            return set()
        if isinstance(factor, (Contract, Reduce, Solution)) and any(map(self._is_state, walk(factor))):
            return set()
        if isinstance(factor, Name):
            return {factor.name}
        return {name for child in children(factor) for name in self._coefficients(child)}

    def _is_state(self, expr: Expr) -> bool:
        return isinstance(expr, StateRead) and expr.name not in self.kept

    def _terms(self, expr: Expr) -> Terms:
        match expr:
            case StateRead() if self._is_state(expr):
                return Terms(state=True, write=False)
            case Name(name, "local") if name in self._local_terms:
                return self._local_terms[name]
            case Number() | Name() | StateRead() | Contract() | Reduce() | Index() | Solution():
                return _WRITE
            case Negate(value) | Transpose(value):
                return self._terms(value)
            case Binary("+" | "-", left, right):
                a, b = self._terms(left), self._terms(right)
                return Terms(a.state or b.state, a.write or b.write)
            case Binary(_, left, right) | Outer(left, right) | Pairs(left, right):
                a, b = self._terms(left), self._terms(right)
                return Terms(a.state or b.state, a.write and b.write)
            case Call(_, args):
                parts = [self._terms(arg) for arg in args]
                return Terms(any(part.state for part in parts), any(part.write for part in parts))
            case RowMap(_, value) | Rotate(value) | Over(value):
                return self._terms(value)
