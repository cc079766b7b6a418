"""The plan of `chunk_<name>` for a chunk form that no family of kernels takes as it is: its rows, one after another.

Whatever a token's update consists of, it is a sequence of rows, each of which decays the state, adds what one erasure
and one write bring, and may then be read:

    S = Diag(e^g) S + w (z + S^T y)^T + k v^T        o = S^T q

Taken for tokens, the rows are a recurrence of the simplest kind, which has kernels. So the launcher evaluates the rows
of all tokens in PyTorch, launches these kernels over them, and makes the output of what the reading rows read. That
takes memory, and it takes any spec: expressions of any dims, rows of any kind in any order, any number of reads.

Decided here: which rows a token has, after which of them it reads, and what the recurrence of the rows looks like.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from flagen.algebra import derive
from flagen.algebra.normal_form import Block, Decay, MicroStep, NormalForm, Position, Read
from flagen.algebra.rewrite import map_children
from flagen.diagnostics import Span
from flagen.plan.chunk import ChunkPlan, Count, plan_chunk, rows_per_token
from flagen.plan.chunk_kernel import ChunkKernelPlan
from flagen.plan.key_kernel import KeyKernelPlan
from flagen.plan.row_planner import NoKernel
from flagen.plan.schedule import fresh
from flagen.spec.model import (
    Assign,
    Binary,
    Call,
    Contract,
    Dims,
    Expr,
    Input,
    Interval,
    Name,
    Outer,
    Spec,
    State,
    StateRead,
    Transpose,
)
from flagen.spec.printer import to_source
from flagen.spec.ranges import interval_of

ROLES = ("q", "w", "y", "z", "k", "v", "g")
"""What a row consists of, by the names of the normal form."""


@dataclass(frozen=True)
class Row(MicroStep):
    """A micro-step with at most one erasure and one write; `q` reads the state after it, if anything does."""

    q: Expr | None = None


@dataclass(frozen=True)
class ExpandedPlan:
    """The rows of a token, and the kernels of the recurrence that they are.

    reason, span: why the spec has no kernels of its own, and which part of it is the reason.
    normal_form: the spec's, each of its micro-steps a `Row`.
    reads: the reads of the output, and which row of a token each of them follows.
    names: what the roles of a row are called in the recurrence of the rows; those that no row has are missing.
    """

    chunk: ChunkPlan
    reason: str
    span: Span
    normal_form: NormalForm
    reads: tuple[tuple[str, Count], ...]
    names: dict[str, str]
    kernels: ChunkKernelPlan | KeyKernelPlan

    @property
    def spec(self) -> Spec:
        return self.chunk.normal_form.spec

    @property
    def rows(self) -> Count:
        """How many rows a token has."""
        return rows_per_token(self.normal_form)

    @property
    def size(self) -> int:
        return self.kernels.size

    def dims_of(self, role: str) -> Dims:
        """The channels of a row's `role`."""
        (dims,) = (decl.dims for decl in self.kernels.spec.inputs if decl.name == self.names[role])
        return dims

    def dump(self) -> str:
        """The plan as text: the rows of a token, then the kernels over all rows."""
        spec = self.spec
        count = self.rows.text(spec.steps.symbol if spec.steps else "")
        lines = [
            f"no kernels of its own: {self.reason}",
            f"{count} row(s) of each token, evaluated in PyTorch and kept in memory, then kernels over all rows:",
        ]
        for block in self.normal_form.blocks:
            times = f", {spec.steps.symbol} times" if block.repeated and spec.steps else ""
            lines += [f"    row{times}: {', '.join(_shown(row)) or 'nothing'}" for row in block.steps]
        lines.append(f"    o = {to_source(self.normal_form.output)}")
        return "\n".join((*lines, self.kernels.dump()))


def _shown(row: MicroStep) -> Iterator[str]:
    if row.decay is not None:
        yield f"g = {to_source(row.decay.log)}"
    for delta in row.deltas:
        z = "" if delta.z is None else f", z = {to_source(delta.z)}"
        yield f"w = {to_source(delta.w)}, y = {to_source(delta.y)}{z}"
    yield from (f"k = {to_source(write.k)}, v = {to_source(write.v)}" for write in row.writes)
    if isinstance(row, Row) and row.q is not None:
        yield f"q = {to_source(row.q)}"


