"""The plan of the PyTorch chunk form: what runs for all chunks at once, what runs chunk after chunk, and on which
rows."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from flagen.algebra.adjoint import adjoint
from flagen.algebra.chunk import ChunkForm, split_solve
from flagen.algebra.equations import Equation, OffsetGradient, Solve, Statement, System, Weights, WeightsGradient
from flagen.algebra.normal_form import NormalForm, Position

if TYPE_CHECKING:
    from flagen.algebra.solved import SolvedForm

DEFAULT_CHUNK = 64
"""Tokens per chunk where neither the spec nor the caller says: the C x C work and the serial chain balance near it."""


ITERATIONS = 30
"""Steps that a system is solved by where the caller does not say: what float32 has to give for keys that are alike."""


@dataclass(frozen=True)
class Count:
    """A number of rows, `fixed + repeated * n` for the n micro-steps of a token."""

    fixed: int
    repeated: int = 0

    def __add__(self, other: Count) -> Count:
        return Count(self.fixed + other.fixed, self.repeated + other.repeated)

    def __mul__(self, factor: int) -> Count:
        return Count(self.fixed * factor, self.repeated * factor)

    def text(self, steps: str) -> str:
        """The number as an expression, where the micro-steps are called `steps`."""
        if not self.repeated:
            return str(self.fixed)
        many = steps if self.repeated == 1 else f"{self.repeated} * {steps}"
        return many if not self.fixed else f"{many} {'-' if self.fixed < 0 else '+'} {abs(self.fixed)}"


@dataclass(frozen=True)
class Reader:
    """What the rows of a reading tensor see.

    `tensor` is `y` (a delta row) or a read's q. A delta row sees the rows of earlier micro-steps; a read sees
    `seen` rows of its own token and all earlier tokens' (`seen` is None for delta rows). `after_decay`: the next
    micro-step's decay is applied already.
    """

    tensor: str
    seen: Count | None
    after_decay: bool


@dataclass(frozen=True)
class ChunkPlan:
    """Phases of the chunk form, split where there is one state.

    Rows of a chunk stand on one timeline in (token, micro-step, slot) order; a micro-step has `slots` rows (as many as
    it may bring at once), `rows` is how many a token has. Missing rows are zero rows.
    """

    form: ChunkForm
    system: System
    rows: Count
    slots: int
    readers: tuple[Reader, ...]
    before: tuple[Statement, ...]
    scan: tuple[Statement, ...]
    after: tuple[Statement, ...]
    size: int
    solved: SolvedForm | None = None
    """The system whose solution is the output, if it is one. `after` is then what one step of it takes."""

    @property
    def normal_form(self) -> NormalForm:
        return self.form.normal_form

    @cached_property
    def adjoint(self) -> System:
        """The equations of the gradients."""
        return adjoint(self.form).system

    def reader(self, tensor: str) -> Reader:
        return next(reader for reader in self.readers if reader.tensor == tensor)

    @property
    def kept(self) -> tuple[str, ...]:
        """What the scan computes beside the state and the last phase reads, for every chunk."""
        used = {tensor for statement in self.after for tensor in _uses(statement)}
        return tuple(s.target.tensor for s in self.scan if s.target.tensor in used)

    def dump(self) -> str:
        lines = [
            f"chunks of {self.size} tokens; decay: {self.normal_form.decay_kind}; {self.slots} row(s) a micro-step"
        ]
        last = "all chunks at once, from their states" if self.solved is None else "at every step of the solution"
        for title, statements in (
            ("all chunks at once", self.before),
            ("chunk after chunk", self.scan),
            (last, self.after),
        ):
            lines.append(f"{title}:")
            lines += [f"  {statement}" for statement in statements]
        return "\n".join(lines)


def plan_chunk(form: ChunkForm, solved: SolvedForm | None = None) -> ChunkPlan:
    """Sort the equations of `form` by whether they need the state before the chunk, and whether the next state needs
    them; of a system's operator, those that need the direction come last."""
    nf = form.normal_form
    system = form.system if nf.registers else split_solve(form)
    carried = _depending(system, "S0" if solved is None else "q0")
    needed = _needed_for(system, "S1") & _depending(system, "S0")
    before = tuple(s for s in system.statements if s.target.tensor not in carried | needed)
    scan = tuple(s for s in system.statements if s.target.tensor in needed)
    after = tuple(s for s in system.statements if s.target.tensor in carried - needed)
    return ChunkPlan(
        form=form,
        system=system,
        rows=rows_per_token(nf),
        slots=nf.slots,
        readers=_readers(nf),
        before=before,
        scan=scan,
        after=after,
        size=nf.spec.chunk.size or DEFAULT_CHUNK,
        solved=solved,
    )


def rows_per_token(nf: NormalForm) -> Count:
    """How many rows of the timeline a token has."""
    return _rows_before(nf, nf.end)


def _rows_before(nf: NormalForm, position: Position) -> Count:
    total = Count(position.step * nf.slots)
    for block in nf.blocks[: position.block]:
        rows = len(block.steps) * nf.slots
        total = total + (Count(0, rows) if block.repeated else Count(rows))
    return total


def _readers(nf: NormalForm) -> tuple[Reader, ...]:
    readers = []
    if nf.has_delta:
        # A micro-step without a delta row has zero rows there, which may read whenever the others do.
        moments = {row.after_decay for step in nf.steps for row in step.deltas}
        readers.append(Reader("y", None, after_decay=moments == {True}))
    for number, read in enumerate(nf.reads):
        readers.append(Reader(f"q{number}", _rows_before(nf, read.position), read.position.after_decay))
    return tuple(readers)


def _uses(statement: Statement) -> set[str]:
    match statement:
        case Equation(_, terms):
            return {tensor for term in terms for tensor in term.tensors()}
        case Solve(_, matrix, right):
            return {matrix, right}
        case Weights(_, mixes, reader, _, writer):
            return {factor.tensor for factor in (mixes, reader, writer) if factor is not None}
        case WeightsGradient(target, uses):
            given = set().union(*map(_uses, uses)) - {target.tensor.removeprefix("d")}
            return given | {f"d{use.target.tensor}" for use in uses}
        case OffsetGradient(_, pairs):
            return {factor.tensor for _, left, right in pairs for factor in (left, right)}


def _depending(system: System, given: str) -> set[str]:
    """The tensors that depend on one that is given."""
    found = {given}
    for statement in system.statements:
        if _uses(statement) & found:
            found.add(statement.target.tensor)
    return found - {given}


def _needed_for(system: System, tensor: str) -> set[str]:
    needed = {tensor}
    for statement in reversed(system.statements):
        if statement.target.tensor in needed:
            needed |= _uses(statement)
    return needed
