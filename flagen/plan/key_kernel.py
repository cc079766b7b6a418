"""The plan of `chunk_<name>` for decays of each key channel, and for reads that the scalar family does not have.

Nothing about such a decay can be taken out of the products over the keys, so a kernel that prepares all chunks at once
scales their rows and writes them down: the walk over chunks then is products alone. Differences of summed decays are
split by halving: a pair of rows belongs to the level of the highest bit in which their numbers differ, and on each
level both meet at the row where the two halves join, so that no factor exceeds 1 whatever the decay. Blocks of rows
so short that the declared range of the decay keeps its inverse finite, too, take one product for all their levels
(`Leaf`).

Decided here: which rows there are and when they read, what is summed over the keys before the products can be scaled,
which kernel evaluates what, and whether the inverse of I - L is folded into the rows.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from flagen.algebra.normal_form import Decay
from flagen.plan.chunk import ChunkPlan
from flagen.plan.row_planner import Delta, Part, RowLoad, RowPlanner, RowSet
from flagen.plan.rows import TOKEN, Operand, values_in
from flagen.plan.schedule import Load, Set, declared_names, fresh
from flagen.plan.show import show
from flagen.plan.split import crossed_dims, crossed_here
from flagen.plan.tiles import Sum, Tile, Value, rebuild, tiles_in
from flagen.spec.model import Dims, Expr, Interval, Spec, State
from flagen.spec.ranges import interval_of

LOG2_E = math.log2(math.e)
MOST_GROWTH = 60.0
"""How much a chunk may grow, in powers of two, where log decays may be positive."""
EXPONENTS = {"bfloat16": 126.0, "float32": 40.0}
"""How far from zero, in powers of two, the factors of a leaf may get in each dtype of operands: both have eight bits of
exponent, but float32 results would show the rounding of larger exponents."""


@dataclass(frozen=True)
class Leaf:
    """How many rows take one product anchored at their middle, by the dtype of the products; 1 where only halving
    keeps factors finite. `bound`: what the spec declares for the size of a log decay."""

    bound: float
    rows: Mapping[str, int]

    @property
    def is_one(self) -> bool:
        return max(self.rows.values()) == 1

    def dump(self) -> str:
        if self.is_one:
            return f"|g| has no bound that would keep e^-g finite ({self.bound:g}): every pair of rows by halving"
        rows = ", ".join(f"{rows} in {dtype}" for dtype, rows in self.rows.items())
        return f"|g| <= {self.bound:g} keeps the factors of a block finite up to this many rows: {rows}; above, halving"


@dataclass(frozen=True)
class Preparation:
    """What the first kernel reads and evaluates.

    once, rows: what has no key channels, before the loop over blocks of keys.
    key_once, key_rows: what has, in that loop.
    sums: what is summed over the keys there; `numbers` are what is made of these after it.
    """

    once: tuple[Load | Set, ...]
    rows: tuple[RowLoad | RowSet, ...]
    key_once: tuple[Load | Set, ...]
    key_rows: tuple[RowLoad | RowSet, ...]
    sums: tuple[RowSet, ...]
    numbers: tuple[RowSet, ...]
    part: Part


@dataclass(frozen=True)
class KeyKernelPlan:
    """The rows of a chunk as operands, and what its kernels read.

    order: the order of a tile's axes: values, rows, keys.
    q: what the state is read with: over the keys, or, from the `right`, over the values.
    read_after: the decay of its own token counts for a read; `reads_itself`: what its own token writes counts, too.
    erase_after: the decay of its own token counts for an erasure.
    log_decay: over tokens and keys, or over tokens alone; None where nothing decays.
    folded: the walk gets rows into which (I - L)^-1 and the scores of the write rows are multiplied already.
    whole_keys: something sums over the keys before the products: a program needs all of them at once.
    numbers: what the preparation leaves for the walk besides, one for each row.
    walk: what the walk reads and evaluates; `outputs`: what the kernel of a right read does.
    """

    chunk: ChunkPlan
    order: Dims
    q: Operand
    right: bool
    read_after: bool
    reads_itself: bool
    delta: Delta | None
    erase_after: bool
    write_key: Operand | None
    write_value: Tile | None
    log_decay: Tile | None
    leaf: Leaf
    folded: bool
    contracts: bool
    whole_keys: bool
    output: Tile
    numbers: tuple[RowSet, ...]
    prepare: Preparation
    walk: Part
    outputs: Part | None
    size: int

    row_axis = TOKEN

    @property
    def state(self) -> State:
        """The state."""
        return self.chunk.normal_form.state

    @property
    def spec(self) -> Spec:
        return self.chunk.normal_form.spec

    @property
    def read(self) -> str:
        """What the output calls what it reads."""
        return self.chunk.normal_form.reads[0].name

    @property
    def key(self) -> str:
        return self.chunk.normal_form.key

    @property
    def value(self) -> str:
        return self.chunk.normal_form.value

    @property
    def decay_input(self) -> str | None:
        """The input that is the log decay, where nothing is made of it."""
        return self.log_decay.name if isinstance(self.log_decay, Value) and self.log_decay.kind == "input" else None

    @property
    def rows(self) -> Mapping[str, Operand]:
        """The operands by the names of the normal form."""
        rows = {"q": self.q}
        if self.delta is not None:
            rows |= {"w": self.delta.w, "y": self.delta.y}
        if self.write_key is not None and self.write_value is not None:
            rows |= {"k": self.write_key, "v": Operand(self.write_value, None)}
        return rows

    def vector(self, role: str) -> Tile | None:
        """The vectors of q, w, y, k or v: operands of matrix products."""
        return self.rows[role].vector if role in self.rows else None

    def scale(self, role: str) -> Tile | None:
        """What multiplies a whole row of these."""
        return self.rows[role].scale if role in self.rows else None

    @property
    def vectors(self) -> tuple[Tile, ...]:
        return tuple(operand.vector for operand in self.rows.values())

    def dump(self) -> str:
        """The plan as text: the launches, then the rows."""
        folded = ", (I - L)^-1 folded into its rows" if self.folded else ""
        read = "; then the outputs of all chunks" if self.right else ""
        lines = [
            f"prepare all chunks, then a walk over chunks{folded}{read}; {self.size} rows a chunk;"
            f" the state transposed, in blocks of {self.value}"
        ]
        if self.log_decay is not None:
            lines.append(f"    {self.leaf.dump()}")
        for name, operand in self.rows.items():
            scale = "" if operand.scale is None else f"{show(operand.scale)} of each row, "
            lines.append(f"    {name} = {scale}{show(operand.vector)}")
        if self.delta and self.delta.z is not None:
            lines.append(f"    z = {show(self.delta.z)}")
        if self.log_decay is not None:
            lines.append(f"    g = {show(self.log_decay)}")
        lines += [f"    {number.target} = {show(number.value)}, prepared" for number in self.numbers]
        return "\n".join((*lines, f"    o = {show(self.output)}"))


def plan_key_decay(chunk: ChunkPlan, size: int) -> KeyKernelPlan:
    """The kernels of `chunk`, with at most `size` rows a chunk.

    Raises:
        NoKernel: something keeps it out of the kernels.
    """
    return KeyPlanner(chunk).plan(size)


class KeyPlanner(RowPlanner):
    """Plans the rows of a chunk; with `rows_first`, sums over the keys stay where they stand."""

    def __init__(self, chunk: ChunkPlan, *, rows_first: bool = False) -> None:
        super().__init__(chunk.normal_form, TOKEN, rows_first=rows_first)
        self.chunk = chunk
        self._check_form()
        ((self.step,),) = (block.steps for block in self.nf.blocks)
        (self.read,) = self.nf.reads
        self.taken = set(declared_names(self.spec))

    def _check_form(self) -> None:
        nf, span = self.nf, self.spec.states[0].span
        if len(nf.steps) != 1 or nf.slots > 1 or nf.blocks[0].repeated:
            self.refuse("a token has several rows, and not all of them are of one kind or decay alike", span)
        if len(nf.reads) != 1:
            self.refuse("the output reads the state more than once", self.spec.output[-1].span)

    def plan(self, size: int) -> KeyKernelPlan:
        right = self.read.side == "right"
        q = self._operand(self.read.q, TOKEN)
        if right:
            q = replace(q, vector=self._cleared(q.vector, self.nf.value))
        delta, key, value = None, None, None
        for row in self.step.deltas:
            delta = self._delta(row)
        for write in self.step.writes:
            key, value = self._write(write.k, write.v)
        log_decay = None if self.step.decay is None else self._log_decay(self.step.decay)
        output = self._output()

        numbers = _Numbers(self)
        output = numbers.taken_out(output)
        if delta is not None and delta.z is not None:
            delta = replace(delta, z=numbers.taken_out(delta.z))
        if value is not None:
            value = numbers.taken_out(value)
        z = None if delta is None else delta.z
        outputs = None
        if right:
            outputs, delta, key = self._right_outputs(q, output, value, delta, key, numbers)
        walk = self.part([value, z, *([] if right else [output])], None)

        rows = (key, *((delta.w, delta.y) if delta else ()), None if right else q)
        prepared = [row for row in rows if row is not None]
        whole = self.rows_first or self._needs_whole_keys(prepared, log_decay, numbers.found)
        sums = _Sums(self, whole=whole)
        if delta is not None:
            delta = replace(delta, w=sums.scaled(delta.w), y=sums.scaled(delta.y))
        return KeyKernelPlan(
            chunk=self.chunk,
            order=self.order,
            q=q if right else sums.scaled(q),
            right=right,
            read_after=self.read.position.after_decay or self.read.position == self.nf.end,
            reads_itself=self.read.position == self.nf.end,
            delta=delta,
            erase_after=all(row.after_decay for row in self.step.deltas),
            write_key=None if key is None else sums.scaled(key),
            write_value=value,
            log_decay=log_decay,
            leaf=self._leaf(),
            folded=delta is not None and key is not None and delta.z is None and not right,
            contracts=self._contracts(),
            whole_keys=sums.whole,
            output=output,
            numbers=tuple(numbers.found),
            prepare=self._preparation(prepared, log_decay, numbers.found, sums),
            walk=walk,
            outputs=outputs,
            size=self._fitting(size),
        )

    def _right_outputs(
        self,
        q: Operand,
        output: Tile,
        value: Tile | None,
        delta: Delta | None,
        key: Operand | None,
        numbers: _Numbers,
    ) -> tuple[Part, Delta | None, Operand | None]:
        """What the kernel of a right read loads; it scales the written rows itself, by numbers that were prepared."""
        if self.sums_keys(output):
            self.refuse(
                f"the output sums over {self.nf.key}, of which a program owns a block", self.spec.output[-1].span
            )
        if delta is not None:
            delta = replace(delta, w=numbers.scaled(delta.w))
        key = None if key is None else numbers.scaled(key)
        rows = (q, key, None if delta is None else delta.w)
        scales = [row.scale for row in rows if row is not None]
        return self.part([q.vector, value, output, *scales], None), delta, key

    def _needs_whole_keys(self, rows: Iterable[Operand], log_decay: Tile | None, numbers: Iterable[RowSet]) -> bool:
        """Whether a sum over the keys is needed in the blocks of keys themselves, or not for each row."""
        tiles = [row.vector for row in rows] + ([] if log_decay is None else [log_decay])
        if any(map(self.sums_keys, tiles)):
            return True
        after = [row.scale for row in rows if row.scale is not None] + [number.value for number in numbers]
        sums = [part for tile in after for part in tiles_in(tile) if self.nf.key in crossed_here(part)]
        return any(not isinstance(part, Sum) or part.dims != (TOKEN,) or self.sums_keys(part.value) for part in sums)

    # ------------------------------------------------------------------------------------------------------------ rows

    def _write(self, k: Expr, v: Expr) -> tuple[Operand, Tile]:
        """The key and the value of a write row, the scales of both with the key."""
        key, value = self._operand(k, TOKEN), self._operand(v, TOKEN)
        scales = [scale for scale in (key.scale, value.scale) if scale is not None]
        return Operand(key.vector, self.axis(TOKEN).product(*scales) if scales else None), value.vector

    def _tile(self, expr: Expr) -> Tile:
        """Names that stand for something that sums over the keys are written out: their sums become numbers."""
        return self._expanded(super()._tile(expr))

    def _expanded(self, tile: Tile) -> Tile:
        if isinstance(tile, Value) and tile.kind == "derived" and self.sums_keys(tile):
            return self._expanded(self.derived[tile.name])
        return rebuild(tile, self._expanded)

    def sums_keys(self, tile: Tile) -> bool:
        """Whether `tile`, or a name in it, sums over the key channels."""
        names = {value.name for value in values_in(tile) if value.kind == "derived"}
        return self.nf.key in crossed_dims(tile) or any(self.sums_keys(self.derived[name]) for name in names)

    # ----------------------------------------------------------------------------------------------------------- decays

    def _log_decay(self, decay: Decay) -> Tile:
        tile = self._cleared(self._lifted(decay.log, TOKEN), TOKEN)
        return self._cleared(tile, self.nf.key) if self.nf.key in tile.dims else tile

    def _interval(self) -> Interval:
        decay = self.step.decay
        return Interval(0.0, 0.0) if decay is None else interval_of(decay.log, self._ranges())

    def _leaf(self) -> Leaf:
        interval = self._interval()
        bound = max(-interval.low, interval.high)
        rows = {dtype: _leaf_rows(bound, exponent) for dtype, exponent in EXPONENTS.items()}
        return Leaf(bound, rows if min(rows.values()) > 1 else dict.fromkeys(rows, 1))

    def _fitting(self, size: int) -> int:
        """The rows that a chunk may have where log decays may be positive, so that nothing in it grows too much."""
        growth = self._interval().high * LOG2_E
        while growth * size > MOST_GROWTH and size > 16:
            size //= 2
        if growth * size > MOST_GROWTH:
            assert self.step.decay is not None
            self.refuse("the decay may exceed 1 by too much for 16 rows", self.step.decay.factor.span)
        return size

    # ------------------------------------------------------------------------------------------------------ preparation

    def _preparation(
        self, rows: Iterable[Operand], log_decay: Tile | None, numbers: Iterable[RowSet], sums: _Sums
    ) -> Preparation:
        """Sort what the first kernel reads and evaluates by whether it has key channels."""
        values = [number.value for number in numbers]
        tiles = [tile for row in rows for tile in (row.vector, row.scale) if tile is not None]
        part = self.part([*tiles, log_decay, *values], None)
        taken_out = tuple(replace(number, value=sums.taken_out(number.value)) for number in numbers)
        return Preparation(
            once=tuple(action for action in part.once if not self._has_keys(action)),
            rows=tuple(row for row in part.rows if not self._has_keys(row)),
            key_once=tuple(action for action in part.once if self._has_keys(action)),
            key_rows=tuple(row for row in part.rows if self._has_keys(row)),
            sums=tuple(sums.found),
            numbers=taken_out,
            part=part,
        )

    def _has_keys(self, action: Load | Set | RowLoad | RowSet) -> bool:
        dims = action.value.dims if isinstance(action, Set | RowSet) else action.source.dims
        return self.nf.key in dims


@dataclass
class _Numbers:
    """Takes the numbers of a row that sum over the keys out of the walk's expressions: they are prepared before."""

    planner: KeyPlanner
    found: list[RowSet] = field(default_factory=list)

    def scaled(self, row: Operand) -> Operand:
        return row if row.scale is None else replace(row, scale=self.taken_out(row.scale))

    def taken_out(self, tile: Tile) -> Tile:
        known = not any(value.kind == "local" for value in values_in(tile))  # What is read is not, before the walk.
        if set(tile.dims) != {TOKEN} or not known or not self.planner.sums_keys(tile):
            return rebuild(tile, self.taken_out)
        for number in self.found:
            if number.value == tile:
                return Value(number.target, "local", tile.dims)
        self.found.append(RowSet(fresh("number", self.planner.taken), TOKEN, tile))
        return Value(self.found[-1].target, "local", tile.dims)


@dataclass
class _Sums:
    """Takes sums over the keys out of expressions, to be added up block by block of keys.

    `whole`: that cannot be, since something needs one of them before all blocks are done.
    """

    planner: KeyPlanner
    whole: bool
    found: list[RowSet] = field(default_factory=list)

    def scaled(self, row: Operand) -> Operand:
        return row if row.scale is None else replace(row, scale=self.taken_out(row.scale))

    def taken_out(self, tile: Tile) -> Tile:
        if self.whole or not (isinstance(tile, Sum) and tile.dim == self.planner.nf.key):
            return tile if self.whole else rebuild(tile, self.taken_out)
        for done in self.found:
            if done.value == tile:
                return Value(done.target, "local", tile.dims)
        self.found.append(RowSet(fresh("key_sum", self.planner.taken), TOKEN, tile))
        return Value(self.found[-1].target, "local", tile.dims)


def _leaf_rows(bound: float, exponent: float) -> int:
    """The most rows, a power of two, whose factors from the middle stay below 2^exponent; 1 where not even two do."""
    rows = 64
    while rows > 1 and rows / 2 * bound * LOG2_E >= exponent:
        rows //= 2
    return rows
