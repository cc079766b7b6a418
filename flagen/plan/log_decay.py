"""How the gradient of a log decay comes about, without a product of a state and its gradient for every token.

Going back from the end of a segment, it is a running difference of inner products: of each row that reads with its
gradient, less those of each row that writes; at the segment's end it starts from that of the state with its gradient.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Protocol

from flagen.algebra.normal_form import Decay
from flagen.plan.backward_actions import Action, Add, AtEnd, ButAtEnd, Leave, Per, Scope, Steps, Zero
from flagen.plan.events import Again, Erase, Event, Fade, Insert, Look, Write, flat
from flagen.plan.front_end import FrontEnd, WayBack
from flagen.plan.gradients import Transposition
from flagen.plan.schedule import Set
from flagen.plan.tiles import Tile, Value
from flagen.spec.model import Dims


@dataclass(frozen=True)
class Outer:
    """The outer product that a row is: a vector along the keys, and one along the values."""

    key: Tile
    value: Tile


class Rows(Protocol):
    """What is known of the rows of a token: their outer products, and what the gradients of readers are called."""

    front: FrontEnd
    t: Transposition
    key: str
    value: str
    state: str
    S: Tile
    dS: Value
    events: tuple[Event, ...]
    inner: frozenset[Event]
    rows: dict[Event, Outer]
    reader_gradients: dict[Event, Value]

    def vector(self, name: str, dims: Dims, per: Per, *, shared: bool = False) -> Value: ...


class LogDecay:
    """How the gradient of a token's log decay comes about: `early` is what happens before the decay, `late` what after.

    Rows meet each other between two decays: the late ones of a token and the early ones of the next. So the readers
    look at the state as it is just after a decay, and the writers at the gradient as it is just before the next one.
    Where there are early readers, both have to be kept beside the tiles that go on.
    """

    def __init__(self, planner: Rows, decay: Decay, early: Sequence[Event], late: Sequence[Event]) -> None:
        self.p, self.t, self.decay, self.early, self.late = planner, planner.t, decay, early, late
        front = planner.front
        self.dims = planner.front.tile(decay.log).dims
        self.per_key = planner.key in self.dims
        dims = (planner.key,) if self.per_key else ()
        self.gradient = planner.vector("log_decay_gradient", dims, "segment", shared=True)
        self.late_sum = planner.vector("read_late", dims, "token", shared=True) if _reads_in(late) else None
        self.early_sum = planner.vector("read_early", dims, "token", shared=True) if _reads_in(early) else None
        self.kept_state: Value | None = None
        self.kept_gradient: Value | None = None
        if _reads_in(early):
            self.kept_state = front.local(front.fresh(f"{planner.state}_decayed"), planner.dS.dims)
        if _reads_in(early) and _writes_in(late):
            self.kept_gradient = front.local(front.fresh(f"{planner.dS.name}_decayed"), planner.dS.dims)

    # ------------------------------------------------------------------------------------------------ from the forward

    def first_reads(self) -> list[Event]:
        """The readers whose gradients are known just after the decay: nothing is written before they read."""
        found: list[Event] = []
        for event in self.late:
            if not isinstance(event, Erase | Look):
                break
            found += [event] if event in self.p.reader_gradients else []
        return found

    def late_reads(self) -> list[Action]:
        """What follows the decay in the forward walk."""
        actions: list[Action] = []
        if self.kept_state is not None:
            actions.append(Set(self.kept_state.name, self.p.S))
        if self.late_sum is not None:
            known = {e: self.p.reader_gradients[e] for e in self.first_reads() if not self._is_right(e)}
            actions += self._sum_into(self.late_sum.name, self.late, (Erase, Look), self.p.S, known)
            actions.append(Leave(self.p.front.vectors[self.late_sum.name]))
        end = self.t.times(self.p.S, self.p.dS)
        whole = self._by_key(self.t.summed(end, self.p.value))
        left = (Set(self.gradient.name, whole), Leave(self.p.front.vectors[self.gradient.name]))
        return [*actions, AtEnd(left)]

    def early_reads(self) -> list[Action]:
        """What a token starts with in the forward walk."""
        if self.early_sum is None or self.kept_state is None:
            return []
        actions = self._sum_into(self.early_sum.name, self.early, (Erase, Look), self.kept_state, {})
        return [*actions, Leave(self.p.front.vectors[self.early_sum.name])]

    # ----------------------------------------------------------------------------------------------- from the backward

    def last_writes(self) -> list[Event]:
        """The writers whose gradients are known just before the next decay: nothing reads after they write."""
        found: list[Event] = []
        if self.kept_gradient is not None:
            return found
        for event in reversed(self.late):
            if not isinstance(event, Insert | Write):
                break
            found.append(event)
        return found

    def late_writes(self, known: dict[Event, Value]) -> list[Action]:
        """The gradient of the log decay of a token, from that of the next."""
        actions: list[Action] = []
        if _writes_in(self.late):
            written = self.p.front.fresh("written")
            actions += self._sum_into(written, self.late, (Insert, Write), self.kept_gradient or self.p.dS, known)
            actions.append(ButAtEnd(self.gradient.name, Value(written, "local", self.gradient.dims)))
        if self.late_sum is not None:
            actions.append(Add(self.gradient.name, self.late_sum, self.gradient.dims))
        return actions

    def before(self) -> list[Action]:
        """What a token's early rows add, seen from the decay before."""
        actions: list[Action] = []
        if self.kept_gradient is not None:
            actions.append(Set(self.kept_gradient.name, self.p.dS))
        if _writes_in(self.early):
            written = self.p.front.fresh("written_early")
            actions += self._sum_into(written, self.early, (Insert, Write), self.p.dS, {})
            early = self.t.negative(Value(written, "local", self.gradient.dims))
            actions.append(Add(self.gradient.name, early, self.gradient.dims))
        if self.early_sum is not None:
            actions.append(Add(self.gradient.name, self.early_sum, self.gradient.dims))
        return actions

    # ------------------------------------------------------------------------------------------------------------ sums

    def _sum_into(
        self,
        name: str,
        events: Sequence[Event],
        kinds: tuple[type[Event], ...],
        state: Tile,
        known: dict[Event, Value],
    ) -> list[Action]:
        """The inner products of the rows of `kinds` among `events` with `state`, added up for each channel."""
        terms = [self._term(event, state, known) for event in events if isinstance(event, kinds)]
        loops = [
            [self._term(inner, state, known) for inner in flat(event.events) if isinstance(inner, kinds)]
            for event in events
            if isinstance(event, Again)
        ]
        first: Action = Set(name, reduce(self.t.plus, terms)) if terms else Zero(name, self.gradient.dims)
        steps = [
            Steps(tuple(Add(name, term, self.gradient.dims) for term in body), backwards=False)
            for body in loops
            if body
        ]
        return [first, *steps]

    def _term(self, event: Event, state: Tile, known: dict[Event, Value]) -> Tile:
        outer = self.p.rows[event]
        across = known.get(event) or self.t.summed(self.t.times(state, outer.value), self.p.value)
        return self._by_key(self.t.times(outer.key, across))

    def _by_key(self, tile: Tile) -> Tile:
        return tile if self.per_key else self.t.summed(tile, self.p.key)

    def _is_right(self, event: Event) -> bool:
        return isinstance(event, Look) and event.read.side == "right"


