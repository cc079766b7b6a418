"""Which inputs are weights by their log, so that a zero is no padding, and whether their -inf is.

A token is taken through the update with its inputs at these values and all else unknown, as far as that can be told by
structure: zero times anything is zero, exp(0) is one, `logaddexp` with -inf is its other side. What is then left of a
state says whether the token leaves it as it is.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction

from flagen.algebra.rewrite import map_children
from flagen.functions import FUNCTIONS
from flagen.spec.model import (
    Assign,
    Binary,
    Call,
    Contract,
    Expr,
    Name,
    Negate,
    Number,
    Outer,
    Over,
    Reduce,
    Repeat,
    Rotate,
    RowMap,
    Spec,
    StateRead,
    Transpose,
    walk,
)

ZERO, ONE, NOTHING = Number(Fraction(0)), Number(Fraction(1)), Number(-math.inf)

Values = dict[str, Expr]
"""What inputs, locals and states are, of what is known; a state before the token is a `StateRead` of `previous`."""


@dataclass(frozen=True)
class LogWeight:
    """An input at whose -inf a token adds nothing to `states`, which are running log-sum-exps. `neutral`: with all such
    inputs at -inf, and zeros in the others, it leaves every state as it is."""

    states: tuple[str, ...]
    neutral: bool


def log_weights(spec: Spec) -> dict[str, LogWeight]:
    """The inputs that are weights by their log."""
    if not any(_is_log_sum(assign) for assign in _assigns(spec)):
        return {}
    found: dict[str, tuple[str, ...]] = {}
    _, known = _update(spec, {})
    for decl in spec.inputs:
        _, sums = _update(spec, {decl.name: NOTHING})
        if states := tuple(state for state, terms in sums.items() if NOTHING in _added(terms, known[state])):
            found[decl.name] = states
    token = {decl.name: NOTHING if decl.name in found else ZERO for decl in spec.inputs}
    values, _ = _update(spec, token)
    neutral = all(values[state.name] == StateRead(state.name, True, state.dims) for state in spec.states)
    return {name: LogWeight(states, neutral) for name, states in found.items()}


def _added(terms: Iterable[Expr], known: Iterable[Expr]) -> Iterator[Expr]:
    """The terms that have no state in them, where nothing is given: what a token brings."""
    for term, before in zip(terms, known, strict=True):
        if not any(isinstance(node, StateRead) for node in walk(before)):
            yield term


def _update(spec: Spec, given: Mapping[str, Expr]) -> tuple[Values, Mapping[str, tuple[Expr, ...]]]:
    """What is known after the update, or one micro-step of it; and the terms of each state that is a `logaddexp`."""
    states = {state.name: StateRead(state.name, True, state.dims) for state in spec.states}
    values: Values = {**given, **states}
    sums: dict[str, tuple[Expr, ...]] = {}
    for decl in spec.derived:
        values[decl.name] = _settled(decl.value, values)
    for assign in _assigns(spec):
        if _is_log_sum(assign) and isinstance(assign.value, Call):
            sums[assign.target] = tuple(_settled(term, values) for term in assign.value.args)
        values[assign.target] = _settled(assign.value, values)
    return values, sums


def _assigns(spec: Spec) -> Iterator[Assign]:
    """The statements of the update, or of one micro-step of it."""
    for statement in spec.update:
        yield from statement.body if isinstance(statement, Repeat) else (statement,)


def _is_log_sum(assign: Assign) -> bool:
    """Whether a state becomes a running log-sum-exp."""
    return assign.to_state and isinstance(assign.value, Call) and assign.value.function == "logaddexp"


def _settled(expr: Expr, values: Values) -> Expr:
    """`expr` with what is known in its place, as far as structure tells what becomes of it."""
    match expr:
        case Name(name):
            return values.get(name, expr)
        case StateRead(name, previous=False):
            return values[name]
        case StateRead():
            return expr
    return _simpler(map_children(expr, lambda child: _settled(child, values)))


def _simpler(expr: Expr) -> Expr:
    match expr:
        case Negate(Number(value)):
            return Number(-value)
        case Binary("+", left, right):
            return right if left == ZERO else left if right == ZERO else _infinite(left, right) or expr
        case Binary("-", left, right):
            if right == NOTHING:
                return expr
            if left == right:
                return ZERO
            return left if right == ZERO else _infinite(left) or expr
        case Binary("*", left, right):
            if left == ONE or right == ONE:
                return right if left == ONE else left
            return ZERO if ZERO in (left, right) and not _may_be_infinite(left, right) else expr
        case Outer(left, right) | Contract(left, right):
            return ZERO if ZERO in (left, right) and not _may_be_infinite(left, right) else expr
        case Call(function, (left, right)) if (neutral := FUNCTIONS[function].neutral) is not None:
            return right if left == Number(neutral) else left if right == Number(neutral) else expr
        case Call(function, (value,)) if value in (ZERO, NOTHING):
            known = FUNCTIONS[function].at(0.0 if value == ZERO else -math.inf)
            return ZERO if known == 0 else ONE if known == 1 else expr
        case Transpose(value) | Reduce(_, value) | RowMap("l2norm", value) | Over(value) if value == ZERO:
            return ZERO
        case Rotate(value, angle) if value == ZERO and not _may_be_infinite(angle):
            return ZERO
    return expr


def _may_be_infinite(*operands: Expr) -> bool:
    return any(node == NOTHING for operand in operands for node in walk(operand))


def _infinite(*operands: Expr) -> Expr | None:
    """The infinity that a sum with these is, if one of them is known to be -inf."""
    return NOTHING if NOTHING in operands else None
