"""The backward of `fused_recurrent_<name>` for any recurrence: its statements transposed, token by token, going back.

    states      forward: stores every state before each segment
    gradients   segment by segment, the last one first: forward with the states, which are stored before each token;
                then backward, where a token starts from the states before it, evaluates its statements again, and takes
                the gradients of what they made back to what they were made of

A program owns what one of the forward kernel does. What it gives for an input, param or state that others read, too, is
a share: the gradient of what this program makes of that. Shares add up to the whole, since gradients are linear in
those that come in. That of a last state which every program computes over again comes in once.

In `gradients` every value has a name of its own: the states of a token are `S_prev`, `S_1`, `S_2`, ... as statements
change them. One name stands for the gradient of a state, whatever the state is called at the time.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import count

from flagen.plan.backward_actions import (
    Action,
    Add,
    Give,
    Gradient,
    Kernel,
    Recall,
    Scope,
    Steps,
    Store,
    Take,
    Vector,
    Wait,
    Zero,
    dump_lines,
)
from flagen.plan.fused import FusedPlan
from flagen.plan.gradients import Transposition
from flagen.plan.liveness import names_read, needed
from flagen.plan.padding import PaddingRules
from flagen.plan.parts import with_parts
from flagen.plan.schedule import OUTPUT, Load, Schedule, Set, fresh
from flagen.plan.schedule import Steps as ForwardSteps
from flagen.plan.tiles import MAX_DIMS, Head, Masked, MatMul, StateTile, Tile, Value, rebuild, tiles_in
from flagen.spec.model import Dims, Input, Param, Spec, State


@dataclass(frozen=True)
class Carried:
    """A state, what its gradient is called, and whether every block has the whole of it."""

    state: State
    gradient: str
    shared: bool

    @property
    def name(self) -> str:
        return self.state.name


@dataclass(frozen=True)
class ReversePlan:
    """What the two kernels do.

    names: every name that the spec declares or the plan made up.
    states: walks forward. It is also how `gradients` finds the states before each token of a segment.
    output_gradient: the gradient of the output, as the kernel takes it.
    loops: how many loops over micro-steps a token has.
    """

    forward: FusedPlan
    names: frozenset[str]
    carried: tuple[Carried, ...]
    output_gradient: Vector
    states: Kernel
    gradients: Kernel
    loops: int

    keeps = "about twice as many states as the root of the longest sequence"

    @cached_property
    def given(self) -> tuple[Gradient, ...]:
        """The gradients that are stored, in the order of the signature."""
        found = {a.gradient.source.name: a.gradient for a in self.gradients.actions() if isinstance(a, Give)}
        spec = self.forward.spec
        declared: tuple[Input | Param, ...] = (*spec.inputs, *spec.params)
        return tuple(found[decl.name] for decl in declared if decl.name in found)

    @property
    def stored_by_step(self) -> frozenset[str]:
        """The states that are stored before each micro-step."""
        actions = self.gradients.actions()
        return frozenset(action.state for action in actions if isinstance(action, Store) and action.per == "step")

    @property
    def matrix_dims(self) -> frozenset[str]:
        """Dims of the operands of matrix products, which want blocks of a least size."""
        products = (tile for tile in self.gradients.tiles() if isinstance(tile, MatMul))
        return self.forward.matrix_dims.union(dim for product in products for dim in (*product.dims, product.dim))

    @property
    def held_tiles(self) -> list[Dims]:
        """The tiles that a program holds at one time, of those with the most dims: a state before and after a statement
        and its gradient; an input or param and its gradient."""
        spec = self.forward.spec
        tiles = [state.dims for state in spec.states for _ in range(3)]
        declared: tuple[Input | Param, ...] = (*spec.inputs, *spec.params)
        tiles += [decl.dims for decl in declared if len(decl.dims) == MAX_DIMS for _ in range(2)]
        most = max(len(dims) for dims in tiles)
        return [dims for dims in tiles if len(dims) == most]

    def dump(self) -> str:
        """The plan as text: what each kernel does."""
        split = self.forward.split
        owned = "the whole state of a head" if split is None else f"a block of {split.dim} of the state of a head"
        lines = [f"every statement transposed, segment by segment; a program owns {owned}"]
        for name, kernel in (("states", self.states), ("gradients", self.gradients)):
            lines.append(f"{name}:")
            for what, actions in (("once", kernel.once), ("for each token", kernel.token), ("then", kernel.after)):
                if actions:
                    lines += [f"  {what}:", *dump_lines(actions, "    ")]
        return "\n".join(lines)


def plan_reverse_mode(forward: FusedPlan) -> ReversePlan:
    """The backward of the recurrent kernel by its own statements."""
    return _Planner(forward).plan()


# ------------------------------------------------------------------------------------------------------------ the tape


@dataclass(frozen=True)
class _Done:
    """A statement as it was evaluated; `current` is what each state was called before it."""

    target: str
    value: Tile
    current: Mapping[str, str]


@dataclass(frozen=True)
class _Loaded:
    source: Input | Param


@dataclass(frozen=True)
class _Looped:
    """A loop over micro-steps: what finds the states before a step again, what it evaluates, and its tape."""

    again: tuple[Action, ...]
    tape: tuple[_Done | _Loaded, ...]


_Tape = Sequence["_Done | _Loaded | _Looped"]


@dataclass
class _Names:
    """What is what in the kernel: names that are free, the scope of those that have a value, the states they hold."""

    taken: set[str]
    scopes: dict[str, Scope] = field(default_factory=dict)
    held: dict[str, str] = field(default_factory=dict)

    def fresh(self, wanted: str) -> str:
        return fresh(wanted, self.taken)


class _Planner:
    def __init__(self, forward: FusedPlan) -> None:
        self.forward, self.spec, self.order = forward, forward.spec, forward.order
        self.dims = {state.name: self._sorted(state.dims) for state in self.spec.states}
        self.names = _Names({*forward.names, *(f"{state}_prev" for state in self.dims)})
        self.names.scopes |= {decl.name: decl.per for decl in self.spec.inputs}
        self.names.scopes |= {param.name: "call" for param in self.spec.params}
        self.rules = PaddingRules(self.spec)
        self.rules.settle((action.target, action.value) for action in forward.schedule.sets())
        numbers = _made_of_numbers(forward.schedule, self.spec, heads=False)
        cut = None if forward.split is None else forward.split.dim
        self.transpose = Transposition(
            self.order, _made_of_numbers(forward.schedule, self.spec, heads=True), numbers, cut
        )
        self.cut = cut
        self.carried = tuple(
            Carried(state, self.names.fresh(f"{state.name}_gradient"), self._is_shared(state.dims))
            for state in self.spec.states
        )
        self.of_state = {
            carried.name: self._local(carried.gradient, self.dims[carried.name]) for carried in self.carried
        }
        self.found: dict[str, str] = {}
        self.zeros: dict[Scope, list[Action]] = {"call": [], "token": [], "step": []}
        self.called: dict[str, str] = {}
        self.given: dict[str, int] = {}
        self.loops = 0

    def plan(self) -> ReversePlan:
        schedule = self.forward.schedule
        do = Vector(self.names.fresh("do"), self.spec.output_dims, "token", shared=False)
        # Blocks put out parts of the output, or shares of it: each has the gradient of what it puts out.
        self.found[OUTPUT] = self._local(do.name, self._sorted(do.dims)).name
        once, fixed_tape = self._forward(schedule.once, {}, "call")
        current = {state: f"{state}_prev" for state in self.dims}
        for state, name in current.items():
            self._hold(name, state)
        token, tape = self._forward(schedule.token, dict(current), "token")
        back = [*self._backward(tape, "token"), *self._of_states_before()]
        after = needed(self._backward(fixed_tape, "call"), ())
        recalls = [Recall(state, name, "token") for state, name in current.items()]
        actions = [*self.zeros["token"], *recalls, *token, Take(do), *back]
        walk = needed(self._walk(schedule.token), {*self.dims})
        kept = needed(actions, {*names_read(after), *(carried.gradient for carried in self.carried)})
        kept = with_parts(kept, self.names.taken)
        first = needed((*once, *self.zeros["call"]), {*names_read(walk), *names_read(kept), *names_read(after)})
        return ReversePlan(
            forward=self.forward,
            names=frozenset(self.names.taken),
            carried=self.carried,
            output_gradient=do,
            states=Kernel(needed(once, {*names_read(walk)}), walk),
            gradients=Kernel(first, kept, after),
            loops=self.loops,
        )

    # ----------------------------------------------------------------------------------------------------------- names

    def _sorted(self, dims: Iterable[str]) -> Dims:
        found = set(dims)
        return tuple(dim for dim in self.order if dim in found)

    def _is_shared(self, dims: Dims) -> bool:
        """Whether every block has the whole of what lies over `dims`."""
        return self.cut is not None and self.cut not in dims

    def _local(self, name: str, dims: Dims) -> Value:
        """A name for what is zero beyond the ends of `dims`."""
        self.rules.note(name, dims, 0.0)
        return Value(name, "local", dims)

    def _hold(self, name: str, state: str) -> Value:
        """A name for a state as it is at some time."""
        self.names.taken.add(name)
        self.names.held[name] = state
        self.rules.hold(name, state)
        return Value(name, "local", self.dims[state])

    def _version(self, state: str) -> str:
        """What a state is called after one more of its changes."""
        name = next(name for n in count(1) if (name := f"{state}_{n}") not in self.names.taken)
        self._hold(name, state)
        return name

    def _dims_of(self, name: str) -> Dims:
        declared: tuple[Input | Param, ...] = (*self.spec.inputs, *self.spec.params)
        for decl in declared:
            if decl.name == name:
                return self._sorted(decl.dims)
        if name in self.names.held:
            return self.dims[self.names.held[name]]
        return next(action.value.dims for action in self.forward.schedule.sets() if action.target == name)

    # --------------------------------------------------------------------------------------------------------- forward

    def _walk(self, actions: Iterable[Action | ForwardSteps]) -> list[Action]:
        """The forward kernel's actions but for the output."""
        found: list[Action] = []
        for action in actions:
            match action:
                case Set(target) if target == OUTPUT:
                    pass
                case ForwardSteps(body):
                    found.append(Steps(tuple(body), backwards=False))
                case _:
                    found.append(action)
        return found

    def _forward(
        self, actions: Iterable[Action | ForwardSteps], current: dict[str, str], scope: Scope
    ) -> tuple[list[Action], list[_Done | _Loaded | _Looped]]:
        """`actions` with a name for every value, and what has to be taken back; `current` changes as the states do."""
        found, tape = list[Action](), list[_Done | _Loaded | _Looped]()
        for action in actions:
            match action:
                case Load(source):
                    found.append(action)
                    tape.append(_Loaded(source))
                case Set(target, value):
                    value = self._named(value, current)
                    # A mask says nothing about real lanes; gradients get those that they need.
                    tape.append(_Done(target, _bare(value), dict(current)))
                    found.append(self._set(target, value, current, scope))
                case ForwardSteps(body):
                    ahead, looped = self._loop(body, current)
                    found += ahead
                    tape.append(looped)
        return found, tape

    def _set(self, target: str, value: Tile, current: dict[str, str], scope: Scope) -> Set:
        if target in self.dims:
            current[target] = self._version(target)
            return Set(current[target], value)
        self.names.scopes[target] = scope
        self.rules.assign(target, value)
        return Set(target, value)

    def _loop(self, body: Sequence[Load | Set], current: dict[str, str]) -> tuple[list[Action], _Looped]:
        """A loop forward that stores the states before each micro-step; then how a step is evaluated again."""
        changed = [state for state in self.dims if any(isinstance(a, Set) and a.target == state for a in body)]
        ahead: list[Action] = []
        before = dict(current)
        for state in changed:
            entered = Value(current[state], "local", self.dims[state])
            current[state] = self._version(state)
            ahead.append(Set(current[state], entered))
        inside = [
            replace(action, target=current.get(action.target, action.target), value=self._named(action.value, current))
            if isinstance(action, Set)
            else action
            for action in body
        ]
        for action in inside:
            if isinstance(action, Set) and action.target not in self.names.held:
                self.rules.assign(action.target, action.value)
        loop, self.loops = self.loops, self.loops + 1
        stores = [Store(state, current[state], "step", loop) for state in changed]
        ahead += [Wait(), Steps((*stores, *inside), backwards=False), Wait()]
        for state in changed:
            before[state] = self.names.fresh(f"{state}_before")
            self._hold(before[state], state)
        recalls = [Recall(state, before[state], "step", loop) for state in changed]
        again, tape = self._forward(body, before, "step")
        return ahead, _Looped((*recalls, *again), tuple(entry for entry in tape if not isinstance(entry, _Looped)))

    def _named(self, tile: Tile, current: Mapping[str, str]) -> Tile:
        """`tile` with every state under the name that it has now."""
        if isinstance(tile, StateTile):
            return Value(f"{tile.name}_prev" if tile.previous else current[tile.name], "local", tile.dims)
        return rebuild(tile, lambda operand: self._named(operand, current))

    # -------------------------------------------------------------------------------------------------------- backward

    def _backward(self, tape: _Tape, scope: Scope) -> list[Action]:
        actions: list[Action] = []
        for entry in reversed(tape):
            match entry:
                case _Loaded(source):
                    actions += self._give(source)
                case _Done(target, value, current) if target in self.dims:
                    actions += self._through_state(target, value, current, scope)
                case _Done(target, value, current):
                    if target in self.found:
                        gradient = Value(self.found[target], "local", value.dims)
                        actions += self._contribute(value, gradient, current, scope)
                case _Looped(again, inner):
                    body = self._backward(inner, "step")
                    actions.append(Steps((*again, *body), backwards=True))
                    # The next loop has steps of its own.
                    self.found = {n: d for n, d in self.found.items() if self.names.scopes.get(n) != "step"}
        return actions

    def _through_state(self, state: str, value: Tile, current: Mapping[str, str], scope: Scope) -> list[Action]:
        """From the gradient of a state after a statement to that before it, and to what else it was made of."""
        gradient, before = self.of_state[state], current[state]
        terms = dict(self.transpose(value, gradient))
        own = next((term for leaf, term in terms.items() if leaf.name == before), None)
        actions = self._add_all(((leaf.name, t) for leaf, t in terms.items() if leaf.name != before), current, scope)
        if own is None:
            return [*actions, Zero(gradient.name, gradient.dims)]
        if own != gradient:
            actions.append(Set(gradient.name, self._cleared(own, gradient.dims)))
        return actions

    def _contribute(self, value: Tile, gradient: Tile, current: Mapping[str, str], scope: Scope) -> list[Action]:
        """Add what `gradient`, that of `value`, makes for each name in it."""
        terms = self.transpose(value, gradient)
        return self._add_all(((leaf.name, term) for leaf, term in terms), current, scope)

    def _add_all(self, terms: Iterable[tuple[str, Tile]], current: Mapping[str, str], scope: Scope) -> list[Action]:
        return [self._add(name, term, current, scope) for name, term in terms]

    def _add(self, name: str, term: Tile, current: Mapping[str, str], scope: Scope) -> Action:
        """Add `term` to the gradient of `name`: of a state to the one in hand, unless the state has changed since."""
        state = self.names.held.get(name)
        if state is not None and current[state] == name:
            return Add(self.of_state[state].name, self._cleared(term, self.dims[state]), self.dims[state])
        own = "token" if state is not None else self.names.scopes[name]
        dims = self._dims_of(name)
        term = self._cleared(term, dims)
        if name not in self.found:
            self.found[name] = called = self._gradient_of(name, dims)
            if own == scope and own != "call":
                return Set(called, term)
            self.zeros[own].append(Zero(called, dims))
        return Add(self.found[name], term, dims)

    def _gradient_of(self, name: str, dims: Dims) -> str:
        """What the gradient of `name` is called, in every loop over micro-steps."""
        if name not in self.called:
            self.called[name] = self.names.fresh(f"d_{name}")
        return self._local(self.called[name], dims).name

    def _of_states_before(self) -> Iterator[Action]:
        """What late readers of a state before the token have added to its gradient."""
        for state, gradient in self.of_state.items():
            if f"{state}_prev" in self.found:
                late = Value(self.found[f"{state}_prev"], "local", gradient.dims)
                yield Add(gradient.name, late, gradient.dims)

    def _give(self, source: Input | Param) -> list[Action]:
        """Store the gradient of what has been loaded."""
        loops = [action for action in self.forward.schedule.token if isinstance(action, ForwardSteps)]
        readers = [number for number, loop in enumerate(loops) if Load(source) in loop.body]
        shared = self._is_shared(source.dims)
        if len(readers) < 2:
            called = self.found.get(source.name)
            return (
                []
                if called is None
                else [Give(Gradient(source, called, source.dims, shared), self._sorted(source.dims))]
            )
        # The loops are gone through from the last one to the first.
        number = self.given[source.name] = self.given.get(source.name, len(readers)) - 1
        called = self._gradient_of(source.name, self._sorted(source.dims))
        zero = [] if source.name in self.found else [Zero(called, source.dims)]
        gradient = Gradient(source, called, source.dims, shared, number, len(readers))
        return [*zero, Give(gradient, self._sorted(source.dims))]

    def _cleared(self, term: Tile, dims: Dims) -> Tile:
        """`term` over all of `dims`, with zeros beyond their ends."""
        term = self.rules.mask(term)
        for dim in dims:
            if dim not in term.dims or self.rules.padding(term, frozenset((dim,))) != 0.0:
                term = Masked(term, dim, 0.0, self._sorted((dim, *term.dims)))
        return term


def _bare(tile: Tile) -> Tile:
    """`tile` without its masks."""
    return _bare(tile.value) if isinstance(tile, Masked) else rebuild(tile, _bare)


def _made_of_numbers(schedule: Schedule, spec: Spec, *, heads: bool) -> frozenset[str]:
    """Params that are Python numbers, and what is derived from them, and with `heads` from the head, alone."""
    found = {param.name for param in spec.params if not param.is_tensor}
    states = {state.name for state in spec.states}
    for action in schedule.sets():
        parts = list(tiles_in(action.value))
        known = all(part.name in found for part in parts if isinstance(part, Value))
        varies = any(isinstance(part, StateTile) or (isinstance(part, Head) and not heads) for part in parts)
        if known and not varies and action.target not in states:
            found.add(action.target)
    return frozenset(found)
