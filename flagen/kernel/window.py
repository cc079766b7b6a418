"""Lowers the plans of elementwise states of which none is anything of what it was: kernels that walk nothing.

Such states are a window on the past: what they are at a token is made of that token and of as many before it as states
are made of one another. So a program has a stretch of a sequence, and whatever a statement takes of other tokens is
evaluated there again: a name, `ago` tokens before each of the stretch, is its statement with every name that much
earlier, down to inputs, whose rows are loaded from there.

    X_prev, n tokens ago     X, n + 1 tokens ago; the state before the sequence where there is no such token

Gradients go the same way with tokens behind: that of a state after a token is what reaches it there, and what reaches
the state before the next one; behind the last token, the gradient of the final state.

A stretch has the tokens of a chunk, and one of them the place behind its sequence's last token, be the sequence empty:
the state before that one is the final state.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal

from flagen.kernel.ir import (
    Access,
    Array,
    FirstBlock,
    Given,
    HasEnd,
    HasStart,
    If,
    Kernel,
    Let,
    Load,
    Note,
    Program,
    Row,
    Statement,
    Store,
    access,
    access_rows,
)
from flagen.kernel.passes import live
from flagen.kernel.recurrent import CU_SEQLENS, array_of
from flagen.kernel.scan import Action, Backward, Forward, Lowering
from flagen.plan import scan_kernel, schedule
from flagen.plan.scan_backward import ScanBackwardPlan, Take, WalkBack
from flagen.plan.scan_kernel import TOKEN, ScanKernelPlan, Walk
from flagen.plan.tiles import Arithmetic, Constant, InSequence, Masked, Select, Spread, Sum, Tile, Value, rebuild
from flagen.spec.model import Dims, Input, State

FIRST_STRETCH = Array("first_stretch", ("border",), life="begin", optional=True)
STRETCH_SEQUENCE = Array("stretch_sequence", ("stretch",), life="begin", optional=True)
BEGIN = (CU_SEQLENS, STRETCH_SEQUENCE, FIRST_STRETCH)

ZERO = Constant(0.0)


def window_forward(plan: ScanKernelPlan) -> Program:
    """The kernel of `chunk_<name>`."""
    return Program(f"chunk_{plan.spec.name}", (_Forward(plan).kernel(()),))


def window_backward(plan: ScanBackwardPlan) -> Program:
    """The kernel of `chunk_backward_<name>`."""
    return Program(f"chunk_backward_{plan.spec.name}", (_Backward(plan).kernel(),))


class Window:
    """Evaluates names of tokens some tokens before those of a stretch, or behind them, each where it is first asked
    for: `body` has what that takes."""

    def __init__(self, lowering: Lowering, actions: Iterable[Action]) -> None:
        self.lowering = lowering
        self.body: list[Statement] = []
        self._known: dict[tuple[str, int], Tile] = {}
        self._taken = set(lowering.names)
        self._given: dict[str, schedule.Load | schedule.Set | Walk | Take | WalkBack] = {}
        for action in actions:
            match action:
                case schedule.Load(source):
                    self._given[source.name] = action
                case schedule.Set(target, Value(name)) if name == target:
                    pass  # What a stage gives is called as the state is.
                case schedule.Set(target) | Take(_, target):
                    self._given[target] = action
                case Walk(state, before=before):
                    self._given |= {state.name: action} | ({} if before is None else {before: action})
                case WalkBack(target=target):
                    self._given[target] = action

    def tile(self, tile: Tile, ago: int = 0) -> Tile:
        """A tile as it is that many tokens ago."""
        match tile:
            case Value(name, _, dims) if name in self._given:
                return self._named(name, dims, ago if TOKEN in dims else 0)
            case Masked(value, dim) if dim == TOKEN and ago:
                return self.tile(value, ago)  # Whoever asks for it chooses among tokens.
        return rebuild(tile, lambda part: self.tile(part, ago))

    def before(self, walk: Walk, ago: int = 0) -> Tile:
        """A state before the token, that many tokens ago."""
        over = self.lowering.over(walk.state.dims)
        after = self._named(walk.state.name, over, ago + 1)
        first = Value(walk.first, "local", over[1:])
        return after if ago < 0 else Select(_within(ago + 1), after, first, over)

    def gradient_before(self, walk: WalkBack, ago: int = 0) -> Tile:
        """The gradient of that; where there is no such token, that of the state after the last one."""
        over = self.lowering.over(walk.state.dims)
        return Select(_within(ago), self.tile(_bare(walk.term), ago), Value(walk.after, "local", over[1:]), over)

    def _named(self, name: str, dims: Dims, ago: int) -> Tile:
        if (name, ago) not in self._known:
            found = self._evaluated(name, ago)
            if not isinstance(found, Value) or found.dims != dims:
                target = self._called(name, ago)
                self.body.append(Let(target, found if found.dims == dims else Spread(found, dims)))
                found = Value(target, "local", dims)
            self._known[name, ago] = found
        return self._known[name, ago]

    def _evaluated(self, name: str, ago: int) -> Tile:
        """What a name holds; what is loaded has a name by then."""
        match self._given[name]:
            case schedule.Load(source):
                return self._loaded(name, access_rows(array_of(source), ago), ago)
            case Take(result):
                return self._loaded(name, access_rows(self.lowering.result(result, name, "cotangent"), ago), ago)
            case schedule.Set(_, value):
                return self.tile(value, ago)
            case Walk() as walk:
                return self.before(walk, ago) if name == walk.before else self.tile(_bare(walk.term), ago)
            case WalkBack() as walk:
                over = self.lowering.over(walk.state.dims)
                whole = self.gradient_before(walk, ago - 1)
                if walk.reaching is not None:
                    whole = Arithmetic("+", self.tile(walk.reaching, ago), whole, over)
                return whole if ago else Masked(whole, TOKEN, 0.0, over)

    def _loaded(self, name: str, source: Access, ago: int) -> Tile:
        target = self._called(name, ago)
        self.body.append(Load(target, source))
        return Value(target, "local", tuple(axis for axis in self.lowering.plan.order if axis in source.dims))

    def _called(self, name: str, ago: int) -> str:
        """What a name is called that many tokens ago."""
        if not ago:
            return name
        return schedule.fresh(f"{name}_{ago}_ago" if ago > 0 else f"{name}_in_{-ago}", self._taken)


class _Forward(Forward):
    """The kernel of the results."""

    run = "stretch"
    begin = BEGIN

    def kernel(self, keeps: Sequence[State] = ()) -> Kernel:
        window = Window(self, self.plan.chunk)
        for action in self.plan.chunk:
            if isinstance(action, scan_kernel.Store):
                rows = access_rows(self.result(action.result, action.result.name, "result"))
                window.body.append(Store(rows, self.spread(window.tile(action.value), self.sorted(rows.dims))))
        walks = {walk.state.name: walk for walk in self.plan.walks}
        finals = zip(self.finals(), (walks[state.name] for state in self.spec.states), strict=True)
        stored = [self._store_final(array, window.before(walk)) for array, walk in finals]
        initials = self.initials()
        body = (
            Note(),
            *self.statements(self.plan.once),
            Note(),
            Row("state_row", ("sequence", "head")),
            *(self.start(state, array) for state, array in zip(self.spec.states, initials, strict=True)),
            Note(),
            *window.body,
            Note(),
            *stored,
        )
        return self.assembled((*initials, *self.begin, *self.results(), *self.finals()), body)

    def _store_final(self, array: Array, before: Tile) -> Statement:
        """Store the state before the place behind the last token."""
        once = () if self.owned(array.dims) else (FirstBlock(),)
        return If((Given(array), HasEnd(), *once), (Store(access(array), _row_of("end", before)),))


class _Backward(Backward):
    """That of the gradients."""

    run = "stretch"
    begin = BEGIN

    def kernel(self) -> Kernel:
        back = self.back
        window = Window(self, back.chunk)
        for give in back.gives:
            array = self.gradient(give)
            rows = access_rows(array) if isinstance(give.source, Input) else access(array)
            value = self.spread(window.tile(give.value), self.sorted(rows.dims))
            stored = Store(rows, Value(give.total, "local", value.dims))
            window.body += (Let(give.total, value), If((Given(array),), (stored,)))
        first = [_row_of("start", window.gradient_before(walk)) for walk in back.backs]
        given = zip((self.initial_gradient(state) for state, _ in self.handed_on), first, strict=True)
        of_states = [If((Given(array), HasStart()), (Store(access(array), value),)) for array, value in given]
        initials = [array for array in self.initials() if array.of in {state.name for state in back.kept}]
        body = (
            Note(),
            *self.statements(back.once),
            Note(),
            Row("state_row", ("sequence", "head")),
            *(self.start(state, array) for state, array in zip(back.kept, initials, strict=True)),
            *(self.start_of_gradient(state, name) for state, name in self.handed_on),
            Note(),
            *window.body,
            Note(),
            *of_states,
        )
        arrays = (
            *initials,
            *self.begin,
            *self.cotangents(),
            *(self.final_gradient(state) for state, _ in self.handed_on),
            *map(self.gradient, back.gives),
            *(self.initial_gradient(state) for state, _ in self.handed_on),
        )
        return self.assembled(arrays, live(body, ()))


def _within(ago: int) -> Tile:
    """Which tokens have one that many tokens before them."""
    return InSequence("token", ago, (TOKEN,))


def _row_of(place: Literal["start", "end"], rows: Tile) -> Tile:
    """The row of a place that the stretch has."""
    return Sum(Select(InSequence(place, 0, (TOKEN,)), rows, ZERO, rows.dims), TOKEN, rows.dims[1:])


def _bare(term: Tile) -> Tile:
    """A tile without its mask of tokens, where whoever reads it chooses among them."""
    return term.value if isinstance(term, Masked) and term.dim == TOKEN else term
