"""The plan of the backward of `fused_recurrent_<name>`: four kernels that walk tokens, two of them segment by segment.

    states      forward: stores the state before every segment, and u of every token
    reverse     backward: stores the gradient of the state after every segment, and that of u
    reads       forward inside a segment: the gradients of what reads the state, from the state
    gradients   backward inside a segment: those of what is written to it, from the gradient of the state;
                then all of them go back to what a caller passed

The first two sum over the keys alone, so their programs own blocks of the values. The last two sum over the values,
too: a program owns as many values as registers can hold, and where those are not all, what it stores is a share of a
sum.

The gradient of a log decay needs no product of a state and its gradient but one at the end of each segment. Going back,

    log_decay_gradient -= w (dS u)      for what is written until the next decay, dS standing before that
    log_decay_gradient += y (S du)      for what reads until then, S standing after this decay

Pairs of rows with no decay between them are in neither sum: in both, they would cancel but for their rounding, and
where the decays are strong, that would be all that is left.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from flagen.algebra import Derivation
from flagen.algebra.normal_form import NormalForm
from flagen.diagnostics import InternalError
from flagen.plan.backward_actions import (
    Action,
    Give,
    Gradient,
    Kernel,
    Leave,
    Per,
    Scope,
    Steps,
    Take,
    Vector,
    dump_lines,
)
from flagen.plan.events import Again, Erase, Event, Fade, Insert, Look, Write, events_of, flat
from flagen.plan.front_end import FrontEnd, WayBack, made_by
from flagen.plan.fused import FusedPlan
from flagen.plan.log_decay import LogDecay, Outer, SeveralLogDecays
from flagen.plan.lowering import TooManyDims
from flagen.plan.reverse_mode import ReversePlan, plan_reverse_mode
from flagen.plan.row_planner import NoKernel
from flagen.plan.rows import cleared, values_in
from flagen.plan.schedule import Set
from flagen.plan.split import crossed_dims
from flagen.plan.tiles import StateTile, Tile, Value
from flagen.plan.unavailable import Unavailable
from flagen.spec.model import Dims, Input, Param

SEGMENT = 64
"""Tokens of a segment: its two states cost what a few vectors of each of its tokens do."""


@dataclass(frozen=True)
class FusedBackwardPlan:
    """What the four kernels do.

    names: every name that the spec declares or the plan made up.
    state, state_gradient: what the kernels call the state, and its gradient.
    output_gradient: the gradient of the output, as kernels take it.
    whole_values: whether something sums over the values, which are then one block everywhere.
    """

    forward: FusedPlan
    normal_form: NormalForm
    names: frozenset[str]
    state: str
    state_gradient: str
    output_gradient: Vector
    whole_values: bool
    states: Kernel
    reverse: Kernel
    reads: Kernel
    gradients: Kernel

    segment = SEGMENT
    keeps = f"a state for every {SEGMENT} tokens"

    @property
    def key(self) -> str:
        """The dim of the state that decays and erasures act on."""
        return self.normal_form.key

    @property
    def value(self) -> str:
        """The other dim of the state."""
        return self.normal_form.value

    @cached_property
    def kernels(self) -> tuple[Kernel, ...]:
        return (self.states, self.reverse, self.reads, self.gradients)

    @property
    def vectors(self) -> tuple[Vector, ...]:
        """What kernels leave for one another, in the order in which it is left."""
        left = (action.vector for kernel in self.kernels for action in kernel.actions() if isinstance(action, Leave))
        return tuple(dict.fromkeys(left))

    @property
    def given(self) -> tuple[Gradient, ...]:
        """The gradients that are stored, in the order of the signature."""
        found = {a.gradient.source.name: a.gradient for a in self.gradients.actions() if isinstance(a, Give)}
        spec = self.forward.spec
        declared: tuple[Input | Param, ...] = (*spec.inputs, *spec.params)
        return tuple(found[decl.name] for decl in declared if decl.name in found)

    def dump(self) -> str:
        """The plan as text: what each kernel does."""
        owned = f"all of {self.value}" if self.whole_values else f"blocks of {self.value}"
        lines = [f"segments of {self.segment} tokens; programs own {owned}"]
        for name, kernel in zip(("states", "reverse", "reads", "gradients"), self.kernels, strict=True):
            lines.append(f"{name}:")
            for what, actions in (("once", kernel.once), ("for each token", kernel.token), ("then", kernel.after)):
                if actions:
                    lines += [f"  {what}:", *dump_lines(actions, "    ")]
        return "\n".join(lines)


def plan_fused_backward(
    forward: FusedPlan | Unavailable, derivation: Derivation
) -> FusedBackwardPlan | ReversePlan | Unavailable:
    """The backward of the recurrent kernel, or why gradients are those of the PyTorch form.

    The normal form has the better one: it moves vectors where `flagen.plan.reverse_mode` moves states.
    """
    if isinstance(forward, Unavailable):
        return forward
    nf = derivation.normal_form
    if nf is not None and not nf.registers:
        with suppress(NoKernel, TooManyDims):
            return _Planner(forward, nf).plan()
    return plan_reverse_mode(forward)


# ---------------------------------------------------------------------------------------------------------- the planner


class _Planner:
    def __init__(self, forward: FusedPlan, nf: NormalForm) -> None:
        self.forward, self.nf, self.spec = forward, nf, forward.spec
        self.front = FrontEnd(nf)
        self.t = self.front.transpose
        self.key, self.value = nf.key, nf.value
        (state,) = self.spec.states
        dims = self._sorted(state.dims)
        self.S: Tile = StateTile(state.name, False, dims)
        self.state = state.name
        self.dS = self.front.local(self.front.fresh(f"{state.name}_gradient"), dims)
        self.output = self.front.tile(nf.output)
        self.do = self.vector("do", self.spec.output_dims, "token")
        self.sides = {read.name: self.value if read.side == "left" else self.key for read in nf.reads}
        self.read_values: dict[str, Value] = {}
        self.read_gradients: dict[str, Value] = {}
        self._find_reads()
        self.events = tuple(e for e in events_of(nf) if not isinstance(e, Look) or e.read.name in self.read_gradients)
        self.inner = frozenset(e for event in self.events if isinstance(event, Again) for e in flat(event.events))
        erasing = [event for event in flat(self.events) if isinstance(event, Erase)]
        self.z = {e.number: self.front.row(e.row.z, self.value) for e in erasing if e.row.z is not None}
        self.u = {event.number: self.vector("u", (self.value,), self._per(event)) for event in erasing}
        self.du = {event.number: self.vector("u_gradient", (self.value,), self._per(event)) for event in erasing}
        self.rows: dict[Event, Outer] = {
            event: self._outer(event) for event in flat(self.events) if not isinstance(event, Fade)
        }
        self.reader_gradients = self._reader_gradients()
        self.decay, self.decays = self._decays()

    def plan(self) -> FusedBackwardPlan:
        if not self.read_gradients:
            raise NoKernel("the output reads no state", self.spec.output[-1].span)
        whole = self.value in self.front.crossed or any(self.sides[name] == self.key for name in self.read_values)
        states = self._kernel(self._states(self.events), {self.state})
        reverse = self._kernel(self._reverse(self.events), {self.dS.name})
        reads, gradients = self._reads(), self._gradients(whole)
        return FusedBackwardPlan(
            forward=self.forward,
            normal_form=self.nf,
            names=frozenset(self.front.taken),
            state=self.state,
            state_gradient=self.dS.name,
            output_gradient=self.front.vectors[self.do.name],
            whole_values=whole,
            states=states,
            reverse=reverse,
            reads=reads,
            gradients=gradients,
        )

    def _kernel(
        self,
        token: Sequence[Action],
        made: set[str],
        once: Sequence[Action] = (),
        after: Sequence[Action] = (),
        kept: tuple[str, str] | None = None,
    ) -> Kernel:
        """`token` and the rest with what has to be loaded and evaluated for them."""
        made |= made_by((*once, *token, *after)) | {action.vector.name for action in once if isinstance(action, Take)}
        inside = tuple(
            Steps((*self.front.sources(action.body, "step", made), *action.body), action.backwards)
            if isinstance(action, Steps)
            else action
            for action in token
        )
        first = self.front.sources((*inside, *after), "call", made)
        return Kernel((*first, *once), (*self.front.sources(inside, "token", made), *inside), tuple(after), kept)

    # ------------------------------------------------------------------------------------------------------------ rows

    def _sorted(self, dims: Iterable[str]) -> Dims:
        found = set(dims)
        return tuple(dim for dim in self.front.order if dim in found)

    def _per(self, event: Event) -> Literal["token", "step"]:
        return "step" if event in self.inner else "token"

    def vector(self, name: str, dims: Iterable[str], per: Per, *, shared: bool = False) -> Value:
        """A vector of a new name."""
        return self.front.vector(Vector(self.front.fresh(name), tuple(dims), per, shared))

    def _find_reads(self) -> None:
        """What the output reads, where a gradient is made of that, and the gradient of each read."""
        for name, side in self.sides.items():
            self.front.local(name, (side,))
        found = {leaf.name: tile for leaf, tile in self.t(self.output, self.do)}
        needed = {value.name for tile in found.values() for value in values_in(tile)}
        for name, side in self.sides.items():
            if name in needed:
                self.read_values[name] = self.front.vector(Vector(name, (side,), "token", False))
            if name in found:
                gradient = cleared(self.front.rules, self.front.order, self.front.rules.mask(found[name]), side)
                self.front.crossed |= set(crossed_dims(gradient))
                self.read_gradients[name] = self.front.evaluate(self.front.fresh(f"{name}_gradient"), gradient)

    def _outer(self, event: Event) -> Outer:
        front, key, value = self.front, self.key, self.value
        match event:
            case Look(read) if read.side == "left":
                return Outer(front.row(read.q, key), self.read_gradients[read.name])
            case Look(read):
                return Outer(self.read_gradients[read.name], front.row(read.q, value))
            case Erase(number, row):
                return Outer(front.row(row.y, key), self.du[number])
            case Insert(number, row):
                return Outer(front.row(row.w, key), self.u[number])
            case Write(_, row):
                return Outer(front.row(row.k, key), front.row(row.v, value))
        raise InternalError(f"no row in {event!r}")

    def _reader_gradients(self) -> dict[Event, Value]:
        """What the gradients of rows that read are called, where they are wanted."""
        found: dict[Event, Value] = {}
        for event in flat(self.events):
            if isinstance(event, Look) and self.front.reaches(event.read.q):
                dim = self.key if event.read.side == "left" else self.value
                found[event] = self.vector("q_gradient", (dim,), "token", shared=dim == self.key)
            if isinstance(event, Erase) and self.front.reaches(event.row.y):
                found[event] = self.vector("y_gradient", (self.key,), self._per(event), shared=True)
        return found

    def _decays(self) -> tuple[LogDecay | None, SeveralLogDecays | None]:
        """How the gradients of log decays come about: those of a token's only decay, or of several."""
        fades = [event for event in flat(self.events) if isinstance(event, Fade)]
        wanted = [fade for fade in fades if self.front.reaches(fade.decay.log)]
        if len(fades) > 1 or any(fade in self.inner for fade in fades):
            return None, SeveralLogDecays(self, wanted) if wanted else None
        if not wanted:
            return None, None
        place = self.events.index(wanted[0])
        return LogDecay(self, wanted[0].decay, self.events[:place], self.events[place + 1 :]), None

    # ---------------------------------------------------------------------------------------------------- the two walks

    def _states(self, events: Iterable[Event]) -> list[Action]:
        """The state of a token, and what others need to know of how it came about."""
        actions: list[Action] = []
        for event in events:
            match event:
                case Erase(number):
                    erased = self._left(self.S, self.rows[event].key)
                    u = self.t.plus(self.z[number], erased) if number in self.z else erased
                    actions += self._left_behind(self.u[number], u)
                case Look(read) if read.name in self.read_values:
                    outer = self.rows[event]
                    value = self._left(self.S, outer.key) if read.side == "left" else self._right(self.S, outer.value)
                    actions += self._left_behind(self.read_values[read.name], value)
                case Again(inner):
                    actions.append(Steps(tuple(self._states(inner)), backwards=False))
                case _:
                    actions += self._change_state(event)
        return actions

    def _reverse(self, events: Sequence[Event]) -> list[Action]:
        """The gradient of the state before a token, from that after it."""
        actions: list[Action] = []
        for event in reversed(events):
            match event:
                case Insert(number):
                    actions += self._left_behind(self.du[number], self._left(self.dS, self.rows[event].key))
                case Again(inner):
                    actions.append(Steps(tuple(self._reverse(inner)), backwards=True))
                case _:
                    actions += self._change_gradient(event)
        return actions

    def _change_state(self, event: Event) -> list[Action]:
        match event:
            case Fade(decay):
                return [Set(self.state, self.t.times(self.front.factor(decay.factor), self.S))]
            case Insert() | Write():
                return [Set(self.state, self.t.plus(self.S, self._product(event)))]
        return []

    def _change_gradient(self, event: Event) -> list[Action]:
        match event:
            case Fade(decay):
                return [Set(self.dS.name, self.t.times(self.front.factor(decay.factor), self.dS))]
            case Erase() | Look():
                return [Set(self.dS.name, self.t.plus(self.dS, self._product(event)))]
        return []

    def _product(self, event: Event) -> Tile:
        return self.t.times(self.rows[event].key, self.rows[event].value)

    def _left(self, state: Tile, key: Tile) -> Tile:
        return self.t.summed(self.t.times(state, key), self.key)

    def _right(self, state: Tile, value: Tile) -> Tile:
        return self.t.summed(self.t.times(state, value), self.value)

    def _left_behind(self, vector: Value, value: Tile) -> list[Action]:
        return [Set(vector.name, value), Leave(self.front.vectors[vector.name])]

    # ------------------------------------------------------------------------------- forward inside of a segment: reads

    def _reads(self) -> Kernel:
        done: set[Event] = set()
        kept = None if self.decay is None else self.decay.kept_state
        actions = [] if self.decay is None else self.decay.early_reads()

        def walk(events: Iterable[Event]) -> list[Action]:
            found: list[Action] = []
            for event in events:
                if event in self.reader_gradients and event not in done:
                    found += self._reader_gradient(event)
                if self.decays is not None:
                    found += self.decays.left_by(event)
                if isinstance(event, Again):
                    found.append(Steps(tuple(walk(event.events)), backwards=False))
                found += self._change_state(event)
                if isinstance(event, Fade) and self.decay is not None:
                    now = self.decay.first_reads()
                    done.update(now)
                    for reader in now:
                        found += self._reader_gradient(reader)
                    found += self.decay.late_reads()
            return found

        actions += walk(self.events)
        if self.decays is not None:
            actions.append(self.decays.at_end())
        carried = None if kept is None else (kept.name, self.state)
        return self._kernel(actions, {self.state, self.dS.name, *([] if kept is None else [kept.name])}, kept=carried)

    def _reader_gradient(self, event: Event) -> list[Action]:
        along_values = isinstance(event, Look) and event.read.side == "right"
        outer = self.rows[event]
        value = self._left(self.S, outer.key) if along_values else self._right(self.S, outer.value)
        return self._left_behind(self.reader_gradients[event], value)

    # -------------------------------------------------------------------- backward inside of a segment: writes, and all

    def _gradients(self, whole: bool) -> Kernel:
        back, decay = WayBack(self.front, whole=whole), self.decay
        done: dict[Event, Value] = {}
        actions = back.of_output(self.output, self.do)
        if decay is not None:
            for event in decay.last_writes():
                done[event] = self.front.local(self.front.fresh(self._key_gradient(event)), (self.key,))
                actions.append(Set(done[event].name, self._right(self.dS, self.rows[event].value)))
            actions += decay.late_writes(done)
            actions += back.back(self.front.tile(decay.decay.log), decay.gradient, "token")

        def walk(events: Sequence[Event], scope: Scope) -> list[Action]:
            found: list[Action] = []
            for event in reversed(events):
                match event:
                    case Insert() | Write():
                        found += self._writer_gradients(event, done, back, scope)
                    case Erase(_, row) if event in self.reader_gradients:
                        found += back.back(self.front.tile(row.y), self.reader_gradients[event], scope)
                    case Look(read) if event in self.reader_gradients:
                        found += back.back(self.front.tile(read.q), self.reader_gradients[event], scope)
                    case Again(inner):
                        body = walk(inner, "step")
                        found.append(Steps((*body, *back.finish("step")), backwards=True))
                if self.decays is not None:
                    found += self.decays.taken_by(event, back, scope)
                found += self._change_gradient(event)
                if isinstance(event, Fade) and decay is not None:
                    found += decay.before()
            return found

        actions += walk(self.events, "token")
        actions += back.finish("token")
        after = back.finish("call")
        log_decay = decay or self.decays
        once = [
            *back.zeros["call"],
            *([] if log_decay is None else [Take(self.front.vectors[log_decay.gradient.name])]),
        ]
        made = {self.dS.name}
        kept = None
        if decay is not None and decay.kept_gradient is not None:
            made.add(decay.kept_gradient.name)
            kept = (decay.kept_gradient.name, self.dS.name)
        return self._kernel([*back.zeros["token"], *actions], made, once, after, kept)

    def _key_gradient(self, event: Event) -> str:
        return "w_gradient" if isinstance(event, Insert) else "k_gradient"

    def _writer_gradients(
        self, event: Insert | Write, done: dict[Event, Value], back: WayBack, scope: Scope
    ) -> list[Action]:
        """The gradients of both sides of a row that is written."""
        outer, found = self.rows[event], list[Action]()
        key, value = (event.row.w, event.row.z) if isinstance(event, Insert) else (event.row.k, event.row.v)
        if self.front.reaches(key):
            if event not in done:
                done[event] = self.front.local(self.front.fresh(self._key_gradient(event)), (self.key,))
                found.append(Set(done[event].name, self._right(self.dS, outer.value)))
            found += back.back(self.front.tile(key), done[event], scope)
        if value is None or not self.front.reaches(value):
            return found
        if isinstance(event, Insert):
            return [*found, *back.back(self.front.tile(value), self.du[event.number], scope)]
        gradient = self.front.local(self.front.fresh("v_gradient"), (self.value,))
        found.append(Set(gradient.name, self._left(self.dS, outer.key)))
        return [*found, *back.back(self.front.tile(value), gradient, scope)]
