"""What the kernels for decays of each key have in common: rows block by block of keys, and what is prepared of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

from flagen.kernel.ir import Access, Array, Let, Life, Load, Statement
from flagen.kernel.rows import RowLowering, call, local, whole
from flagen.plan.key_kernel import KeyKernelPlan
from flagen.plan.row_planner import Part, RowLoad
from flagen.plan.rows import TOKEN, WRITTEN
from flagen.plan.tiles import (
    LOG2_E,
    Arithmetic,
    AtLeast,
    Compare,
    Comparison,
    Constant,
    Function,
    Product,
    Size,
    Spread,
    Sum,
    Tile,
    Value,
)
from flagen.spec.model import Dims

LEAST = -111.0
"""A log decay whose exponential is next to nothing: what is smaller is taken for it, so that sums stay finite."""

SQUARE = (TOKEN, WRITTEN)
"""The axes of a matrix of scores."""
TERMS, LEAF, LEVEL = Size("TERMS"), Size("LEAF"), Value("level", "local", ())


@dataclass(frozen=True)
class Score:
    """Products of each row of `reader` with each row of `writer`."""

    name: str
    reader: str
    writer: str


def scores_of(plan: KeyKernelPlan) -> tuple[Score, ...]:
    """The matrices of a chunk: what the reads see, then what the erasures see."""
    erasing, writing = plan.delta is not None, plan.write_key is not None
    read_writes = Score("write_scores" if erasing else "scores", "q", "k")
    return (
        *([Score("scores", "q", "w")] if erasing and not plan.right else []),
        *([read_writes] if writing and not plan.right else []),
        *([Score("erased_writes", "y", "k")] if erasing and writing else []),
        *([Score("L", "y", "w")] if erasing else []),
    )


def prepared(plan: KeyKernelPlan) -> tuple[Array, ...]:
    """What the preparation leaves of each chunk: for the walk, and, but for what is folded or of right reads, for the
    backward."""
    rows = (TOKEN, plan.key)
    life: Life = "scratch" if plan.right or plan.folded else "residual"
    erasing, writing = plan.delta is not None, plan.write_key is not None

    def array(name: str, dims: Dims, *, single: bool = False) -> Array:
        return Array(name, ("counted_chunk", "head"), dims, life, name, own_dtype=not single)

    found = [] if plan.right else [array("q_from_start", rows), array("scores", SQUARE)]
    if erasing:
        found += [array("y_from_start", rows), array("w_to_end", rows)]
        found += [] if plan.folded else [array("inverse", SQUARE)]
    if writing:
        found += [array("k_to_end", rows)]
    if erasing and writing and not plan.folded:
        found += [array("erased_writes", SQUARE), *([] if plan.right else [array("write_scores", SQUARE)])]
    if plan.log_decay is not None:
        found.append(array("whole", (plan.key,), single=True))
    return (*found, *(array(number.target, (TOKEN,), single=True) for number in plan.numbers))


def matrices(plan: KeyKernelPlan) -> tuple[str, ...]:
    """What is prepared of a chunk that is no larger than it: a forward call can hand it on."""
    return tuple(array.name for array in prepared(plan) if array.dims == SQUARE)


def decay_sizes(plan: KeyKernelPlan) -> tuple[str, ...]:
    """What a kernel that scales rows is compiled for besides."""
    if plan.log_decay is None:
        return ()
    return ("LEVELS", "TERMS") if plan.leaf.is_one else ("LEVELS", "LEAF_LEVELS", "TERMS")


class KeyRows(RowLowering[KeyKernelPlan]):
    """Rows of a block of keys, all in float32.

    key_roles: the rows over the keys; `readers`: those that read, and whether the decay of their own token counts.
    """

    def __init__(self, plan: KeyKernelPlan, *parts: Part) -> None:
        super().__init__(plan, *parts)
        self.key, self.value = plan.key, plan.value
        self.key_roles: tuple[str, ...] = ("w", "y", "k") if plan.right else ("q", "w", "y", "k")
        reads = {} if plan.right else {"q": plan.read_after}
        self.readers: Mapping[str, bool] = reads | ({} if plan.delta is None else {"y": plan.erase_after})

    # ------------------------------------------------------------------------------------------------------------ rows

    def raw(self, load: RowLoad) -> bool:
        return False

    def rows_of(self, array: Array, axis: str) -> Access:
        """Rows over the keys: the address of a chunk's first is a number of the program's, and offsets from it are
        short; a 64-bit address for each row of each input would take too many registers."""
        found = super().rows_of(array, axis)
        return replace(found, address="strides") if self.key in array.dims else found

    def operand(self, role: str) -> Value:
        """Vectors along the keys are in float32 here, those that have a name of their own like the others."""
        tile = self.plan.vector(role)
        if role != "v" and isinstance(tile, Value):
            return local(self.name(tile.name, self.axis_of(role)), tile.dims)
        return super().operand(role)

    def of_keys(self) -> Iterator[Statement]:
        """The rows of a block of keys, and their log decays, in float32."""
        prepare = self.plan.prepare
        yield from self.fixed(prepare.key_once)
        yield from self.of_rows(prepare.key_rows)
        yield from self.vectors(self.key_roles)

    def vectors(self, roles: Iterable[str]) -> Iterator[Statement]:
        """The vectors along the keys that are no plain inputs, and the log decay."""
        done: set[Tile] = set()
        for role in roles:
            tile = self.plan.vector(role)
            if tile is not None and not isinstance(tile, Value) and tile not in done:
                done.add(tile)
                yield Let(self.operand(role).name, self.tile(tile, TOKEN))
        yield from self._log_decay()

    # ---------------------------------------------------------------------------------------------------------- decays

    @property
    def log_decay(self) -> Value:
        """The log decay of each row and key."""
        return local("log_decay", (TOKEN, self.key))

    def _log_decay(self) -> Iterator[Statement]:
        decay = self.plan.log_decay
        if decay is None:
            return
        least = AtLeast(self.tile(decay, TOKEN), LEAST, decay.dims)
        yield Let("log_decay", least)
        if self.key not in decay.dims:
            yield Let("log_decay", Spread(local("log_decay", decay.dims), self.log_decay.dims))

    def decay_over(self, comparison: Comparison) -> Tile:
        """The decay of each row and key over those rows that compare so to it."""
        return call("decay_over", self.rows_where(comparison), self.log_decay, TERMS, dims=self.log_decay.dims)

    def decay_to_cut(self, *, after: bool) -> Tile:
        """The decay of each row to the row where the halves of a level meet; of those that read, with that of their
        own token or not."""
        own = whole(int(after))
        return call("decay_to_cut", self.lane(TOKEN), LEVEL, self.log_decay, own, TERMS, dims=self.log_decay.dims)

    def seen_across_cut(self) -> Tile:
        """Which rows of an upper half see which of its lower half."""
        return call("seen_across_cut", self.lane(TOKEN), LEVEL, dims=SQUARE)

    def from_middle(self) -> Tile:
        """The sum of log decays from the middle of a leaf to each row, in powers of two."""
        return call("from_middle", self.lane(TOKEN), self.log_decay, LEAF, TERMS, dims=self.log_decay.dims)

    def near(self) -> Tile:
        """Where two rows lie in one leaf."""
        reader, writer = (Arithmetic("//", self.lane(axis), LEAF, SQUARE) for axis in SQUARE)
        return Compare("==", reader, writer, SQUARE)

    def before(self, exponent: Tile) -> Tile:
        """An exponent without the decay of its own token."""
        return Arithmetic("-", exponent, self.in_powers_of_two(self.log_decay), exponent.dims)

    def across(self) -> Tile:
        """The decay of each key across the chunk."""
        return self.exponential(self.in_powers_of_two(Sum(self.log_decay, TOKEN, (self.key,))))

    def in_powers_of_two(self, log: Tile) -> Tile:
        return Product((log, Constant(LOG2_E)), log.dims)

    def exponential(self, log: Tile) -> Tile:
        """Two to the power of a tile."""
        return Function("exp2", (log,), log.dims)

    def rows_where(self, comparison: Comparison) -> Tile:
        """Where a row compares so to a column."""
        return self.compared(self.lane(TOKEN), comparison, self.lane(WRITTEN))

    def scaled(self, role: str, decay: Tile | None) -> Tile:
        """The rows of `role` with all their factors."""
        return self.product(self.operand(role), self.scale(role), decay)

    def product(self, first: Tile, *rest: Tile | None) -> Tile:
        """The product of these from left to right, over all that any of them lies over; None is no factor."""
        factors = (first, *(factor for factor in rest if factor is not None))
        return first if len(factors) == 1 else Product(factors, self.sorted(d for f in factors for d in f.dims))

    # ---------------------------------------------------------------------------------------------------------- memory

    def chunk_access(self, array: Array) -> Access:
        """A chunk's part of what is prepared, or walked."""
        return replace(self.of_chunk(array.name, array.dims), array=array)

    def prepared_load(self, array: Array) -> Load:
        """What was prepared, as it is."""
        return Load(array.name, self.chunk_access(array), wide=False)
