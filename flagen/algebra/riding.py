"""A vector state that rides on a matrix state: one more column of the values that are written.

    S = a S + k v^T      z = a z + c k      o = f(S^T q, z . q)

Both decay alike, are written along the same key, c a number for each token, and are read by the same q. So z is what a
column c of v would be in S, and whatever computes chunks of S has the scores for it at hand: what is read of z never
leaves the registers, where as a stage of its own it would go through memory. Normalizers are of this kind.

Whether two stages are of this kind their normal forms tell; for its own, z is written as a matrix, each column of it z.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from fractions import Fraction

from flagen.algebra.exact import evaluate
from flagen.algebra.monomials import OutsideNormalForm, reads_state
from flagen.algebra.normal_form import Column, NormalForm, WriteRow
from flagen.algebra.orient import normal_form
from flagen.algebra.recurrence import Setting
from flagen.algebra.rewrite import map_children
from flagen.algebra.stage_results import declared_in
from flagen.algebra.staged import Stage, StagedForm
from flagen.algebra.staged_proof import ATTEMPTS, TOKENS, Sample, equal
from flagen.diagnostics import NOWHERE, InternalError
from flagen.spec.model import (
    Assign,
    Binary,
    Contract,
    Expr,
    Input,
    Interval,
    Name,
    Negate,
    Number,
    Outer,
    Repeat,
    Spec,
    State,
    StateRead,
    Transpose,
    walk,
)

ONE = Number(Fraction(1))


def riding_form(form: StagedForm, matrix: NormalForm | None) -> NormalForm | None:
    """The normal form of both states of `form`, where one of them rides; `matrix` is that of the stage of the other,
    if it has one. None where none does."""
    vectors = [stage for stage in form.stages if len(stage.states[0].dims) == 1]
    if matrix is None or len(form.stages) != 2 or len(form.spec.states) != 2 or len(vectors) != 1:
        return None
    if form.output is None:
        return None
    (vector,), (main,) = vectors, [stage for stage in form.stages if stage not in vectors]
    if any(form.given(stage) or len(stage.results) != 1 for stage in form.stages):
        return None
    if vector.states[0].dims != (matrix.key,) or not _is_simple(matrix):
        return None
    ones = _free_name("ones", form.spec)
    try:
        widened = normal_form(_Widened(vector, matrix.value, ones).spec())
    except (OutsideNormalForm, _NoColumn):
        return None
    if not _is_simple(widened) or widened.key != matrix.key or not _are_alike(matrix, widened):
        return None
    (step,) = widened.steps
    scale = _scale(step.writes[0], ones)
    read = _free_name(f"{widened.reads[0].name}_{vector.states[0].name}", form.spec)
    output = _renamed(widened.output, widened.reads[0].name, read)
    if scale is None or any(isinstance(node, Name) and node.name == ones for node in walk(output)):
        return None
    results = {main.results[0].name: matrix.output, vector.results[0].name: output}
    state = next(state for state in form.spec.states if state.name == vector.states[0].name)
    column = Column(state, None if scale == ONE else scale, read)
    return replace(matrix, spec=form.spec, output=_with(form.output, results), column=column)


def _is_simple(nf: NormalForm) -> bool:
    """Whether a token decays the state by a number, writes one row, and is then read once by its keys."""
    if len(nf.blocks) != 1 or len(nf.steps) != 1 or nf.blocks[0].repeated or nf.transposed:
        return False
    (step,) = nf.steps
    reads = [(read.side, read.position) for read in nf.reads]
    return not step.deltas and len(step.writes) == 1 and nf.decay_kind != "key" and reads == [("left", nf.end)]


def _are_alike(matrix: NormalForm, other: NormalForm) -> bool:
    """Whether both decay alike, are written along the same key but for numbers, and read by the same vector."""
    (one,), (two,) = matrix.steps, other.steps
    logs = [None if step.decay is None else step.decay.log for step in (one, two)]
    keys = [[factor for factor in _factors(step.writes[0].k) if factor.dims] for step in (one, two)]
    return logs[0] == logs[1] and keys[0] == keys[1] and matrix.reads[0].q == other.reads[0].q


def _scale(write: WriteRow, ones: str) -> Expr | None:
    """What the column is a multiple of ones by: the numbers of the row. None if its values are anything else."""
    vectors = [factor for factor in _factors(write.v) if factor.dims]
    if [factor.name if isinstance(factor, Name) else "" for factor in vectors] != [ones]:
        return None
    return _product(factor for factor in (*_factors(write.k), *_factors(write.v)) if not factor.dims)


def _factors(expr: Expr) -> Iterator[Expr]:
    """The factors of a product, one that is 1 left out; a divisor that is a number counts as one."""
    match expr:
        case Negate(value):
            yield Number(Fraction(-1))
            yield from _factors(value)
        case Binary("*", left, right):
            yield from _factors(left)
            yield from _factors(right)
        case Binary("/", left, right) if left.dims and not right.dims:
            yield from _factors(left)
            yield Binary("/", ONE, right, right.span)
        case _ if expr != ONE:
            yield expr


def _product(factors: Iterable[Expr]) -> Expr:
    product: Expr = ONE
    for factor in factors:
        product = factor if product == ONE else Binary("*", product, factor)
    return product


class _NoColumn(Exception):
    """A vector state does something that no column of a matrix does."""


class _Widened:
    """The spec of a vector stage with a matrix for its state, each of whose columns it is."""

    def __init__(self, stage: Stage, value: str, ones: str) -> None:
        self.stage, self.value = stage, value
        self.dims = (*stage.states[0].dims, value)
        self.ones = Name(ones, "input", (value,))

    def spec(self) -> Spec:
        spec, state = self.stage.spec, self.stage.states[0]
        update = [self._assign(statement) for statement in spec.update if not isinstance(statement, Repeat)]
        targets = [assign.target for assign in spec.output]
        if len(update) != len(spec.update) or not all(statement.to_state for statement in update):
            raise _NoColumn
        if len(set(targets)) != len(targets):
            raise _NoColumn  # A local that is assigned twice means two things.
        ones = Input(self.ones.name, self.ones.dims, "HV", "token", Interval(), "", NOWHERE)
        return replace(
            spec,
            states=(State(state.name, self.dims, state.init, state.span),),
            inputs=(*spec.inputs, ones),
            update=tuple(update),
            output=(replace(spec.output[-1], target="o", value=self._read(spec.output[-1].value)),),
        )

    def _assign(self, assign: Assign) -> Assign:
        return replace(assign, value=self._written(assign.value))

    def _written(self, expr: Expr) -> Expr:
        """A vector over the keys as a matrix, its terms without the state along the ones."""
        match expr:
            case StateRead():
                return replace(expr, dims=self.dims)
            case Negate(value):
                return replace(expr, value=self._written(value))
            case Binary("+" | "-", left, right) if left.dims == right.dims:
                return replace(expr, left=self._written(left), right=self._written(right))
            case Binary("*", left, right) if reads_state(left) != reads_state(right):
                one, other = (self._written(side) if reads_state(side) else side for side in (left, right))
                return replace(expr, left=one, right=other)
            case _ if expr.dims == self.stage.states[0].dims and not reads_state(expr):
                return Outer(expr, self.ones, expr.span)
        raise _NoColumn

    def _read(self, expr: Expr) -> Expr:
        """An output of numbers as one of vectors over the values."""
        match expr:
            case Contract(StateRead() as state, q) | Contract(q, StateRead() as state) if not reads_state(q):
                return Contract(Transpose(replace(state, dims=self.dims)), self._read(q), expr.span)
            case StateRead():
                raise _NoColumn
            case Name(_, "local"):
                value = next(assign.value for assign in self.stage.spec.output if assign.target == expr.name)
                return self._read(value)
        return map_children(expr, self._read)


def _with(expr: Expr, values: Mapping[str, Expr]) -> Expr:
    """`expr` with `values` in place of names."""
    if isinstance(expr, Name) and expr.kind == "input" and expr.name in values:
        return values[expr.name]
    return map_children(expr, lambda child: _with(child, values))


def _renamed(expr: Expr, read: str, name: str) -> Expr:
    """`expr` with a number `name` in place of the vector `read`."""
    if isinstance(expr, Name) and expr.kind == "local" and expr.name == read:
        return Name(name, "local", (), expr.span)
    return map_children(expr, lambda child: _renamed(child, read, name))


def _free_name(wanted: str, spec: Spec) -> str:
    taken = (
        declared_in(spec)
        | {assign.target for assign in spec.output}
        | {inner.target for statement in spec.update for inner in _inside(statement)}
    )
    while wanted in taken:
        wanted += "_"
    return wanted


def _inside(statement: Assign | Repeat) -> tuple[Assign, ...]:
    return statement.body if isinstance(statement, Repeat) else (statement,)


# ------------------------------------------------------------------------------------------------------------ the proof


def prove_riding(nf: NormalForm, *, seed: int = 0) -> tuple[str, ...]:
    """Prove that the rows of `nf`, its column with them, are its spec's recurrence; what was proved, a line.

    The chunk form of the matrix state is proved for any values: a column of them needs no other proof.

    Raises:
        InternalError: they are not, with the tensor that differs.
    """
    assert nf.column is not None
    for attempt in range(ATTEMPTS):
        try:
            difference = _difference(nf, random.Random(f"{nf.spec.name} rides {seed + attempt}"))
        except ZeroDivisionError:  # an unlucky point: a denominator of the spec is 0 there
            continue
        if difference:
            message = f"{nf.spec.name}: {difference} (seed {seed + attempt}); nothing was written."
            raise InternalError(f"{message}\n{nf.dump()}")
        line = f"{nf.column.state.name} as a column of {nf.state.name}'s values = recurrence"
        return (f"{line}: random rational points, {TOKENS} tokens",)
    raise InternalError(f"{nf.spec.name}: no random point without a zero denominator found")


def _difference(nf: NormalForm, numbers: random.Random) -> str | None:
    """What differs between rows and recurrence in a random sequence of tokens, if anything does."""
    assert nf.column is not None
    spec, (step,), (read,) = nf.spec, nf.steps, nf.reads
    sample = Sample(spec, 1, numbers)
    setting = Setting(spec, sample.sizes, sample.constants, sample.oracle)
    states = {state.name: sample.random(state.dims) for state in spec.states}
    S, z = nf.state.name, nf.column.state.name
    rows = {S: states[S], z: states[z]}
    decay = ONE if step.decay is None else step.decay.factor
    write, here = step.writes[0], {name: StateRead(name, False, states[name].dims) for name in rows}
    key = _product(factor for factor in _factors(write.k) if factor.dims)
    written = key if nf.column.scale is None else Binary("*", nf.column.scale, key)
    after = {
        S: Binary("+", Binary("*", decay, here[S]), Outer(write.k, write.v)),
        z: Binary("+", Binary("*", decay, here[z]), written),
    }
    reads = {read.name: Contract(Transpose(here[S]), read.q), nf.column.read: Contract(here[z], read.q)}
    for number in range(TOKENS):
        token = setting.token({i.name: sample.random(i.dims, i.range) for i in spec.inputs}, [])
        output, states = setting.step(token, states)
        before = setting.scope(token.whole, states=rows)
        rows = {name: evaluate(expr, before) for name, expr in after.items()}
        for name, state in rows.items():
            if not equal(state, states[name]):
                return f"the state {name} of its row after token {number} is not the recurrence's"
        scope = setting.scope(token.whole, states=rows)
        found = {name: evaluate(expr, scope) for name, expr in reads.items()}
        if not equal(evaluate(nf.output, setting.scope(token.whole, found)), output):
            return f"the rows' output of token {number} is not the recurrence's"
    return None
