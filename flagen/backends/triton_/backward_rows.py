"""What the backward evaluates on rows of a chunk that come first in every tile, as source lines."""

from __future__ import annotations

from dataclasses import dataclass, replace

from flagen.backends.printed import Printed, common_factor
from flagen.backends.triton_.backward_walks import compile_time, place_of, trimmed
from flagen.backends.triton_.chunk_kernel import FACTORS, ScalarDecayRows
from flagen.backends.triton_.rows import DOT, pointers, scalars, steps_symbol
from flagen.plan.backward_levels import BLOCK, HEAD, KEYS, OUTPUT_GRADIENT, R_GRADIENT, READ_GRADIENT, SHARED, Level
from flagen.plan.chunk_backward import ChunkBackwardPlan
from flagen.plan.row_planner import Part, RowLoad, RowSet
from flagen.plan.rows import TOKEN
from flagen.plan.schedule import Load, Set
from flagen.spec.model import Dims, Param


@dataclass(frozen=True)
class Scores:
    """A matrix of a chunk: what `reader` rows read of what `writer` rows write. `seen` for those of the output, which
    see their own row; for erasures strictly earlier ones."""

    name: str
    reader: str
    writer: str
    seen: bool

    @property
    def gradient(self) -> str:
        return f"{self.name}_gradient"


class BackwardRows(ScalarDecayRows):
    """What works on rows of a chunk that come first in every tile: blocks of keys, blocks of values."""

    def __init__(self, plan: ChunkBackwardPlan, *parts: Part) -> None:
        super().__init__(plan.rows, *parts)
        self.backward = plan
        self.key, self.value = plan.rows.key, plan.rows.value
        self.state = self.name(plan.rows.state.name)
        rider = plan.rows.rider
        self.column_state = "" if rider is None else self.name(rider.state.name)
        self.decaying = plan.rows.row_decay is not None
        self.to_end = Printed("to_end") if self.decaying else None

    def _load(self, load: RowLoad) -> str:
        # What lies along the keys is loaded for a key head: where heads are all of one kind, that is the value head.
        if self.key in load.source.dims:
            load = RowLoad(replace(load.source, heads="H"), load.axis)
        return super()._load(load)

    def _head_of(self, param: Param) -> str:
        return "key_head" if self.key in param.dims else super()._head_of(param)

    def tile(self, row: str, axis: str, dims: Dims) -> tuple[str, str]:
        """As in the forward kernels, but in 32 bits from the chunk start on: wide offsets take twice the registers."""
        place, _, head = row.partition(" * ")
        heads, _, head = head.partition(" + ")
        steps = f" * {steps_symbol(self.plan)}" if place == "row" else ""
        within = f"{self.axes.index(axis)}{place.removeprefix('token').removeprefix('row')}"
        start = f"start{steps} * {heads} + {head}"
        if not dims:
            return f"({start}) + {within} * {heads}", self.axes.mask(axis)
        offset, mask = super().tile(f"{within} * {heads}", axis, dims)
        return f"({start}) * {dims[0]} + ({offset})", mask

    def given(self, part: Part, *levels: Level) -> list[str]:
        """What of `part` is loaded and evaluated on `levels`."""
        of_names = self.backward.levels.of_names
        once = tuple(action for action in part.once if of_names[_of(action)] in levels)
        rows = tuple(action for action in part.rows if of_names[_of(action)] in levels)
        at_level = replace(part, once=once, rows=rows, reads_head=part.reads_head and HEAD in levels)
        return [*self.once_of(at_level), *self.loads(at_level)]

    def factors(self) -> list[str]:
        """The factors of a chunk's decay."""
        if not self.decaying:
            return []
        return [*self.decays(), *FACTORS, *self.moments(), "whole = tl.exp2(coarse_end + fine_end)"]

    def mask(self, matrix: Scores) -> str:
        """Which rows that wrote a matrix' readers see."""
        row = self.axes.index(self.row)
        return self.seen() if matrix.seen else f"{row}[:, None] > {row}[None, :]"

    def read_gradient(self) -> list[str]:
        """The gradient of the read, of a block of values."""
        offset, mask = self.tile("token * HV + value_head", TOKEN, (self.value,))
        column = []
        if self.backward.rider is not None:
            place, token = self.tile("token * HV + value_head", TOKEN, ())
            column.append(f"column = tl.load(column_ptr + {place}, mask={token}, other=0.0)")
        return [
            f"{OUTPUT_GRADIENT} = tl.load(do_ptr + {offset}, mask={mask}, other=0.0).to(tl.float32)",
            *column,
            f"{READ_GRADIENT} = {self.print(self.backward.read, TOKEN)}",
            f"read_operand = {READ_GRADIENT}.to(dtype)",
        ]

    def column_gradient(self) -> str:
        """The gradient of what is read of the vector state that rides along: the sum of what the walk's blocks have."""
        place, mask = self.tile("token * HV + value_head", TOKEN, ())
        return f"column_gradient = sum_of_shares(column_gradients_ptr + ({place}) * shares, 1, shares, {mask})"

    def stored_rows(self, name: str) -> list[str]:
        """What a walk found for each row, of a block of values."""
        if self.plan.delta is None:
            return []
        offset, mask = self.tile(f"{place_of(self)} * HV + value_head", self.row, (self.value,))
        return [f"{name} = tl.load({name}_ptr + {offset}, mask={mask}, other=0.0)"]

    def scaled(self, text: str, axis: str, *factors: Printed | None) -> str:
        """`text`, an operand over rows and values, with factors of its rows."""
        factor = common_factor(*factors)
        if factor is None:
            return text
        return f"({self.rows_by(text, factor, axis, (axis, self.value)).text}).to(dtype)"


