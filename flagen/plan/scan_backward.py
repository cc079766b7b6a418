"""The plan of the backward of `chunk_<name>` for elementwise scans: a kernel that walks the chunks from last to first.

A program has what the forward's program had. It scans the states of a chunk again, from the one before it, which the
forward kept; then it goes through the statements in reverse. Each state's gradient is a scan from the last token to the
first (see `flagen.algebra.scan`), every other gradient the transposed expression's. All of it is linear in the
gradients that come in, so what a program adds up over its own block of a dim is a share of the whole sum.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property

from flagen.algebra.scan import SHIFTED
from flagen.plan.gradients import ONE, Transposition
from flagen.plan.lowering import TooManyDims
from flagen.plan.row_planner import NoKernel
from flagen.plan.scan import Result, ScanPlan
from flagen.plan.scan_kernel import TOKEN, Planner, ScanKernelPlan, Walk, plan_scan_kernel, show_action
from flagen.plan.schedule import Load, Set, fresh
from flagen.plan.show import show
from flagen.plan.tiles import Arithmetic, Constant, Function, Head, Masked, Tile, Value, tiles_in
from flagen.plan.unavailable import Unavailable
from flagen.spec.model import Dims, Input, Param, Spec, State


@dataclass(frozen=True)
class Take:
    """Load the gradient of a result, for every token, as `target`."""

    result: Result
    target: str


@dataclass(frozen=True)
class WalkBack:
    """Scan the gradient of a state against the tokens.

    slope: dX / dX_prev. term: the gradient that reaches the state before each token other than through the state after
    it, plus slope times `reaching`, what reaches the latter from anything but the next token. after: the name of the
    gradient of the state after the chunk, and then of the one before it. before: that of the state before each token.
    target: that of the state after each token as a whole, zero for tokens that pad the chunk.
    anew: whether the state begins anew with every chunk: no other one has a gradient of it.
    """

    state: State
    slope: Tile
    term: Tile
    reaching: Tile | None
    after: str
    before: str
    target: str
    anew: bool = False

    @property
    def is_shift(self) -> bool:
        """Whether the state is nothing of what it was, so that no gradient goes through it to the state before."""
        return self.slope == Constant(0.0)


@dataclass(frozen=True)
class Give:
    """The gradient of an input, for every token; or, of a param, this chunk's part of it, to be added to `total`."""

    source: Input | Param
    value: Tile
    total: str


Action = Load | Set | Walk | Take | WalkBack | Give


@dataclass(frozen=True)
class ScanBackwardPlan:
    """What a program of the backward does: `once` before the last chunk, `chunk` for each."""

    forward: ScanKernelPlan
    once: tuple[Load | Set, ...]
    chunk: tuple[Action, ...]
    taken: frozenset[str]

    @property
    def spec(self) -> Spec:
        return self.forward.spec

    @cached_property
    def gives(self) -> tuple[Give, ...]:
        return tuple(action for action in self.chunk if isinstance(action, Give))

    @cached_property
    def backs(self) -> tuple[WalkBack, ...]:
        return tuple(action for action in self.chunk if isinstance(action, WalkBack))

    @cached_property
    def kept(self) -> tuple[State, ...]:
        """The states that are scanned again, of which the forward keeps the one before each chunk."""
        again = {action.state.name for action in self.chunk if isinstance(action, Walk)}
        return tuple(state for state in self.spec.states if state.name in again)

    def evaluated(self) -> Iterator[Tile]:
        """Every expression and every part of one."""
        for action in (*self.once, *self.chunk):
            for tile in _tiles(action):
                yield from tiles_in(tile)

    def is_shared(self, dims: Dims) -> bool:
        """Whether several programs of a head each have a share of a gradient over `dims`."""
        return self.forward.split is not None and self.forward.split not in dims

    def dump(self) -> str:
        """The plan as text."""
        kept = () if self.forward.is_window else self.kept
        lines = [f"keeps {', '.join(state.name for state in kept) or 'no state'} before each chunk"]
        order = "for each chunk:" if self.forward.is_window else "for each chunk, from the last to the first:"
        for title, actions in (("once:", self.once), (order, self.chunk)):
            if actions:
                lines += [title, *(f"    {line}" for action in actions for line in _show(action))]
        return "\n".join(lines)