def expand(
    chunk: ChunkPlan, missing: NoKernel, kernels_of: Callable[[ChunkPlan], ChunkKernelPlan | KeyKernelPlan]
) -> ExpandedPlan:
    """The kernels of `chunk` over its rows, where it is `missing` its own; `kernels_of` plans those of a recurrence.

    Raises:
        NoKernel: its rows are no sequence, or their recurrence has no kernels either.
    """
    nf = chunk.normal_form
    sides = dict.fromkeys(read.side for read in nf.reads)
    if len(sides) > 1:
        raise NoKernel("the output reads the state from both sides", nf.spec.output[-1].span)
    expansion = _Expansion(nf)
    expansion.run()
    rows = replace(nf, blocks=tuple(expansion.blocks), output=expansion.output)
    names = _names(nf)
    form = derive(_recurrence(nf, names)).chunk_form
    assert form is not None, "the recurrence of the rows is affine"
    kernels = kernels_of(plan_chunk(form))
    return ExpandedPlan(chunk, missing.reason, missing.span, rows, tuple(expansion.reads), names, kernels)


class _Expansion:
    """Lines up the rows of a token, those that only read among them."""

    def __init__(self, nf: NormalForm) -> None:
        self.nf = nf
        self.waiting = [self._before_decay(read) for read in nf.reads]
        self.blocks: list[Block] = []
        self.reads: list[tuple[str, Count]] = []
        self.output = self._rescaled(nf.output)

    def run(self) -> None:
        for number, block in enumerate(self.nf.blocks):
            self._read(Position(number, 0))
            if block.repeated:
                steps = tuple(row for step in block.steps for row in self._rows(step))
                self.blocks.append(replace(block, steps=steps))
                continue
            for place, step in enumerate(block.steps):
                if place:
                    self._read(Position(number, place))
                self._add(*self._rows(step))
        self._read(self.nf.end)
        assert len(self.reads) == len(self.nf.reads), "a read between the rows of a repeated block"

    def _rows(self, step: MicroStep) -> Iterator[Row]:
        """A micro-step as rows: what it writes beside its first row reads nothing, and may come after it."""
        if len(step.deltas) > 1:
            span = step.deltas[1].y.span
            raise NoKernel("two erasures of one micro-step read the same state: no sequence of rows does", span)
        yield Row(step.decay, step.deltas, step.writes[:1])
        yield from (Row(None, (), (write,)) for write in step.writes[1:])

    def _add(self, *rows: Row) -> None:
        if not self.blocks or self.blocks[-1].repeated:
            self.blocks.append(Block((), repeated=False))
        self.blocks[-1] = replace(self.blocks[-1], steps=(*self.blocks[-1].steps, *rows))

    def _read(self, position: Position) -> None:
        """The reads at `position`: one after the row before it, each of the others after a row of its own."""
        for read in (read for read in self.waiting if read.position == position):
            last = self._last()
            if last is None or last.q is not None:
                self._add(Row(None, (), (), q=read.q))
            else:
                (*others, _), block = self.blocks[-1].steps, self.blocks[-1]
                self.blocks[-1] = replace(block, steps=(*others, replace(last, q=read.q)))
            rows = rows_per_token(replace(self.nf, blocks=tuple(self.blocks)))
            self.reads.append((read.name, Count(rows.fixed - 1, rows.repeated)))

    def _last(self) -> Row | None:
        """The row before, unless that is one of several."""
        if not self.blocks or self.blocks[-1].repeated:
            return None
        last = self.blocks[-1].steps[-1]
        assert isinstance(last, Row)
        return last

    # ------------------------------------------------------------------------------------- reads between decay and rows

    def _decay_before(self, read: Read) -> Decay | None:
        """The decay between a read and the rows before it."""
        if not read.position.after_decay:
            return None
        block = self.nf.blocks[read.position.block]
        return block.lead if block.lead is not None else block.steps[read.position.step].decay

    def _before_decay(self, read: Read) -> Read:
        """A read after a decay as one before it: (Diag(e^g) S)^T q = S^T (e^g q)."""
        decay, position = self._decay_before(read), replace(read.position, after_decay=False)
        if decay is None or read.side == "right":
            return replace(read, position=position)
        return replace(read, q=Binary("*", decay.factor, read.q), position=position)

    def _rescaled(self, output: Expr) -> Expr:
        """The output, with reads from the right after a decay as ones before it: (Diag(e^g) S) q = e^g (S q)."""
        decays = {read.name: self._decay_before(read) for read in self.nf.reads if read.side == "right"}

        def change(expr: Expr) -> Expr:
            decay = decays.get(expr.name) if isinstance(expr, Name) and expr.kind == "local" else None
            return map_children(expr, change) if decay is None else Binary("*", decay.factor, expr)

        return change(output)


