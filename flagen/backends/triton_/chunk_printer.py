"""Kernels over the rows of chunks as Triton: where their programs stand, and their loops."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace

from flagen.backends.printed import PRODUCT, SUM, Printed, expression, product, total_of
from flagen.backends.triton_.axes import Axes
from flagen.backends.triton_.kernel_printer import INDENT, KernelPrinter
from flagen.backends.triton_.printer import Printer
from flagen.diagnostics import InternalError
from flagen.kernel.ir import (
    Access,
    Apply,
    Index,
    Kernel,
    Load,
    Loop,
    Operands,
    Routine,
    Space,
    Statement,
    accesses_in,
    routines_in,
    statements_in,
    values_of,
)
from flagen.kernel.passes import Named, axes_named, counts_chunks, evaluates_head, has_key_heads, without_routines
from flagen.kernel.rows import ITERATIONS
from flagen.plan.rows import MEMBER, ROW, TOKEN, WRITTEN
from flagen.plan.tiles import Head, Lane, Size, Sum, Tile
from flagen.spec.model import Dims

CHUNK_ROW: tuple[Space, ...] = ("counted_chunk", "head")
_FIRST_SLOT = "(chunk + sequence) // 2"
"""Two chunks have one slot, and no two sequences."""

_COORDINATES: dict[Space, str] = {"counted_chunk": "chunk", "slot": "state"}
_PLACES: dict[Space, tuple[str, ...]] = {
    "head": ("value_head",),
    "counted_chunk": ("chunk_row",),
    "block": ("block", "blocks"),
}
"""What a routine is told of a coordinate, where that is not its name."""


class ChunkPrinter(KernelPrinter):
    """Prints one kernel whose tiles have rows of a chunk."""

    def __init__(self, kernel: Kernel) -> None:
        super().__init__(kernel)
        counted = any(loop.counted for loop in _loops(kernel))
        self.print = _ChunkExpressions(self.axes, walks=kernel.run == "sequence" and not counted)
        self.own = replace(kernel, body=without_routines(kernel.body))
        """The kernel without what it leaves to routines."""
        self.named = axes_named(self.own.body)
        ends = {dim for access in accesses_in(self.own.body) for dim, _ in access.ends}
        self.named = replace(self.named, masks=self.named.masks | ends & self.axes.pairs.keys())

    def parameters(self) -> list[str]:
        kernel = self.kernel
        pointers = (f"{array.name}_ptr" for array in kernel.arrays)
        constants = (f"{name}: tl.constexpr" for name in kernel.sizes)
        return [*pointers, *kernel.numbers, *kernel.lengths, *constants]

    def lines(self) -> Iterator[str]:
        """The body, behind where the program stands; what operands are rounded to is said before there are tiles."""
        body = self.kernel.body
        rounds = 1 if isinstance(body[0], Operands) else 0
        yield from self._program()
        yield from self._span()
        yield from self._body(body[:rounds])
        yield from self._axes()
        yield from self._body(body[rounds:])

    # --------------------------------------------------------------------------------------------------------- program

    def _program(self) -> Iterator[str]:
        kernel = self.kernel
        if kernel.steps:
            yield f"TOKENS: tl.constexpr = CHUNK // {kernel.steps}"
        elif self._counts_chunks:
            yield "TOKENS: tl.constexpr = CHUNK"
        if "LEAF" in {tile.name for tile in values_of(kernel.body) if isinstance(tile, Size)}:
            yield "LEAF: tl.constexpr = 1 << LEAF_LEVELS"
        if kernel.run == "chunk":
            yield from self._chunk_of_program()
            return
        yield "program = tl.program_id(0)"
        yield f"blocks = tl.cdiv({kernel.block_of}, BLOCK_{kernel.block_of})"
        yield "block = program % blocks"
        yield "value_head = program // blocks % HV"
        if has_key_heads(self.own):
            yield "key_head = value_head // (HV // H)"
        yield "sequence = (program // (blocks * HV)).to(tl.int64)"

    @property
    def _counts_chunks(self) -> bool:
        """Whether it has to know which chunk is which."""
        return counts_chunks(self.kernel.run, self.kernel.body)

    def _chunk_of_program(self) -> Iterator[str]:
        kernel = self.kernel
        if kernel.block_of is None:
            yield "program = tl.program_id(0)"
        else:
            yield f"blocks = tl.cdiv({kernel.block_of}, BLOCK_{kernel.block_of})"
            yield "block = tl.program_id(0) % blocks"
            yield "program = tl.program_id(0) // blocks"
        if kernel.of_key_heads:
            yield "key_head = program % H"
            yield "chunk = (program // H).to(tl.int64)"
            return
        yield "value_head = program % HV"
        if has_key_heads(kernel):
            yield "key_head = value_head // (HV // H)"
        yield "chunk = (program // HV).to(tl.int64)"
        yield "chunk_row = chunk * HV + value_head"
        self.rows[CHUNK_ROW] = "chunk_row"

    def _span(self) -> Iterator[str]:
        if self.kernel.run == "chunk":
            yield from self._span_of_chunk()
            return
        counts = self._counts_chunks
        yield "if cu_seqlens_ptr is None:"
        yield f"{INDENT}first_token = sequence * T"
        yield f"{INDENT}end_token = first_token + T"
        if counts:
            yield f"{INDENT}chunk = sequence * tl.cdiv(T, TOKENS)"
        yield "else:"
        yield f"{INDENT}first_token = tl.load(cu_seqlens_ptr + sequence).to(tl.int64)"
        yield f"{INDENT}end_token = tl.load(cu_seqlens_ptr + sequence + 1).to(tl.int64)"
        if counts:
            yield f"{INDENT}chunk = tl.load(first_chunk_ptr + sequence)"

    def _span_of_chunk(self) -> Iterator[str]:
        if "slot" in _spaces(self.kernel):
            yield from self._span_of_slot()
            return
        yield "if cu_seqlens_ptr is None:"
        yield f"{INDENT}chunks = tl.cdiv(T, TOKENS)"
        yield f"{INDENT}start = chunk // chunks * T + chunk % chunks * TOKENS"
        yield f"{INDENT}end_token = (chunk // chunks + 1) * T"
        yield "else:"
        yield f"{INDENT}sequence = tl.load(chunk_sequence_ptr + chunk)"
        yield f"{INDENT}chunks_before = tl.load(first_chunk_ptr + sequence)"
        first = "tl.load(cu_seqlens_ptr + sequence).to(tl.int64) + (chunk - chunks_before) * TOKENS"
        yield f"{INDENT}start = {first}"
        yield f"{INDENT}end_token = tl.load(cu_seqlens_ptr + sequence + 1).to(tl.int64)"

    def _span_of_slot(self) -> Iterator[str]:
        """The chunk, by its number in the sequence, and those that share a slot with it."""
        yield "if cu_seqlens_ptr is None:"
        yield f"{INDENT}chunks = tl.cdiv(T, TOKENS)"
        yield f"{INDENT}sequence = chunk // chunks"
        yield f"{INDENT}within = chunk % chunks"
        yield f"{INDENT}start = sequence * T + within * TOKENS"
        yield f"{INDENT}end_token = (sequence + 1) * T"
        yield "else:"
        yield f"{INDENT}sequence = tl.load(chunk_sequence_ptr + chunk)"
        yield f"{INDENT}within = chunk - tl.load(first_chunk_ptr + sequence)"
        yield f"{INDENT}start = tl.load(cu_seqlens_ptr + sequence).to(tl.int64) + within * TOKENS"
        yield f"{INDENT}end_token = tl.load(cu_seqlens_ptr + sequence + 1).to(tl.int64)"
        yield "state = (chunk - within + sequence) // 2 + within // 2"
        yield "# The chunks that share a stored state with this one: the first, and the last one before the end."
        yield "first = start - within % 2 * TOKENS"
        yield "last = tl.minimum(first + TOKENS, start + (end_token - 1 - start) // TOKENS * TOKENS)"

    def _axes(self) -> Iterator[str]:
        for dim in sorted(self.kernel.dims, key=self._has_block):
            if dim in self._own_dims:
                start = f"block * BLOCK_{dim} + " if dim == self.kernel.block_of else ""
                yield from self._lanes_of(dim, start)
        named = self._with_columns(self.named)
        if TOKEN in named.indices:
            yield f"{self.axes.index(TOKEN)} = tl.arange(0, {self.axes.lanes(TOKEN)})"
        if ROW in named.indices:
            yield f"{self.axes.index(ROW)} = tl.arange(0, CHUNK)"
        if MEMBER in named.indices:
            yield f"{self.axes.index(MEMBER)} = tl.arange(0, MEMBERS)"
        if self.kernel.run == "chunk":
            yield from self._places()
        if evaluates_head(self.own) and not self.kernel.of_key_heads:
            yield "head = value_head.to(tl.float32)"

    def _has_block(self, dim: str) -> bool:
        """Whether a program has a block of it, and not all."""
        return dim == self.kernel.block_of

    @property
    def _own_dims(self) -> frozenset[str]:
        """The dims of which a program has the same lanes all the time."""
        return self.named.indices - {s.dim for s in _loops(self.kernel) if s.over == "block"}

    def _lanes_of(self, dim: str, start: str) -> Iterator[str]:
        yield from self.axes.lines(dim, start, mask=dim in self.named.masks)

    def _with_columns(self, named: Named) -> Named:
        """Columns of scores are counted like the rows."""
        rows = {ROW if self.kernel.steps else TOKEN} if WRITTEN in named.indices else set()
        return Named(named.indices | rows, named.rows, named.masks)

    def _places(self) -> Iterator[str]:
        """Which tokens and rows the chunk has, as far as the kernel asks."""
        named, steps, end = self.named, self.kernel.steps, "end_token"
        if steps and named.masks & {TOKEN, ROW}:
            end = "end"
            yield "end = tl.minimum(end_token, start + TOKENS)"
        if TOKEN in named.rows:
            yield f"token = start + {self.axes.index(TOKEN)}"
        if TOKEN in named.masks:
            yield f"{self.axes.mask(TOKEN)} = token < {end}"
        if ROW in named.rows:
            yield f"row = start * {steps} + {self.axes.index(ROW)}"
        if ROW in named.masks:
            yield f"{self.axes.mask(ROW)} = row < {end} * {steps}"

    # ----------------------------------------------------------------------------------------------------------- loops

    def _statement(self, statement: Statement) -> Iterator[str]:
        match statement:
            case Apply(routine):
                given = arguments(routine, self.axes, self._start, self._chunk_row)
                yield f"{', '.join(routine.carried)} = {routine.name}({', '.join(given)})"
            case Operands(array) if routines_in(self.kernel.body):
                yield f"dtype: tl.constexpr = {array.name}_ptr.dtype.element_ty"
            case _:
                yield from super()._statement(statement)

    def _loop(self, loop: Loop) -> Iterator[str]:
        match loop.over:
            case "chunk" if loop.counted:
                yield from self._counted_chunks(loop)
            case "chunk":
                yield from self._chunks(loop)
            case "block":
                yield from self._blocks(loop)
            case "level":
                up = self._range(loop, loop.first, "LEVELS")
                yield f"for level in {'range(LEVELS - 1, -1, -1)' if loop.reverse else up}:"
                yield from self._inside(loop.body)
            case "below":
                yield "for below in range(level):"
                yield from self._inside(loop.body)
            case "member":
                yield f"for member in {self._range(loop, '', 'HV // H')}:"
                yield from self._member(loop)
            case "iteration":
                yield f"for _ in range({ITERATIONS}):"
                yield from self._inside(loop.body)
            case "earlier":
                yield "for earlier in range(first, start, TOKENS):"
                yield from self._inside(loop.body)
            case "later":
                yield "for back in range(0, last - start, TOKENS):"
                yield f"{INDENT}later = last - back"
                yield from self._inside(loop.body)
            case _:
                raise InternalError(f"a kernel over chunks has no loop over {loop.over}")

    @property
    def _start(self) -> str:
        """Where the chunk starts at which a loop stands."""
        others = [loop.over for loop in self.loops if loop.over in ("earlier", "later")]
        return others[-1] if others else "start"

    @property
    def _chunk_row(self) -> str:
        """The row of that chunk among those of all chunks and heads: of one beside the program's own, a chunk away."""
        return {"start": "chunk_row", "earlier": "chunk_row - HV", "later": "chunk_row + HV"}[self._start]

    def _range(self, loop: Loop, first: str, *others: str) -> str:
        if loop.wanted:
            others = (f"{others[0]} if {loop.wanted} else 0", *others[1:])
        if loop.keeps:
            return f"range({', '.join((*((first,) if first else ()), *others))})"
        return f"tl.range({', '.join((first or '0', *others))}, disable_licm=True)"

    def _member(self, loop: Loop) -> Iterator[str]:
        """A value head of the key head."""
        yield f"{INDENT}value_head = key_head * (HV // H) + member"
        if any(access.array.spaces[:2] == CHUNK_ROW for access in accesses_in(loop.body)):
            yield f"{INDENT}chunk_row = chunk * HV + value_head"
            self.rows[CHUNK_ROW] = "chunk_row"
        if any(isinstance(tile, Head) for tile in values_of(loop.body)):
            yield f"{INDENT}head = value_head.to(tl.float32)"
        yield from self._inside(loop.body)
        self.rows.pop(CHUNK_ROW, None)

    def _blocks(self, loop: Loop) -> Iterator[str]:
        start = "key_start" if loop.dim == self.kernel.order[-1] else "block_start"
        yield f"for {start} in {self._range(loop, '0', loop.dim, f'BLOCK_{loop.dim}')}:"
        yield from (INDENT + line for line in self._lanes_of(loop.dim, f"{start} + "))
        yield from self._inside(loop.body)

    def _chunks(self, loop: Loop) -> Iterator[str]:
        tokens = "TOKENS" if self.kernel.steps or self._counts_chunks else "CHUNK"
        yield f"for start in range(first_token, end_token, {tokens}):"
        yield from (INDENT + line for line in self._places())
        if any("counted_chunk" in access.array.spaces for access in accesses_in(loop.body)):
            yield f"{INDENT}chunk_row = chunk * HV + value_head"
            self.rows[CHUNK_ROW] = "chunk_row"
        if self._counts_chunks:
            yield f"{INDENT}chunk += 1"
        yield from self._inside(loop.body)

    def _counted_chunks(self, loop: Loop) -> Iterator[str]:
        """Chunks by their numbers in the sequence, `within`."""
        spaces = _spaces(self.kernel)
        if "slot" in spaces:
            yield f"first_state = {_FIRST_SLOT}"
        chunks = "tl.cdiv(end_token - first_token, TOKENS)"
        if loop.reverse:
            yield f"chunks = {chunks}"
            yield "for step in range(chunks):"
            yield f"{INDENT}within = chunks - 1 - step"
        else:
            yield f"for within in range({chunks}):"
        yield f"{INDENT}start = first_token + within * TOKENS"
        yield from (INDENT + line for line in self._places())
        if "counted_chunk" in spaces:
            yield f"{INDENT}chunk_row = (chunk + within) * HV + value_head"
            self.rows[CHUNK_ROW] = "chunk_row"
        if "slot" in spaces:
            yield f"{INDENT}state = first_state + within // 2"
        yield from self._inside(loop.body)

    # ---------------------------------------------------------------------------------------------------------- memory

    def _address(self, access: Access) -> str:
        array, over = access.array, self._over(access)
        match access.address:
            case "strides":
                return self._strided(access, over)
            case "from start":
                return self._from_start(access, over)
        start = next(
            (s for (spaces, dims), s in self.starts.items() if (spaces, dims) == (array.spaces, array.dims)), ""
        )
        if start:
            return total_of(start, *self._offsets(access, over))
        row = self._row(access)
        counted = (
            Printed(self.axes.spread(f"({row})", access.rows, over)) if access.rows and array.dims else expression(row)
        )
        if not array.dims:
            return row
        size = product(*(Printed(self.axes.size(dim)) for dim in array.dims))
        return total_of(*([product(counted, size).text] if row else []), *self._offsets(access, over))

    def _from_start(self, access: Access, over: Dims) -> str:
        """The number of the chunk's first row, and in 32 bits how far from it each lane is."""
        array, (axis,), steps = access.array, access.rows, self.kernel.steps
        inner, counted = access.at[1:], array.spaces[0]
        start = f"start * {steps}" if counted == "row" else "start"
        index = self.axes.index(axis)
        lane = f"{index} // {steps}" if axis == ROW and counted == "token" else index
        extent = product(Printed(lane, PRODUCT), *(Printed(self._extent(each, access)) for each in inner)).text
        row = f"({self._inner_row(start, inner, access)})"
        if not array.dims:
            return f"{row} + {extent}"
        size = [Printed(self.axes.size(dim)) for dim in array.dims]
        lanes = product(Printed(self.axes.spread(f"({extent})", (axis,), over)), *size)
        return f"{product(Printed(row), *size).text} + ({total_of(lanes.text, *self._offsets(access, over))})"

    def _inner_row(self, text: str, inner: Iterable[Index], access: Access) -> str:
        """The number of a row, from that of what it is counted in."""
        for index in inner:
            outer = text if " + " not in text else f"({text})"
            text = f"{outer} * {self._extent(index, access)} + {self._coordinate(index)}"
        return text

    def _strided(self, access: Access, over: Dims) -> str:
        """The row of the chunk's first token, and how far from it each lane is."""
        array = access.array
        if access.rows != (TOKEN,) or array.spaces[0] != "token":
            raise InternalError(f"no strides of {array.name}")
        sizes = [Printed(self.axes.size(dim)) for dim in array.dims]
        first = expression(self._row(replace(access, at=(Index("token"), *access.at[1:]))))
        start = product(first, product(*sizes)) if sizes else first
        lanes = Printed(self.axes.spread(self.axes.index(TOKEN), (TOKEN,), over))
        stride = product(*(Printed(self._extent(index, access)) for index in access.at[1:]), *sizes)
        return total_of(start.text, product(lanes, stride).text, *self._offsets(access, over))

    def _offsets(self, access: Access, over: Dims) -> Iterator[str]:
        """What is added up for each dim of an array."""
        placed, dims = dict(access.places), access.array.dims
        for number, dim in enumerate(dims):
            tile = placed.get(dim, Lane(dim, (dim,)))
            index = self.print.printed(tile)
            if tile.dims and tile.dims != over:
                index = Printed(self.axes.spread(index.atom, tile.dims, over))
            yield product(index, *(Printed(self.axes.size(d)) for d in dims[number + 1 :])).text

    def _loaded(self, load: Load) -> str:
        if not load.shares:
            return super()._loaded(load)
        access, dims = load.source.of_first_share, load.source.array.dims
        mask = self._masks(access)
        address = f"{load.source.array.name}_ptr + "
        if not dims:
            return f"sum_of_shares({address}({self._address(access)}) * shares, 1, shares, {mask})"
        (dim,) = dims
        row = f"({self._row(access)}) * shares * {self.axes.size(dim)}"
        return f"sum_of_shares({address}{row} + {self.axes.index(dim)}, {self.axes.size(dim)}, shares, {mask})"

    def _mask(self, access: Access, other: str = "") -> str:
        masks = self._masks(access)
        return f", mask={masks}{other}" if masks else ""

    def _masks(self, access: Access) -> str:
        """Which lanes there are; empty for all of them."""
        masks = [self._within(dim, access) for dim in access.within]
        if access.where is not None:
            where, over = access.where, self._over(access)
            masks.append(self.print.over(where, over) if masks or where.dims != over else self.print(where))
        return " & ".join(masks)

    def _within(self, dim: str, access: Access) -> str:
        """Which lanes lie before the end of an axis."""
        over, ends = self._over(access), dict(access.ends)
        if dim in ends:
            inside = f"{self.axes.index(dim)} < {self.print(ends[dim])}"
            if dim in self.axes.pairs:  # Lanes that pad have the indices of others.
                inside = f"({inside}) & {self.axes.mask(dim)}"
            return self.axes.spread(f"({inside})", (dim,), over) if len(over) > 1 else inside
        return self.axes.spread(self.axes.mask(dim), (dim,), over)

    def _over(self, access: Access) -> tuple[str, ...]:
        """The axes of its tile, in order."""
        return access.dims if access.in_memory_order else self.axes.sorted(access.dims)

    def _stored(self, target: Access, value: Tile) -> str:
        pointer, over = f"{target.array.name}_ptr", self._over(target)
        if over != self.axes.sorted(over):
            stored = Printed(f"tl.trans({self.print(value)})")
        else:
            stored = self.print.printed(value)
            if value.dims != over:
                stored = Printed(self.axes.spread(stored.atom, value.dims, over))
        cast = f".to({pointer}.dtype.element_ty)" if target.array.own_dtype else ""
        text = f"{stored.atom}{cast}" if cast else stored.text
        return f"tl.store({pointer} + {self._address(target)}, {text}{self._mask(target)})"

    def _coordinate(self, index: Index) -> str:
        if index.space == "token" and index.axis == ROW:
            return f"row // {self.kernel.steps}"
        if index.space == "token" and index.axis is None:
            return "start"
        walks = self.kernel.run == "sequence"
        if index.space == "slot" and walks and not any(loop.counted for loop in self.loops):
            return "(chunk - 1 + sequence) // 2"  # The loop has counted its chunk.
        return _COORDINATES.get(index.space) or super()._coordinate(index)