def _show(action: Action) -> Iterator[str]:
    match action:
        case Take(result, target):
            yield f"load {target}, the gradient of {result.name}"
        case WalkBack(state, term=term, target=target) if action.is_shift:
            yield f"{target} = gradient of {state.name}, that before the next token: {show(term)}"
        case WalkBack(state, slope, term, _, _, _, target):
            yield f"{target} = gradient of {state.name} by reverse scan({show(slope)}, {show(term)})"
        case Give(source, value):
            yield f"the gradient of {source.name} {'+' if isinstance(source, Param) else ''}= {show(value)}"
        case _:
            yield from show_action(action)


def _tiles(action: Action) -> tuple[Tile, ...]:
    match action:
        case Set(_, value) | Give(_, value):
            return (value,)
        case Walk(_, _, factor, term):
            return (factor, term)
        case WalkBack(_, slope, term, reaching):
            return (slope, term) if reaching is None else (slope, term, reaching)
    return ()


def plan_scan_kernels(plan: ScanPlan) -> tuple[ScanKernelPlan, ScanBackwardPlan] | tuple[Unavailable, Unavailable]:
    """The kernel of `plan` and that of its gradients, or why it has neither: there is none without the other."""
    try:
        forward = plan_scan_kernel(plan)
        return forward, BackwardPlanner(forward).plan_backward()
    except NoKernel as missing:
        reason, span = missing.reason, missing.span
    except TooManyDims as wide:
        reason, span = f"it needs a tile over [{', '.join(wide.dims)}] for every token", wide.span
    unavailable = Unavailable(reason, span)
    return unavailable, unavailable


