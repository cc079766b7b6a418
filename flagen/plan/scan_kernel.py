"""The plan of `chunk_<name>` for elementwise scans: a kernel that walks chunks, and takes all tokens of one at once.

Tiles have the tokens of a chunk as their first axis, and after it what dims an expression has: a tile that lacks the
token axis is the same for every token. A state is scanned along that axis, from the state before the chunk; what pads a
last chunk is made an element that changes nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property

from flagen.algebra.scan import Kind, Scan
from flagen.plan.lowering import Lowering, NoTile
from flagen.plan.padding import PaddingRules
from flagen.plan.row_planner import NoKernel
from flagen.plan.scan import Result, ScanPlan
from flagen.plan.schedule import Load, Set, declared_names, fresh
from flagen.plan.show import show
from flagen.plan.split import crossed_dims
from flagen.plan.tiles import (
    MAX_DIMS,
    Along,
    Constant,
    Head,
    Lane,
    Masked,
    MatMul,
    Normalize,
    Paired,
    Rotated,
    Size,
    StateTile,
    Sum,
    Tile,
    Value,
    operands,
    rebuild,
    tiles_in,
)
from flagen.spec.model import Assign, Dims, Expr, Spec, State

TOKEN = "token"
"""The axis of a tile along which the tokens of a chunk lie; no dim of a spec may have its name."""

MAX_WINDOW = 8
"""How many tokens back kernels without a walk look: what they evaluate again grows with the square of that."""

SIZES = (16, 32, 64)
"""Tokens of a chunk that kernels are made for."""

IDENTITY: dict[Kind, tuple[float, float]] = {
    "affine": (1.0, 0.0),
    "logaddexp": (0.0, float("-inf")),
    "maximum": (0.0, float("-inf")),
    "phase": (1.0, 0.0),
}
"""The element of each scan that changes nothing."""


@dataclass(frozen=True)
class Walk:
    """Scan `state` along the tokens of a chunk: the state after each token from the one before the chunk, `first`.

    `before`: what the states before each token are called, where someone reads them. `anew`: whether a state begins
    anew with every chunk, and leaves nothing for the next one.
    """

    state: State
    kind: Kind
    factor: Tile
    term: Tile
    first: str
    before: str | None
    anew: bool = False

    @property
    def is_shift(self) -> bool:
        """Whether the state is `term` alone: nothing is scanned, and for tokens that pad the chunk it is zero."""
        return self.kind == "affine" and self.factor == Constant(0.0)


@dataclass(frozen=True)
class Store:
    """Store a result of every token."""

    result: Result
    value: Tile


Action = Load | Set | Walk | Store


@dataclass(frozen=True)
class ScanKernelPlan:
    """What a program of the kernel does, and which part of the states it owns.

    order: the order of a tile's axes, tokens first. split: the dim of which a program owns a block; None where there is
    none that nothing sums over. once: what is done before the first chunk; chunk: what is done for each. first: what
    the state before a chunk is called, for each state.
    """

    plan: ScanPlan
    order: Dims
    split: str | None
    once: tuple[Load | Set, ...]
    chunk: tuple[Action, ...]
    first: tuple[tuple[str, str], ...]
    taken: frozenset[str]

    @property
    def spec(self) -> Spec:
        return self.plan.spec

    @property
    def size(self) -> int:
        """Tokens of a chunk where a call does not say."""
        return chunk_size(self.spec)

    @cached_property
    def walks(self) -> tuple[Walk, ...]:
        return tuple(action for action in self.chunk if isinstance(action, Walk))

    @cached_property
    def is_window(self) -> bool:
        """Whether no state is anything of what it was, nor made of tokens long ago: then kernels need not walk."""
        return all(walk.is_shift for walk in self.walks) and self._window <= MAX_WINDOW

    @property
    def _window(self) -> int:
        """How many tokens back anything looks, where states are nothing of what they were."""
        back: dict[str, int] = {}
        for action in self.chunk:
            looks = (back.get(value.name, 0) for tile in _tiles((action,)) for value in _values(tile))
            match action:
                case Set(target):
                    back[target] = max(looks, default=0)
                case Walk(state):
                    back[state.name] = max(looks, default=0)
                    back[f"{state.name}_prev"] = back[state.name] + 1
        return max(back.values(), default=0)

    def evaluated(self) -> Iterator[Tile]:
        """Every expression and every part of one."""
        for tile in _tiles((*self.once, *self.chunk)):
            yield from tiles_in(tile)

    @property
    def sources(self) -> tuple[str, ...]:
        """The inputs and params that are read."""
        return tuple(action.source.name for action in (*self.once, *self.chunk) if isinstance(action, Load))

    def dump(self) -> str:
        """The plan as text."""
        owned = f"a block of {self.split} of" if self.split else "all of"
        has = f"has {self.size} tokens" if self.is_window else f"walks chunks of {self.size} tokens"
        lines = [f"a program owns {owned} the states of a head, and {has}"]
        for title, actions in (("once:", self.once), ("for each chunk:", self.chunk)):
            if actions:
                lines += [title, *(f"    {line}" for action in actions for line in show_action(action))]
        return "\n".join(lines)


def chunk_size(spec: Spec) -> int:
    """Tokens of a chunk for kernels: fewer where a token's tile is a matrix."""
    wide = max(len(dims) for dims in (*(state.dims for state in spec.states), *(decl.dims for decl in spec.inputs)))
    size = spec.chunk.size or (16 if wide > 1 else 32)
    return max(SIZES[0], max((s for s in SIZES if s <= size), default=SIZES[0]))


