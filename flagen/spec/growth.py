"""Whether a state may grow from token to token, by what the declared ranges say of its factors (W701).

What a token does to a state elementwise is followed through the update: `S = alpha * S`, then `S = S - b * S_prev`
gives it the factor `alpha - b`. Nothing is said of what goes through a contraction, a function of the state, or another
state.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from flagen.diagnostics import Span
from flagen.spec.model import (
    Assign,
    Binary,
    Call,
    Contract,
    Derived,
    Expr,
    Index,
    Interval,
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
    Spec,
    StateRead,
    Transpose,
    walk,
)
from flagen.spec.ranges import interval_of
from flagen.spec.usage import assignments, names_in

_ONE = Number(1)
_MOST = 1 + 1e-9
_LARGEST = 200
"""Nodes of a factor that is still followed."""

Parts = dict[str, Expr | None]
"""The states that a value has an elementwise part of, each with its factor; None where there is no one factor."""


@dataclass(frozen=True)
class Growth:
    """A factor of a state that may exceed 1 in magnitude. `name` is that of `let`, `decay`, `gate` or of a local that
    the factor is, if it is one, and `value` what it stands for; `span` is where either is written."""

    state: str
    factor: Expr
    name: str
    value: Expr
    interval: Interval
    span: Span


def growths(spec: Spec, declared: Mapping[str, Interval] | None = None) -> list[Growth]:
    """Every factor that may let a state grow; `declared` overrides the ranges of inputs and params."""
    return _Token(spec, declared or {}).growths()


def followed(spec: Spec) -> set[str]:
    """The names in the factors of states, so far as these are known."""
    token = _Token(spec, {})
    factors = [parts.get(state) for state, parts in token.states.items()]
    return {name for factor in factors if factor is not None for name in token.below(factor)}


def range_of(spec: Spec, value: Expr, declared: Mapping[str, Interval] | None = None) -> Interval:
    """The range of an expression over the spec's names, under the ranges `declared` beside the spec's own."""
    return _Token(spec, declared or {}).interval(value)


def given_below(spec: Spec, value: Expr) -> list[str]:
    """The inputs and params that `value` depends on, in order."""
    below = _Token(spec, {}).below(value)
    given = [decl.name for decl in spec.inputs] + [decl.name for decl in spec.params]
    return [name for name in given if name in below]


class _Token:
    """One token's update, with what is known of every name."""

    def __init__(self, spec: Spec, declared: Mapping[str, Interval]) -> None:
        self.definitions: dict[str, Expr] = {}
        self.derived: dict[str, Derived] = {}
        self.ranges: dict[str, Interval] = {decl.name: decl.range for decl in spec.inputs}
        for param in spec.params:
            number = not param.is_tensor and param.default is not None and param.range == Interval()
            # A number that nothing is said of is what its default makes it.
            self.ranges[param.name] = interval_of(param.default, {}) if number and param.default else param.range
        self.ranges |= declared
        for entry in spec.derived:
            self.derived[entry.name] = entry
            self._define(entry.name, entry.value)
        self.states: dict[str, Parts] = {state.name: {state.name: _ONE} for state in spec.states}
        self.locals: dict[str, Parts] = {}
        self.reading: set[str] = set()
        """Locals that depend on a state in any way."""
        for assign in assignments(spec.update):
            self._assign(assign)

    def interval(self, expr: Expr) -> Interval:
        return interval_of(expr, self.ranges, self.definitions)

    def below(self, expr: Expr) -> set[str]:
        """Every name that `expr` depends on, through whatever lies between."""
        found: set[str] = set()
        pending = sorted(names_in(expr))
        while pending:
            name = pending.pop()
            if name not in found:
                found.add(name)
                pending += sorted(names_in(self.definitions[name])) if name in self.definitions else []
        return found

    def growths(self) -> list[Growth]:
        found: dict[Span, Growth] = {}
        for state, parts in self.states.items():
            factor = parts.get(state)
            if factor is None or not grows(self.interval(factor)):
                continue
            for each in _factors(factor):
                if grows(interval := self.interval(each)):
                    growth = self._growth(state, each, interval)
                    found.setdefault(growth.span, growth)
        return list(found.values())

    def _growth(self, state: str, factor: Expr, interval: Interval) -> Growth:
        """What is to blame: of a name that is nothing but another one of these, the one that computes it."""
        name, value, span = "", factor, factor.span
        while isinstance(value, Name) and value.name in self.definitions:
            name, value = value.name, self.definitions[value.name]
            span = self.derived[name].span if name in self.derived else value.span
        return Growth(state, factor, name, value, interval, span)

    def _define(self, name: str, value: Expr) -> None:
        self.ranges[name] = self.interval(value)
        self.definitions[name] = value

    def _assign(self, assign: Assign) -> None:
        parts = self._parts(assign.value)
        if assign.to_state:
            # What comes back by way of another state is a system of its own: no one factor tells whether it grows.
            self.states[assign.target] = {name: part if name == assign.target else None for name, part in parts.items()}
        elif self._reads_state(assign.value):
            self.locals[assign.target] = parts
            self.reading.add(assign.target)
        else:
            self._define(assign.target, assign.value)

    def _reads_state(self, expr: Expr) -> bool:
        return any(
            isinstance(node, StateRead) or (isinstance(node, Name) and node.name in self.reading) for node in walk(expr)
        )

    def _parts(self, expr: Expr) -> Parts:
        match expr:
            case StateRead(name, previous):
                return {name: _ONE} if previous else self.states[name]
            case Name(name):
                return self.locals.get(name, {})
            case Negate(value):
                return {state: factor and Negate(factor, expr.span) for state, factor in self._parts(value).items()}
            case Transpose(value):
                return self._parts(value)
            case Binary("+" | "-" as op, left, right):
                return self._sum(expr, op, self._parts(left), self._parts(right))
            case Binary("*", left, right) | Outer(left, right):
                return self._scaled(left, right, "*", expr) or self._scaled(right, left, "*", expr)
            case Binary("/", left, right):
                return self._scaled(left, right, "/", expr) or dict.fromkeys(self._parts(right))
            case Binary(_, left, right):
                return dict.fromkeys([*self._parts(left), *self._parts(right)])
            case Call(_, args):
                return dict.fromkeys(state for arg in args for state in self._parts(arg))
            case RowMap(_, value) | Rotate(value) | Over(value):
                return dict.fromkeys(self._parts(value))
            case Number() | Contract() | Reduce() | Index() | Pairs() | Solution():
                return {}

    def _sum(self, expr: Binary, op: str, left: Parts, right: Parts) -> Parts:
        found: Parts = {}
        for state in (*left, *(state for state in right if state not in left)):
            a, b = left.get(state), right.get(state)
            if (state in left and a is None) or (state in right and b is None):
                found[state] = None
            elif a is not None and b is not None:
                found[state] = _small(Binary("+" if op == "+" else "-", a, b, expr.span))
            else:
                found[state] = a if a is not None else b if op == "+" or b is None else Negate(b, expr.span)
        return found

    def _scaled(self, value: Expr, factor: Expr, op: str, expr: Expr) -> Parts:
        parts = self._parts(value)
        if self._reads_state(factor):
            return dict.fromkeys(parts)
        return {state: part and _small(_product(part, factor, op, expr.span)) for state, part in parts.items()}


def grows(interval: Interval) -> bool:
    return interval.high > _MOST or interval.low < -_MOST


def _product(part: Expr, factor: Expr, op: str, span: Span) -> Expr:
    if op == "/":
        return Binary("/", part, factor, span)
    return factor if part == _ONE else Binary("*", part, factor, span)


def _small(factor: Expr) -> Expr | None:
    return factor if sum(1 for _ in walk(factor)) <= _LARGEST else None


def _factors(factor: Expr) -> Iterator[Expr]:
    match factor:
        case Binary("*", left, right):
            yield from _factors(left)
            yield from _factors(right)
        case Negate(value):
            yield from _factors(value)
        case _:
            yield factor
