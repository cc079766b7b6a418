"""From statements to the normal form: sort what each statement does to the state, then choose the state's orientation.

Every statement's right side is expanded into monomials (`flagen.algebra.monomials`). For a state S[a, b]:

    contains S[a, b]      multiplies the state: decay
    contains S[a', b]     a read by S^T, written along a: a delta row acting on a
    contains S[a, b']     a read by S, written along b: a delta row acting on b
    contains no S         a write

The dim that decay and delta rows act on becomes the key dim.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from fractions import Fraction

from flagen.algebra.limits import Extent, extent
from flagen.algebra.logarithm import log_of
from flagen.algebra.monomials import (
    Element,
    Expansion,
    Monomial,
    OutsideNormalForm,
    components,
    product,
    scaled,
    total,
)
from flagen.algebra.normal_form import Block, Decay, DeltaRow, MicroStep, NormalForm, Position, Read, WriteRow
from flagen.algebra.reads import ONE, Reads, at_version, freed, version_of, versions_in
from flagen.algebra.rewrite import map_children
from flagen.diagnostics import Span
from flagen.spec.model import (
    Assign,
    Binary,
    Derived,
    Expr,
    Interval,
    Name,
    Number,
    Repeat,
    Spec,
    State,
    StateRead,
)


def normal_form(spec: Spec) -> NormalForm:
    """Bring `spec` to the normal form.

    Raises:
        OutsideNormalForm: it has none (several states, not affine, not low rank …); says which part, and where.
    """
    if len(spec.states) > 1:
        raise OutsideNormalForm("several states have no normal form together", spec.states[1].span)
    (state,) = spec.states
    if len(state.dims) != 2:
        raise OutsideNormalForm(
            f"only a matrix state has a normal form; {state.name} has {len(state.dims)} dims", state.span
        )
    if math.isinf(state.init):
        raise OutsideNormalForm("a matrix state that starts at infinity has no chunk form", state.span)
    try:
        return _Sorter(spec, state, leads=True).run()
    except _DecayApart:
        return _Sorter(spec, state, leads=False).run()


# ----------------------------------------------------------------------------------- one statement's effect, unoriented


@dataclass(frozen=True)
class _Delta:
    """A delta row acting on dim `acts_on`, before orientation; `version` is the state it reads, `span` where."""

    acts_on: str
    w: Expr
    y: Expr
    version: int
    span: Span


@dataclass(frozen=True)
class _Write:
    """factor * outer(parts[0], parts[1]) over the state's two dims."""

    scalar: Expr
    parts: tuple[Expr, Expr]


class _DecayApart(Exception):
    """A decay before a repeat cannot join its first micro-step: that has a decay of its own, or delta rows that have to
    read before it."""


@dataclass
class _Step:
    """A micro-step under construction."""

    decay: Expr | None = None
    deltas: list[tuple[_Delta, bool]] = field(default_factory=list)
    writes: list[_Write] = field(default_factory=list)

    @property
    def has_rows(self) -> bool:
        return bool(self.deltas or self.writes)


@dataclass
class _Block:
    repeated: bool
    steps: list[_Step] = field(default_factory=list)
    lead: Expr | None = None


