"""Finds the scan form of a spec: what each statement makes of a state, written as a map of the state before the token.

Statements are walked in the order of the text; a state that is read between two statements which change it is written
out, so that only states before the token, and after all of it, are left.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, NoReturn, TypeVar

from flagen.algebra.limits import Extent, extent
from flagen.algebra.rewrite import map_children
from flagen.algebra.scan import ONE, SHIFTED, ZERO, Kind, Scan, ScanForm
from flagen.diagnostics import Span
from flagen.spec.model import (
    Assign,
    Binary,
    Call,
    Contract,
    Expr,
    Name,
    Negate,
    Outer,
    Reduce,
    Repeat,
    Spec,
    State,
    StateRead,
    Transpose,
    walk,
)

P = TypeVar("P")


class OutsideScan(Exception):
    """The spec is valid, but a state of it is no elementwise scan; says which part of it, and where."""

    def __init__(self, reason: str, span: Span) -> None:
        super().__init__(reason)
        self.reason = reason
        self.span = span


def scan_form(spec: Spec, results: Sequence[str] = ("o",)) -> ScanForm:
    """The scan form of `spec`, whose functions return `results`: targets of its output, each [B, T, HV, *dims].

    Raises:
        OutsideScan: a state is no elementwise scan, or two states need one another; says which part, and where.
    """
    return Finder(spec).form(tuple(results))


@dataclass(frozen=True)
class _Map:
    """What an expression is of X_prev: a scan that has not got its state yet."""

    kind: Kind
    factor: Expr
    term: Expr


class Finder:
    """Walks the statements of a token, and writes states out that are read between two statements that change them."""

    def __init__(self, spec: Spec) -> None:
        self.spec = spec
        self.states = {state.name: state for state in spec.states}
        self.values: dict[str, Expr] = {}
        """What each local, and each state so far, is: states before the token, or after all of it."""
        self.spans: dict[str, Span] = {}
        self.waiting: dict[str, int] = {}
        """How many statements are still to change each state."""
        self.locals: dict[str, Expr] = {}
        self.extents: dict[str, Extent] = {}
        self.states_of: dict[str, set[str]] = {}
        """The states that each local depends on, through other locals, too."""

    def form(self, results: tuple[str, ...]) -> ScanForm:
        parts, outputs = self.taken()
        return ScanForm(self.spec, ordered(parts, self.wanted(outputs), needs, self.refuse_cycle), outputs, results)

    def taken(self) -> tuple[dict[str, Assign | Scan], tuple[Assign, ...]]:
        """What a token does to each state and what each local is, by name; and the statements of the output."""
        statements = list(self._statements())
        for statement in statements:
            self.waiting[statement.target] = self.waiting.get(statement.target, 0) + statement.to_state
        for statement in statements:
            self._take(statement)
        parts: dict[str, Assign | Scan] = {}
        for statement in statements:
            name, value = statement.target, self.values[statement.target]
            parts[name] = self._scan(name, value) if statement.to_state else replace(statement, value=value)
        for state in self.spec.states:  # one that no statement changes
            parts.setdefault(state.name, Scan(state, "affine", ONE, ZERO))
        outputs = tuple(replace(assign, value=self._settled(assign.value)) for assign in self.spec.output)
        return parts, outputs

    def wanted(self, outputs: tuple[Assign, ...]) -> set[str]:
        """What has to be there: all states, and what outputs read."""
        return {*self.states}.union(*(read_in(assign.value) for assign in outputs))

    def _statements(self) -> Iterator[Assign]:
        for statement in self.spec.update:
            if isinstance(statement, Repeat):
                raise OutsideScan("an update in micro-steps has no scan form", statement.span)
            yield statement

    def _take(self, statement: Assign) -> None:
        value = self._settled(statement.value)
        if problem := extent(value, {}).problem:
            raise OutsideScan(problem, statement.span)
        self.values[statement.target] = value
        self.spans[statement.target] = statement.span
        if statement.to_state:
            self.waiting[statement.target] -= 1
        else:
            self.locals[statement.target] = value
            self.extents[statement.target] = extent(value, self.extents)
            self.states_of[statement.target] = {
                state for name in read_in(value) for state in self.states_of.get(name, {name})
            }

    def _settled(self, expr: Expr) -> Expr:
        """`expr` with states as they were before the token or are after it: what lies between is written out."""
        if not isinstance(expr, StateRead) or expr.previous:
            return map_children(expr, self._settled)
        if expr.name not in self.values:
            changes = self.waiting.get(expr.name, 0)
            return replace(expr, previous=True) if changes else expr
        return expr if self.waiting[expr.name] == 0 else self.values[expr.name]

    # ------------------------------------------------------------------------------------------------------ one state

    def _scan(self, name: str, value: Expr) -> Scan:
        within = {local: extent for local, extent in self.extents.items() if name in self.states_of[local]}
        if problem := extent(value, within).problem:
            raise OutsideScan(problem, self.spans[name])
        found = _Element(self.states[name]).map(self._written(value, name))
        return Scan(self.states[name], found.kind, found.factor, found.term)

    def _written(self, expr: Expr, state: str) -> Expr:
        """`expr` with the locals written out that depend on `state`."""
        if isinstance(expr, Name) and expr.kind == "local" and state in self.states_of[expr.name]:
            return self._written(self.locals[expr.name], state)
        return map_children(expr, lambda part: self._written(part, state))

    def refuse_cycle(self, left: list[str], needs: Mapping[str, set[str]]) -> NoReturn:
        states = [name for name in left if name in self.states and name in _reached(name, needs)]
        named = " and ".join(f"`{name}`" for name in states)
        raise OutsideScan(f"the updates of {named} need one another", self.spans[states[-1]])


def ordered(
    parts: Mapping[str, P],
    wanted: set[str],
    needs_of: Callable[[P], set[str]],
    refuse_cycle: Callable[[list[str], Mapping[str, set[str]]], NoReturn],
) -> tuple[P, ...]:
    """The parts that are `wanted`, and those that these need, each after what it reads."""
    needs = {name: needs_of(part) & parts.keys() for name, part in parts.items()}
    found = wanted & parts.keys()
    pending = [name for name in parts if name in found]
    while pending:
        new = needs[pending.pop()] - found
        found |= new
        pending += sorted(new)
    done: list[P] = []
    left = [name for name in parts if name in found]
    while left:
        ready = next((name for name in left if not needs[name] & set(left)), None)
        if ready is None:
            refuse_cycle(left, needs)
        done.append(parts[ready])
        left.remove(ready)
    return tuple(done)


def needs(part: Assign | Scan) -> set[str]:
    if isinstance(part, Assign):
        return read_in(part.value)
    return (read_in(part.factor) | read_in(part.term)) - {part.state.name}


def read_in(expr: Expr) -> set[str]:
    """The states and locals that `expr` names."""
    return {
        node.name
        for node in walk(expr)
        if isinstance(node, StateRead) or (isinstance(node, Name) and node.kind == "local")
    }


def _reached(name: str, needs: Mapping[str, set[str]]) -> set[str]:
    found: set[str] = set()
    pending = sorted(needs[name])
    while pending:
        other = pending.pop()
        if other not in found:
            found.add(other)
            pending += sorted(needs[other])
    return found


@dataclass(frozen=True)
class _Element:
    """Finds what an expression is of one state before the token."""

    state: State

    def map(self, expr: Expr) -> _Map:
        """`expr`, a new value of the state, as a map of the old one."""
        if not self._reads(expr):
            return _Map("affine", ZERO, expr)
        return self._of(expr)

    def _of(self, expr: Expr) -> _Map:
        """`expr`, in which the state occurs."""
        name = self.state.name
        if isinstance(expr, StateRead):
            if not expr.previous:
                raise OutsideScan(f"the update of `{name}` needs `{name}` as it is after it", expr.span)
            return _Map("affine", ONE, ZERO)
        if set(expr.dims) != set(self.state.dims):
            reductions: list[Expr] = [node for node in walk(expr) if isinstance(node, Contract | Reduce)]
            mixing = [node for node in reductions if self._reads(node)] or [expr]
            raise OutsideScan(f"the update mixes elements of `{name}`", mixing[0].span)
        match expr:
            case Negate(value):
                return self._affine(self._of(value), _negated, expr)
            case Transpose(value):
                return self._of(value)
            case Binary("+" | "-" as op, left, right):
                return self._sum(op, left, right, expr)
            case Binary("*", left, right) | Outer(left, right):
                if self._reads(left) and self._reads(right):
                    raise OutsideScan(f"`{name}` is multiplied by itself", expr.span)
                scaled, other = (left, right) if self._reads(left) else (right, left)
                return self._affine(self._of(scaled), lambda part: self._times(part, other, expr), expr)
            case Binary("/", left, right):
                if self._reads(right):
                    raise OutsideScan(f"the update divides by `{name}`", right.span)
                return self._affine(self._of(left), lambda part: self._over(part, right, expr), expr)
            case Call("logaddexp" | "maximum" as function, (left, right)):
                return self._of_shifted(function, left, right, expr)
            case Call("fraction", (value,)):
                return self._phase(value)
            case Call(function) | Reduce(function):
                raise OutsideScan(f"the update of `{name}` is not affine in it: `{function}`", expr.span)
            case Binary(op):
                raise OutsideScan(f"the update of `{name}` is not affine in it: `{op}`", expr.span)
        raise OutsideScan(f"the update mixes elements of `{name}`", expr.span)

    def _affine(self, of: _Map, change: Callable[[Expr], Expr], expr: Expr) -> _Map:
        self._is_affine(of, expr)
        return _Map("affine", change(of.factor), change(of.term))

    def _is_affine(self, of: _Map, expr: Expr) -> None:
        if of.kind in SHIFTED:
            raise OutsideScan(f"a {of.kind} of `{self.state.name}` may be shifted, and nothing else", expr.span)
        if of.kind == "phase":
            self._refuse_phase(expr)

    def _refuse_phase(self, expr: Expr) -> NoReturn:
        reason = f"a fraction of `{self.state.name}` may be shifted inside another fraction, and nothing else"
        raise OutsideScan(reason, expr.span)

    def _sum(self, op: Literal["+", "-"], left: Expr, right: Expr, expr: Expr) -> _Map:
        if self._reads(left) and self._reads(right):
            one, other = self._of(left), self._of(right)
            for part, side in ((one, left), (other, right)):
                self._is_affine(part, side)
            factor = self._plus(op, one.factor, other.factor, expr)
            return _Map("affine", factor, self._plus(op, one.term, other.term, expr))
        if self._reads(left):
            one = self._shifted(left)
            factor = one.factor if one.kind == "affine" else self._plus(op, one.factor, right, expr)
            return _Map(one.kind, factor, self._plus(op, one.term, right, expr))
        other = self._shifted(right)
        if op == "-":
            other = self._affine(other, _negated, expr)
        factor = other.factor if other.kind == "affine" else self._plus("+", left, other.factor, expr)
        return _Map(other.kind, factor, self._plus("+", left, other.term, expr))

    def _shifted(self, expr: Expr) -> _Map:
        """`expr`, to which something is added that does not read the state."""
        of = self._of(expr)
        if of.kind == "phase":
            self._refuse_phase(expr)
        return of

    def _phase(self, value: Expr) -> _Map:
        of = self._of(self._unwound(value))
        self._is_affine(of, value)
        if of.factor != ONE:
            raise OutsideScan(f"`{self.state.name}` is scaled inside a fraction", value.span)
        return _Map("phase", ONE, of.term)

    def _unwound(self, expr: Expr) -> Expr:
        """What stands in a fraction, without the fractions of the state that it is a sum of: they drop whole turns."""
        match expr:
            case Call("fraction", (value,)) if self._reads(value):
                return self._unwound(value)
            case Binary("+" | "-", left, right):
                return replace(expr, left=self._unwound(left), right=self._unwound(right))
            case Negate(value):
                return replace(expr, value=self._unwound(value))
        return expr

    def _of_shifted(self, kind: Literal["logaddexp", "maximum"], left: Expr, right: Expr, expr: Expr) -> _Map:
        if self._reads(left) and self._reads(right):
            raise OutsideScan(f"both sides of the {kind} read `{self.state.name}`", expr.span)
        inner, other = (left, right) if self._reads(left) else (right, left)
        of = self._of(inner)
        if of.kind == kind:
            return _Map(kind, of.factor, Call(kind, (of.term, other), expr.span))
        self._is_affine(of, inner)
        if of.factor != ONE:
            raise OutsideScan(f"`{self.state.name}` is scaled inside a {kind}", inner.span)
        return _Map(kind, of.term, other)

    # ----------------------------------------------------------------------------------------------------- arithmetic

    def _times(self, part: Expr, other: Expr, expr: Expr) -> Expr:
        if part == ZERO or other == ONE:
            return part
        if part == ONE:
            return other
        if _nested(part, other):
            return Binary("*", other, part, expr.span)
        if set(part.dims) & set(other.dims):
            self._refuse(part, other, expr)
        return Outer(other, part, expr.span)

    def _over(self, part: Expr, other: Expr, expr: Expr) -> Expr:
        if part == ZERO:
            return part
        if _nested(part, other):
            return Binary("/", part, other, expr.span)
        return self._times(part, Binary("/", ONE, other, expr.span), expr)

    def _plus(self, op: Literal["+", "-"], left: Expr, right: Expr, expr: Expr) -> Expr:
        if right == ZERO:
            return left
        if left == ZERO:
            return right if op == "+" else _negated(right)
        if not _nested(left, right):
            self._refuse(left, right, expr)
        return Binary(op, left, right, expr.span)

    def _refuse(self, left: Expr, right: Expr, expr: Expr) -> NoReturn:
        over = " and ".join(f"[{', '.join(part.dims)}]" for part in (left, right))
        raise OutsideScan(f"the update of `{self.state.name}` brings tensors over {over} together", expr.span)

    def _reads(self, expr: Expr) -> bool:
        return any(isinstance(node, StateRead) and node.name == self.state.name for node in walk(expr))


def _negated(part: Expr) -> Expr:
    if isinstance(part, Negate):
        return part.value
    return part if part == ZERO else Negate(part, part.span)


def _nested(one: Expr, other: Expr) -> bool:
    return set(one.dims) <= set(other.dims) or set(other.dims) <= set(one.dims)
