"""What a recurrent kernel does when: once for each program, for every token, for every micro-step of a token."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace

from flagen.diagnostics import Span
from flagen.plan.lowering import Lowering
from flagen.plan.tiles import (
    Constant,
    Head,
    Negative,
    Product,
    Size,
    StateTile,
    Tile,
    Value,
    is_static,
    rebuild,
    tiles_in,
)
from flagen.spec.model import Assign, Derived, Input, Param, Repeat, Spec, State

OUTPUT = "o"


@dataclass(frozen=True)
class Load:
    """Load this program's part of a row of an input, or of a tensor param, as float32."""

    source: Input | Param


@dataclass(frozen=True)
class Set:
    """Evaluate `value` and call it `target`: a state, the output, or a name of its own."""

    target: str
    value: Tile


@dataclass(frozen=True)
class Keep:
    """Keep a state as it is at the start of the token, for it is read as `<state>_prev` after it has changed."""

    state: str


@dataclass(frozen=True)
class Steps:
    """Run `body` for each micro-step of the token."""

    body: tuple[Load | Set, ...]


Action = Load | Set | Keep | Steps


@dataclass(frozen=True)
class Schedule:
    """`once` runs before the first token, `token` for every token."""

    once: tuple[Load | Set, ...]
    token: tuple[Action, ...]

    def sets(self) -> Iterator[Set]:
        """Every evaluation, in order."""
        for action in (*self.once, *self.token):
            match action:
                case Set():
                    yield action
                case Steps(body):
                    yield from (inner for inner in body if isinstance(inner, Set))

    def evaluated(self) -> Iterator[Tile]:
        """Every expression and every part of one."""
        for action in self.sets():
            yield from tiles_in(action.value)

    def rewritten(self, change: Callable[[Set], Set]) -> Schedule:
        """The same actions with every evaluation changed, in order."""

        def apply(action: Load | Set) -> Load | Set:
            return change(action) if isinstance(action, Set) else action

        once = tuple(apply(action) for action in self.once)
        token: list[Action] = []
        for action in self.token:
            match action:
                case Load() | Set():
                    token.append(apply(action))
                case Steps(body):
                    token.append(Steps(tuple(apply(inner) for inner in body)))
                case Keep():
                    token.append(action)
        return Schedule(once, tuple(token))


def make_schedule(spec: Spec) -> Schedule:
    """The actions of `spec`'s kernel.

    Raises:
        TooManyDims, NoTile: an expression of the spec does not fit tiles.
    """
    lower = Lowering(spec.axes)
    derived = {d.name: Set(d.name, lower(d.value)) for d in spec.derived}
    fixed = _fixed_names(spec, derived)
    params = [Load(param) for param in spec.params if param.is_tensor]
    token = [
        *(Load(decl) for decl in spec.inputs if decl.per == "token"),
        *(derived[d.name] for d in spec.derived if d.per == "token" and d.name not in fixed),
        *_statements(spec, lower, derived),
    ]
    schedule = Schedule((*params, *(derived[name] for name in derived if name in fixed)), tuple(token))
    return _hoisted(spec, _without_copies(spec, schedule), fixed)


def _fixed_names(spec: Spec, derived: dict[str, Set]) -> frozenset[str]:
    """Params, and what is derived from them and `head` alone: the same for every token."""
    fixed = {param.name for param in spec.params}
    for name, action in derived.items():
        if all(tile.name in fixed for tile in tiles_in(action.value) if isinstance(tile, Value)):
            fixed.add(name)
    return frozenset(fixed)


# --------------------------------------------------------------------------------------------- the order of statements


def _statements(spec: Spec, lower: Lowering, derived: dict[str, Set]) -> list[Action]:
    """Update and output; outputs that read only states before the token come first, while those are at hand."""
    outputs = [Set(assign.target, lower(assign.value)) for assign in spec.output]
    updates: list[Action] = []
    for statement in spec.update:
        match statement:
            case Assign(target, value):
                updates.append(Set(target, lower(value)))
            case Repeat(body):
                updates.append(_steps(spec, [Set(assign.target, lower(assign.value)) for assign in body], derived))
    early = _early(outputs)
    return [*early, *updates, *(action for action in outputs if action not in early)]


def _steps(spec: Spec, body: list[Set], derived: dict[str, Set]) -> Steps:
    """A `repeat` with what it reads of each micro-step: inputs, then what is derived from them."""
    needed = _names_read(body)
    per_step: list[Set] = []
    for decl in reversed(spec.derived):
        if decl.per == "step" and decl.name in needed:
            per_step.insert(0, derived[decl.name])
            needed |= _names_read([derived[decl.name]])
    loads = [Load(decl) for decl in spec.inputs if decl.per == "step" and decl.name in needed]
    return Steps((*loads, *per_step, *body))


def _early(outputs: list[Set]) -> list[Set]:
    """The statements of the output that depend on the state before the token alone."""
    early: list[Set] = []
    for action in outputs:
        parts = list(tiles_in(action.value))
        states = [part for part in parts if isinstance(part, StateTile)]
        locals_read = {part.name for part in parts if isinstance(part, Value) and part.kind == "local"}
        if states and all(state.previous for state in states) and locals_read <= {done.target for done in early}:
            early.append(action)
    return early


