"""States that stand still within a mini-batch: what rows read of them is known when it begins.

    W = W - first(n) * eta_prev * G                          the memory takes a step
    r = f(W.T @ k)                                           any function of what is read
    G = (1 - first(n)) * G + outer(k, r)                     and the sum of a mini-batch for the next step

No order of stages takes these: W needs G, and G needs W through a function. But where `first(n)` is 0, W needs nothing:
within a mini-batch it is what its first token made it. Rows may read a copy of W then, which begins each mini-batch as
W does:

    W_fixed = W_fixed - first(n) * eta_prev * G_fixed        G_fixed is G as it was before the mini-batch
    r = f(W_fixed.T @ k)

Within one mini-batch that is the same recurrence, and the copies need nothing that the rows write: its stages are those
of any spec. A sequence is one mini-batch after another, and copies are made between them.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from fractions import Fraction

from gmpy2 import mpq

from flagen.algebra.exact import Dual, scalar
from flagen.algebra.flow import Flow, Place
from flagen.algebra.recurrence import Setting
from flagen.algebra.rewrite import map_children
from flagen.algebra.stage_results import declared_in, fresh
from flagen.algebra.staged_proof import ATTEMPTS, Sample, Tensors, equal
from flagen.diagnostics import InternalError, Span
from flagen.spec.model import (
    Assign,
    Binary,
    Contract,
    Expr,
    First,
    Name,
    Negate,
    Number,
    Outer,
    Reduce,
    Repeat,
    Spec,
    State,
    StateRead,
    walk,
)
from flagen.spec.positions import is_first
from flagen.spec.printer import to_source

ZERO = Number(Fraction(0))
LENGTH, TOKENS = 2, 5
"""Of mini-batches in the proof, and of sequences, which begin within one."""


class OutsideMiniBatches(Exception):
    """No state stands still within a mini-batch, or not only there; says why, and which part is the reason."""

    def __init__(self, reason: str, span: Span) -> None:
        super().__init__(reason)
        self.reason = reason
        self.span = span


@dataclass(frozen=True)
class MiniBatchForm:
    """`within` is the recurrence of one mini-batch, whose states are those of `spec` and then the `copies` of some, by
    their names; `first` says where mini-batches begin, and `still` which states are what they were behind the first
    token of one."""

    spec: Spec
    within: Spec
    copies: Mapping[str, str]
    first: First
    still: tuple[str, ...]

    def dump(self) -> str:
        """What a mini-batch does as text."""
        copies = ", ".join(f"{copy} = {state}" for copy, state in self.copies.items())
        lines = [f"{self.spec.name} in mini-batches of {to_source(self.first.every)} tokens, each begun with {copies}"]
        lines += [f"    {statement.text}" for statement in self.within.update if isinstance(statement, Assign)]
        return "\n".join(lines)


def mini_batch_form(spec: Spec) -> MiniBatchForm:
    """The mini-batches of `spec`.

    Raises:
        OutsideMiniBatches: there are none that help, and why.
    """
    return _Finder(spec).form()


class _Finder:
    def __init__(self, spec: Spec) -> None:
        self.spec, self.flow = spec, Flow(spec)
        self.firsts = {first.name: first for first in spec.firsts}
        repeat = next((statement for statement in spec.update if isinstance(statement, Repeat)), None)
        if repeat is not None:
            raise OutsideMiniBatches("mini-batches have no micro-steps", repeat.span)
        self.assigned = {assign.target: place for place, assign in self.flow.statements.items() if assign.to_state}
        self.mixed = self._cycle()
        """The states that need one another."""
        self.still = tuple(name for name in self.mixed if self._stands_still(name))
        if not self.still:
            name = self.mixed[0] if self.mixed else spec.states[0].name
            reason = f"{name} changes within a mini-batch by what needs it"
            raise OutsideMiniBatches(reason, self.flow.statements[self.assigned[name]].span)

    def form(self) -> MiniBatchForm:
        first = self._first()
        taken_at_first = self._read_when_one_begins()
        began = [state.name for state in self.spec.states if state.name in taken_at_first]
        taken = declared_in(self.spec) | {assign.target for assign in self.flow.statements.values()}
        fixed: dict[str, str] = {}
        for name in (*self.still, *(name for name in began if name not in self.still)):
            fixed[name] = fresh(f"{name}_fixed", taken)
        declared = {state.name: state for state in self.spec.states}
        copies = tuple(replace(declared[name], name=copy, meaning="") for name, copy in fixed.items())
        within = replace(
            self.spec,
            name=f"{self.spec.name}_mini_batch",
            states=(*self.spec.states, *copies),
            update=tuple(self._update(fixed, copies)),
            output=self.spec.output,
            layer=None,
            used={},
        )
        return MiniBatchForm(self.spec, within, {copy: name for name, copy in fixed.items()}, first, self.still)

    # ------------------------------------------------------------------------------------------------ what stands still

    def _cycle(self) -> tuple[str, ...]:
        needed = {state.name: set(self.flow.uses[state.name]) for state in self.spec.states}
        for _ in needed:
            for name, uses in needed.items():
                needed[name] = uses | {far for near in uses for far in needed[near]}
        return tuple(name for name, uses in needed.items() if name in uses)

    def _stands_still(self, name: str) -> bool:
        """Whether a state needs none of the others but at the first token of a mini-batch."""
        place = self.assigned.get(name)
        if place is None:
            return True
        return self._states_in(self.flow.statements[place].value, place, rest=True) & {*self.mixed} <= {name}

    def _states_in(self, expr: Expr, place: Place, *, rest: bool) -> set[str]:
        """The states that `expr` depends on; of the `rest` of a mini-batch, behind its first token."""
        found: set[str] = set()
        for node in walk(self._behind_first(expr) if rest else expr):
            if isinstance(node, StateRead):
                found.add(node.name)
            elif (definition := self.flow.definition(node, place)) is not None:
                found |= self._states_in(definition.value, definition.place, rest=rest)
        return found

    def _behind_first(self, expr: Expr) -> Expr:
        """`expr` where the token is not the first one; of what dims zeros are does not matter."""
        if isinstance(expr, Name) and expr.name in self.firsts:
            return ZERO
        expr = map_children(expr, self._behind_first)
        match expr:
            case Binary("*" | "/", left, right) if left == ZERO or (expr.op == "*" and right == ZERO):
                return ZERO
            case Binary("+", left, right) if left == ZERO:
                return right
            case Binary("+" | "-", left, right) if right == ZERO:
                return left
            case Negate(value) if value == ZERO:
                return ZERO
            case Outer(left, right) | Contract(left, right) if ZERO in (left, right):
                return ZERO
        return expr

    # ---------------------------------------------------------------------------------------------- what is done at one

    def _first(self) -> First:
        """What says where mini-batches begin."""
        used: dict[Expr, First] = {}
        for name in self.still:
            if (place := self.assigned.get(name)) is not None:
                used |= {first.every: first for first in self._firsts_in(self.flow.statements[place].value, place)}
        if len(used) != 1:
            every = " and of ".join(to_source(first) for first in used) or "no length"
            span = next((first.span for first in used.values()), self.spec.states[0].span)
            raise OutsideMiniBatches(f"mini-batches of {every} are no one kind", span)
        return next(iter(used.values()))

    def _firsts_in(self, expr: Expr, place: Place) -> Iterator[First]:
        for node in walk(expr):
            if isinstance(node, Name) and node.name in self.firsts:
                yield self.firsts[node.name]
            elif (definition := self.flow.definition(node, place)) is not None:
                yield from self._firsts_in(definition.value, definition.place)

    def _read_when_one_begins(self) -> set[str]:
        """The states that those that stand still take when a mini-batch begins, and only then: mixed ones, and
        matrices, which would bring a copy and its original together."""
        return {name for still in self.still for name in self._taken_by(still)}

    def _taken_by(self, still: str) -> Iterator[str]:
        pending = [(self.flow.statements[self.assigned[still]].value, self.assigned[still])]
        while pending:
            expr, place = pending.pop()
            pending += [(found.value, found.place) for found in self.flow.locals_in(expr, place)]
            for node in walk(expr):
                if not isinstance(node, StateRead) or not (node.name in self.mixed or len(node.dims) == 2):
                    continue
                changed = node.name not in self.still and not node.previous and self.assigned[node.name] < place
                if changed and node.name in self.mixed:
                    reason = f"{still} takes what this token has made of {node.name}, which depends on {still}"
                    raise OutsideMiniBatches(reason, node.span)
                if not changed and node.name not in self._used_behind_first(still):
                    yield node.name

    def _used_behind_first(self, still: str) -> set[str]:
        place = self.assigned[still]
        return self._states_in(self.flow.statements[place].value, place, rest=True) - {still}

    # ------------------------------------------------------------------------------------------------------- the update

    def _update(self, fixed: Mapping[str, str], copies: tuple[State, ...]) -> Iterator[Assign]:
        of_rows = {name: copy for name, copy in fixed.items() if name in self.still}
        for number in range(len(self.spec.update)):
            assign = self.flow.statements[(number,)]
            if assign.target in self.still and assign.to_state:
                yield assign
                whole = self._written_out(assign.value, (number,))
                yield _assigned(fixed[assign.target], _copied(whole, fixed), assign.span)
            else:
                yield _reassigned(assign, _reading(assign.value, of_rows))
        for copy in copies:
            if copy.name not in of_rows.values():
                yield _assigned(copy.name, StateRead(copy.name, True, copy.dims, copy.span), copy.span)

    def _written_out(self, expr: Expr, place: Place) -> Expr:
        """`expr` without the locals that depend on the mixed states."""
        definition = self.flow.definition(expr, place)
        if definition is not None and not definition.states.isdisjoint(self.mixed):
            return self._written_out(definition.value, definition.place)
        return map_children(expr, lambda child: self._written_out(child, place))


def _reading(expr: Expr, fixed: Mapping[str, str]) -> Expr:
    """`expr` with copies in what is read of states: a matrix as a whole is the state itself."""
    if len(expr.dims) < 2 and isinstance(expr, Contract | Reduce | StateRead):
        return _copied(expr, fixed)
    return map_children(expr, lambda child: _reading(child, fixed))


def _copied(expr: Expr, fixed: Mapping[str, str]) -> Expr:
    if isinstance(expr, StateRead):
        return replace(expr, name=fixed.get(expr.name, expr.name))
    return map_children(expr, lambda child: _copied(child, fixed))


def _assigned(target: str, value: Expr, span: Span) -> Assign:
    return Assign(target, value, True, f"{target} = {to_source(value)}", span)


def _reassigned(assign: Assign, value: Expr) -> Assign:
    return (
        assign if value == assign.value else replace(assign, value=value, text=f"{assign.target} = {to_source(value)}")
    )


# ------------------------------------------------------------------------------------------------------------ the proof


def prove_mini_batches(form: MiniBatchForm, *, seed: int = 0) -> tuple[str, ...]:
    """Prove that mini-batches, one after another, are the recurrence; what was proved, a line.

    Raises:
        InternalError: they are not, with the tensor that differs.
    """
    name = form.spec.name
    for attempt in range(ATTEMPTS):
        try:
            difference = _Sequence(form, random.Random(f"{name} {seed + attempt}")).difference()
        except ZeroDivisionError:  # an unlucky point: a denominator of the spec is 0 there
            continue
        if difference:
            message = f"{name}: {difference} (seed {seed + attempt}); nothing was written."
            raise InternalError(f"{message}\n{form.dump()}")
        states = ", ".join(form.copies.values())
        where = f"{TOKENS} tokens in mini-batches of {LENGTH}, begun within one"
        return (f"mini-batches with copies of {states} = recurrence: random rational points, {where}",)
    raise InternalError(f"{name}: no random point without a zero denominator found")


class _Sequence(Sample):
    """A random sequence of tokens, run by the recurrence and by mini-batches."""

    def __init__(self, form: MiniBatchForm, numbers: random.Random) -> None:
        super().__init__(form.spec, 1, numbers)
        self.form = form
        if isinstance(form.first.every, Name):
            self.constants[form.first.every.name] = scalar(Dual(mpq(LENGTH)))

    def difference(self) -> str | None:
        """What differs, if anything does."""
        spec, count = self.form.spec, self.form.first.source
        whole = Setting(_of_length(spec, self.form.first), self.sizes, self.constants, self.oracle)
        within = Setting(_of_length(self.form.within, self.form.first), self.sizes, self.constants, self.oracle)
        states: Tensors = {state.name: self.random(state.dims) for state in spec.states} | {count: scalar(Dual(mpq(1)))}
        apart = dict(states)
        for number in range(TOKENS):
            if number == 0 or (number + 1) % LENGTH == 0:
                apart |= {copy: apart[name] for copy, name in self.form.copies.items()}
            inputs = {decl.name: self.random(decl.dims, decl.range) for decl in spec.inputs}
            expected, states = whole.step(whole.token(inputs, []), states)
            found, apart = within.step(within.token(inputs, []), apart)
            for name, state in states.items():
                if not equal(apart[name], state):
                    return f"the state {name} within mini-batches is not the recurrence's after token {number}"
            if not equal(found, expected):
                return f"the output of token {number} within a mini-batch is not the recurrence's"
        return None


def _of_length(spec: Spec, first: First) -> Spec:
    """`spec` with mini-batches as short as the proof has them."""
    if not isinstance(first.every, Number):
        return spec
    count = StateRead(first.source, True, ())
    short = is_first(count, Number(Fraction(LENGTH)))

    def of_length(assign: Assign) -> Assign:
        return replace(assign, value=short) if assign.target == first.name else assign

    return replace(spec, update=tuple(of_length(each) if isinstance(each, Assign) else each for each in spec.update))
