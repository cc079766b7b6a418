"""Which states a spec's statements depend on, and through which locals: what the stages of a spec are cut along."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from flagen.diagnostics import Span
from flagen.spec.model import (
    Assign,
    Contract,
    Expr,
    Name,
    Over,
    Reduce,
    Repeat,
    Solution,
    Spec,
    StateRead,
    children,
    walk,
)

Place = tuple[int, ...]
"""Where a statement stands: its number among those of a token, the output's last, and in a `repeat` that in it."""


class OutsideStages(Exception):
    """The states of a spec cannot be taken one after another; says why, and which part of it is the reason."""

    def __init__(self, reason: str, span: Span) -> None:
        super().__init__(reason)
        self.reason = reason
        self.span = span


class MixedStates(OutsideStages):
    """States need one another, or one is used whole: they may be registers."""


@dataclass(frozen=True)
class Definition:
    """A local's value, where it is assigned, and the states that it depends on."""

    place: Place
    value: Expr
    states: frozenset[str]


@dataclass
class Flow:
    """Every statement of a spec by its place, and what each local stands for there.

    mixed: sets of matrices that numbers mix: they are taken at once.
    uses: the states that each state has to come after, and where it says so: those that its update depends on, and
        those that a vector depends on by which it is read.
    """

    spec: Spec
    mixed: tuple[frozenset[str], ...] = ()
    statements: dict[Place, Assign] = field(default_factory=dict)
    uses: dict[str, dict[str, Span]] = field(default_factory=dict)
    _locals: dict[Place, Mapping[str, Definition]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.uses = {state.name: {} for state in self.spec.states}
        known: dict[str, Definition] = {}
        for number, statement in enumerate((*self.spec.update, *self.spec.output)):
            if isinstance(statement, Repeat):
                inside = dict(known)
                for _ in range(2):  # The second time around, a micro-step sees what the one before it assigned.
                    for place, inner in enumerate(statement.body):
                        self._enter((number, place), inner, inside)
            else:
                self._enter((number,), statement, known)

    @property
    def end(self) -> Place:
        """The place of the output."""
        return (len(self.spec.update) + len(self.spec.output) - 1,)

    def _enter(self, place: Place, assign: Assign, known: dict[str, Definition]) -> None:
        self.statements[place] = assign
        self._locals[place] = dict(known)
        for node in walk(assign.value):
            if (state := self.read_by(node, place)) is not None:
                self._use(state, node, place)
        if assign.to_state:
            self._use(assign.target, assign.value, place)
        else:
            known[assign.target] = Definition(place, assign.value, self.states_in(assign.value, place))

    def _use(self, state: str, expr: Expr, place: Place) -> None:
        for node in walk(expr):
            for name in sorted(self._states_of(node, place) - {state}):
                self.uses[state].setdefault(name, node.span)

    def states_in(self, expr: Expr, place: Place) -> frozenset[str]:
        """The states that `expr` depends on, through locals too."""
        return frozenset().union(*(self._states_of(node, place) for node in walk(expr)))

    def _states_of(self, node: Expr, place: Place) -> frozenset[str]:
        if isinstance(node, StateRead):
            return frozenset((node.name,))
        definition = self.definition(node, place)
        return frozenset() if definition is None else definition.states

    def definition(self, node: Expr, place: Place) -> Definition | None:
        """What `node` stands for at `place`, if it is a local."""
        return self._locals[place].get(node.name) if isinstance(node, Name) and node.kind == "local" else None

    def locals_in(self, expr: Expr, place: Place) -> Iterator[Definition]:
        """What the locals in `expr` stand for."""
        for node in walk(expr):
            if (definition := self.definition(node, place)) is not None:
                yield definition

    def solution(self, expr: Expr, place: Place) -> tuple[Solution, Place] | None:
        """The solution of a system that `expr` is, be its dim called otherwise, and where it stands."""
        expr, place = self.opened(expr, place)
        while isinstance(expr, Over):
            expr, place = self.opened(expr.value, place)
        return (expr, place) if isinstance(expr, Solution) else None

    def solutions_in(self, expr: Expr, place: Place) -> Iterator[tuple[Expr, Place]]:
        """The matrices of the systems that are solved in `expr`, through locals too, and where they stand."""
        for node in walk(expr):
            if isinstance(node, Solution):
                yield node.matrix, place
        for definition in self.locals_in(expr, place):
            yield from self.solutions_in(definition.value, definition.place)

    def opened(self, expr: Expr, place: Place) -> tuple[Expr, Place]:
        """`expr`, or where it is a local its value, and where that is evaluated."""
        while (definition := self.definition(expr, place)) is not None:
            expr, place = definition.value, definition.place
        return expr, place

    def read_by(self, node: Expr, place: Place) -> str | None:
        """The matrix state that `node` reads by a vector, down to one dim: it and no part of it. Of states that are
        mixed, which a vector may read together, the first one."""
        if isinstance(node, Over) and (found := self.solution(node, place)) is not None:
            node, place = found
        if not isinstance(node, Contract | Reduce | Solution) or len(node.dims) > 1:
            return None
        matrices = {name for part in _matrix_parts(node) for name in self._states_of(part, place)}
        return (
            min(matrices) if len(matrices) == 1 or any(matrices <= group for group in self.mixed if matrices) else None
        )

    def mixing(self) -> tuple[frozenset[str], ...]:
        """The sets of matrices of the same dims that use one another whole, or need one another."""
        groups = {state.name: frozenset((state.name,)) for state in self.spec.states}
        dims = {state.name: state.dims for state in self.spec.states}
        for place, assign in self.statements.items():
            for other in self._whole(assign.value, place) if assign.to_state else ():
                if len(dims[other]) == 2 and dims[other] == dims[assign.target]:
                    joined = groups[other] | groups[assign.target]
                    groups |= dict.fromkeys(joined, joined)
        for one in groups:
            for other in groups:
                if (
                    dims[one] == dims[other]
                    and len(dims[one]) == 2
                    and {one, other} <= self._reached(one) & self._reached(other)
                ):
                    joined = groups[one] | groups[other]
                    groups |= dict.fromkeys(joined, joined)
        return tuple(dict.fromkeys(group for group in groups.values() if len(group) > 1))

    def _whole(self, expr: Expr, place: Place) -> Iterator[str]:
        """The matrices in `expr` that nothing reads by a vector."""
        if isinstance(expr, StateRead):
            yield expr.name
        elif (definition := self.definition(expr, place)) is not None:
            yield from self._whole(definition.value, definition.place)
        elif not (isinstance(expr, Contract | Reduce | Solution) and len(expr.dims) < 2):
            for child in children(expr):
                yield from self._whole(child, place)

    def _reached(self, state: str) -> set[str]:
        """The states that a state needs, and those that they need."""
        found: set[str] = set()
        pending = list(self.uses[state])
        while pending:
            name = pending.pop()
            if name not in found:
                found.add(name)
                pending += self.uses[name]
        return found

    def is_stable(self, expr: Expr, first: Place, last: Place) -> bool:
        """Whether `expr` means the same at both places: nothing that it names is assigned in between."""
        first, last = sorted((first, last))
        changed = {assign.target for place, assign in self.statements.items() if first <= place < last}
        named = {n.name for n in walk(expr) if isinstance(n, Name) or (isinstance(n, StateRead) and not n.previous)}
        return not named & changed

    def order(self) -> list[str]:
        """The states, each after those it has to come after, those that are mixed in one place; otherwise as they are
        declared.

        Raises:
            OutsideStages: there is no such order.
        """
        done: list[str] = []
        waiting = [state.name for state in self.spec.states]
        while waiting:
            free = next((name for name in waiting if self.needs(name) <= set(done)), None)
            if free is None:
                raise self._cycle(waiting)
            together = self.together(free)
            done += [name for name in waiting if name in together]
            waiting = [name for name in waiting if name not in together]
        return done

    def together(self, state: str) -> frozenset[str]:
        """The states that are mixed with one, and it."""
        return next((group for group in self.mixed if state in group), frozenset((state,)))

    def needs(self, state: str) -> set[str]:
        """What a state, and those that are mixed with it, have to come after."""
        together = self.together(state)
        return {other for name in together for other in self.uses[name]} - together

    def _cycle(self, waiting: list[str]) -> OutsideStages:
        path = [waiting[0]]
        while path.count(path[-1]) == 1:
            path.append(next(name for name in self.uses[path[-1]] if name in waiting and name != path[-1]))
        cycle = path[path.index(path[-1]) :]
        return MixedStates(
            f"no state can be run before the others: {', and '.join(map(_needs, cycle, cycle[1:]))}",
            self.uses[cycle[0]][cycle[1]],
        )


def _needs(state: str, other: str) -> str:
    return f"{state} needs {other}"


def _matrix_parts(node: Expr) -> Iterator[Expr]:
    """The names of matrices in `node` that no part of it brings down to fewer dims."""
    for child in children(node):
        if isinstance(child, StateRead | Name) and len(child.dims) > 1:
            yield child
        elif len(child.dims) > 1:
            yield from _matrix_parts(child)
