"""Lowers the plans of elementwise scans: one kernel that walks chunks, and one that walks back with the gradients."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from flagen.kernel.ir import (
    Add,
    Array,
    Fill,
    FirstBlock,
    Given,
    If,
    Kernel,
    Let,
    Life,
    Load,
    Loop,
    Note,
    Program,
    Row,
    Run,
    Space,
    Statement,
    Store,
    access,
    access_rows,
)
from flagen.kernel.passes import live
from flagen.kernel.recurrent import CU_SEQLENS, array_of, final_array, initial_array, tensors_of
from flagen.plan import scan_kernel, schedule
from flagen.plan.free_names import final_name, free_name, initial_name
from flagen.plan.scan import Result
from flagen.plan.scan_backward import Give, ScanBackwardPlan, Take, WalkBack
from flagen.plan.scan_kernel import TOKEN, ScanKernelPlan, Walk, needs_key_heads
from flagen.plan.tiles import Arithmetic, Constant, Edge, Masked, Product, Scan, Shifted, Spread, Sum, Tile, Value
from flagen.spec.model import Dims, Input, State

Action = schedule.Load | schedule.Set | Walk | scan_kernel.Store | Take | WalkBack | Give

_KEPT_ROW = "No two chunks have the same row, wherever sequences end."


def scan_forward(plan: ScanKernelPlan, backward: ScanBackwardPlan) -> Program:
    """The kernel of `chunk_<name>`, which keeps what that of its gradients asks for."""
    return Program(f"chunk_{plan.spec.name}", (Forward(plan).kernel(backward.kept),))


def scan_backward(plan: ScanBackwardPlan) -> Program:
    """The kernel of `chunk_backward_<name>`."""
    return Program(f"chunk_backward_{plan.spec.name}", (Backward(plan).kernel(),))


class Lowering:
    """Lowers what both kernels do; `hands_on`: states go from chunk to chunk.

    run, begin: what a program has, and the arrays that say where that begins.
    """

    hands_on = True
    run: Run = "sequence"

    @property
    def begin(self) -> tuple[Array, ...]:
        return (CU_SEQLENS,)

    def __init__(self, plan: ScanKernelPlan, names: frozenset[str]) -> None:
        self.plan, self.spec, self.names = plan, plan.spec, names
        self.first = dict(plan.first)

    # ---------------------------------------------------------------------------------------------------------- arrays

    def kept(self, state: State) -> Array:
        """The state before each chunk."""
        name = free_name(f"{state.name}_kept", self.names)
        return Array(name, ("chunk", "head"), state.dims, "residual", state.name, optional=True)

    def result(self, result: Result, name: str, life: Life) -> Array:
        """A result of every token, or its gradient."""
        return Array(name, ("token", "head"), result.dims, life, result.name, own_dtype=True)

    def shares(self, dims: Dims) -> tuple[Space, ...]:
        """Of what all blocks add to, each stores its own share."""
        return () if self.owned(dims) else ("block",)

    def owned(self, dims: Dims) -> bool:
        """Whether each program has a part of its own of what lies over `dims`."""
        return self.plan.split is None or self.plan.split in dims

    # ------------------------------------------------------------------------------------------------------ statements

    def statements(self, actions: Iterable[Action]) -> Iterator[Statement]:
        for action in actions:
            yield from self.statement(action)

    def statement(self, action: Action) -> Iterator[Statement]:
        match action:
            case schedule.Load(source):
                array = array_of(source)
                yield Load(source.name, access_rows(array) if isinstance(source, Input) else access(array))
            case schedule.Set(target, value):
                yield Let(target, value)
            case Walk():
                yield from self._walk(action)
            case scan_kernel.Store(result, value):
                array = self.result(result, result.name, "result")
                yield Store(access_rows(array), self.spread(value, self.over(result.dims)))

    def _walk(self, walk: Walk) -> Iterator[Statement]:
        """Scan a state: all the chunk's tokens, those before them, and the last one for the next chunk."""
        name, over = walk.state.name, self.over(walk.state.dims)
        first = Value(walk.first, "local", over[1:])
        after = Value(name, "local", over)
        if walk.is_shift:
            yield Let(name, self.spread(walk.term, over))
            yield from self._before(walk, after, first)
            if self.hands_on:
                yield Let(walk.first, self._last_token(after))
            return
        factor = None if walk.kind == "phase" else self.spread(walk.factor, over)
        term = self.spread(walk.term, over)
        if walk.anew:
            yield Fill(walk.first, walk.state.dims, walk.state.init)
        yield Let(name, Scan(walk.kind, factor, term, first, TOKEN, False, over))
        yield from self._before(walk, after, first)
        if self.hands_on and not walk.anew:
            yield Let(walk.first, Edge(after, TOKEN, False, over[1:]))

    def _before(self, walk: Walk, after: Tile, first: Tile) -> Iterator[Statement]:
        """The state before each token, where someone reads it."""
        if walk.before is not None:
            yield Let(walk.before, Shifted(after, first, TOKEN, False, after.dims))

    def _last_token(self, rows: Tile) -> Tile:
        """The row of the chunk's last token, behind which there are perhaps others that pad the chunk."""
        inside = Masked(Constant(1.0), TOKEN, 0.0, (TOKEN,))
        is_last = Arithmetic("-", inside, Shifted(inside, Constant(0.0), TOKEN, True, (TOKEN,)), (TOKEN,))
        return Sum(Product((self.spread(is_last, rows.dims), rows), rows.dims), TOKEN, rows.dims[1:])

    def initials(self) -> list[Array]:
        return [initial_array(state, initial_name(state.name, self.names)) for state in self.spec.states]

    def start(self, state: State, initial: Array) -> Statement:
        """The state before the first token."""
        name = self.first[state.name]
        given = Load(name, access(initial), fill=state.init)
        return If((Given(initial, False),), (Fill(name, state.dims, state.init),), (given,))

    def store_by_one(self, array: Array, name: str) -> Statement:
        """Store what has no token where a launch wants it: one of the blocks that all have it."""
        once = () if self.owned(array.dims) else (FirstBlock(),)
        return If((Given(array), *once), (Store(access(array), self.local(name, array.dims)),))

    # ----------------------------------------------------------------------------------------------------------- tiles

    def sorted(self, dims: Iterable[str]) -> Dims:
        found = set(dims)
        return tuple(axis for axis in self.plan.order if axis in found)

    def over(self, dims: Dims) -> Dims:
        """The axes of a tile with a row over `dims` for every token."""
        return (TOKEN, *self.sorted(dims))

    def local(self, name: str, dims: Iterable[str]) -> Tile:
        return Value(name, "local", self.sorted(dims))

    def spread(self, tile: Tile, dims: Dims) -> Tile:
        return tile if tile.dims == dims else Spread(tile, dims)

    # ---------------------------------------------------------------------------------------------------------- kernel

    def assembled(self, arrays: Sequence[Array], body: Sequence[Statement]) -> Kernel:
        plan = self.plan
        heads = ("H", "HV") if needs_key_heads(self.spec, plan.evaluated()) else ("HV",)
        return Kernel(
            name="",
            run=self.run,
            block_of=plan.split,
            order=plan.order,
            arrays=(*tensors_of(self.spec), *arrays),
            numbers=tuple(param.name for param in self.spec.params if not param.is_tensor),
            lengths=("T",),
            sizes=(*heads, *self.sizes()),
            names=self.names,
            body=tuple(body),
        )

    def sizes(self) -> tuple[str, ...]:
        """What it is compiled for, beside heads and blocks."""
        return (*self.plan.order[1:], "CHUNK")


