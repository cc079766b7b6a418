"""Kernels over the rows of chunks as Triton: where their programs stand, and their loops."""

from __future__ import annotations

from collections.abc import Iterator

from flagen.backends.printed import SUM, Printed, expression, product, total_of
from flagen.backends.triton_.axes import Axes
from flagen.backends.triton_.kernel_printer import INDENT, KernelPrinter
from flagen.backends.triton_.printer import Printer
from flagen.diagnostics import InternalError
from flagen.kernel.ir import Access, Index, Kernel, Loop, Space, accesses_in, statements_in
from flagen.kernel.passes import Named, axes_named, evaluates_head, has_key_heads
from flagen.plan.rows import ROW, TOKEN, WRITTEN
from flagen.plan.tiles import Lane, Tile
from flagen.spec.model import Dims

_CHUNK_ROW: tuple[Space, ...] = ("counted_chunk", "head")


class ChunkPrinter(KernelPrinter):
    """Prints one kernel whose tiles have rows of a chunk."""

    def __init__(self, kernel: Kernel) -> None:
        super().__init__(kernel)
        self.print = _ChunkExpressions(self.axes, walks=kernel.run == "sequence")
        self.named = axes_named(kernel.body)

    def parameters(self) -> list[str]:
        kernel = self.kernel
        pointers = (f"{array.name}_ptr" for array in kernel.arrays)
        constants = (f"{name}: tl.constexpr" for name in kernel.sizes)
        return [*pointers, *kernel.numbers, *kernel.lengths, *constants]

    # --------------------------------------------------------------------------------------------------------- program

    def _program(self) -> Iterator[str]:
        kernel = self.kernel
        if kernel.steps:
            yield f"TOKENS: tl.constexpr = CHUNK // {kernel.steps}"
        elif self._counts_chunks:
            yield "TOKENS: tl.constexpr = CHUNK"
        if kernel.run == "chunk":
            yield from self._chunk_of_program()
            return
        yield "program = tl.program_id(0)"
        yield f"blocks = tl.cdiv({kernel.block_of}, BLOCK_{kernel.block_of})"
        yield "block = program % blocks"
        yield "value_head = program // blocks % HV"
        if has_key_heads(kernel):
            yield "key_head = value_head // (HV // H)"
        yield "sequence = (program // (blocks * HV)).to(tl.int64)"

    @property
    def _counts_chunks(self) -> bool:
        """Whether it has to know which chunk is which."""
        spaces = {space for access in accesses_in(self.kernel.body) for space in access.array.spaces}
        return self.kernel.run == "chunk" or bool(spaces & {"counted_chunk", "slot"})

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
        self.rows[_CHUNK_ROW] = "chunk_row"

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

    def _axes(self) -> Iterator[str]:
        for dim in self.kernel.dims:
            if dim in self._own_dims:
                start = f"block * BLOCK_{dim} + " if dim == self.kernel.block_of else ""
                yield from self._lanes_of(dim, start)
        named = self._with_columns(self.named)
        if TOKEN in named.indices:
            yield f"{self.axes.index(TOKEN)} = tl.arange(0, {self.axes.lanes(TOKEN)})"
        if ROW in named.indices:
            yield f"{self.axes.index(ROW)} = tl.arange(0, CHUNK)"
        if self.kernel.run == "chunk":
            yield from self._places()
        if evaluates_head(self.kernel):
            yield "head = value_head.to(tl.float32)"

    @property
    def _own_dims(self) -> frozenset[str]:
        """The dims of which a program has the same lanes all the time."""
        return self.named.indices - {s.dim for s in _loops(self.kernel) if s.over == "block"}

    def _lanes_of(self, dim: str, start: str) -> Iterator[str]:
        yield f"{self.axes.index(dim)} = {start}tl.arange(0, BLOCK_{dim})"
        if dim in self.named.masks:
            yield f"{self.axes.mask(dim)} = {self.axes.index(dim)} < {dim}"

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

    def _loop(self, loop: Loop) -> Iterator[str]:
        match loop.over:
            case "chunk":
                yield from self._chunks(loop)
            case "block":
                yield from self._blocks(loop)
            case "level":
                first = f"{loop.first}, " if loop.first else ""
                yield f"for level in {self._range(loop, f'{first}LEVELS')}:"
                yield from self._inside(loop.body)
            case "member":
                yield f"for member in {self._range(loop, 'HV // H')}:"
                yield f"{INDENT}value_head = key_head * (HV // H) + member"
                yield from self._inside(loop.body)
            case _:
                raise InternalError(f"a kernel over chunks has no loop over {loop.over}")

    def _range(self, loop: Loop, ends: str) -> str:
        return f"range({ends})" if loop.keeps else f"tl.range({ends}, disable_licm=True)"

    def _blocks(self, loop: Loop) -> Iterator[str]:
        start = "key_start"
        yield f"for {start} in {self._range(loop, f'0, {loop.dim}, BLOCK_{loop.dim}')}:"
        yield from (INDENT + line for line in self._lanes_of(loop.dim, f"{start} + "))
        yield from self._inside(loop.body)

    def _chunks(self, loop: Loop) -> Iterator[str]:
        tokens = "TOKENS" if self.kernel.steps or self._counts_chunks else "CHUNK"
        yield f"for start in range(first_token, end_token, {tokens}):"
        yield from (INDENT + line for line in self._places())
        if any("counted_chunk" in access.array.spaces for access in accesses_in(loop.body)):
            yield f"{INDENT}chunk_row = chunk * HV + value_head"
            self.rows[_CHUNK_ROW] = "chunk_row"
        if self._counts_chunks:
            yield f"{INDENT}chunk += 1"
        yield from self._inside(loop.body)

    # ---------------------------------------------------------------------------------------------------------- memory

    def _address(self, access: Access) -> str:
        array, over = access.array, self._over(access)
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

    def _offsets(self, access: Access, over: Dims) -> Iterator[str]:
        """What is added up for each dim of an array."""
        placed, dims = dict(access.places), access.array.dims
        for number, dim in enumerate(dims):
            tile = placed.get(dim, Lane(dim, (dim,)))
            index = self.print.printed(tile)
            if tile.dims and tile.dims != over:
                index = Printed(self.axes.spread(index.atom, tile.dims, over))
            yield product(index, *(Printed(self.axes.size(d)) for d in dims[number + 1 :])).text

    def _mask(self, access: Access, other: str = "") -> str:
        masks = [self._within(dim, access) for dim in access.within]
        if access.where is not None:
            masks.append(self.print.over(access.where, self._over(access)))
        return f", mask={' & '.join(masks)}{other}" if masks else ""

    def _within(self, dim: str, access: Access) -> str:
        """Which lanes lie before the end of an axis."""
        over, ends = self._over(access), dict(access.ends)
        if dim in ends:
            inside = f"{self.axes.index(dim)} < {self.print(ends[dim])}"
            return self.axes.spread(f"({inside})", (dim,), over) if len(over) > 1 else inside
        return self.axes.spread(self.axes.mask(dim), (dim,), over)

    def _over(self, access: Access) -> tuple[str, ...]:
        """The axes of its tile, in order."""
        return access.dims if access.in_memory_order else self.axes.sorted(access.dims)

    def _stored(self, target: Access, value: Tile) -> str:
        pointer, over = f"{target.array.name}_ptr", self._over(target)
        if target.in_memory_order:
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
        return "chunk" if index.space == "counted_chunk" else super()._coordinate(index)


class _ChunkExpressions(Printer):
    """Expressions of kernels over rows of chunks; one that `walks` knows its chunk by the token it starts at."""

    def __init__(self, axes: Axes, *, walks: bool) -> None:
        super().__init__(axes)
        self.walks = walks

    def coordinate(self, of: str) -> Printed:
        if of == "chunk of sequence" and self.walks:
            return Printed("(start - first_token) // TOKENS", SUM + 1)
        return super().coordinate(of)


def _loops(kernel: Kernel) -> Iterator[Loop]:
    return (statement for statement in statements_in(kernel.body) if isinstance(statement, Loop))