def show_action(action: Action) -> Iterator[str]:
    """An action as text."""
    match action:
        case Load(source):
            yield f"load {source.name} [{', '.join(source.dims)}]"
        case Set(target, value):
            yield f"{target} = {show(value)}"
        case Walk(state, term=term) if action.is_shift:
            yield f"{state.name} = {show(term)}, of every token"
        case Walk(state, "phase", _, term):
            yield f"{state.name} = phase scan({show(term)})"
        case Walk(state, kind, factor, term):
            yield f"{state.name} = {kind} scan({show(factor)}, {show(term)})"
        case Store(result, value):
            yield f"store {result.name} = {show(value)}"


def _tiles(actions: Iterable[Action]) -> Iterator[Tile]:
    for action in actions:
        if isinstance(action, Set | Store):
            yield action.value
        elif isinstance(action, Walk):
            yield from (action.factor, action.term)


def plan_scan_kernel(plan: ScanPlan) -> ScanKernelPlan:
    """The forward kernel of `plan`.

    Raises:
        TooManyDims, NoKernel: there is none.
    """
    return Planner(plan).plan()


class Planner:
    """Lowers the statements of a scan form to tiles with an axis of tokens, and masks them."""

    def __init__(self, plan: ScanPlan) -> None:
        self.scan = plan
        self.spec = plan.spec
        self.order = (TOKEN, *dict.fromkeys((*self.spec.axes, *self.spec.dims)))
        self.taken = set(self._declared()) | {f"{state.name}_prev" for state in self.spec.states}
        self.rules = PaddingRules(self.spec)
        self.by_token = {decl.name for decl in self.spec.inputs}
        self._lower = Lowering(self.order[1:])
        for state in self.spec.states:
            if len(state.dims) > MAX_DIMS:
                raise NoKernel(f"`{state.name}` has {len(state.dims)} dims", state.span)
        self.first = {state.name: fresh(f"{state.name}_first", self.taken) for state in self.spec.states}
        self.derived: dict[str, Tile] = {}
        for decl in self.spec.derived:
            self.derived[decl.name] = self._named(decl.name, decl.value)
        self.steps: list[Set | Walk | Store] = [*self._statements()]
        for assign in plan.form.outputs:
            self.steps += self._output(assign)

    def _declared(self) -> Iterator[str]:
        """Every name that is taken from the start."""
        return declared_names(self.spec)

    def _statements(self) -> Iterator[Set | Walk | Store]:
        """What is done to come from one token to the next."""
        return map(self._statement, self.scan.form.update)

    def plan(self) -> ScanKernelPlan:
        """The plan of the forward kernel."""
        once, token = self.prepared(self.steps)
        return ScanKernelPlan(
            plan=self.scan,
            order=self.order,
            split=self.split(),
            once=once,
            chunk=(*token, *self.steps),
            first=tuple(self.first.items()),
            taken=frozenset(self.taken),
        )

    # ----------------------------------------------------------------------------------------------------- expressions

    def tile(self, expr: Expr) -> Tile:
        """`expr` over the tokens of a chunk, masked wherever padding would leak into a sum.

        Raises:
            TooManyDims: it does not fit tiles.
            NoKernel: it has parts that kernels of whole chunks do not evaluate.
        """
        try:
            lowered = self._lower(expr)
        except NoTile as whole:
            raise NoKernel(whole.reason, whole.span) from None
        return self.rules.mask(self._with_tokens(lowered, expr))

    def _with_tokens(self, tile: Tile, expr: Expr) -> Tile:
        """`tile` with an axis of tokens wherever it depends on the token."""
        match tile:
            case Constant() | Size() | Head() | Lane():
                return tile
            case Value(name, _, dims):
                return replace(tile, dims=(TOKEN, *dims)) if name in self.by_token else tile
            case StateTile(name, previous, dims):
                return Value(f"{name}_prev" if previous else name, "local", (TOKEN, *dims))
            case MatMul():
                raise NoKernel("it needs a product of matrices for every token", expr.span)
        inner = rebuild(tile, lambda part: self._with_tokens(part, expr))
        over = {dim for part in operands(inner) for dim in part.dims}
        match inner:
            case Sum(_, dim):
                over -= {dim}
            case Rotated():
                over -= {inner.pair}
            case Paired(left, right, (*_, pairs)):
                over = {pairs, *over} - {left.dims[-1], right.dims[-1]}
            case Along(_, dims):
                over = {*dims, *over - {*operands(tile)[0].dims}}
        if isinstance(inner, Normalize) and TOKEN not in over:
            raise NoKernel(f"`{inner.function}` of what is the same for every token", expr.span)
        spread: Tile = replace(inner, dims=tuple(dim for dim in self.order if dim in over))
        return spread

    def _named(self, name: str, expr: Expr) -> Tile:
        """The tile of a name, which is known from here on."""
        value = self.tile(expr)
        self.rules.assign(name, value)
        if TOKEN in value.dims:
            self.by_token.add(name)
        return value

    # ------------------------------------------------------------------------------------------------------ statements

    def _statement(self, part: Assign | Scan) -> Set | Walk:
        if isinstance(part, Assign):
            return Set(part.target, self._named(part.target, part.value))
        state = part.state
        factor, term = (
            self._or_identity(self.tile(expr), identity)
            for expr, identity in zip((part.factor, part.term), IDENTITY[part.kind], strict=True)
        )
        if part.is_shift:
            factor, term = Constant(0.0), self._zero_beyond(term)
        before = f"{state.name}_prev" if self._reads_before(state.name) else None
        return Walk(state, part.kind, factor, term, self.first[state.name], before)

    def _or_identity(self, tile: Tile, identity: float) -> Tile:
        """`tile`, and `identity` for the tokens that pad a chunk."""
        lanes = frozenset((TOKEN,))
        if TOKEN in tile.dims and self.rules.padding(tile, lanes) == identity:
            return tile
        dims = tile.dims if TOKEN in tile.dims else (TOKEN, *tile.dims)
        return tile if isinstance(tile, Constant) and tile.value == identity else Masked(tile, TOKEN, identity, dims)

    def _zero_beyond(self, tile: Tile) -> Tile:
        """`tile`, which is the same for all tokens or zero for those that pad a chunk, zero there."""
        return tile if TOKEN in tile.dims else Masked(tile, TOKEN, 0.0, (TOKEN, *tile.dims))

    def _reads_before(self, state: str) -> bool:
        return state in self.scan.form.previous

    def _output(self, assign: Assign) -> Iterator[Set | Store]:
        results = {result.name: result for result in self.scan.results}
        value = self._named(assign.target, assign.value)
        yield Set(assign.target, value)
        if assign.target in results:
            yield Store(results[assign.target], Value(assign.target, "local", value.dims))

    def prepared(
        self, steps: Iterable[Set | Walk | Store], also: Iterable[Tile] = ()
    ) -> tuple[tuple[Load | Set, ...], tuple[Load | Set, ...]]:
        """What `steps` (and other tiles) read, loaded and evaluated: before the first chunk, and for each."""
        needed = {value.name for tile in (*_tiles(steps), *also) for value in _values(tile)}
        for decl in reversed(self.spec.derived):
            if decl.name in needed:
                needed |= {value.name for value in _values(self.derived[decl.name])}
        once: list[Load | Set] = [Load(p) for p in self.spec.params if p.is_tensor and p.name in needed]
        chunk: list[Load | Set] = [Load(decl) for decl in self.spec.inputs if decl.name in needed]
        for decl in self.spec.derived:
            if decl.name in needed:
                (chunk if decl.name in self.by_token else once).append(Set(decl.name, self.derived[decl.name]))
        return tuple(once), tuple(chunk)

    # ----------------------------------------------------------------------------------------------------------- split

    def split(self) -> str | None:
        """The dim that is cut into blocks: one that nothing sums over and every result has; that of most states."""
        crossed = {dim for tile in (*self.derived.values(), *_tiles(self.steps)) for dim in crossed_dims(tile)}
        results = [set(result.dims) for result in self.scan.results]
        free = [d for d in self.spec.dims if d not in crossed and all(d in dims for dims in results)]

        def worth(dim: str) -> tuple[int, int]:
            return sum(dim in state.dims for state in self.spec.states), self.spec.dims.index(dim)

        return max(free, key=worth, default=None)


def _values(tile: Tile) -> Iterator[Value]:
    return (part for part in tiles_in(tile) if isinstance(part, Value))


def needs_key_heads(spec: Spec, tiles: Iterable[Tile]) -> bool:
    """Whether a kernel has to know H: an input has a row for each key head, or an expression names the size."""
    named = any(isinstance(tile, Size) and tile.name == "H" for tile in tiles)
    return named or any(decl.heads == "H" for decl in spec.inputs)
