"""What stages want of those before them: results that a state gives, which are inputs of later stages."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Literal

from flagen.algebra.flow import Flow, Place
from flagen.algebra.rewrite import map_children
from flagen.algebra.staged import Result
from flagen.functions import FUNCTIONS
from flagen.spec.model import Binary, Call, Derived, Expr, Input, Interval, Name, Param, Spec, State, StateRead, walk
from flagen.spec.printer import to_source
from flagen.spec.ranges import interval_of


@dataclass(frozen=True)
class Wanted:
    """A result that later stages want of a state: the value of `expr` at `place`."""

    result: Result
    expr: Expr
    place: Place


class Results:
    """The results that are wanted so far, state by state, of a spec whose statements `flow` knows.

    order: the states, each after those that its update uses; scans: those that are scans, and shifts: those of these
    that are nothing of what they were; taken: names that are not free, of which a result may have that of a local.
    """

    def __init__(self, spec: Spec, mixed: tuple[frozenset[str], ...] = ()) -> None:
        self.spec = spec
        self.flow = Flow(spec, mixed)
        self.order = self.flow.order()
        self.locals = {assign.target for assign in self.flow.statements.values() if not assign.to_state} - {"o"}
        self.taken = self.locals | declared_in(spec) | {"o"}
        self.in_steps = {assign.target for place, assign in self.flow.statements.items() if len(place) > 1}
        self.wanted: dict[str, list[Wanted]] = {name: [] for name in self.order}
        self.scans: set[str] = set()
        self.shifts: set[str] = set()

    def state(self, name: str) -> State:
        return next(state for state in self.spec.states if state.name == name)

    def want(self, state: str, expr: Expr, place: Place, *, wide: bool, name: str) -> Name:
        """The value of `expr` at `place`, which `state` gives, as an input of a later stage."""
        for known in self.wanted[state]:
            same = known.expr == expr and self.flow.is_stable(expr, known.place, place)
            if same and known.result.wide == wide:
                return Name(known.result.name, "input", expr.dims, expr.span)
        # A local may give its name to what takes its place, but not to what is made of it.
        made_of = {node.name for node in walk(expr) if isinstance(node, Name)}
        free = self.taken - (set(self.locals) - made_of - {each.result.name for each in self.every()})
        result = Result(fresh(name, free), expr.dims, wide)
        self.taken.add(result.name)
        self.wanted[state].append(Wanted(result, expr, place))
        return Name(result.name, "input", expr.dims, expr.span)

    def every(self) -> Iterator[Wanted]:
        return (wanted for name in self.order for wanted in self.wanted[name])

    def as_input(self, wanted: Wanted) -> Input:
        """A result as the input that it is to later stages."""
        declared: tuple[Input | Param | Derived, ...] = (*self.spec.inputs, *self.spec.params, *self.spec.derived)
        known = {decl.name: decl.range for decl in declared}
        within = interval_of(self.inlined(wanted.expr, wanted.place), known)
        if self._falls(wanted.expr):  # Ranges know nothing of it: they do not see that both sides are one state.
            within = Interval(within.low, min(within.high, 0.0))
        text = f"`{to_source(wanted.expr)}`"
        heads: Literal["H", "HV"] = "HV" if self.spec.has_value_heads else "H"  # Each head of the states has its own.
        return Input(
            wanted.result.name, wanted.expr.dims, heads, "token", within, text, wanted.expr.span, wanted.result.wide
        )

    def inlined(self, expr: Expr, place: Place) -> Expr:
        expr, place = self.flow.opened(expr, place)
        return map_children(expr, lambda child: self.inlined(child, place))

    def _falls(self, expr: Expr) -> bool:
        """Whether `expr` is at most 0 because it is an argument of a `logaddexp` or of a `maximum`, less the whole."""
        if not (isinstance(expr, Binary) and expr.op == "-" and isinstance(expr.right, StateRead)):
            return False
        name = expr.right.name
        assigned = [a.value for a in self.flow.statements.values() if a.to_state and a.target == name]
        if len(assigned) != 1 or not isinstance(assigned[0], Call) or FUNCTIONS[assigned[0].function].order <= 0:
            return False
        return not expr.right.previous and expr.left in [_as_before(term, name) for term in assigned[0].args]


def declared_in(spec: Spec) -> set[str]:
    """Every name that a spec declares."""
    groups: tuple[Iterable[State | Input | Param | Derived], ...] = (
        spec.states,
        spec.inputs,
        spec.params,
        spec.derived,
    )
    declared = {decl.name for group in groups for decl in group}
    return {*declared, *spec.dims, "H", "HV", "head", *((spec.steps.symbol, spec.steps.argument) if spec.steps else ())}


def _as_before(term: Expr, state: str) -> Expr:
    """A term of the update of `state` as later statements write it: the state in it is the one before the token."""
    if isinstance(term, StateRead) and term.name == state:
        return replace(term, previous=True)
    return map_children(term, lambda child: _as_before(child, state))


def fresh(wanted: str, taken: set[str]) -> str:
    """`wanted`, or with the first number behind it that makes it none of `taken`, which it then is."""
    name, count = wanted, 1
    while name in taken:
        count += 1
        name = f"{wanted}_{count}"
    taken.add(name)
    return name
