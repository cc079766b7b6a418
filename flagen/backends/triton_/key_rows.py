"""What kernels have in common that scale the rows of a chunk themselves: their arrays, and rows by blocks of keys."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from flagen.backends.triton_.rows import RowWriter
from flagen.diagnostics import InternalError
from flagen.plan.kernel_names import kernel_name
from flagen.plan.key_kernel import KeyKernelPlan
from flagen.plan.row_planner import Part, RowLoad, RowSet
from flagen.plan.rows import TOKEN
from flagen.plan.schedule import Load, Set
from flagen.plan.tiles import Tile, Value

LOG2_E = "1.4426950408889634"
INDENT = "    "


@dataclass(frozen=True)
class Array:
    """What the preparation leaves for the walk: `dims` follow those of chunks and heads."""

    name: str
    dims: tuple[str, ...]
    single: bool = False

    def place(self, row: str, key: str, key_mask: str) -> tuple[str, str]:
        """The offsets of a chunk's part of it, and the mask that they need."""
        match self.dims:
            case ("CHUNK",):
                return f"chunk_row * CHUNK + {row}", ""
            case ("CHUNK", "CHUNK"):
                return f"chunk_row * (CHUNK * CHUNK) + {row}[:, None] * CHUNK + {row}[None, :]", ""
            case ("CHUNK", dim):
                place = f"chunk_row * (CHUNK * {dim}) + {row}[:, None] * {dim} + {key}[None, :]"
                return place, f"{key_mask}[None, :]"
            case (dim,):
                return f"chunk_row * {dim} + {key}", key_mask
        raise InternalError(f"no place for {self}")

    def loaded(self, row: str, key: str, key_mask: str) -> str:
        """The statement that loads a chunk's part of it."""
        place, mask = self.place(row, key, key_mask)
        masked = f", mask={mask}, other=0.0" if mask else ""
        return f"{self.name} = tl.load({self.name}_ptr + {place}{masked})"


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


def arrays(plan: KeyKernelPlan) -> tuple[Array, ...]:
    """What the prepared chunks are kept in."""
    square, rows = ("CHUNK", "CHUNK"), ("CHUNK", plan.key)
    erasing, writing = plan.delta is not None, plan.write_key is not None
    found = [] if plan.right else [Array("q_from_start", rows), Array("scores", square)]
    if erasing:
        found += [Array("y_from_start", rows), Array("w_to_end", rows)]
        found += [] if plan.folded else [Array("inverse", square)]
    if writing:
        found += [Array("k_to_end", rows)]
    if erasing and writing and not plan.folded:
        found += [Array("erased_writes", square), *([] if plan.right else [Array("write_scores", square)])]
    if plan.log_decay is not None:
        found.append(Array("whole", (plan.key,), single=True))
    return (*found, *(Array(number.target, ("CHUNK",), single=True) for number in plan.numbers))


def decay_tiles(plan: KeyKernelPlan) -> tuple[str, ...]:
    """What a kernel that scales rows is compiled for besides."""
    if plan.log_decay is None:
        return ()
    return ("LEVELS", "TERMS") if plan.leaf.is_one else ("LEVELS", "LEAF_LEVELS", "TERMS")


class KeyRows(RowWriter[KeyKernelPlan]):
    """Loads rows block by block of keys, all in float32.

    key_roles: the rows over the keys; `readers`: those that read, and whether the decay of their own token counts.
    """

    def __init__(self, plan: KeyKernelPlan, *parts: Part) -> None:
        super().__init__(plan, *parts)
        self.key = plan.key
        self.row_index, self.key_index = self.axes.index(TOKEN), self.axes.index(plan.key)
        self.key_roles: tuple[str, ...] = ("w", "y", "k") if plan.right else ("q", "w", "y", "k")
        reads = {} if plan.right else {"q": plan.read_after}
        self.readers = reads | ({} if plan.delta is None else {"y": plan.erase_after})

    def _raw(self, load: RowLoad) -> bool:
        return False

    def fixed(self, actions: Sequence[Load | Set], *, reads_head: bool = False) -> list[str]:
        lines = ["head = value_head.to(tl.float32)"] if reads_head else []
        for action in actions:
            if isinstance(action, Load):
                lines.append(f"{self.name(action.source.name)} = {self._param(action.source)}")
            else:
                lines.append(f"{self.name(action.target)} = {self.printers[''].assigned(action.value)}")
        return lines

    def rows(self, rows: Sequence[RowLoad | RowSet]) -> list[str]:
        return self.loads(Part((), tuple(rows), reads_head=False, numbers=frozenset()))

    def _load(self, load: RowLoad) -> str:
        """Rows over the keys: the address of a chunk's first is a number of the program's, and offsets from it are
        short; a 64-bit address for each row of each input would take too many registers."""
        decl, K = load.source, self.key
        if K not in decl.dims:
            return super()._load(load)
        heads, head = ("HV", "value_head") if decl.heads == "HV" else ("H", "key_head")
        first = f"(start * {heads} + {head}) * {K}"
        offset = f"{self.row_index}[:, None] * ({heads} * {K}) + {self.key_index}[None, :]"
        mask = self.axes.within((TOKEN, K))
        return f"tl.load({kernel_name(decl.name)}_ptr + {first} + {offset}, mask={mask}, other=0.0).to(tl.float32)"

    def operand(self, role: str) -> str:
        """Vectors along the keys are in float32 here, those that have a name of their own like the others."""
        tile = self.plan.vector(role)
        if role != "v" and isinstance(tile, Value):
            return self.name(tile.name, self.axis_of(role))
        return super().operand(role)

    def of_keys(self) -> list[str]:
        """The rows of a block of keys, and their log decays, in float32."""
        prepare = self.plan.prepare
        lines = [*self.fixed(prepare.key_once), *self.rows(prepare.key_rows)]
        done: set[Tile] = set()
        for role in self.key_roles:
            tile = self.plan.vector(role)
            if tile is not None and not isinstance(tile, Value) and tile not in done:
                done.add(tile)
                lines.append(f"{self.operand(role)} = {self.print(tile, TOKEN)}")
        return [*lines, *self._log_decay()]

    def _log_decay(self) -> list[str]:
        decay = self.plan.log_decay
        if decay is None:
            return []
        text = self.print(decay, TOKEN)
        lines = [f"log_decay = tl.maximum({text}, -111.0, propagate_nan=tl.PropagateNan.ALL)"]
        if self.key not in decay.dims:
            lines.append(f"log_decay = tl.broadcast_to(log_decay[:, None], (CHUNK, BLOCK_{self.key}))")
        return lines

    def rows_where(self, comparison: str) -> str:
        return f"{self.row_index}[:, None] {comparison} {self.row_index}[None, :]"


def indented(lines: Sequence[str]) -> list[str]:
    return [INDENT + line for line in lines]