class Forward(Lowering):
    """The kernel of the results: it walks the chunks of a sequence."""

    def __init__(self, plan: ScanKernelPlan) -> None:
        super().__init__(plan, plan.taken)

    def kernel(self, keeps: Sequence[State]) -> Kernel:
        """Walks the chunks; `keeps`: states that a gradient wants as they are before each chunk."""
        spec, plan = self.spec, self.plan
        initial, final = self.initials(), self.finals()
        kept = [self.kept(state) for state in keeps]
        keeping = [self.store_by_one(self.kept(state), self.first[state.name]) for state in keeps]
        chunk = (
            *((Note(_KEPT_ROW), Row("kept_row", ("chunk", "head"))) if keeping else ()),
            *keeping,
            *self.chunk(),
        )
        body = (
            Note(),
            *self.statements(plan.once),
            Note(),
            Row("state_row", ("sequence", "head")),
            *(self.start(state, array) for state, array in zip(spec.states, initial, strict=True)),
            Note(),
            self.loop(chunk),
            Note(),
            *(self.store_by_one(x, self.first[s.name]) for s, x in zip(spec.states, final, strict=True)),
        )
        return self.assembled((*initial, *self.begin, *self.results(), *final, *kept), body)

    def chunk(self) -> Iterable[Statement]:
        """What is evaluated in a chunk, and stored."""
        return self.statements(self.plan.chunk)

    def loop(self, chunk: tuple[Statement, ...]) -> Loop:
        """What is done for each chunk."""
        return Loop("chunk", chunk)

    def results(self) -> list[Array]:
        return [self.result(result, result.name, "result") for result in self.plan.plan.results]

    def finals(self) -> list[Array]:
        return [final_array(state, final_name(state.name, self.names)) for state in self.spec.states]