def _names_read(actions: Iterable[Set]) -> set[str]:
    return {tile.name for action in actions for tile in tiles_in(action.value) if isinstance(tile, Value)}


# ------------------------------------------------------------------------------------------- states before the token


def _without_copies(spec: Spec, schedule: Schedule) -> Schedule:
    """`S_prev` read as plain `S` where `S` has not changed yet; kept at the token's start where it has."""
    kept = [state.name for state in spec.states if _read_after_change(state.name, schedule.token)]

    def current(tile: Tile) -> Tile:
        if isinstance(tile, StateTile) and tile.name not in kept:
            return replace(tile, previous=False)
        return rebuild(tile, current)

    renamed = schedule.rewritten(lambda action: replace(action, value=current(action.value)))
    return replace(renamed, token=(*map(Keep, kept), *renamed.token))


def _read_after_change(state: str, actions: Sequence[Action]) -> bool:
    changed = False
    for action in actions:
        match action:
            case Set(target):
                if changed and _reads_previous(state, (action,)):
                    return True
                changed = changed or target == state
            case Steps(body):
                sets = [inner for inner in body if isinstance(inner, Set)]
                # What the last statement of one micro-step changes, the first one of the next would read.
                changed = changed or any(inner.target == state for inner in sets)
                if changed and _reads_previous(state, sets):
                    return True
    return False


def _reads_previous(state: str, actions: Iterable[Set]) -> bool:
    tiles = (tile for action in actions for tile in tiles_in(action.value))
    return any(isinstance(tile, StateTile) and tile.previous and tile.name == state for tile in tiles)


# ------------------------------------------------------------------------------------------------ out of the loop


def _hoisted(spec: Spec, schedule: Schedule, fixed: frozenset[str]) -> Schedule:
    """`schedule` with every part of an expression that no token changes evaluated once, under a name of its own."""
    hoist = _Hoist(fixed, taken=set(declared_names(spec)))
    within = Schedule((), schedule.token).rewritten(hoist)
    return Schedule((*schedule.once, *hoist.actions), within.token)


@dataclass
class _Hoist:
    """Replaces the fixed parts of evaluations by names, and collects what those names stand for."""

    fixed: frozenset[str]
    taken: set[str]
    actions: list[Set] = field(default_factory=list)

    def __call__(self, action: Set) -> Set:
        return replace(action, value=self._without_fixed(action.value, action.target))

    def _without_fixed(self, tile: Tile, target: str) -> Tile:
        if not self._is_fixed(tile):
            return rebuild(tile, lambda operand: self._without_fixed(operand, target))
        return tile if _is_cheap(tile) else self._named(tile, target)

    def _named(self, tile: Tile, target: str) -> Tile:
        for done in self.actions:
            if done.value == tile:
                return Value(done.target, "local", tile.dims)
        name = fresh(f"{target}_fixed", self.taken)
        self.actions.append(Set(name, tile))
        return Value(name, "local", tile.dims)

    def _is_fixed(self, tile: Tile) -> bool:
        return all(
            not isinstance(part, StateTile) and (not isinstance(part, Value) or part.name in self.fixed)
            for part in tiles_in(tile)
        )


def _is_cheap(tile: Tile) -> bool:
    """Whether an expression costs the kernel nothing, or a multiplication by a name that it has at hand."""
    if is_static(tile):
        return True
    return all(isinstance(part, Constant | Size | Head | Value | Negative | Product) for part in tiles_in(tile))


def declared_names(spec: Spec) -> Iterator[str]:
    """Every name of the spec, and what its author calls those that are called otherwise here: nothing else is."""
    yield from names_of(spec)
    yield from spec.written.values()


def names_of(spec: Spec) -> Iterator[str]:
    """Every name of the spec."""
    yield from spec.dims
    groups: tuple[Iterable[Input | Param | Derived], ...] = (spec.inputs, spec.params, spec.derived)
    yield from (decl.name for group in groups for decl in group)
    yield from (state.name for state in spec.states)
    if spec.steps is not None:
        yield from (spec.steps.symbol, spec.steps.argument)
    for statement in (*spec.update, *spec.output):
        body = statement.body if isinstance(statement, Repeat) else (statement,)
        yield from (assign.target for assign in body)


def place_of(spec: Spec, name: str) -> Span:
    """Where the spec declares or assigns `name`; its first state where that has no place of its own."""
    groups: tuple[Iterable[State | Input | Param | Derived], ...] = (
        spec.states,
        spec.inputs,
        spec.params,
        spec.derived,
    )
    places = {decl.name: decl.span for group in groups for decl in group}
    for statement in (*spec.update, *spec.output):
        body = statement.body if isinstance(statement, Repeat) else (statement,)
        places |= {assign.target: assign.span for assign in body if assign.target not in places}
    return places.get(name, spec.states[0].span)


def fresh(wanted: str, taken: set[str]) -> str:
    """`wanted`, or the first of `wanted_2`, `wanted_3`, ... that nothing is called yet."""
    name, count = wanted, 1
    while name in taken:
        count += 1
        name = f"{wanted}_{count}"
    taken.add(name)
    return name