class _ChunkExpressions(Printer):
    """Expressions of kernels over rows of chunks; one that `walks` knows its chunk by the token it starts at."""

    def __init__(self, axes: Axes, *, walks: bool) -> None:
        super().__init__(axes)
        self.walks = walks

    def _print(self, tile: Tile) -> Printed:
        match tile:
            case Sum(Sum(value, last), first) if value.dims == (first, last):
                return Printed(f"tl.sum({self(value)})")  # Over both axes at once.
        return super()._print(tile)

    def coordinate(self, of: str) -> Printed:
        if of == "chunk of sequence" and self.walks:
            return Printed("(start - first_token) // TOKENS", SUM + 1)
        return super().coordinate(of)


def arguments(routine: Routine, axes: Axes, start: str = "start", chunk_row: str = "chunk_row") -> list[str]:
    """What a routine is called with."""
    places = {**_PLACES, "counted_chunk": (chunk_row,)}
    place = (name for space in routine.place for name in places.get(space, (space,)))
    return [
        *routine.carried,
        *(f"{array.name}_ptr" for array in routine.arrays),
        *routine.numbers,
        start,
        "end_token",
        *place,
        *map(axes.index, routine.lanes),
        *routine.sizes,
    ]


def _spaces(kernel: Kernel) -> frozenset[Space]:
    """The spaces that its accesses name."""
    return frozenset(space for access in accesses_in(kernel.body) for space in access.array.spaces)


def _loops(kernel: Kernel) -> Iterator[Loop]:
    return (statement for statement in statements_in(kernel.body) if isinstance(statement, Loop))
