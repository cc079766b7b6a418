"""The contexts of `chunk_kernels.py` and `chunk_backward_kernels.py` where states are elementwise scans."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

from flagen.backends.printed import Printed, product, product_of, total_of
from flagen.backends.text import tuple_of
from flagen.backends.torch_.common import equations
from flagen.backends.triton_.axes import Axes
from flagen.backends.triton_.device import OF_SCANS
from flagen.backends.triton_.kernel import tensor_names
from flagen.backends.triton_.lines import live, names_in
from flagen.backends.triton_.printer import Printer, literal
from flagen.backends.triton_.scan_config import config_lines
from flagen.backends.triton_.scan_describe import ownership, reverse_lines, traffic, traffic_back
from flagen.diagnostics import InternalError
from flagen.plan.free_names import final_name, free_name, initial_name
from flagen.plan.scan_backward import Give, ScanBackwardPlan, Take, WalkBack
from flagen.plan.scan_kernel import TOKEN, ScanKernelPlan, Store, Walk, needs_key_heads
from flagen.plan.schedule import Load, Set
from flagen.plan.tiles import Head, Tile
from flagen.spec.model import Dims, Input, Param, State

Actions = Sequence[Load | Set | Walk | Store | Take | WalkBack | Give]
Body = Mapping[str, Sequence[str | Mapping[str, str]]]
"""What a kernel does: lines, and parts of lines by what they are."""


def scan_kernel_context(plan: ScanKernelPlan, kept: Sequence[State]) -> Mapping[str, object]:
    """Every value `triton/scan_kernels.py.j2` uses; `kept`: the states that a gradient wants before each chunk."""
    writer = ScanWriter(plan)
    once, chunk = list(writer.lines(plan.once)), list(writer.lines(plan.chunk))
    body: Body = {
        "states": [writer.start(state) for state in plan.spec.states],
        "once": once,
        "keeping": [writer.keep(state) for state in kept],
        "chunk": chunk,
        "finals": [writer.final(state) for state in plan.spec.states],
    }
    return {
        **body,
        "name": plan.spec.name,
        "device": OF_SCANS,
        "sizes": plan.order[1:],
        "config": list(config_lines(plan, backward=False)),
        "parameters": writer.forward_parameters(kept),
        "equations": equations(plan.spec),
        "ownership": ownership(plan),
        "traffic": traffic(plan, kept),
        "program": list(writer.program(plan.chunk, plan.evaluated())),
        "axes": writer.axis_lines(body),
        "rows": writer.row_lines(chunk),
        "token_mask": writer.token_mask,
    }


def scan_backward_context(plan: ScanBackwardPlan) -> Mapping[str, object]:
    """Every value `triton/scan_backward_kernels.py.j2` uses."""
    writer = BackwardWriter(plan)
    carried = [*(back.after for back in plan.backs), *(give.total for give in plan.gives)]
    once, chunk = list(writer.lines(plan.once)), live(list(writer.lines(plan.chunk)), carried)
    body: Body = {
        "starts": [writer.start_back(back) for back in plan.backs],
        "totals": [line for give in plan.gives for line in writer.zero(give)],
        "once": once,
        "kept": [writer.take_kept(state) for state in plan.kept],
        "chunk": chunk,
        "initials": [writer.give_initial(back) for back in plan.backs],
        "sums": [writer.give_total(give) for give in plan.gives if isinstance(give.source, Param)],
    }
    return {
        **body,
        "name": plan.spec.name,
        "device": OF_SCANS,
        "sizes": plan.forward.order[1:],
        "config": list(config_lines(plan.forward, backward=True)),
        "parameters": writer.parameters(),
        "equations": reverse_lines(plan),
        "ownership": ownership(plan.forward),
        "traffic": traffic_back(plan),
        "program": list(writer.program(plan.chunk, plan.evaluated())),
        "axes": writer.axis_lines(body),
        "rows": writer.row_lines(chunk),
        "token_mask": writer.token_mask,
    }


class TokenAxes(Axes):
    """Axes of tiles whose first is the tokens of a chunk, whose indices are called `token`."""

    def index(self, dim: str) -> str:
        return TOKEN if dim == TOKEN else super().index(dim)


class ScanWriter:
    """Writes the parts of one kernel; `hands_on`: states go from chunk to chunk."""

    hands_on = True

    def __init__(self, plan: ScanKernelPlan, taken: frozenset[str] | None = None) -> None:
        self.plan, self.spec = plan, plan.spec
        self.taken = plan.taken if taken is None else taken
        self.axes = TokenAxes(plan.order, self.taken)
        self.print = Printer(self.axes)
        self.first = dict(plan.first)

    # ------------------------------------------------------------------------------------------------------ parameters

    def forward_parameters(self, kept: Sequence[State]) -> tuple[str, ...]:
        """Pointers, scalars, then what is known at compile time; in the order of `forward_arguments`."""
        results = [f"{result.name}_ptr" for result in self.plan.plan.results]
        finals = [f"{final_name(state.name, self.taken)}_ptr" for state in self.spec.states]
        return (
            *(f"{name}_ptr" for name in tensor_names(self.spec)),
            *self.initials(),
            "cu_seqlens_ptr",
            *results,
            *finals,
            *(self.kept_name(state) for state in kept),
            *self.numbers(),
        )

    def initials(self) -> Iterator[str]:
        return (f"{initial_name(state.name, self.taken)}_ptr" for state in self.spec.states)

    def numbers(self) -> Iterator[str]:
        """The parameters behind the pointers."""
        yield from (param.name for param in self.spec.params if not param.is_tensor)
        yield "T"
        yield from (f"{size}: tl.constexpr" for size in compile_time_sizes(self.plan))
        yield "CHUNK: tl.constexpr"
        yield from (f"BLOCK_{dim}: tl.constexpr" for dim in self.plan.order[1:])

    def kept_name(self, state: State) -> str:
        return f"{free_name(f'{state.name}_kept', self.taken)}_ptr"

    # --------------------------------------------------------------------------------------------------------- program

    def program(self, actions: Actions, evaluated: Iterable[Tile]) -> Iterator[str]:
        """Which sequence, head and block a program has: blocks of a head are neighbours, then heads, for the cache."""
        loaded = [action.source for action in actions if isinstance(action, Load)]
        split = self.plan.split
        yield "program = tl.program_id(0)"
        if split is None:
            yield "value_head = program % HV"
            yield "sequence = (program // HV).to(tl.int64)"
        else:
            yield f"blocks = tl.cdiv({split}, BLOCK_{split})"
            yield "block = program % blocks"
            yield "value_head = program // blocks % HV"
            yield "sequence = (program // (blocks * HV)).to(tl.int64)"
        if any(decl.heads == "H" for decl in loaded if isinstance(decl, Input)):
            yield "key_head = value_head // (HV // H)"
        if any(isinstance(tile, Head) for tile in evaluated):
            yield "head = value_head.to(tl.float32)"

    def axis_lines(self, body: Body) -> list[str]:
        """The indices of a program's lanes and which of them are within a dim, as far as the kernel asks."""
        lines = []
        for dim in self.plan.order[1:]:
            start = f"block * BLOCK_{dim} + " if dim == self.plan.split else ""
            lines.append(f"{self.axes.index(dim)} = {start}tl.arange(0, BLOCK_{dim})")
            lines.append(f"{self.axes.mask(dim)} = {self.axes.index(dim)} < {dim}")
        parts = [part for section in body.values() for part in section]
        texts = (text for part in parts for text in ([part] if isinstance(part, str) else part.values()))
        return live(lines, names_in(*texts))

    def row_lines(self, chunk: Iterable[str]) -> list[str]:
        """The rows of a chunk, and what of them is asked for."""
        text = "\n".join(chunk)
        every = {"is_first": "rows == 0", "is_last": "rows == CHUNK - 1"}
        return ["rows = tl.arange(0, CHUNK)", *(f"{name} = {value}" for name, value in every.items() if name in text)]

    @property
    def token_mask(self) -> str:
        return self.axes.mask(TOKEN)

    # ---------------------------------------------------------------------------------------------------------- states

    def start(self, state: State) -> Mapping[str, str]:
        """How the state before the first chunk comes about."""
        blocks = [f"BLOCK_{dim}" for dim in self.axes.sorted(state.dims)]
        init = literal(state.init).text
        given = f"{initial_name(state.name, self.taken)}_ptr"
        load = self._load(f"{given} + {self.axes.address('state_row', state.dims)}", state.dims, init)
        fill = f"tl.full({tuple_of(blocks)}, {init}, tl.float32)"
        return {"name": self.first[state.name], "is_new": f"{given} is None", "start": fill, "load": load}

    def final(self, state: State) -> Mapping[str, str]:
        wanted = f"{final_name(state.name, self.taken)}_ptr"
        address = self.axes.address("state_row", state.dims)
        return {
            "is_wanted": f"{wanted} is not None{self._by_one(state.dims)}",
            "store": self._store(f"{wanted} + {address}", self.first[state.name], state.dims),
        }

    def keep(self, state: State) -> Mapping[str, str]:
        """How the state before a chunk is kept."""
        pointer = self.kept_name(state)
        address = self.axes.address("kept_row", state.dims)
        return {
            "is_wanted": f"{pointer} is not None{self._by_one(state.dims)}",
            "store": self._store(f"{pointer} + {address}", self.first[state.name], state.dims),
        }

    def _by_one(self, dims: Dims) -> str:
        """The condition that one program of several has this to itself."""
        return "" if self.plan.split is None or self.plan.split in dims else " and block == 0"

    # ----------------------------------------------------------------------------------------------------------- lines

    def lines(self, actions: Actions) -> Iterator[str]:
        """The source of `actions`, one statement a line."""
        for action in actions:
            match action:
                case Load(source):
                    yield f"{source.name} = {self._load_source(source)}"
                case Set(target, value):
                    yield f"{target} = {self.print.assigned(value)}"
                case Walk():
                    yield from self._walk(action)
                case Store(result, value):
                    row = f"{TOKEN} * HV + value_head"
                    target = f"{result.name}_ptr + {self.address(row, result.dims)}"
                    text = self.full(value, (TOKEN, *result.dims), f"{result.name}_ptr.dtype.element_ty")
                    yield f"tl.store({target}, {text}, mask={self.within(result.dims)})"
                case _:
                    yield from self.line_back(action)

    def line_back(self, action: Take | WalkBack | Give) -> Iterator[str]:
        """The source of what a backward does besides."""
        raise InternalError(f"a forward kernel has no {type(action).__name__}")

    def _walk(self, walk: Walk) -> Iterator[str]:
        name, dims = walk.state.name, walk.state.dims
        over = self.over(dims)
        first, is_first = self.axes.spread(walk.first, over[1:], over), self.axes.spread("is_first", (TOKEN,), over)
        factor, term = self.full(walk.factor, over), self.full(walk.term, over)
        yield f"{name} = _{walk.kind}_scan({factor}, {term}, {first}, {is_first})"
        if walk.before is not None:
            yield f"{walk.before} = _row_before({name}, {first}, {is_first})"
        if self.hands_on:
            yield f"{walk.first} = _only_row({name}, {self.axes.spread('is_last', (TOKEN,), over)})"

    def over(self, dims: Dims) -> Dims:
        """The axes of a tile that has a row over `dims` for every token."""
        return (TOKEN, *self.axes.sorted(dims))

    def full(self, tile: Tile, dims: Dims, dtype: str = "") -> str:
        """`tile` over all of `dims`; as an element of memory of `dtype`."""
        over = self.axes.sorted(dims)
        text = self.print.over(tile, over)
        if tile.dims != over:
            shape = tuple_of("CHUNK" if dim == TOKEN else f"BLOCK_{dim}" for dim in over)
            text = f"tl.broadcast_to({text}, {shape})" if tile.dims else f"tl.full({shape}, {text}, tl.float32)"
        if not dtype:
            return text
        return f"{text if text.isidentifier() else f'({text})'}.to({dtype})"

    def _load_source(self, source: Input | Param) -> str:
        if isinstance(source, Param):
            row = "value_head" if source.per_head else ""
            return self._load(f"{source.name}_ptr + {self.axes.address(row, source.dims)}", source.dims, "0.0")
        address = self.address(self.row_of(source), source.dims)
        return f"tl.load({source.name}_ptr + {address}, mask={self.within(source.dims)}, other=0.0).to(tl.float32)"

    def row_of(self, source: Input) -> str:
        heads, head = ("HV", "value_head") if source.heads == "HV" else ("H", "key_head")
        return f"{TOKEN} * {heads} + {head}"

    def address(self, row: str, dims: Dims) -> str:
        """The offsets of the rows of a chunk's tokens, of what lies in memory over `dims` in this order."""
        if not dims:
            return row
        over = self.over(dims)
        rows = Printed(self.axes.spread(f"({row})", (TOKEN,), over))
        offsets = [
            product_of(self.axes.spread(self.axes.index(dim), (dim,), over), *dims[place + 1 :])
            for place, dim in enumerate(dims)
        ]
        return total_of(product(rows, product(*map(Printed, dims))).text, *offsets)

    def within(self, dims: Dims) -> str:
        """The mask of a tile with a row over `dims` for every token."""
        over = self.over(dims)
        return " & ".join(self.axes.spread(self.axes.mask(dim), (dim,), over) for dim in over)

    def _load(self, pointer: str, dims: Dims, other: str) -> str:
        """Load something that has no token."""
        mask = f", mask={self.axes.within(dims)}, other={other}" if dims else ""
        return f"tl.load({pointer}{mask}).to(tl.float32)"

    def _store(self, pointer: str, value: str, dims: Dims) -> str:
        mask = f", mask={self.axes.within(dims)}" if dims else ""
        return f"tl.store({pointer}, {value}{mask})"