class Across(BackwardRows):
    """Takes a block of a state across the chunk after it, or of its gradient across the chunk before it."""

    def __init__(self, plan: ChunkBackwardPlan, *, after: bool) -> None:
        super().__init__(plan, plan.after if after else plan.before)
        self.after = after

    def step(self, *, declared: bool) -> list[str]:
        """What the function takes, as it declares it or as a call passes it."""
        plan = self.plan
        rows = [] if plan.delta is None else ["U" if self.after else R_GRADIENT]
        column = ["column"] if self.backward.rider is not None and not self.after else []
        names = [*pointers(plan, *self.parts), *([] if self.after else ["do"]), *rows, *column]
        state = self.state if self.after else "S_gradient"
        given = [state, *(f"{name}_ptr" for name in names), *scalars(plan, *self.parts)]
        indices = [self.axes.index(self.key), self.axes.index(self.value)]
        place = ["earlier" if self.after else "later", "end_token", "key_head", "value_head", *indices]
        if declared:
            place[0] = "start"
        sizes = [name for name in compile_time(plan) if not name.startswith(("BLOCK_K", "BLOCK_V"))]
        sizes = [name for name in sizes if name not in (f"BLOCK_{self.key}", f"BLOCK_{self.value}")]
        return [*given, *place, *(f"{name}: tl.constexpr" if declared else name for name in (*sizes, "dtype"))]

    def sections(self) -> dict[str, list[str]]:
        part, plan = self.parts[0], self.plan
        roles = ("w", "k", "v") if self.after else ("q", "y")
        lines = [*self.given(part, SHARED, HEAD, KEYS, BLOCK), *self.operands(*roles), *self.factors()]
        state = self.state if self.after else "S_gradient"
        kept = f"whole * {state}" if self.decaying else state
        terms = []
        if self.after:
            lines += self.stored_rows("U")
            if plan.delta is not None:
                terms.append((self.scaled("U", self.row, self.scale("w"), self.to_end), "w"))
            if plan.write_key is not None:
                terms.append((self.scaled(self.operand("v"), self.row, self.scale("v"), self.to_end), "k"))
        else:
            lines += [*self.read_gradient(), *self.stored_rows(R_GRADIENT)]
            terms.append((self.scaled("read_operand", TOKEN, self.scale("q"), self.start_of("q")), "q"))
            if plan.delta is not None:
                terms.append((self.scaled(R_GRADIENT, self.row, self.scale("y"), self.start_of("y")), "y"))
        for operand, role in terms:
            lines.append(f"{state} = tl.dot(tl.trans({operand}), {self.operand(role)}, {kept}, {DOT})")
            kept = state
        return trimmed({"lines": lines}, state)


class AcrossColumn(BackwardRows):
    """Takes a block of the vector state that rides along across the chunk after it, or of its gradient across the chunk
    before it."""

    def __init__(self, plan: ChunkBackwardPlan, *, after: bool) -> None:
        assert plan.rider is not None
        super().__init__(plan, plan.rider.after if after else plan.rider.before)
        self.after = after

    def step(self, *, declared: bool) -> list[str]:
        """What the function takes, as it declares it or as a call passes it."""
        names = [*pointers(self.plan, *self.parts), *([] if self.after else ["column_gradients"])]
        state, start = (self.column_state, "earlier") if self.after else ("column_state_gradient", "later")
        given = [state, *(f"{name}_ptr" for name in names), *scalars(self.plan, *self.parts)]
        shares = [] if self.after else ["shares"]
        place = ["start" if declared else start, "end_token", "key_head", "value_head", self.axes.index(self.key)]
        sizes = ["H", "HV", self.key, "CHUNK"]
        if self.needs_dtype():
            sizes.append("dtype")
        return [*given, *place, *shares, *(f"{name}: tl.constexpr" if declared else name for name in sizes)]

    def needs_dtype(self) -> bool:
        return any(".to(dtype)" in line for line in self.sections()["lines"])

    def sections(self) -> dict[str, list[str]]:
        part, role = self.parts[0], "k" if self.after else "q"
        state = self.column_state if self.after else "column_state_gradient"
        lines = [*self.given(part, SHARED, HEAD, KEYS), *self.operands(role), *self.factors()]
        if self.after:
            lines += self.next_column_state()
        else:
            lines.append(self.column_gradient())
            lines.append(self.column_state_gradient())
        return trimmed({"lines": lines}, state)

    def column_state_gradient(self) -> str:
        """The gradient of the vector state before a chunk, from that after it."""
        kept = "whole * column_state_gradient" if self.decaying else "column_state_gradient"
        return f"column_state_gradient = {kept} + {self.column_read_gradient()}"


def _of(action: Load | Set | RowLoad | RowSet) -> str:
    """The name that a load or an evaluation gives a value."""
    return action.source.name if isinstance(action, Load | RowLoad) else action.target