class Backward(Lowering):
    """The kernel of the gradients: it walks them from the last to the first."""

    hands_on = False

    def __init__(self, plan: ScanBackwardPlan) -> None:
        super().__init__(plan.forward, plan.taken)
        self.back = plan

    def kernel(self) -> Kernel:
        """Walks the chunks from the last to the first."""
        back = self.back
        params = [give for give in back.gives if not isinstance(give.source, Input)]
        chunk = (
            *((Row("kept_row", ("chunk", "head")),) if back.kept else ()),
            *(Load(self.first[s.name], access(self.kept(s)), fill=s.init) for s in back.kept),
            *live(tuple(self.statements(back.chunk)), self.carried),
        )
        body = (
            Note(),
            *self.statements(back.once),
            Note(),
            Row("state_row", ("sequence", "head")),
            *self.starts(),
            *(self.start_of_gradient(state, name) for state, name in self.handed_on),
            *(Fill(give.total, give.source.dims, 0.0) for give in params),
            Note(),
            self.loop(chunk),
            Note(),
            *(self.store_wanted(self.initial_gradient(state), name) for state, name in self.handed_on),
            *(self.store_wanted(self.gradient(give), give.total) for give in params),
        )
        arrays = (
            *self.begin,
            *self.cotangents(),
            *(self.final_gradient(state) for state, _ in self.handed_on),
            *map(self.kept, back.kept),
            *map(self.gradient, back.gives),
            *(self.initial_gradient(state) for state, _ in self.handed_on),
        )
        return self.assembled(arrays, body)

    def starts(self) -> tuple[Statement, ...]:
        """What is known before the last chunk, beside gradients."""
        return ()

    @property
    def handed_on(self) -> list[tuple[State, str]]:
        """The states whose gradients go from chunk to chunk, and what these are called."""
        return [(walk.state, walk.after) for walk in self.back.backs if not walk.anew]

    @property
    def carried(self) -> list[str]:
        """What a chunk leaves for the one before it."""
        totals = [give.total for give in self.back.gives if not isinstance(give.source, Input)]
        return [*(name for _, name in self.handed_on), *totals]

    def loop(self, chunk: tuple[Statement, ...]) -> Loop:
        """What is done for each chunk, the last one first."""
        return Loop("chunk", chunk, reverse=True)

    # ---------------------------------------------------------------------------------------------------------- arrays

    def cotangents(self) -> list[Array]:
        takes = (action for action in self.back.chunk if isinstance(action, Take))
        return [self.result(take.result, take.target, "cotangent") for take in takes]

    def final_gradient(self, state: State) -> Array:
        name = free_name(f"d{state.name}_final", self.names)
        return self._of_state(state, name, "cotangent")

    def initial_gradient(self, state: State) -> Array:
        name = free_name(f"d{state.name}_initial", self.names)
        return self._of_state(state, name, "gradient", self.shares(state.dims))

    def _of_state(self, state: State, name: str, life: Life, shares: tuple[Space, ...] = ()) -> Array:
        return Array(name, ("sequence", "head", *shares), state.dims, life, state.name, optional=True)

    def gradient(self, give: Give) -> Array:
        """Where the gradient of an input goes, or a program's part of that of a param, if it is wanted."""
        source, of_input = give.source, isinstance(give.source, Input)
        rows: Space = "token" if of_input else self.run
        spaces = (rows, "head", *self.shares(source.dims))
        return Array(give.total, spaces, source.dims, "gradient", source.name, own_dtype=of_input, optional=True)

    # ------------------------------------------------------------------------------------------------------ statements

    def statement(self, action: Action) -> Iterator[Statement]:
        match action:
            case Take(result, target):
                yield Load(target, access_rows(self.result(result, target, "cotangent")))
            case WalkBack():
                yield from self._walk_back(action)
            case Give(Input() as source, value, total):
                array, over = self.gradient(action), self.over(source.dims)
                yield Let(total, self.spread(value, over))
                yield If((Given(array),), (Store(access_rows(array), Value(total, "local", over)),))
            case Give(source, value, total):
                yield Add(total, value, self.sorted(source.dims))
            case _:
                yield from super().statement(action)

    def start_of_gradient(self, state: State, name: str) -> Statement:
        """The gradient of a state after the last token; where blocks have shares of it, it comes in once."""
        array, dims = self.final_gradient(state), state.dims
        given = Load(name, access(array), once=bool(self.shares(dims)))
        return If((Given(array, False),), (Fill(name, dims, 0.0),), (given,))

    def _walk_back(self, walk: WalkBack) -> Iterator[Statement]:
        """Scan the gradient of a state against the tokens: before each token, after each, and before the chunk."""
        over = self.over(walk.state.dims)
        slope, term = self.spread(walk.slope, over), self.spread(walk.term, over)
        after = Value(walk.after, "local", over[1:])
        before = Value(walk.before, "local", over)
        if walk.anew:
            yield Fill(walk.after, walk.state.dims, 0.0)
        if walk.is_shift:
            beyond = self.spread(Masked(Constant(0.0), TOKEN, 1.0, (TOKEN,)), over)
            behind = Product((beyond, self.spread(after, over)), over)
            yield Let(walk.before, Arithmetic("+", term, behind, over))
        else:
            yield Let(walk.before, Scan("affine", slope, term, after, TOKEN, True, over))
        whole: Tile = Shifted(before, after, TOKEN, True, over)
        if walk.reaching is not None:
            whole = Arithmetic("+", walk.reaching, whole, over)
        yield Let(walk.target, Masked(whole, TOKEN, 0.0, over))
        if not walk.anew:
            yield Let(walk.after, Edge(before, TOKEN, True, over[1:]))

    def store_wanted(self, array: Array, name: str) -> Statement:
        return If((Given(array),), (Store(access(array), self.local(name, array.dims)),))