class BackwardWriter(ScanWriter):
    """Writes the parts of the backward's kernel."""

    hands_on = False

    def __init__(self, plan: ScanBackwardPlan) -> None:
        super().__init__(plan.forward, plan.taken)
        self.back = plan

    def parameters(self) -> tuple[str, ...]:
        """Pointers to what is read, then to what is written, and the rest."""
        return (
            *(f"{name}_ptr" for name in tensor_names(self.spec)),
            "cu_seqlens_ptr",
            *(f"{take.target}_ptr" for take in self.takes),
            *(self.final_gradient(back) for back in self.back.backs),
            *(self.kept_name(state) for state in self.back.kept),
            *(f"{give.total}_ptr" for give in self.back.gives),
            *(self.initial_gradient(back) for back in self.back.backs),
            *self.numbers(),
        )

    @property
    def takes(self) -> tuple[Take, ...]:
        return tuple(action for action in self.back.chunk if isinstance(action, Take))

    def final_gradient(self, back: WalkBack) -> str:
        return f"{free_name(f'd{back.state.name}_final', self.taken)}_ptr"

    def initial_gradient(self, back: WalkBack) -> str:
        return f"{free_name(f'd{back.state.name}_initial', self.taken)}_ptr"

    def start_back(self, back: WalkBack) -> Mapping[str, str]:
        """How the gradient of the state after the last chunk comes about."""
        state, given = back.state, self.final_gradient(back)
        blocks = [f"BLOCK_{dim}" for dim in self.axes.sorted(state.dims)]
        load = self._load(f"{given} + {self.axes.address('state_row', state.dims)}", state.dims, "0.0")
        if self._by_one(state.dims):
            load = f"tl.where(block == 0, {load}, 0.0)"  # The blocks' gradients are added up: one of them has it.
        return {
            "name": back.after,
            "is_new": f"{given} is None",
            "start": f"tl.full({tuple_of(blocks)}, 0.0, tl.float32)",
            "load": load,
        }

    def take_kept(self, state: State) -> str:
        init = literal(state.init).text
        address = self.axes.address("kept_row", state.dims)
        return f"{self.first[state.name]} = {self._load(f'{self.kept_name(state)} + {address}', state.dims, init)}"

    def zero(self, give: Give) -> Iterator[str]:
        if isinstance(give.source, Param):
            blocks = tuple_of(f"BLOCK_{dim}" for dim in self.axes.sorted(give.source.dims))
            yield f"{give.total} = tl.full({blocks}, 0.0, tl.float32)"

    def line_back(self, action: Take | WalkBack | Give) -> Iterator[str]:
        match action:
            case Take(result, target):
                address = self.address(f"{TOKEN} * HV + value_head", result.dims)
                mask = f"mask={self.within(result.dims)}, other=0.0"
                yield f"{target} = tl.load({target}_ptr + {address}, {mask}).to(tl.float32)"
            case WalkBack():
                yield from self._walk_back(action)
            case Give(Input() as source, value, total):
                yield f"{total} = {self.full(value, (TOKEN, *source.dims))}"
                yield f"if {total}_ptr is not None:"
                row = f"{TOKEN} * HV + value_head"
                row = f"({row}) * blocks + block" if self.back.is_shared(source.dims) else row
                target = f"{total}_ptr + {self.address(row, source.dims)}"
                stored = f"{total}.to({total}_ptr.dtype.element_ty)"
                yield f"    tl.store({target}, {stored}, mask={self.within(source.dims)})"
            case Give(source, value, total):
                yield f"{total} += {self.print.over(value, self.axes.sorted(source.dims))}"

    def _walk_back(self, back: WalkBack) -> Iterator[str]:
        over = self.over(back.state.dims)
        after, is_last, is_first, mask = (
            self.axes.spread(name, dims, over)
            for name, dims in (
                (back.after, over[1:]),
                *((name, (TOKEN,)) for name in ("is_last", "is_first", self.token_mask)),
            )
        )
        slope, term = self.full(back.slope, over), self.full(back.term, over)
        yield f"{back.before} = _back_scan({slope}, {term}, {after}, {is_last})"
        later = f"_row_after({back.before}, {after}, {is_last})"
        whole = later if back.reaching is None else f"{self.print.over(back.reaching, over)} + {later}"
        yield f"{back.target} = tl.where({mask}, {whole}, 0.0)"
        yield f"{back.after} = _only_row({back.before}, {is_first})"

    def give_initial(self, back: WalkBack) -> Mapping[str, str]:
        dims = back.state.dims
        pointer = self.initial_gradient(back)
        row = "state_row * blocks + block" if self.back.is_shared(dims) else "state_row"
        target = f"{pointer} + {self.axes.address(row, dims)}"
        return {"is_wanted": f"{pointer} is not None", "store": self._store(target, back.after, dims)}

    def give_total(self, give: Give) -> Mapping[str, str]:
        dims = give.source.dims
        row = "state_row * blocks + block" if self.back.is_shared(dims) else "state_row"
        target = f"{give.total}_ptr + {self.axes.address(row, dims)}"
        return {"is_wanted": f"{give.total}_ptr is not None", "store": self._store(target, give.total, dims)}


def compile_time_sizes(plan: ScanKernelPlan) -> tuple[str, ...]:
    """The sizes of a call that the kernels are compiled for."""
    heads = ("H", "HV") if needs_key_heads(plan.spec, plan.evaluated()) else ("HV",)
    return (*heads, *plan.order[1:])
