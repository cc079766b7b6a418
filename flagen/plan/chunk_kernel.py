"""The plan of `chunk_<name>`: kernels over the chunks of a sequence, for decays that are a scalar, or none at all.

Additive rules need one kernel: it walks the chunks of a sequence with the state in registers, and a chunk's scores are
computed where they are used. Delta rules need two: what does not depend on the state, the scores and the inverse of
I - L, is prepared for all chunks at once and read by the walk.

Decided here: which of the normal form's rows there are, which factors of them stay off the matrix products, what each
kernel loads and evaluates, on which axis, and what has to be cleared beyond a sequence's end.
"""

from __future__ import annotations

from dataclasses import dataclass

from flagen.algebra.normal_form import NormalForm, Numbers, Position
from flagen.plan.chunk import ChunkPlan
from flagen.plan.mixed import Mixed
from flagen.plan.mixed import Numbers as Tiles
from flagen.plan.row_planner import Delta, Part, RowPlanner, others_of, without
from flagen.plan.rows import ROW, TOKEN, Operand, finite
from flagen.plan.schedule import Set
from flagen.plan.show import show
from flagen.plan.tiles import Masked, Tile, Value
from flagen.spec.model import Dims, Expr, Number, Spec, State


@dataclass(frozen=True)
class Rider:
    """A vector state that rides on the matrix: a column of the values, of `scale` for each row, or of ones.

    shares: `scale` is what scales the rows of values, too. read: what the output calls the number that q reads of it.
    """

    state: State
    scale: Tile | None
    shares: bool
    read: str


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
    rider: the vector state that rides along, if one does: only where nothing is prepared.
    mixed: the states and their numbers, where there are several that numbers mix; there is no decay then.
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
    rider: Rider | None = None
    mixed: Mixed | None = None

    @property
    def state(self) -> State:
        """The matrix state; of several the first."""
        return self.chunk.normal_form.state

    @property
    def matrices(self) -> tuple[State, ...]:
        """The matrix states."""
        return (self.state,) if self.mixed is None else self.mixed.states

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
    def keys(self) -> Dims:
        """The dims along the keys: that of the state's, behind those that it has the pairs of, or that its rows are
        made of."""
        return (*others_of(self.chunk.normal_form), *self.spec.pairs.get(self.key, ()), self.key)

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

    def axis_of(self, role: str) -> str:
        """The axis that the rows of `role` lie along."""
        return TOKEN if role == "q" else self.row_axis

    @property
    def reads_itself(self) -> bool:
        """Whether a token reads what it writes."""
        nf = self.chunk.normal_form
        return nf.reads[0].position == nf.end

    @property
    def erases_before(self) -> bool:
        """Whether erasures read the state as it is before their token's decay."""
        return self.row_decay is not None and any(not row.after_decay for row in self.chunk.normal_form.steps[0].deltas)

    @property
    def crowded(self) -> bool:
        """Whether rows that erase and rows that write share a chunk, which then has four matrices of scores."""
        return self.delta is not None and self.write_key is not None

    @property
    def states_every(self) -> int:
        """How many chunks there are for a state that is stored for the gradients: one, as taking a state across a chunk
        costs more time than its bytes. Of several states every second one is stored."""
        return 1 if self.mixed is None else 2

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
        if self.mixed is not None:
            lines += self.mixed.dump()
        if self.rider is not None:
            scale = "1" if self.rider.scale is None else show(self.rider.scale)
            lines.append(f"    {self.rider.state.name} rides along, a column of {scale}, read as {self.rider.read}")
        return "\n".join((*lines, f"    o = {show(self.output)}"))


def fits(nf: NormalForm) -> bool:
    """Whether `nf` is of this family: one row a micro-step or a row of each kind, at most one decay for all
    channels, and one read of the state after its update, or of rows that are only written between the two."""
    (*_, last) = nf.blocks
    only = nf.steps[0]
    if len(nf.steps) != 1 or nf.slots > 1 or nf.decay_kind == "key" or nf.transposed:
        return False
    if last.repeated and (only.decay is not None or not nf.has_delta):
        return False
    if last.lead is not None and any(not row.after_decay for row in only.deltas):
        return False
    written = not nf.has_delta and not nf.registers and only.decay is not None
    moments = [nf.end, *([Position(0, 0, after_decay=True)] if written else [])]
    return [read.side for read in nf.reads] == ["left"] and nf.reads[0].position in moments


def takes_others(nf: NormalForm) -> bool:
    """Whether the kernels of `nf` can evaluate rows from vectors over dims that are none of the state's: they hold all
    of these, which is as much as there is room for beside rows that are only written."""
    return fits(nf) and not nf.has_delta and not nf.registers and nf.column is None and not nf.spec.pairs


def plan_scalar_decay(chunk: ChunkPlan, size: int) -> ChunkKernelPlan:
    """The kernels of a chunk form that `fits`, with at most `size` rows a chunk.

    Raises:
        NoKernel: an expression keeps it out of the kernels.
    """
    return ScalarDecayPlanner(chunk).plan(size)