class BackwardPlanner(Planner):
    """Transposes the statements of the forward, from the last to the first."""

    def __init__(self, forward: ScanKernelPlan) -> None:
        super().__init__(forward.plan)
        self.forward = forward
        numbers = self._made_of_numbers(heads=False)
        self.t = Transposition(self.order, self._made_of_numbers(heads=True), numbers)
        self.found: dict[str, Tile] = {}
        """What has reached each name so far."""
        self.actions: list[Action] = []

    def plan_backward(self) -> ScanBackwardPlan:
        once, chunk = self.transposed()
        return ScanBackwardPlan(self.forward, once, chunk, frozenset(self.taken))

    def transposed(self) -> tuple[tuple[Load | Set, ...], tuple[Action, ...]]:
        """What is done before the last chunk, and for each."""
        for result in self.scan.results:
            target = fresh(f"d{result.name}", self.taken)
            dims = (TOKEN, *(dim for dim in self.order[1:] if dim in result.dims))
            self.actions.append(Take(result, target))
            self.rules.note(target, dims, 0.0)
            self.found[result.name] = Value(target, "local", dims)
        for step in reversed(self.steps):
            if isinstance(step, Set):
                self._back_through(step.target, step.value)
            elif isinstance(step, Walk):
                self._walk_back(step)
        for decl in reversed(self.spec.derived):
            self._back_through(decl.name, self.derived[decl.name])
        declared: tuple[Input | Param, ...] = (*self.spec.inputs, *self.spec.params)
        for source in declared:
            if source.name in self.found:
                total = fresh(f"d{source.name}", self.taken)
                self.actions.append(Give(source, self.rules.mask(self.found[source.name]), total))
        self._leave()
        again = self._again()
        once, token = self.prepared(again, (tile for action in self.actions for tile in _tiles(action)))
        return once, (*token, *again, *self.actions)

    def _leave(self) -> None:
        """What a chunk leaves, beside the gradients of states that are scanned, for the one before it."""

    def _again(self) -> tuple[Set | Walk, ...]:
        """The statements of the forward that gradients need."""
        needed = {part.name for action in self.actions for part in _named(_tiles(action))}
        again: list[Set | Walk] = []
        for step in reversed(self.steps):
            if isinstance(step, Set) and step.target in needed:
                again.insert(0, step)
            elif isinstance(step, Walk) and needed & {step.state.name, f"{step.state.name}_prev"}:
                before = f"{step.state.name}_prev"
                again.insert(0, replace(step, before=before if before in needed else None))
            else:
                continue
            needed |= {part.name for part in _named(_tiles(step))}
        return tuple(again)

    # ------------------------------------------------------------------------------------------------------ statements

    def _back_through(self, name: str, value: Tile) -> None:
        """Take the gradient of `name` back to what its value is made of."""
        if name not in self.found or not self.t.reaches(value):
            return
        self._pull(value, self._bound(f"d{name}", self.found.pop(name)))

    def _bound(self, name: str, gradient: Tile) -> Tile:
        """`gradient` under a name of its own, where it is more than one."""
        gradient = self.rules.mask(gradient)
        if isinstance(gradient, Value | Constant):
            return gradient
        target = fresh(name, self.taken)
        self.actions.append(Set(target, gradient))
        self.rules.assign(target, gradient)
        return Value(target, "local", gradient.dims)

    def _pull(self, value: Tile, gradient: Tile) -> None:
        """Add what `gradient`, that of `value`, brings to every name in `value`."""
        while isinstance(value, Masked) and value.dim == TOKEN:
            value = value.value
        for dim in gradient.dims:
            if dim not in value.dims:
                gradient = self.t.summed(gradient, dim)
        for leaf, part in self.t(value, gradient):
            name = leaf.name
            self.found[name] = self.t.plus(self.found[name], part) if name in self.found else part

    def _walk_back(self, walk: Walk) -> None:
        name, dims = walk.state.name, self._over(walk.state.dims)
        before = Value(f"{name}_prev", "local", dims)
        reaching = self.found.pop(name, None)
        if reaching is not None:
            reaching = self._bound(f"d{name}_here", reaching)
        past = self.found.pop(f"{name}_prev", None)
        slopes = self._slopes(walk, before)
        slope = self._bound(f"{name}_slope", slopes[0])
        through = None if reaching is None or walk.is_shift else self.t.times(slope, reaching)
        terms = [part for part in (past, through) if part]
        term: Tile = Constant(0.0) if not terms else terms[0] if len(terms) == 1 else self.t.plus(*terms)
        target = fresh(f"d{name}", self.taken)
        self.actions.append(
            WalkBack(
                state=walk.state,
                slope=slope if walk.is_shift else self._or_identity(slope, 1.0),
                term=self._or_identity(self.rules.mask(term), 0.0),
                reaching=reaching,
                after=fresh(f"d{name}_after", self.taken),
                before=fresh(f"d{name}_before", self.taken),
                target=target,
                anew=walk.anew,
            )
        )
        self.rules.note(target, dims, 0.0, frozenset(self._zero_lanes(walk)))
        whole = Value(target, "local", dims)
        if walk.kind not in SHIFTED:
            gradients: tuple[Tile, Tile] = (self.t.times(whole, before), whole)
        else:
            gradients = (self.t.times(whole, slope), self.t.times(whole, slopes[1]))
        for value, gradient in zip((walk.factor, walk.term), gradients, strict=True):
            if self.t.reaches(value):
                self._pull(value, self._bound(f"d{name}_part", gradient))

    def _zero_lanes(self, walk: Walk) -> tuple[str, ...]:
        """The axes whose padding certainly has a gradient of zero, alone or among others."""
        return (TOKEN,)

    def _slopes(self, walk: Walk, before: Tile) -> tuple[Tile, Tile]:
        """The derivatives of a state after a token by the state before, and by the term."""
        if walk.kind not in SHIFTED:
            return walk.factor, Constant(1.0)
        factor = walk.factor.value if isinstance(walk.factor, Masked) else walk.factor
        term = walk.term.value if isinstance(walk.term, Masked) else walk.term
        decayed = before
        if not (isinstance(factor, Constant) and factor.value == 0):
            decayed = Arithmetic("+", before, factor, before.dims)
        if walk.kind == "maximum":
            slope = self.t.derivative(Function("maximum", (decayed, term), before.dims), 0)
            return slope, self.t.minus(ONE, slope)
        return (
            Function("part_of", (decayed, term), before.dims),
            Function("part_of", (term, decayed), before.dims),
        )

    def _over(self, dims: Dims) -> Dims:
        return (TOKEN, *(dim for dim in self.order[1:] if dim in dims))

    def _made_of_numbers(self, *, heads: bool) -> frozenset[str]:
        """Params that are Python numbers, and what is derived from them, and with `heads` from the head, alone."""
        found = {param.name for param in self.spec.params if not param.is_tensor}
        for name, tile in self.derived.items():
            known = all(value.name in found for value in _named((tile,)))
            if known and (heads or not any(isinstance(part, Head) for part in tiles_in(tile))):
                found.add(name)
        return frozenset(found)


def _named(tiles: tuple[Tile, ...]) -> Iterator[Value]:
    return (part for tile in tiles for part in tiles_in(tile) if isinstance(part, Value))