class _Sorter:
    """Walks one token's statements and keeps track of where in the update each version of the state stands.

    `leads`: a decay just before a repeat joins its first micro-step; one of its own would bring no rows.
    """

    def __init__(self, spec: Spec, state: State, *, leads: bool) -> None:
        self.spec = spec
        self.state = state
        self.leads = leads
        self.expansion = Expansion()
        self.derived: dict[str, Derived] = {d.name: d for d in spec.derived}
        self.ranges: dict[str, Interval] = {d.name: d.range for d in spec.inputs}
        self.ranges |= {d.name: d.range for d in spec.params}
        self.ranges |= {d.name: d.range for d in spec.derived}
        self.locals: dict[str, Expr] = {}
        self.extents: dict[str, Extent] = {}  # of each local
        self.blocks: list[_Block] = [_Block(repeated=False)]
        self.positions: list[Position] = [Position(0, 0)]  # of each version of the state
        self.captured: set[int] = set()  # versions that a local has read
        self.oldest = 0  # the oldest version that an update may read here

    def run(self) -> NormalForm:
        for statement in self.spec.update:
            if isinstance(statement, Repeat):
                self._repeat(statement)
            else:
                self._assign(statement)
        outputs = dict(self.locals)
        for statement in self.spec.output:
            value = self._resolved(statement)
            self.locals[statement.target] = outputs[statement.target] = value
        return self._oriented(outputs["o"])

    # ------------------------------------------------------------------------------------------------------- statements

    @property
    def version(self) -> int:
        return len(self.positions) - 1

    def _assign(self, statement: Assign) -> None:
        value = self._resolved(statement)
        if not statement.to_state:
            self.locals[statement.target] = value
            self.captured |= set(versions_in(value))
            return
        direct, deltas, writes = self._sort(value)
        factor = self._factor(direct, value)
        step = self._open_step(factor, {delta.version for delta in deltas})
        if factor is not None:
            step.decay = factor if step.decay is None else self._both(step.decay, factor)
        for delta in deltas:
            step.deltas.append((delta, self._reads_after_decay(delta, step)))
        step.writes += writes
        block = len(self.blocks) - 1
        last = len(self.blocks[-1].steps) - 1
        self.positions.append(Position(block, last + 1) if step.has_rows else Position(block, last, after_decay=True))

    def _both(self, first: Expr, then: Expr) -> Expr:
        """Two decays that follow each other, as one."""
        if first.dims and then.dims and first.dims != then.dims:
            raise OutsideNormalForm(self._on_both_sides(), then.span)
        return Binary("*", first, then, then.span)

    def _repeat(self, repeat: Repeat) -> None:
        body = _Block(repeated=True)
        before = self.blocks[-1]
        number = len(self.blocks)
        if self.leads and before.steps and not before.steps[-1].has_rows:
            body.lead = before.steps.pop().decay
            at = len(before.steps)
            moved = {Position(number - 1, at, after): Position(number, 0, after) for after in (False, True)}
            self.positions = [moved.get(position, position) for position in self.positions]
        self.blocks.append(body)
        outside = dict(self.locals)
        self.positions.append(Position(number, 0, after_decay=body.lead is not None))
        self.oldest = self.version  # older states are the first micro-step's only
        for statement in repeat.body:
            self._assign(statement)
        self.locals = outside  # what the loop assigned belongs to one micro-step
        self.blocks.append(_Block(repeated=False))
        self.positions.append(Position(number + 1, 0))

    def _open_step(self, factor: Expr | None, read: set[int]) -> _Step:
        """The micro-step that this statement's effect joins: the last one where it may, else a new one."""
        block = self.blocks[-1]
        if block.steps:
            step = block.steps[-1]
            # Joining makes the state in between disappear; nothing may have looked at it, nor look at it now.
            untouched = self.version not in self.captured and self.version not in read
            if (factor is None and not step.has_rows) or (untouched and (factor is None or not step.has_rows)):
                return step
            if not step.has_rows:  # it decays and is done: after its decay is before the next micro-step
                at = Position(len(self.blocks) - 1, len(block.steps) - 1, after_decay=True)
                next_step = Position(at.block, at.step + 1)
                self.positions = [next_step if position == at else position for position in self.positions]
        elif block.lead is not None and factor is not None:
            raise _DecayApart
        block.steps.append(_Step())
        return block.steps[-1]

    def _reads_after_decay(self, delta: _Delta, step: _Step) -> bool:
        position = self.positions[delta.version]
        here = Position(len(self.blocks) - 1, len(self.blocks[-1].steps) - 1)
        lead = self.blocks[-1].lead is not None and here.step == 0
        if replace(position, after_decay=False) != here or delta.version < self.oldest:
            raise OutsideNormalForm(
                "this update reads the state of an earlier micro-step, or of another token step", delta.span
            )
        return position.after_decay or (step.decay is None and not lead)

    # -------------------------------------------------------------------------------------------------------- monomials

    def _sort(self, value: Expr) -> tuple[list[Monomial], list[_Delta], list[_Write]]:
        rows, columns = self.state.dims
        direct: list[Monomial] = []
        deltas: dict[tuple[str, Expr, int], list[tuple[Expr, Span]]] = {}
        writes: list[_Write] = []
        for monomial in self.expansion.monomials(value, {rows: rows, columns: columns}):
            if not monomial.states:
                writes.append(self._write(monomial))
                continue
            (read,) = monomial.states
            if read.index == (rows, columns):
                if version_of(read) != self.version:
                    raise OutsideNormalForm(
                        "the update continues from an older state than the last statement left", monomial.span
                    )
                direct.append(monomial)
            else:
                acts_on, w, y = self._delta(monomial, read)
                deltas.setdefault((acts_on, w, version_of(read)), []).append((y, monomial.span))
        merged = [
            _Delta(acts_on, w, total(y for y, _ in ys) or ONE, version, ys[0][1])
            for (acts_on, w, version), ys in deltas.items()
        ]
        return direct, merged, writes

    def _delta(self, monomial: Monomial, read: Element) -> tuple[str, Expr, Expr]:
        span = monomial.span
        rows, columns = self.state.dims
        acts_on, kept, contracted = (
            (rows, columns, read.index[0]) if read.index[1] == columns else (columns, rows, read.index[1])
        )
        if kept not in read.index:
            raise OutsideNormalForm("the state is read down to a scalar here and written back", span)
        w: Expr | None = None
        y: list[Element] = []
        for indices, members in components(monomial.others()):
            if acts_on in indices and contracted in indices:
                raise OutsideNormalForm("the state is multiplied by a full matrix, which is not low rank", span)
            if kept in indices:
                raise OutsideNormalForm(f"what is read from the state is scaled per {kept} before it is written", span)
            if acts_on in indices:
                w = product(members)
            else:
                y += members
        return acts_on, w or ONE, scaled(monomial.coefficient, product(freed(y, contracted)))

    def _write(self, monomial: Monomial) -> _Write:
        rows, columns = self.state.dims
        parts: dict[str, Expr] = {}
        scalars: list[Element] = []
        for indices, members in components(monomial.elements):
            if rows in indices and columns in indices:
                raise OutsideNormalForm("this write is not a sum of outer products", monomial.span)
            dim = rows if rows in indices else columns if columns in indices else None
            if dim is None:
                scalars += members
            else:
                parts[dim] = product(members) or ONE
        scalar = scaled(monomial.coefficient, product(scalars))
        return _Write(scalar, (parts.get(rows, ONE), parts.get(columns, ONE)))

    def _factor(self, direct: list[Monomial], value: Expr) -> Expr | None:
        """What multiplies the state; None for 1. A statement that drops the state multiplies it by 0."""
        if not direct:
            return Number(Fraction(0), value.span)
        if len(direct) == 1 and direct[0].coefficient == 1 and not direct[0].others():
            return None
        both = set(self.state.dims)
        differing: set[str] = set()
        for monomial in direct:
            differing |= both & {index for element in monomial.others() for index in element.index}
            if differing == both:
                raise OutsideNormalForm(
                    "a decay that differs over both dims of the state is an elementwise scan", monomial.span
                )
        terms = [scaled(m.coefficient, product(m.others()), m.span) for m in direct]
        factor = total(terms)
        assert factor is not None
        if len(terms) == 1:
            return factor
        factor = self.expansion.cancelled(factor)
        return None if factor == ONE else factor

    # ------------------------------------------------------------------------------------------------------------ names

    def _resolved(self, statement: Assign) -> Expr:
        """The value of `statement` with its locals written out."""
        size = extent(statement.value, self.extents)
        if size.problem:
            raise OutsideNormalForm(size.problem, statement.span)
        self.extents[statement.target] = size
        return self._resolve(statement.value)

    def _resolve(self, expr: Expr) -> Expr:
        """`expr` with locals inlined and each state read tied to the version of the state it sees."""
        match expr:
            case StateRead():
                version = 0 if expr.previous else self.version
                return at_version(expr, version)
            case Name(name, "local"):
                if name not in self.locals:
                    raise OutsideNormalForm(f"{name} is assigned inside a repeat and used outside it", expr.span)
                return self.locals[name]
        return map_children(expr, self._resolve)

    # ------------------------------------------------------------------------------------------------------ orientation

    def _oriented(self, output: Expr) -> NormalForm:
        reads = Reads(self.expansion, frozenset(self.ranges), self.state)
        result = reads.extract(output)
        key = self._key_dim(reads)
        rows, columns = self.state.dims
        value = columns if key == rows else rows
        oriented = _reading_at_one_moment([self._block(block, key) for block in self.blocks])
        if not any(block.lead or step.decay or step.has_rows for block in self.blocks for step in block.steps):
            raise OutsideNormalForm("the update leaves the state as it is", self.spec.end_of_update)
        kept = [number for number, block in enumerate(oriented) if block.steps or block.lead]
        renumber = {old: new for new, old in enumerate(kept)}

        def canonical(version: int) -> Position:
            position = self.positions[version]
            steps = oriented[position.block].steps
            if (
                position.after_decay
                and position.step < len(steps)
                and not self.blocks[position.block].steps[position.step].has_rows
            ):
                position = Position(position.block, position.step + 1)
            if position.step == len(oriented[position.block].steps):
                position = Position(position.block + 1, 0)
            block = sum(1 for number in kept if number < position.block)
            return Position(renumber.get(position.block, block), position.step, position.after_decay)

        final = []
        for (side, version, q), name in reads.found.items():
            position = canonical(version)
            if position.block < len(kept) and oriented[kept[position.block]].repeated and position.step > 0:
                raise OutsideNormalForm("the output reads the state inside a repeat", self.spec.output[-1].span)
            final.append(Read(name, q, "left" if side == key else "right", position))
        return NormalForm(
            spec=self.spec,
            key=key,
            value=value,
            transposed=key != rows,
            blocks=tuple(oriented[number] for number in kept),
            reads=tuple(final),
            output=result,
        )

    def _key_dim(self, reads: Reads) -> str:
        rows, columns = self.state.dims
        acting: dict[str, Span] = {}
        for block in self.blocks:
            if block.lead is not None:
                acting |= dict.fromkeys(block.lead.dims, block.lead.span)
            for step in block.steps:
                if step.decay is not None:
                    acting |= dict.fromkeys(step.decay.dims, step.decay.span)
                acting |= {delta.acts_on: delta.span for delta, _ in step.deltas}
        if len(acting) > 1:
            raise OutsideNormalForm(self._on_both_sides(), acting[columns])
        if acting:
            return next(iter(acting))
        return next((side for side, _, _ in reads.found), rows)

    def _on_both_sides(self) -> str:
        rows, columns = self.state.dims
        return f"decay and erase act on {rows} and on {columns}; the chunk form has them on one side"

    def _block(self, block: _Block, key: str) -> Block:
        lead = None if block.lead is None else self._decay(block.lead)
        return Block(tuple(self._micro_step(step, key) for step in block.steps), block.repeated, lead)

    def _decay(self, factor: Expr) -> Decay:
        return Decay(factor, log_of(factor, self.derived, self.ranges), per_key=bool(factor.dims))

    def _micro_step(self, step: _Step, key: str) -> MicroStep:
        side = self.state.dims.index(key)
        writes: dict[Expr, list[Expr]] = {}
        for write in step.writes:
            writes.setdefault(write.parts[side], []).append(_times(write.scalar, write.parts[1 - side]))
        deltas = [
            DeltaRow(delta.w, delta.y, total(writes.pop(delta.w, [])), after_decay)
            for delta, after_decay in step.deltas
        ]
        rows = [WriteRow(k, total(vs) or ONE) for k, vs in writes.items()]
        decay = None if step.decay is None else self._decay(step.decay)
        return MicroStep(decay, tuple(deltas), tuple(rows))


# -------------------------------------------------------------------------------------------------------------- helpers


def _reading_at_one_moment(blocks: list[Block]) -> list[Block]:
    """All delta rows read after their micro-step's decay, or all before it; where the spec mixes them, y takes the
    decay over: S^T Diag(e^g) y is a read before the decay of e^g y."""
    moments = {
        row.after_decay
        for block in blocks
        for step in block.steps
        if step.decay is not None or block.lead is not None
        for row in step.deltas
    }
    after = moments != {False} and moments != {True, False}
    return [replace(block, steps=tuple(_reading(step, block, after) for step in block.steps)) for block in blocks]


def _reading(step: MicroStep, block: Block, after: bool) -> MicroStep:
    def moved(row: DeltaRow) -> DeltaRow:
        if after or not row.after_decay:
            return replace(row, after_decay=after)
        if block.lead is not None:
            raise _DecayApart
        y = row.y if step.decay is None else _times(step.decay.factor, row.y)
        return replace(row, y=y, after_decay=False)

    return replace(step, deltas=tuple(moved(row) for row in step.deltas))


def _times(left: Expr, right: Expr) -> Expr:
    if left == ONE:
        return right
    return left if right == ONE else Binary("*", left, right, right.span)
