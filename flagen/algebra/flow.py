"""Which states a spec's statements depend on, and through which locals: what the stages of a spec are cut along."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from flagen.diagnostics import Span
from flagen.spec.model import Assign, Contract, Expr, Name, Reduce, Repeat, Spec, StateRead, children, walk

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

    uses: the states that each state has to come after, and where it says so: those that its update depends on, and
        those that a vector depends on by which it is read.
    """

    spec: Spec
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

    def opened(self, expr: Expr, place: Place) -> tuple[Expr, Place]:
        """`expr`, or where it is a local its value, and where that is evaluated."""
        while (definition := self.definition(expr, place)) is not None:
            expr, place = definition.value, definition.place
        return expr, place

    def read_by(self, node: Expr, place: Place) -> str | None:
        """The matrix state that `node` reads by a vector, down to one dim: it and no part of it."""
        if not isinstance(node, Contract | Reduce) or len(node.dims) > 1:
            return None
        matrices = {name for part in _matrix_parts(node) for name in self._states_of(part, place)}
        return matrices.pop() if len(matrices) == 1 else None

    def is_stable(self, expr: Expr, first: Place, last: Place) -> bool:
        """Whether `expr` means the same at both places: nothing that it names is assigned in between."""
        first, last = sorted((first, last))
        changed = {assign.target for place, assign in self.statements.items() if first <= place < last}
        named = {n.name for n in walk(expr) if isinstance(n, Name) or (isinstance(n, StateRead) and not n.previous)}
        return not named & changed

    def order(self) -> list[str]:
        """The states, each after those it has to come after; otherwise as they are declared.

        Raises:
            OutsideStages: there is no such order.
        """
        done: list[str] = []
        waiting = [state.name for state in self.spec.states]
        while waiting:
            free = next((name for name in waiting if self.uses[name].keys() <= set(done)), None)
            if free is None:
                raise self._cycle(waiting)
            waiting.remove(free)
            done.append(free)
        return done

    def _cycle(self, waiting: list[str]) -> OutsideStages:
        path = [waiting[0]]
        while path.count(path[-1]) == 1:
            path.append(next(name for name in self.uses[path[-1]] if name in waiting))
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
