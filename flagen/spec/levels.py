"""`levels(S, x)`: a state read by what each of its levels counts.

A token sees every earlier one at a level: one more than the highest binary digit in which their positions differ, and 0
of itself. So the last token is at one level, the two before it may be at another, then four, then eight. `levels(S, x)`
is S with what was written at level l multiplied by `x[l]`; what is too old for the last level is in that.

A spec with `levels` is this one, written out. S is a matrix for each level, and is kept so from call to call with the
count of tokens behind all other states:

    full    1 for the levels below as many as 2 divides the position: these have had all their tokens
    level   which one takes them
    S = S - full * S + outer(into, full @ S)        `into` is 1 at that level, else 0

Then the statements act on every level alike, and what they write is written at level 0 (`new`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from fractions import Fraction

from flagen.diagnostics import Span
from flagen.spec.model import (
    Assign,
    Binary,
    Call,
    Contract,
    Dims,
    Expr,
    Index,
    Levels,
    Name,
    Negate,
    Number,
    Outer,
    Over,
    Reduce,
    Repeat,
    Spec,
    State,
    StateRead,
    Transpose,
    walk,
)
from flagen.spec.positions import Positions, is_first
from flagen.spec.printer import to_source
from flagen.spec.report import Report
from flagen.spec.rewrite import map_children
from flagen.spec.scope import Scope
from flagen.spec.shapes import show

CODE = "E317"


@dataclass(frozen=True)
class _Found:
    """The state that is kept in levels, where it is first read so, and over which dim they are."""

    state: StateRead
    dim: str
    span: Span


class _NotAlike(Exception):
    """An expression that does not do the same to every level; where, and why."""

    def __init__(self, reason: str, span: Span, hint: str = "") -> None:
        super().__init__(reason)
        self.reason, self.span, self.hint = reason, span, hint


class ByLevels:
    """Reads every `levels` of a spec, and writes out the spec that they mean."""

    def __init__(self, scope: Scope, report: Report, positions: Positions) -> None:
        self.scope, self.report, self.positions = scope, report, positions
        self.found: _Found | None = None
        self.scales: dict[Expr, None] = {}

    def read(self, state: Expr, scales: Expr, span: Span) -> Expr | None:
        """`levels(state, scales)`; None after a diagnostic."""
        if (problem := self._problem(state, scales)) is not None:
            self.report.error(CODE, span, *problem)
            return None
        assert isinstance(state, StateRead)
        (dim,) = scales.dims
        self.found = self.found or _Found(state, dim, span)
        self.scales[scales] = None
        self.positions.counted(span)
        return Contract(scales, replace(state, dims=(dim, *state.dims)), span)

    def _problem(self, state: Expr, scales: Expr) -> tuple[str, str] | None:
        """Why a state has no such levels here: a message and a hint."""
        if self.scope.place != "output":
            return "`levels` is of the output: the update does the same to every level", "read the state as it is"
        if not isinstance(state, StateRead) or len(state.dims) != 2 or state.previous:
            return "`levels` takes a matrix state", "name it: `levels(S, x)`"
        if len(scales.dims) != 1 or scales.dims[0] in state.dims:
            return (
                f"the second argument of `levels` has a number for each level, and this is {show(scales.dims)}",
                "give it a dim of its own: `level_scales: [L]`",
            )
        if self.found is not None and self.found.state.name != state.name:
            return f"one state of a spec is kept in levels, and that is `{self.found.state.name}`", ""
        if self.found is not None and self.found.dim != scales.dims[0]:
            return f"the levels of `{state.name}` are along `{self.found.dim}`, and this is {show(scales.dims)}", ""
        return None

    def written_out(self, spec: Spec) -> Spec:
        """`spec`, whose output reads levels, with what they mean in its statements; without them after a diagnostic."""
        if self.found is None:
            return spec
        writer = _Writer(spec, self.found, tuple(self.scales), self.positions)
        try:
            return writer.spec()
        except _NotAlike as problem:
            self.report.error(CODE, problem.span, problem.reason, problem.hint)
            return writer.whole()


class _Writer:
    def __init__(self, spec: Spec, found: _Found, scales: tuple[Expr, ...], positions: Positions) -> None:
        self.given, self.found, self.scales, self.positions = spec, found, scales, positions
        self.name, self.dim = found.state.name, found.dim
        self.new = Name(positions.free("new"), "local", (self.dim,), found.span)
        self.lifted: set[str] = set()
        """The locals that depend on the state: they have a value for each level."""

    def spec(self) -> Spec:
        states = tuple(self._with_levels(state) for state in self.given.states)
        count = self.positions.counted(self.found.span)
        self._check_reads()
        update = (*self._merge(count), *map(self._statement, self.given.update))
        levels = Levels(self.name, self.dim, count.name, self.scales, self.whole(), self.found.span)
        return replace(self.given, states=states, update=update, levels=levels)

    def whole(self) -> Spec:
        """The recurrence of the sum of all levels; without the count, if nothing else needs it."""
        spec = self.given
        count = None if spec.firsts else self.positions.counted(self.found.span).name
        return replace(
            spec,
            states=tuple(state for state in spec.states if state.name != count),
            update=tuple(each for each in spec.update if isinstance(each, Repeat) or each.target != count),
            output=tuple(replace(each, value=self._unweighed(each.value)) for each in spec.output),
        )

    def _unweighed(self, expr: Expr) -> Expr:
        match expr:
            case Contract(scales, StateRead(self.name, dims=dims) as state) if scales in self.scales:
                return replace(state, dims=dims[1:], span=expr.span)
        return map_children(expr, self._unweighed)

    def _with_levels(self, state: State) -> State:
        return replace(state, dims=(self.dim, *state.dims)) if state.name == self.name else state

    def _check_reads(self) -> None:
        """The output reads the state by its levels alone, and no other state needs it."""
        needing = self._needing()
        for assign in self.given.output:
            for node in walk(assign.value):
                if isinstance(node, StateRead) and node.name == self.name and len(node.dims) == 2:
                    reason = f"`{self.name}` is kept in levels, and this reads it without"
                    raise _NotAlike(reason, node.span, f"read `levels({self.name}, x)`")
                if isinstance(node, Name) and node.name in needing:
                    reason = f"`{node.name}` depends on `{self.name}` and has a value for each level"
                    raise _NotAlike(reason, node.span, f"read `levels({self.name}, x)`")
        for assign in self._assigned():
            if assign.to_state and assign.target != self.name and self._needs(assign.value, needing):
                raise _NotAlike(f"`{assign.target}` needs `{self.name}`, which is kept in levels", assign.span)

    def _assigned(self) -> Iterator[Assign]:
        for statement in self.given.update:
            yield from statement.body if isinstance(statement, Repeat) else (statement,)

    def _needing(self) -> set[str]:
        """The locals of the update that depend on the state."""
        found: set[str] = set()
        for assign in self._assigned():
            if not assign.to_state and self._needs(assign.value, found):
                found.add(assign.target)
        return found

    def _needs(self, expr: Expr, locals_: set[str]) -> bool:
        return any(
            (isinstance(node, StateRead) and node.name == self.name)
            or (isinstance(node, Name) and node.name in locals_)
            for node in walk(expr)
        )

    # -------------------------------------------------------------------------------------------- before a token writes

    def _merge(self, count: State) -> Iterator[Assign]:
        """The levels that have had all their tokens go into the next one."""
        at = self.found.span
        zero, one, two = (Number(Fraction(value), at) for value in (0, 1, 2))
        places, state = Index(self.dim, at), StateRead(self.name, False, (self.dim, *self.found.state.dims), at)
        full, level, into = (Name(self.positions.free(name), "local", dims, at) for name, dims in self._locals())
        counted = StateRead(count.name, True, (), at)
        yield self._local(full, is_first(counted, Binary("**", two, places, at), at))
        last = Binary("-", Name(self.dim, "size", (), at), one, at)
        yield self._local(level, Call("minimum", (Reduce("sum", full, self.dim, at), last), at))
        apart = Call("maximum", (Binary("-", places, level, at), Binary("-", level, places, at)), at)
        yield self._local(into, Call("maximum", (Binary("-", one, apart, at), zero), at))
        yield self._local(self.new, Call("maximum", (Binary("-", one, places, at), zero), at))
        left = Binary("-", state, Binary("*", full, state, at), at)
        moved = Binary("+", left, Outer(into, Contract(full, state, at), at), at)
        declared = next(state.span for state in self.given.states if state.name == self.name)
        yield self._assign(self.name, moved, True, declared)

    def _locals(self) -> tuple[tuple[str, Dims], ...]:
        return ("full", (self.dim,)), ("level", ()), ("into", (self.dim,))

    def _local(self, name: Name, value: Expr) -> Assign:
        return self._assign(name.name, value, False, self.found.span)

    @staticmethod
    def _assign(target: str, value: Expr, to_state: bool, span: Span) -> Assign:
        return Assign(target, value, to_state, f"{target} = {to_source(value)}", span)

    # -------------------------------------------------------------------------------------------------- of every level

    def _statement(self, statement: Assign | Repeat) -> Assign | Repeat:
        if isinstance(statement, Repeat):
            return replace(statement, body=tuple(map(self._of_levels, statement.body)))
        return self._of_levels(statement)

    def _of_levels(self, assign: Assign) -> Assign:
        if assign.target != self.name and not self._needs(assign.value, self.lifted):
            return assign
        if not assign.to_state:
            self.lifted.add(assign.target)
        value = self.lift(assign.value) if self._needs(assign.value, self.lifted) else self._at_first(assign.value)
        return self._assign(assign.target, value, assign.to_state, assign.span)

    def _at_first(self, expr: Expr) -> Expr:
        """What is written, at level 0."""
        return Outer(self.new, expr, expr.span)

    def lift(self, expr: Expr) -> Expr:
        """`expr`, which the state is in, of each level."""
        match expr:
            case StateRead(previous=True):
                hint = f"what the token before left is `{self.name}` before its first statement"
                raise _NotAlike(f"`{self.name}` is kept in levels, which move before the update", expr.span, hint)
            case StateRead(dims=dims):
                return replace(expr, dims=(self.dim, *dims))
            case Name(dims=dims):
                return replace(expr, dims=(self.dim, *dims))
            case Negate(value):
                return Negate(self.lift(value), expr.span)
            case Transpose(value):
                return self.lift(value)  # Dims are named: what follows finds them.
            case Binary("+" | "-" as op, left, right):
                sides = [self.lift(e) if self._needs(e, self.lifted) else self._at_first(e) for e in (left, right)]
                return Binary(op, sides[0], sides[1], expr.span)
            case Binary("*", left, right) if not (self._needs(left, self.lifted) and self._needs(right, self.lifted)):
                return self._scaled(expr, left, right)
            case Binary("/", left, right) if not self._needs(right, self.lifted):
                return Binary("/", self.lift(left), right, expr.span)
            case Contract(left, right):
                return self._contracted(expr, left, right)
            case Outer(left, right):
                return self._outer(expr, left, right)
            case Reduce("sum" | "mean" as function, value, dim):
                reduced = self.lift(value)
                for each in value.dims if dim is None else (dim,):
                    reduced = Reduce(function, reduced, each, expr.span)
                return reduced
            case Over(value, source, target):
                return Over(self.lift(value), source, target, expr.span)
        reason = f"`{to_source(expr)}` is not linear in `{self.name}`: its levels would not add up"
        raise _NotAlike(reason, expr.span, "what is done to a state in levels is sums, products and decays")

    def _scaled(self, expr: Expr, left: Expr, right: Expr) -> Expr:
        if self._needs(left, self.lifted):
            return Binary("*", self.lift(left), right, expr.span)
        return Binary("*", left, self.lift(right), expr.span)

    def _contracted(self, expr: Contract, left: Expr, right: Expr) -> Expr:
        state, other = self._one_side(expr, left, right)
        if len(other.dims) != 1:
            raise _NotAlike(f"a level of `{self.name}` is multiplied by a matrix here", expr.span)
        return Reduce("sum", Binary("*", self.lift(state), other, expr.span), expr.dim, expr.span)

    def _outer(self, expr: Outer, left: Expr, right: Expr) -> Expr:
        self._one_side(expr, left, right)
        if self._needs(left, self.lifted):
            return Outer(self.lift(left), right, expr.span)
        return Outer(left, self.lift(right), expr.span)

    def _one_side(self, expr: Expr, left: Expr, right: Expr) -> tuple[Expr, Expr]:
        """The side that the state is in, and the other."""
        of_left, of_right = (self._needs(side, self.lifted) for side in (left, right))
        if of_left and of_right:
            reason = f"`{to_source(expr)}` is not linear in `{self.name}`: its levels would not add up"
            raise _NotAlike(reason, expr.span)
        return (left, right) if of_left else (right, left)