def _reads_in(events: Sequence[Event]) -> bool:
    return any(isinstance(event, Erase | Look) for event in flat(tuple(events)))


def _writes_in(events: Sequence[Event]) -> bool:
    return any(isinstance(event, Insert | Write) for event in flat(tuple(events)))


class SeveralLogDecays:
    """The same for several decays in a token, or in a micro-step: the running difference takes every row as it stands.

    Pairs of rows with no decay between them are then in both sums and cancel but for their rounding, which limits how
    well the gradient is known of a decay that leaves next to nothing of the state.
    """

    def __init__(self, planner: Rows, fades: Sequence[Fade]) -> None:
        self.p, self.t = planner, planner.t
        self.per_key = any(planner.key in planner.front.tile(fade.decay.log).dims for fade in fades)
        self.dims = (planner.key,) if self.per_key else ()
        self.gradient = planner.vector("log_decay_gradient", self.dims, "segment", shared=True)
        self.reads: dict[Event, Value] = {}
        for event in flat(planner.events):
            if isinstance(event, Erase | Look) and not self._is_known(event):
                per: Per = "step" if event in planner.inner else "token"
                self.reads[event] = planner.vector("read", self.dims, per, shared=True)

    def left_by(self, event: Event) -> list[Action]:
        """The inner product of a reader with its gradient, where the walk back cannot compute it."""
        if event not in self.reads:
            return []
        outer = self.p.rows[event]
        across = self.t.summed(self.t.times(self.p.S, outer.value), self.p.value)
        value = self._by_key(self.t.times(outer.key, across))
        return [Set(self.reads[event].name, value), Leave(self.p.front.vectors[self.reads[event].name])]

    def at_end(self) -> Action:
        """The inner product of the state after a segment with its gradient, for each channel."""
        whole = self._by_key(self.t.summed(self.t.times(self.p.S, self.p.dS), self.p.value))
        return AtEnd((Set(self.gradient.name, whole), Leave(self.p.front.vectors[self.gradient.name])))

    def taken_by(self, event: Event, back: WayBack, scope: Scope) -> list[Action]:
        """What changes at `event`, on the way back."""
        match event:
            case Fade(decay):
                return back.back(self.p.front.tile(decay.log), self.gradient, scope)
            case Erase() | Look():
                common: Tile | None = self.reads.get(event)
                if common is None:
                    gradient = self.p.reader_gradients[event]
                    common = self._by_key(self.t.times(self.p.rows[event].key, gradient))
                return [Add(self.gradient.name, common, self.gradient.dims)]
            case Insert() | Write():
                outer = self.p.rows[event]
                across = self.t.summed(self.t.times(self.p.dS, outer.value), self.p.value)
                written = self.t.negative(self._by_key(self.t.times(outer.key, across)))
                return [Add(self.gradient.name, written, self.gradient.dims)]
        return []

    def _is_known(self, event: Event) -> bool:
        left = isinstance(event, Erase) or (isinstance(event, Look) and event.read.side == "left")
        return left and event in self.p.reader_gradients

    def _by_key(self, tile: Tile) -> Tile:
        return tile if self.per_key else self.t.summed(tile, self.p.key)