class ScalarDecayPlanner(RowPlanner):
    """Plans the rows of a chunk."""

    def __init__(self, chunk: ChunkPlan, *, rows_first: bool = False) -> None:
        (self.block,) = chunk.normal_form.blocks
        (self.step,) = self.block.steps
        super().__init__(chunk.normal_form, ROW if self.block.repeated else TOKEN, rows_first=rows_first)
        self.chunk = chunk

    def plan(self, size: int) -> ChunkKernelPlan:
        (read,) = self.nf.reads
        q = self._operand(read.q, TOKEN)
        delta, key, value = None, None, None
        for row in self.step.deltas:
            delta = self._delta(row)
        for write in self.step.writes:
            key, value = self._write(write.k, write.v)
        row_decay, token_decay = self._decays()
        rider = self._rider(value)
        once = self._constant(row_decay)
        if once is not None:
            row_decay = Masked(Value(once.target, "local", ()), self.row_axis, 0.0, (self.row_axis,))
        output = self._output()
        read_by_all = [q.vector, key, None if value is None else value.scale, None if rider is None else rider.scale]
        if delta is not None:
            read_by_all += [delta.w.vector, delta.w.scale]
        erased = [] if delta is None else [delta.y.vector, delta.y.scale]
        values = [delta.z if delta else None, None if value is None else value.vector, q.scale, output]
        mixed = self._mixed()
        decays = [row_decay, token_decay, *(() if mixed is None else mixed.tiles)]
        prepare = None
        if delta is None and mixed is None:
            walk = self.part([*read_by_all, *decays, *values], once)
        else:
            first = self.part(decays, once)
            second = without(self.part(read_by_all, None), first)
            prepare = (first, second, without(self.part(erased, None), first, second))
            walk = self.part([*read_by_all, *erased, *values], None)
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
            size=size,
            rider=rider,
            mixed=mixed,
        )

    # ------------------------------------------------------------------------------------------------------------ rows

    def _write(self, k: Expr, v: Expr) -> tuple[Tile, Operand]:
        """The key and the value of a write row, the scales of both with the value."""
        key, value = self._operand(k, self.row_axis), self._operand(v, self.row_axis)
        axis = self.axis(self.row_axis)
        scales = [scale for scale in (key.scale, value.scale) if scale is not None]
        return key.vector, Operand(value.vector, axis.product(*scales) if scales else None)

    def _rider(self, value: Operand | None) -> Rider | None:
        """The vector state that rides along."""
        column = self.nf.column
        if column is None:
            return None
        self.rules.note(column.read, (TOKEN,), 0.0)
        scale = None
        if column.scale is not None:
            scale = finite(self.rules, self._lifted(column.scale, self.row_axis), self.row_axis)
        shares = scale is not None and value is not None and value.scale == scale
        return Rider(column.state, scale, shares, column.read)

    def _decays(self) -> tuple[Tile | None, Tile | None]:
        if self.block.lead is not None:
            log = self.block.lead.log
            return (
                self._cleared(self._lifted(log, ROW), ROW),
                self._cleared(self._lifted(log, TOKEN), TOKEN),
            )
        if self.step.decay is None:
            return None, None
        return self._cleared(self._lifted(self.step.decay.log, TOKEN), TOKEN), None

    # ---------------------------------------------------------------------------------------------------------- numbers

    def _mixed(self) -> Mixed | None:
        """The states that numbers mix, and the numbers."""
        if not self.nf.registers:
            return None
        (read,) = self.nf.reads
        of, into = {"q": self._numbers(read.of)}, dict[str, Tiles]()
        for row in self.step.deltas:
            of["y"], into["w"] = self._numbers(row.of), self._numbers(row.into)
        for write in self.step.writes:
            into["k"] = self._numbers(write.into)
        mix = tuple(self._mix(p, row) for p, row in enumerate(self.step.mix))
        return Mixed(self.nf.registers, mix, of, into)

    def _numbers(self, numbers: Numbers) -> Tiles:
        """Numbers of a row: of tokens that are not there, any that are finite."""
        found = [None if _is_zero(number) else self._lifted(number, TOKEN) for number in numbers]
        return tuple(None if tile is None else finite(self.rules, tile, TOKEN) for tile in found)

    def _mix(self, p: int, numbers: Numbers) -> Tiles:
        """What a register gets of each: of tokens that are not there, itself."""
        lifted = [None if _is_zero(number) else self._lifted(number, TOKEN) for number in numbers]
        return tuple(
            None if tile is None else Masked(tile, TOKEN, 1.0 if p == r else 0.0, (TOKEN,))
            for r, tile in enumerate(lifted)
        )

    def _constant(self, decay: Tile | None) -> Set | None:
        """The evaluation of a log decay that no token changes."""
        if isinstance(decay, Masked) and not decay.value.dims:
            return Set("log_decay", decay.value)
        return None


def _is_zero(number: Expr) -> bool:
    return isinstance(number, Number) and number.value == 0
