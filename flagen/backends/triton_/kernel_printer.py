"""A kernel as Triton: its parameters, and its body as source lines."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from flagen.backends.printed import SUM, Printed, product
from flagen.backends.triton_.axes import Axes
from flagen.backends.triton_.printer import Printer, literal
from flagen.diagnostics import InternalError
from flagen.kernel.ir import (
    Access,
    Add,
    Alone,
    Array,
    Barrier,
    Bind,
    Choose,
    Condition,
    Fill,
    FirstBlock,
    Given,
    HasEnd,
    HasStart,
    If,
    Index,
    Kernel,
    LastToken,
    Let,
    Load,
    Loop,
    Note,
    Operands,
    Row,
    Scale,
    Space,
    Statement,
    Store,
)
from flagen.kernel.passes import (
    dims_counted,
    dims_with_ends,
    edges_named,
    evaluates_head,
    has_key_heads,
    reads_steps,
    tokens_ago,
)
from flagen.plan.rows import TOKEN, WRITTEN
from flagen.plan.tiles import Tile, Value
from flagen.spec.model import Dims

INDENT = "    "

_COORDINATES: dict[Space, str] = {
    "head": "value_head",
    "chunk": "(first_token // CHUNK + sequence + (start - first_token) // CHUNK)",
}
"""What a coordinate is called, where that is not what its space is."""


class KernelPrinter:
    """Prints one kernel."""

    def __init__(self, kernel: Kernel) -> None:
        self.kernel = kernel
        self.axes = Axes(kernel.order, kernel.names, dict(kernel.pairs))
        self.print = Printer(self.axes)
        self.rows: dict[tuple[Space, ...], str] = {}
        """The rows that have a name."""
        self.starts: dict[tuple[tuple[Space, ...], Dims], str] = {}
        """Those whose first element has one."""
        self.loops: list[Loop] = []
        """The loops that what is printed stands in."""

    def parameters(self) -> list[str]:
        """Pointers, numbers, then what is known when the kernel is compiled."""
        kernel = self.kernel
        constants = (*kernel.sizes, *map(self.axes.lanes, kernel.dims))
        pointers = (_pointer(array) for array in kernel.arrays)
        return [*pointers, *kernel.numbers, *kernel.lengths, *(f"{name}: tl.constexpr" for name in constants)]

    def lines(self) -> Iterator[str]:
        """The body."""
        yield from self._program()
        yield from self._span()
        yield from self._axes()
        yield from self._body(self.kernel.body)

    # --------------------------------------------------------------------------------------------------------- program

    def _program(self) -> Iterator[str]:
        """Which run, head and block a program has: blocks of a head are neighbours, then heads, for the cache."""
        kernel, run = self.kernel, self.kernel.run
        yield "program = tl.program_id(0)"
        if kernel.block_of is None:
            yield "value_head = program % HV"
            yield f"{run} = (program // HV).to(tl.int64)"
        else:
            yield f"blocks = tl.cdiv({kernel.block_of}, BLOCK_{kernel.block_of})"
            yield "block = program % blocks"
            yield "value_head = program // blocks % HV"
            yield f"{run} = (program // (blocks * HV)).to(tl.int64)"
        if has_key_heads(kernel):
            yield "key_head = value_head // (HV // H)"
        if evaluates_head(kernel):
            yield "head = value_head.to(tl.float32)"

    def _span(self) -> Iterator[str]:
        """The tokens of the run."""
        if self.kernel.run == "segment":
            yield from self._named_row("segment_row", ("segment", "head"))
            yield "if cu_seqlens_ptr is None:"
            yield f"{INDENT}segments = tl.cdiv(T, SEGMENT)"
            yield f"{INDENT}first_token = segment // segments * T + segment % segments * SEGMENT"
            yield f"{INDENT}end_token = tl.minimum(first_token + SEGMENT, (segment // segments + 1) * T)"
            yield "else:"
            yield f"{INDENT}sequence = tl.load(segment_sequence_ptr + segment)"
            yield f"{INDENT}segments_before = segment - tl.load(first_segment_ptr + sequence)"
            first = "tl.load(cu_seqlens_ptr + sequence).to(tl.int64) + segments_before * SEGMENT"
            yield f"{INDENT}first_token = {first}"
            end = "tl.load(cu_seqlens_ptr + sequence + 1).to(tl.int64)"
            yield f"{INDENT}end_token = tl.minimum(first_token + SEGMENT, {end})"
            return
        if self.kernel.run == "stretch":
            yield from self._span_of_stretch()
            return
        counts_segments = any(isinstance(s, Loop) and s.over == "segment" for s in self.kernel.body)
        yield "if cu_seqlens_ptr is None:"
        yield f"{INDENT}first_token = sequence * T"
        yield f"{INDENT}end_token = first_token + T"
        if counts_segments:
            yield f"{INDENT}segment = sequence * tl.cdiv(T, SEGMENT)"
        yield "else:"
        yield f"{INDENT}first_token = tl.load(cu_seqlens_ptr + sequence).to(tl.int64)"
        yield f"{INDENT}end_token = tl.load(cu_seqlens_ptr + sequence + 1).to(tl.int64)"
        if counts_segments:
            yield f"{INDENT}segment = tl.load(first_segment_ptr + sequence)"

    def _span_of_stretch(self) -> Iterator[str]:
        """The tokens of the sequence, and the first place of the stretch."""
        yield "if cu_seqlens_ptr is None:"
        yield f"{INDENT}stretches = T // CHUNK + 1"
        yield f"{INDENT}sequence = stretch // stretches"
        yield f"{INDENT}first_token = sequence * T"
        yield f"{INDENT}end_token = first_token + T"
        yield f"{INDENT}start = first_token + stretch % stretches * CHUNK"
        yield "else:"
        yield f"{INDENT}sequence = tl.load(stretch_sequence_ptr + stretch)"
        yield f"{INDENT}first_token = tl.load(cu_seqlens_ptr + sequence).to(tl.int64)"
        yield f"{INDENT}end_token = tl.load(cu_seqlens_ptr + sequence + 1).to(tl.int64)"
        yield f"{INDENT}start = first_token + (stretch - tl.load(first_stretch_ptr + sequence)) * CHUNK"

    def _places(self) -> Iterator[str]:
        """The tokens of a stretch, and which of them have others before them or behind."""
        yield "token = start + rows"
        yield f"{self.axes.mask(TOKEN)} = token < end_token"
        for ago in tokens_ago(self.kernel):
            away = f"{'+' if ago > 0 else '-'} {abs(ago)}"
            first = f"(token >= first_token {away}) & " if ago > 0 else ""
            end = f"token < end_token {away}"
            yield f"{self.axes.mask_ago(ago)} = {first}{f'({end})' if first else end}"

    def _axes(self) -> Iterator[str]:
        ends, counted = dims_with_ends(self.kernel), dims_counted(self.kernel)
        for dim in self.kernel.dims:
            start = f"block * BLOCK_{dim} + " if dim == self.kernel.block_of else ""
            yield from self.axes.lines(dim, start, index=dim in ends | counted, mask=dim in ends)
        if TOKEN in self.kernel.order:
            yield "rows = tl.arange(0, CHUNK)"
            if counted & {TOKEN, WRITTEN}:
                yield f"{self.axes.index(TOKEN)} = rows"
            first, last = edges_named(self.kernel)
            if first:
                yield "is_first = rows == 0"
            if last:
                yield "is_last = rows == CHUNK - 1"
        if self.kernel.run == "stretch":
            yield from self._places()

    # ------------------------------------------------------------------------------------------------------ statements

    def _body(self, body: Iterable[Statement]) -> Iterator[str]:
        for statement in body:
            yield from self._statement(statement)

    def _inside(self, body: Iterable[Statement]) -> Iterator[str]:
        return (INDENT + line for line in self._body(body))

    def _statement(self, statement: Statement) -> Iterator[str]:
        match statement:
            case Load():
                yield f"{statement.target} = {self._loaded(statement)}"
            case Let(target, value):
                yield f"{target} = {self.print.assigned(value)}"
            case Bind(targets, values):
                yield f"{', '.join(targets)} = {', '.join(map(self.print, values))}"
            case Add(target, value, dims, subtracts):
                yield f"{target} {'-=' if subtracts else '+='} {self.print.over(value, self.axes.sorted(dims))}"
            case Scale(target, value, dims):
                yield f"{target} *= {self.print.over(value, self.axes.sorted(dims))}"
            case Operands(array):
                yield f"dtype = {_pointer(array)}.dtype.element_ty"
            case Fill():
                yield f"{statement.target} = {self._filled(statement)}"
            case Choose(condition, target, value):
                kept = self._condition(condition)
                yield f"{target} = tl.where({kept}, {target}, {self.print(value)})"
            case Store(target, value):
                yield self._stored(target, value)
            case Loop():
                self.loops.append(statement)
                yield from self._loop(statement)
                self.loops.pop()
            case If():
                yield from self._if(statement)
            case Row(name, spaces, dims):
                yield from self._named_row(name, spaces, dims)
            case Barrier(note):
                yield from _comment(note)
                yield "tl.debug_barrier()"
            case Note(""):
                yield ""
            case Note(text):
                yield from _comment(text)

    def _if(self, statement: If) -> Iterator[str]:
        yield f"if {' and '.join(map(self._condition, statement.conditions))}:"
        yield from self._inside(statement.then)
        if statement.otherwise:
            yield "else:"
            yield from self._inside(statement.otherwise)

    def _condition(self, condition: Condition) -> str:
        match condition:
            case Given(array, given):
                return f"{_pointer(array)} is {'not ' if given else ''}None"
            case FirstBlock():
                return "block == 0"
            case LastToken():
                return "token == end_token - 1"
            case HasStart():
                return "start == first_token"
            case HasEnd():
                return "end_token < start + CHUNK"
            case Alone(dim):
                return f"HV == H and {self.axes.size(dim)} <= BLOCK_{dim}"

    def _filled(self, fill: Fill) -> str:
        shape = self.axes.shape(fill.dims)
        if fill.number is None:
            return f"tl.zeros({shape}, tl.float32)" if fill.dims else "tl.full((), 0.0, tl.float32)"
        filled = f"tl.full({shape}, {literal(fill.number).text}, tl.float32)"
        return f"tl.where({self.axes.within(fill.dims)}, {filled}, 0.0)" if fill.ends else filled

    # ----------------------------------------------------------------------------------------------------------- loops

    def _loop(self, loop: Loop) -> Iterator[str]:
        if loop.over == "micro_step":
            yield from self._steps(loop)
        elif loop.over == "segment":
            yield from self._segments(loop)
        elif loop.over == "chunk":
            yield from self._chunks(loop)
        else:
            yield from self._tokens(loop)

    def _steps(self, loop: Loop) -> Iterator[str]:
        if not loop.body:
            return
        steps = self.kernel.sizes[0]
        # Unrolled, so that the loads of one step run under the arithmetic of the step before.
        yield f"for micro_step in tl.static_range({steps}):"
        if reads_steps(loop.body):
            yield f"{INDENT}row = token * {steps} + {self._step()}"
            self.rows[("token", "micro_step")] = "row"
        yield from self._inside(loop.body)
        self.rows.pop(("token", "micro_step"), None)

    def _step(self) -> str:
        """The number of the micro-step, where they may be counted from the last one."""
        return f"({self.kernel.sizes[0]} - 1 - micro_step)" if self.loops[-1].reverse else "micro_step"

    def _segments(self, loop: Loop) -> Iterator[str]:
        if loop.reverse:
            yield "segments = tl.cdiv(end_token - first_token, SEGMENT)"
            yield "for segments_done in range(segments):"
            yield f"{INDENT}segment_start = first_token + (segments - 1 - segments_done) * SEGMENT"
            yield f"{INDENT}segment_end = tl.minimum(segment_start + SEGMENT, end_token)"
            yield f"{INDENT}segment_row = (segment + segments - 1 - segments_done) * HV + value_head"
        else:
            yield "for segment_start in range(first_token, end_token, SEGMENT):"
            yield f"{INDENT}segment_row = segment * HV + value_head"
        self.rows[("segment", "head")] = "segment_row"
        yield from self._inside(loop.body)
        del self.rows[("segment", "head")]

    def _chunks(self, loop: Loop) -> Iterator[str]:
        if loop.aligned:
            yield from self._aligned(loop)
            return
        if loop.reverse:
            yield "tiles = tl.cdiv(end_token - first_token, CHUNK)"
            yield "for tile in tl.range(tiles):"
            yield f"{INDENT}start = first_token + (tiles - 1 - tile) * CHUNK"
        else:
            yield "for start in tl.range(first_token, end_token, CHUNK):"
        yield f"{INDENT}token = start + rows"
        yield f"{INDENT}{self.axes.mask(TOKEN)} = token < end_token"
        yield from self._inside(loop.body)

    def _aligned(self, loop: Loop) -> Iterator[str]:
        """Chunks that are counted from the tokens before the sequence: the first one has what is left of its own."""
        yield f"begun = tokens_begun({loop.aligned}, LENGTH)"
        yield "chunks = tl.where(first_token < end_token, tl.cdiv(begun + end_token - first_token, LENGTH), 0)"
        if loop.reverse:
            yield "for chunks_done in tl.range(chunks):"
            yield f"{INDENT}chunk = chunks - 1 - chunks_done"
        else:
            yield "for chunk in tl.range(chunks):"
        yield f"{INDENT}start = first_token + tl.maximum(chunk * LENGTH - begun, 0)"
        yield f"{INDENT}token = start + rows"
        end = "tl.minimum(first_token + (chunk + 1) * LENGTH - begun, end_token)"
        yield f"{INDENT}{self.axes.mask(TOKEN)} = token < {end}"
        yield from self._inside(loop.body)

    def _tokens(self, loop: Loop) -> Iterator[str]:
        segments = next((outer for outer in self.loops if outer.over == "segment"), None)
        start, end = ("first_token", "end_token") if segments is None else ("segment_start", "segment_end")
        if segments is not None and not segments.reverse:
            yield "segment += 1"
            end = "tl.minimum(segment_start + SEGMENT, end_token)"
        yield from _comment(loop.note)
        if loop.but_last:
            end = "segment_end"
            last = "segment_start + SEGMENT < end_token, segment_start + SEGMENT, segment_start"
            yield f"segment_end = tl.where({last})"
        if loop.reverse:
            yield f"for tokens_done in tl.range({end} - {start}, num_stages={loop.stages}):"
            yield f"{INDENT}token = {end} - 1 - tokens_done"
        else:
            yield f"for token in tl.range({start}, {end}, num_stages={loop.stages}):"
        yield from self._inside(loop.body)

    # ---------------------------------------------------------------------------------------------------------- memory

    def _loaded(self, load: Load) -> str:
        source = load.source
        mask = self._mask(source, f", other={literal(load.fill).text}")
        # What comes from outside of the program has whatever dtype it was given.
        wide = source.array.life != "scratch" if load.wide is None else load.wide
        cast = ".to(tl.float32)" if wide else ""
        loaded = f"tl.load({_pointer(source.array)} + {self._address(source)}{mask}){cast}"
        return f"tl.where(block == 0, {loaded}, 0.0)" if load.once else loaded

    def _stored(self, target: Access, value: Tile) -> str:
        pointer, dims = _pointer(target.array), self.axes.sorted(target.dims)
        if isinstance(value, Value):
            stored = self.axes.spread(value.name, value.dims, dims)
        else:
            stored = self.print(value)
        cast = f".to({pointer}.dtype.element_ty)" if target.array.own_dtype else ""
        return f"tl.store({pointer} + {self._address(target)}, {stored}{cast}{self._mask(target)})"

    def _mask(self, access: Access, other: str = "") -> str:
        return f", mask={self.axes.within(access.within, access.ago)}{other}" if access.within else ""

    def _address(self, access: Access) -> str:
        return self.axes.address(self._row(access), access.array.dims, access.rows)

    def _row(self, access: Access) -> str:
        """The number of the row: that of a row with a name, as far as there is one, and of the place in it."""
        at = access.at
        named = max((s for s in self.rows if s == access.array.spaces[: len(s)]), key=len, default=())
        text = self.rows[named] if named else ""
        for index in at[len(named) :]:
            outer = text if not text or text.isidentifier() else f"({text})"
            text = f"{outer} * {self._extent(index, access)} + " if outer else ""
            text += self._coordinate(index)
        return text

    def _coordinate(self, index: Index) -> str:
        if index.number is not None:
            return str(index.number)
        match index.space:
            case "place":
                return "token - segment_start"
            case "micro_step":
                return self._step()
            case "token" if index.ago:
                return f"token {'-' if index.ago > 0 else '+'} {abs(index.ago)}"
        if index.space == "chunk" and any(loop.aligned for loop in self.loops):
            return "(first_token // LENGTH + 2 * sequence + chunk)"
        return _COORDINATES.get(index.space, index.space)

    def _extent(self, index: Index, access: Access) -> str:
        match index.space:
            case "head":
                return "HV"
            case "key_head":
                return "H"
            case "block":
                return "blocks"
            case "place":
                return "SEGMENT"
            case "micro_step":
                return self.kernel.sizes[0]
            case "loop":
                return str(access.array.loops)
        raise InternalError(f"{access.array.name} has {index.space} inside of a row")

    def _named_row(self, name: str, spaces: tuple[Space, ...], dims: Dims = ()) -> Iterator[str]:
        run, _ = spaces
        counted = Printed(f"{self._coordinate(Index(run))} * HV + value_head", SUM)
        row = Printed(self.rows[spaces]) if spaces in self.rows else counted
        if dims:
            yield f"{name} = {product(row, product(*(Printed(self.axes.size(dim)) for dim in dims))).text}"
            self.starts[spaces, dims] = name
            return
        yield f"{name} = {row.text}"
        self.rows[spaces] = name


def _pointer(array: Array) -> str:
    return f"{array.name}_ptr"


def _comment(text: str) -> Iterator[str]:
    if text:
        yield f"# {text}"
