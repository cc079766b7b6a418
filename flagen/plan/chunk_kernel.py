"""The plan of `chunk_<name>`: kernels over the chunks of a sequence, for decays that are a scalar, or none at all.

Additive rules need one kernel: it walks the chunks of a sequence with the state in registers, and a chunk's scores are
computed where they are used. Delta rules need two: what does not depend on the state, the scores and the inverse of
I - L, is prepared for all chunks at once and read by the walk.

Decided here: which of the normal form's rows there are, which factors of them stay off the matrix products, what each
kernel loads and evaluates, on which axis, and what has to be cleared beyond a sequence's end.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import NoReturn

from flagen.diagnostics import Span
from flagen.plan.chunk import ChunkPlan
from flagen.plan.model import Unavailable
from flagen.plan.padding import PaddingRules
from flagen.plan.rows import ROW, TOKEN, Operand, RowAxis, TooWide, cleared, finite, values_in
from flagen.plan.schedule import Load, Set
from flagen.plan.show import show
from flagen.plan.split import crossed_dims
from flagen.plan.tiles import Head, Lowering, Masked, Tile, TooManyDims, Value, tiles_in
from flagen.spec.model import Binary, Derived, Dims, Expr, Input, Name, Negate, Param, Spec, walk
from flagen.spec.ranges import interval_of

SIZES = (16, 32, 64)
"""Rows of a chunk that the kernels are made for: tiles of matrix instructions, and an inverse by blocks of 16."""


@dataclass(frozen=True)
class RowLoad:
    """Load an input for every row along `axis`."""

    source: Input
    axis: str


@dataclass(frozen=True)
class RowSet:
    """Evaluate a `let`, `decay` or `gate` name for every row along `axis`."""

    target: str
    axis: str
    value: Tile


@dataclass(frozen=True)
class Part:
    """What one kernel reads and evaluates before its matrix products: once, and for every chunk; `numbers` are the
    scalar params that it names."""

    once: tuple[Load | Set, ...]
    rows: tuple[RowLoad | RowSet, ...]
    reads_head: bool
    numbers: frozenset[str]


@dataclass(frozen=True)
class Delta:
    """Rows u = z + S^T y, written along w."""

    w: Operand
    y: Operand
    z: Tile | None


@dataclass(frozen=True)
class ChunkKernelPlan:
    """The rows of a chunk as operands, and what its kernels read.

    row_axis: the axis of the rows that write; TOKEN where each token has one, else ROW.
    order: the order of a tile's axes: values, rows, keys.
    delta, write: the rows there are; a write row's operands share one scale, kept with `write_value`.
    row_decay, token_decay: the log decay between a row and the one before it, and the same for tokens.
    contracts: an erasure's scale lies within [-1, 1], so that the inverse's entries stay small.
    prepare: what the kernel that runs before the walk reads, if there is one, in the order it is needed: for decays,
        for scores, for erasures.
    walk: what the walk itself reads.
    """

    chunk: ChunkPlan
    row_axis: str
    order: Dims
    q: Operand
    delta: Delta | None
    write_key: Tile | None
    write_value: Operand | None
    row_decay: Tile | None
    token_decay: Tile | None
    output: Tile
    contracts: bool
    prepare: tuple[Part, Part, Part] | None
    walk: Part
    size: int

    @property
    def spec(self) -> Spec:
        return self.chunk.normal_form.spec

    @property
    def read(self) -> str:
        """What the output calls S^T q."""
        return self.chunk.normal_form.reads[0].name

    @property
    def key(self) -> str:
        return self.chunk.normal_form.key

    @property
    def value(self) -> str:
        return self.chunk.normal_form.value

    @property
    def _rows(self) -> dict[str, Operand]:
        """The operands by the names of the normal form."""
        rows = {"q": self.q}
        if self.delta is not None:
            rows |= {"w": self.delta.w, "y": self.delta.y}
        if self.write_key is not None and self.write_value is not None:
            rows |= {"k": Operand(self.write_key, None), "v": self.write_value}
        return rows

    def vector(self, role: str) -> Tile | None:
        """The vectors of q, w, y, k or v: operands of matrix products."""
        return self._rows[role].vector if role in self._rows else None

    def scale(self, role: str) -> Tile | None:
        """What multiplies a whole row of these."""
        return self._rows[role].scale if role in self._rows else None

    @property
    def crowded(self) -> bool:
        """Whether rows that erase and rows that write share a chunk, which then has four matrices of scores."""
        return self.delta is not None and self.write_key is not None

    @property
    def vectors(self) -> tuple[Tile, ...]:
        return tuple(operand.vector for operand in self._rows.values())

    def dump(self) -> str:
        """The plan as text: the launches, then the rows."""
        launches = "a walk over chunks" if self.prepare is None else "prepare all chunks, then a walk over chunks"
        lines = [f"{launches}; {self.size} rows a chunk; the state transposed, in blocks of {self.value}"]
        for name, operand in self._rows.items():
            scale = "" if operand.scale is None else f"{show(operand.scale)} of each row, "
            lines.append(f"    {name} = {scale}{show(operand.vector)}")
        if self.delta and self.delta.z is not None:
            lines.append(f"    z = {show(self.delta.z)}")
        if self.row_decay is not None:
            lines.append(f"    g = {show(self.row_decay)}")
        return "\n".join((*lines, f"    o = {show(self.output)}"))


class NoKernel(Exception):
    """What keeps a chunk form out of the kernels."""

    def __init__(self, reason: str, span: Span) -> None:
        super().__init__(reason)
        self.reason = reason
        self.span = span


def plan_chunk_kernel(chunk: ChunkPlan) -> ChunkKernelPlan | Unavailable:
    """The kernels of `chunk`, or why there are none yet."""
    try:
        return _Planner(chunk).plan()
    except NoKernel as missing:
        return Unavailable(f"no chunk kernel yet: {missing.reason}", missing.span)


class _Planner:
    def __init__(self, chunk: ChunkPlan) -> None:
        self.chunk = chunk
        self.nf = chunk.normal_form
        self.spec = self.nf.spec
        self._check_form()
        (self.block,) = self.nf.blocks
        (self.step,) = self.block.steps
        self.row_axis = ROW if self.block.repeated else TOKEN
        self.order = (self.nf.value, TOKEN, ROW, self.nf.key)
        self.fixed = _fixed_names(self.spec)
        self.lower = Lowering((self.nf.value, self.nf.key))
        self.rules = PaddingRules(self.spec)
        self.derived: dict[str, Tile] = {}
        self.masks = PaddingRules(self.spec)
        for decl in self.spec.derived:
            self._derive(decl)

    def _derive(self, decl: Derived) -> None:
        """Note what a derived name stands for, and what it holds beyond the ends of its axes."""
        tile = self._tile(decl.value)
        self.derived[decl.name] = tile
        self.masks.assign(decl.name, tile)
        if decl.name in self.fixed:
            self.rules.assign(decl.name, tile)
            return
        for axis in dict.fromkeys((TOKEN, self.row_axis) if decl.per == "token" else (ROW,)):
            self.rules.assign(decl.name, self._lifted(decl.value, axis))

    def plan(self) -> ChunkKernelPlan:
        (read,) = self.nf.reads
        q = self._operand(read.q, TOKEN)
        delta, key, value = self._delta(), None, None
        for write in self.step.writes:
            key, value = self._write(write.k, write.v)
        row_decay, token_decay = self._decays()
        once = self._constant(row_decay)
        if once is not None:
            row_decay = Masked(Value(once.target, "local", ()), self.row_axis, 0.0, (self.row_axis,))
        output = self._lifted(self.nf.output, TOKEN)
        self._check_output(output)
        read_by_all = [q.vector, key, None if value is None else value.scale]
        if delta is not None:
            read_by_all += [delta.w.vector, delta.w.scale]
        erased = [] if delta is None else [delta.y.vector, delta.y.scale]
        values = [delta.z if delta else None, None if value is None else value.vector, q.scale, output]
        decays = [row_decay, token_decay]
        prepare = None
        if delta is None:
            walk = self._part([*read_by_all, *decays, *values], once)
        else:
            first = self._part(decays, once)
            second = _without(self._part(read_by_all, None), first)
            prepare = (first, second, _without(self._part(erased, None), first, second))
            walk = self._part([*read_by_all, *erased, *values], None)
        return ChunkKernelPlan(
            chunk=self.chunk,
            row_axis=self.row_axis,
            order=self.order,
            q=q,
            delta=delta,
            write_key=key,
            write_value=value,
            row_decay=row_decay,
            token_decay=token_decay,
            output=output,
            contracts=self._contracts(),
            prepare=prepare,
            walk=walk,
            size=max(size for size in SIZES if size <= max(self.chunk.size, SIZES[0])),
        )

    # ---------------------------------------------------------------------------------------------------------- limits

    def _check_form(self) -> None:
        nf, state = self.nf, self.spec.states[0]
        if len(self.spec.states) != 1 or set(self.spec.dims) != {nf.key, nf.value}:
            self._refuse("it has other dims than those of its state", state.span)
        if nf.decay_kind == "key":
            self._refuse("the decay is a vector over the key channels", state.span)
        if nf.transposed:
            self._refuse("the erasure acts on the state's second dim", state.span)
        if len(nf.reads) != 1 or nf.reads[0].side != "left":
            self._refuse("the output needs other reads than one S.T @ q", self.spec.output[-1].span)
        if nf.reads[0].position != nf.end:
            self._refuse("the output reads the state before its update is complete", self.spec.output[-1].span)
        if len(nf.steps) != 1 or nf.slots > 1:
            self._refuse("a token has micro-steps of several kinds, or several rows in one", state.span)
        (block,) = nf.blocks
        if block.repeated and (block.steps[0].decay is not None or not nf.has_delta):
            self._refuse("the micro-steps decay, or only write", state.span)
        if nf.decay_kind != "none" and any(not row.after_decay for row in block.steps[0].deltas):
            self._refuse("the erasure reads the state before its decay", state.span)
        if not math.isfinite(state.init):
            self._refuse("the state starts at an infinity", state.span)

    def _check_output(self, output: Tile) -> None:
        if self.spec.output_dims != (self.nf.value,):
            self._refuse("the output is no vector over the state's second dim", self.spec.output[-1].span)
        if TOKEN not in output.dims:
            self._refuse("no token changes the output", self.spec.output[-1].span)

    def _refuse(self, reason: str, span: Span) -> NoReturn:
        raise NoKernel(reason, span)

    # ------------------------------------------------------------------------------------------------------------ rows

    def _delta(self) -> Delta | None:
        for row in self.step.deltas:
            z = None if row.z is None else self._lifted(row.z, self.row_axis)
            if z is not None:
                z = cleared(self.rules, z, self.row_axis)
            return Delta(self._operand(row.w, self.row_axis), self._operand(row.y, self.row_axis), z)
        return None

    def _write(self, k: Expr, v: Expr) -> tuple[Tile, Operand]:
        """The key and the value of a write row, the scales of both with the value."""
        key, value = self._operand(k, self.row_axis), self._operand(v, self.row_axis)
        axis = self._axis(self.row_axis)
        scales = [scale for scale in (key.scale, value.scale) if scale is not None]
        return key.vector, Operand(value.vector, axis.product(*scales) if scales else None)

    def _decays(self) -> tuple[Tile | None, Tile | None]:
        if self.block.lead is not None:
            log = self.block.lead.log
            return (
                cleared(self.rules, self._lifted(log, ROW), ROW),
                cleared(self.rules, self._lifted(log, TOKEN), TOKEN),
            )
        if self.step.decay is None:
            return None, None
        return cleared(self.rules, self._lifted(self.step.decay.log, TOKEN), TOKEN), None

    def _constant(self, decay: Tile | None) -> Set | None:
        """The evaluation of a log decay that no token changes."""
        if isinstance(decay, Masked) and not decay.value.dims:
            return Set("log_decay", decay.value)
        return None

    def _contracts(self) -> bool:
        """Whether what scales an erasure's read lies within [-1, 1]; without a declared range it may be anything."""
        spec = self.spec
        declared: tuple[Input | Param | Derived, ...] = (*spec.inputs, *spec.params, *spec.derived)
        ranges = {decl.name: decl.range for decl in declared}
        bounds = [interval_of(factor, ranges) for row in self.step.deltas for factor in _scalar_factors(row.y)]
        return bool(bounds) and math.prod(max(-bound.low, bound.high) for bound in bounds) <= 1

    # ----------------------------------------------------------------------------------------------------------- tiles

    def _operand(self, expr: Expr, axis: str) -> Operand:
        if len(expr.dims) != 1:
            self._refuse("a row is the same for every channel", expr.span)
        tile, (dim,) = self._tile(expr), expr.dims
        try:
            operand = self._axis(axis).operand(tile)
        except TooWide as wide:
            self._refuse(f"needs {wide}", expr.span)
        lanes = (axis, dim) if dim == self.nf.key else (axis,)
        scale = None if operand.scale is None else finite(self.rules, operand.scale, axis)
        return Operand(cleared(self.rules, operand.vector, *lanes), scale)

    def _lifted(self, expr: Expr, axis: str) -> Tile:
        tile = self._tile(expr)
        try:
            return self._axis(axis)(tile)
        except TooWide as wide:
            self._refuse(f"needs {wide}", expr.span)

    def _tile(self, expr: Expr) -> Tile:
        tile = self.masks.mask(self._lowered(expr))
        if self.nf.value in crossed_dims(tile):
            self._refuse(f"something sums over {self.nf.value}, of which a program owns a block", expr.span)
        return tile

    def _lowered(self, expr: Expr) -> Tile:
        try:
            return self.lower(expr)
        except TooManyDims as wide:
            self._refuse(f"needs an intermediate over [{', '.join(wide.dims)}]", wide.span)

    def _axis(self, axis: str) -> RowAxis:
        return RowAxis(axis, self.order, self.fixed)

    # ----------------------------------------------------------------------------------------------------------- parts

    def _part(self, tiles: Iterable[Tile | None], constant: Set | None) -> Part:
        """Everything that `tiles` need, directly or through derived names."""
        given = [tile for tile in tiles if tile is not None] + ([] if constant is None else [constant.value])
        needed = self._closure(given)
        params = [Load(param) for param in self.spec.params if param.is_tensor and (param.name, "") in needed]
        fixed = [
            Set(decl.name, self.derived[decl.name])
            for decl in self.spec.derived
            if decl.name in self.fixed and (decl.name, "") in needed
        ]
        if constant is not None:
            fixed.append(constant)
        loads = [
            RowLoad(decl, axis) for axis in (TOKEN, ROW) for decl in self.spec.inputs if (decl.name, axis) in needed
        ]
        sets = [
            RowSet(decl.name, axis, self._axis(axis)(self.derived[decl.name]))
            for axis in (TOKEN, ROW)
            for decl in self.spec.derived
            if (decl.name, axis) in needed
        ]
        every = (*given, *(action.value for action in fixed), *(action.value for action in sets))
        reads_head = any(isinstance(part, Head) for tile in every for part in tiles_in(tile))
        numbers = frozenset(param.name for param in self.spec.params if not param.is_tensor) & {x for x, _ in needed}
        return Part((*params, *fixed), (*loads, *sets), reads_head, numbers)

    def _closure(self, tiles: Iterable[Tile]) -> set[tuple[str, str]]:
        """(name, axis) of all that `tiles` read, directly or through derived names; "" is the axis of what is fixed."""
        needed: set[tuple[str, str]] = set()
        waiting = list(tiles)
        while waiting:
            for value in values_in(waiting.pop()):
                axis = next((axis for axis in (TOKEN, ROW) if axis in value.dims), "")
                if (value.name, axis) in needed:
                    continue
                needed.add((value.name, axis))
                if value.kind == "derived":
                    definition = self.derived[value.name]
                    waiting.append(self._axis(axis)(definition) if axis else definition)
        return needed


def _without(part: Part, *others: Part) -> Part:
    """What of `part` is in none of `others`."""
    once = tuple(action for action in part.once if all(action not in other.once for other in others))
    rows = tuple(row for row in part.rows if all(row not in other.rows for other in others))
    return Part(once, rows, part.reads_head, part.numbers)


def _fixed_names(spec: Spec) -> frozenset[str]:
    """Params, and what is derived from them and `head` alone: the same for every token."""
    fixed = {param.name for param in spec.params}
    for decl in spec.derived:
        if all(node.name in fixed for node in walk(decl.value) if isinstance(node, Name) and node.kind in _VARYING):
            fixed.add(decl.name)
    return frozenset(fixed)


_VARYING = ("input", "param", "derived")


def _scalar_factors(expr: Expr) -> Iterator[Expr]:
    """The factors of a product that have no dims."""
    match expr:
        case Negate(value):
            yield from _scalar_factors(value)
        case Binary("*", left, right):
            yield from _scalar_factors(left)
            yield from _scalar_factors(right)
        case _ if not expr.dims:
            yield expr