# ------------------------------------------------------------------------------------------- the recurrence of the rows


def _names(nf: NormalForm) -> dict[str, str]:
    """The roles that rows of `nf` have, by names that no dim has."""
    present = {
        "q": True,
        "w": nf.has_delta,
        "y": nf.has_delta,
        "z": nf.has_delta and nf.has_erased_write,
        "k": nf.has_write or not nf.has_delta,
        "v": nf.has_write or not nf.has_delta,
        "g": nf.decay_kind != "none",
    }
    taken = {nf.key, nf.value}
    return {role: fresh(role, taken) for role in ROLES if present[role]}


def _recurrence(nf: NormalForm, names: dict[str, str]) -> Spec:
    """The spec whose tokens are the rows of `nf`."""
    (state,) = nf.spec.states
    key, value = (nf.key,), (nf.value,)
    right = any(read.side == "right" for read in nf.reads)
    dims: dict[str, Dims] = {role: value if role in "zv" else key for role in names}
    dims["q"] = value if right else key
    dims["g"] = key if nf.decay_kind == "key" else ()
    S = State(fresh("S", {nf.key, nf.value, *names.values()}), key + value, state.init, state.span)
    here = StateRead(S.name, previous=False, dims=S.dims)
    row: dict[str, Expr] = {role: Name(name, "input", dims[role]) for role, name in names.items()}

    decayed: Expr = Binary("*", Call("exp", (row["g"],)), here) if "g" in row else here
    written: list[Expr] = []
    if "w" in row:
        erased = Contract(Transpose(here), row["y"])
        written.append(Outer(row["w"], Binary("+", row["z"], erased) if "z" in row else erased))
    if "k" in row:
        written.append(Outer(row["k"], row["v"]))
    after = any(delta.after_decay for step in nf.steps for delta in step.deltas)
    statements = [decayed] if "g" in row and after else []
    total = here if statements else decayed
    for term in written:
        total = Binary("+", total, term)
    read = Contract(here, row["q"]) if right else Contract(Transpose(here), row["q"])
    return replace(
        nf.spec,
        states=(S,),
        inputs=tuple(
            Input(name, dims[role], "HV", "token", _range(nf) if role == "g" else Interval(), "")
            for role, name in names.items()
        ),
        params=(),
        steps=None,
        following=(),
        derived=(),
        update=tuple(
            Assign(S.name, value, True, f"{S.name} = {to_source(value)}", nf.spec.end_of_update)
            for value in (*statements, total)
        ),
        output=(Assign("o", read, False, f"o = {to_source(read)}", nf.spec.output[-1].span),),
    )


def _range(nf: NormalForm) -> Interval:
    """What a row's log decay may be: any of the spec's, or 0."""
    spec = nf.spec
    ranges = {decl.name: decl.range for group in (spec.inputs, spec.params, spec.derived) for decl in group}
    found = [interval_of(decay.log, ranges) for decay in nf.decays]
    return Interval(min([0.0, *(x.low for x in found)]), max([0.0, *(x.high for x in found)]))
