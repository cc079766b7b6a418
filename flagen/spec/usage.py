"""What a spec's statements do as a whole: which states reach the output, and what each decay and gate acts on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from flagen.spec.model import (
    Assign,
    Binary,
    Call,
    Contract,
    Derived,
    Expr,
    Name,
    Negate,
    Number,
    Outer,
    Reduce,
    RowMap,
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


_WRITE = Terms(state=False, write=True)


def assignments(statements: tuple[Statement, ...]) -> Iterator[Assign]:
    """All assignments, those of repeats among them, in order."""
    for statement in statements:
        if isinstance(statement, Assign):
            yield statement
        else:
            yield from statement.body


def names_in(expr: Expr) -> set[str]:
    """Every name that `expr` mentions, states among them."""
    return {node.name for node in walk(expr) if isinstance(node, (Name, StateRead))}


def _coefficients(factor: Expr) -> set[str]:
    """The names that `factor` scales by: those of its contractions with a state are what is read, not a scale."""
    if isinstance(factor, (Contract, Reduce)) and any(isinstance(node, StateRead) for node in walk(factor)):
        return set()
    if isinstance(factor, (Name, StateRead)):
        return {factor.name}
    return {name for child in children(factor) for name in _coefficients(child)}


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
    locals they read."""

    def __init__(self, update: tuple[Statement, ...], derived: tuple[Derived, ...]) -> None:
        self.roles: dict[str, set[Role]] = {}
        every = list(assignments(update))
        self._locals = {assign.target: assign.value for assign in every if not assign.to_state}
        self._scaling: dict[str, frozenset[str]] = {}
        """The derived names that each name scales by."""
        for name, value in [(entry.name, entry.value) for entry in derived] + list(self._locals.items()):
            # Derived names and locals are defined before they are used, so that no step goes deeper than one of them.
            own = {name} if name not in self._locals else set()
            self._scaling[name] = frozenset(own | self._scales(value))
        self._local_terms: dict[str, Terms] = {}
        for name, value in self._locals.items():
            self._local_terms[name] = self._terms(value)
        self._pending: list[tuple[Expr, bool]] = [(assign.value, True) for assign in every if assign.to_state]
        self._seen: set[tuple[str, bool]] = set()
        while self._pending:
            self._visit(*self._pending.pop())

    def of(self, name: str) -> set[Role]:
        return self.roles.get(name, set())

    def _visit(self, expr: Expr, direct: bool) -> None:
        """`direct` as long as nothing contracts what `expr` yields before it reaches the state."""
        match expr:
            case Name(name, "local") if name in self._locals:
                if (name, direct) not in self._seen:
                    self._seen.add((name, direct))
                    self._pending.append((self._locals[name], direct))
            case Binary("*" | "/" | "**", left, right) | Outer(left, right):
                self._scale(left, right, direct)
                self._scale(right, left, direct)
                self._visit(left, direct)
                self._visit(right, direct)
            case Contract() | Reduce():
                for child in children(expr):
                    self._visit(child, False)
            case _:
                for child in children(expr):
                    self._visit(child, direct)

    def _scale(self, factor: Expr, other: Expr, direct: bool) -> None:
        terms = self._terms(other)
        roles: set[Role] = set()
        if terms.state:
            roles.add("scales a state" if direct else "scales a read")
        if terms.write:
            roles.add("scales a write")
        for name in self._scales(factor):
            self.roles.setdefault(name, set()).update(roles)

    def _scales(self, factor: Expr) -> set[str]:
        """The derived names a factor scales by, through the locals and derived names it uses."""
        return {found for name in _coefficients(factor) for found in self._scaling.get(name, ())}

    def _terms(self, expr: Expr) -> Terms:
        match expr:
            case StateRead():
                return Terms(state=True, write=False)
            case Name(name, "local") if name in self._local_terms:
                return self._local_terms[name]
            case Number() | Name() | Contract() | Reduce():
                return _WRITE
            case Negate(value) | Transpose(value):
                return self._terms(value)
            case Binary("+" | "-", left, right):
                a, b = self._terms(left), self._terms(right)
                return Terms(a.state or b.state, a.write or b.write)
            case Binary(_, left, right) | Outer(left, right):
                a, b = self._terms(left), self._terms(right)
                return Terms(a.state or b.state, a.write and b.write)
            case Call(_, args):
                parts = [self._terms(arg) for arg in args]
                return Terms(any(part.state for part in parts), any(part.write for part in parts))
            case RowMap(_, value):
                return self._terms(value)
