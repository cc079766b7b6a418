"""Rows of a token over a dim of their own: matrices of keys and values, whose product a matrix state is written with.

    S = alpha * S + k @ v                   k: [K, R], v: [R, V]: R rows of one token, under one decay
    o = q @ S                               q: [R, K]: R reads of the state behind all of them

Taken one after another, the rows of all tokens are a recurrence of the simplest kind, and it has a chunk form and
kernels of its own:

    S = exp(g) * S + outer(k_r, v_r)        o_r = S.T @ q_r

of which the first row of a token has the token's decay for g, and the others have 0. In that order a read lacks what
later rows of its token write, and nothing else, for no decay stands between them. So

    read_r = o_r + sum over s > r of (q_r . k_s) v_s

which is what scores masked by tokens are, and not by rows. A token may have more rows than reads, or more reads: those
that are missing are zeros, before the first read and behind the last write.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from fractions import Fraction

from flagen.algebra.limits import Extent, extent
from flagen.algebra.logarithm import log_of
from flagen.algebra.monomials import OutsideNormalForm, reads_state, shown
from flagen.algebra.reads import ONE, at_version, versions_in
from flagen.algebra.rewrite import map_children
from flagen.algebra.stage_results import declared_in, fresh
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
from flagen.spec.printer import to_source
from flagen.spec.ranges import interval_of


class ErasingRows(OutsideNormalForm):
    """What rows with a dim of their own read of the state is written to it."""


@dataclass(frozen=True)
class RankRow:
    """`outer(rows, columns)` over the dims of the state, added up over `rank`; None where there is one such product."""

    rows: Expr
    columns: Expr
    rank: str | None


@dataclass(frozen=True)
class RankRead:
    """`name` stands for the state read by `q`, over `dims`: by each of its `rank`, or once where that is None."""

    name: str
    q: Expr
    rank: str | None
    dims: Dims


@dataclass(frozen=True)
class RankForm:
    """What a token writes, reads and decays by, and the recurrence of its rows.

    factor: what multiplies the state before the rows are written, if anything does, and `decay` its log.
    reads: of the state after the token, all along the same dim of it, `read_along`.
    output: what becomes `o`, in terms of the reads' names and the token's inputs.
    within: the spec whose tokens are the rows; names: what it calls `q`, `k`, `v` and `g` of a row.
    """

    spec: Spec
    factor: Expr | None
    decay: Expr | None
    writes: tuple[RankRow, ...]
    reads: tuple[RankRead, ...]
    read_along: str
    output: Expr
    within: Spec
    names: Mapping[str, str]

    @property
    def few(self) -> frozenset[str]:
        """The dims of rows and reads."""
        ranks = {row.rank for row in self.writes} | {read.rank for read in self.reads}
        return frozenset(rank for rank in ranks if rank is not None)

    @property
    def log_decays(self) -> tuple[Expr, ...]:
        return () if self.decay is None else (self.decay,)

    @property
    def read_dim(self) -> str:
        """The dim of the state that is left of it where it is read."""
        return next(dim for dim in self.within.states[0].dims if dim != self.read_along)

    def count(self, sizes: Mapping[str, int]) -> int:
        """How many rows a token has: as many as are written, or read where these are more."""
        written, read = [row.rank for row in self.writes], [read.rank for read in self.reads]
        return max(sum(1 if rank is None else sizes[rank] for rank in ranks) for ranks in (written, read))

    @property
    def expressions(self) -> tuple[Expr, ...]:
        """All that is evaluated for a token before its rows are run."""
        sides = (side for row in self.writes for side in (row.rows, row.columns))
        return (*sides, *(read.q for read in self.reads), *self.log_decays)

    def dump(self) -> str:
        """The rows of a token as text."""
        lines = [f"{self.spec.name}: a token is {_count(row.rank for row in self.writes)} rows"]
        if self.decay is not None:
            lines.append(f"    its first row: g = {to_source(self.decay)}, the others: g = 0")
        for row in self.writes:
            over = "once" if row.rank is None else f"for each of {row.rank}"
            lines.append(f"    {over}: k = {to_source(row.rows)}, v = {to_source(row.columns)}")
        for read in self.reads:
            over = "once" if read.rank is None else f"for each of {read.rank}"
            lines.append(f"    {read.name}, {over}, with what later rows of the token write: q = {to_source(read.q)}")
        return "\n".join((*lines, f"    o = {to_source(self.output)}"))


def _count(ranks: Iterable[str | None]) -> str:
    return " + ".join("1" if rank is None else rank for rank in ranks)


def rank_form(spec: Spec) -> RankForm:
    """The rows of a token of `spec`, some of which are over a dim of their own.

    Raises:
        OutsideNormalForm: there are none such, or the state is used in another way; says which part, and where.
    """
    if len(spec.states) > 1:
        raise OutsideNormalForm("several states have no normal form together", spec.states[1].span)
    (state,) = spec.states
    if len(state.dims) != 2:
        raise OutsideNormalForm(f"rows are those of a matrix; {state.name} has {len(state.dims)} dims", state.span)
    if math.isinf(state.init):
        raise OutsideNormalForm("a matrix state that starts at infinity has no chunk form", state.span)
    return _Finder(spec, state).form()


def has_ranks(spec: Spec) -> bool:
    """Whether rows of `spec` may have a dim of their own: an input, a param or a `let` name is a matrix."""
    given = [decl.dims for decl in spec.inputs] + [decl.dims for decl in spec.params]
    return any(len(dims) > 1 for dims in (*given, *(decl.value.dims for decl in spec.derived)))


@dataclass(frozen=True)
class _State:
    """What the state is by now: `factor` times what it was before the token (None for 1), and rows."""

    factor: Expr | None
    rows: tuple[RankRow, ...]


@dataclass
class _Finder:
    spec: Spec
    state: State
    locals: dict[str, Expr] = field(default_factory=dict)
    extents: dict[str, Extent] = field(default_factory=dict)
    versions: list[_State] = field(default_factory=lambda: [_State(None, ())])
    reads: dict[tuple[Expr, Dims], RankRead] = field(default_factory=dict)

    def form(self) -> RankForm:
        for statement in self.spec.update:
            if isinstance(statement, Repeat):
                raise OutsideNormalForm("rows over a dim of their own are none of a micro-step", statement.span)
            self._assign(statement)
        for statement in self.spec.output:
            self.locals[statement.target] = self._resolved(statement)
        now, output = self.versions[-1], self._read(self.locals["o"])
        ranks = [row.rank for row in now.rows] + [read.rank for read in self.reads.values()]
        if not any(ranks):
            raise OutsideNormalForm("no row of a token has a dim of its own", self.spec.end_of_update)
        if not now.rows:
            raise OutsideNormalForm("nothing is written", self.spec.end_of_update)
        along = {dim: read.q.span for read in self.reads.values() for dim in self.state.dims if dim in read.q.dims}
        if len(along) != 1:
            span = [*along.values(), self.spec.output[-1].span][-1]
            why = "reads the state from both sides" if along else "does not read the state"
            raise OutsideNormalForm(f"the output {why}", span)
        (read_along,) = along
        decay = None if now.factor is None else self._log(now.factor)
        within, names = _recurrence(self.spec, self.state, decay, read_along)
        reads = tuple(self.reads.values())
        return RankForm(self.spec, now.factor, decay, now.rows, reads, read_along, output, within, names)

    # ------------------------------------------------------------------------------------------------------- statements

    def _assign(self, statement: Assign) -> None:
        value = self._resolved(statement)
        if statement.to_state:
            self.versions.append(self._written(value))
        else:
            self.locals[statement.target] = value

    def _resolved(self, statement: Assign) -> Expr:
        """The value of `statement` with its locals written out."""
        size = extent(statement.value, self.extents)
        if size.problem:
            raise OutsideNormalForm(size.problem, statement.span)
        self.extents[statement.target] = size
        return self._resolve(statement.value)

    def _resolve(self, expr: Expr) -> Expr:
        match expr:
            case StateRead():
                return at_version(expr, 0 if expr.previous else len(self.versions) - 1)
            case Name(name, "local"):
                return self.locals[name]
        return map_children(expr, self._resolve)

    def _log(self, factor: Expr) -> Expr:
        derived = {decl.name: decl for decl in self.spec.derived}
        return log_of(factor, derived, _ranges(self.spec))

    # ------------------------------------------------------------------------------------------------------ what is new

    def _written(self, expr: Expr) -> _State:
        """What a statement makes of the state: `expr`, over its dims, in what the state was before the token."""
        if not reads_state(expr):
            return _State(Number(Fraction(0), expr.span), tuple(self._rows(expr)))
        match expr:
            case StateRead():
                (version,) = versions_in(expr)
                return self.versions[version]
            case Binary("*", left, right) if reads_state(left) != reads_state(right):
                scale, scaled = (right, left) if reads_state(left) else (left, right)
                return self._scaled(self._written(scaled), scale)
            case Binary("/", left, right) if not reads_state(right):
                return self._scaled(self._written(left), Binary("/", ONE, right, right.span))
            case Binary("+" | "-" as op, left, right) if left.dims == right.dims:
                one, other = self._written(left), self._written(right)
                if op == "-":
                    other = self._scaled(other, Number(Fraction(-1)))
                return self._sum(one, other, expr)
        if any(isinstance(node, Contract) and reads_state(node) for node in walk(expr)):
            why = "erases what several rows read at once; rows that erase one after another are micro-steps"
            raise ErasingRows(f"`{shown(expr)}` {why}", expr.span)
        raise OutsideNormalForm(f"`{shown(expr)}` is no decay of the state, and no rows that are written", expr.span)

    def _sum(self, one: _State, other: _State, expr: Expr) -> _State:
        factors = [each.factor for each in (one, other) if each.factor is None or not _is_zero(each.factor)]
        if len(factors) > 1:
            raise OutsideNormalForm(f"`{shown(expr)}` has the state twice", expr.span)
        factor = factors[0] if factors else Number(Fraction(0), expr.span)
        return _State(factor, (*one.rows, *other.rows))

    def _scaled(self, state: _State, scale: Expr) -> _State:
        """`scale` times a state: a number, or a vector over one of its dims."""
        if len(scale.dims) > 1:
            raise OutsideNormalForm("a decay that differs over both dims is an elementwise scan", scale.span)
        factor = state.factor
        if factor is None:
            factor = scale
        elif not _is_zero(factor):
            if factor.dims and scale.dims and factor.dims != scale.dims:
                rows, columns = self.state.dims
                reason = f"the decay acts on {rows} and on {columns}; the chunk form has it on one side"
                raise OutsideNormalForm(reason, scale.span)
            factor = Binary("*", factor, scale, scale.span)
        return _State(factor, tuple(self._row_scaled(row, scale) for row in state.rows))

    def _row_scaled(self, row: RankRow, scale: Expr) -> RankRow:
        if scale.dims == self.state.dims[1:]:
            return replace(row, columns=_times(scale, row.columns))
        return replace(row, rows=_times(scale, row.rows))

    # --------------------------------------------------------------------------------------------------------- the rows

    def _rows(self, expr: Expr) -> Iterator[RankRow]:
        """A matrix over the dims of the state, in which it does not occur, as rows."""
        match expr:
            case Negate(value):
                yield from (replace(row, rows=Negate(row.rows, expr.span)) for row in self._rows(value))
                return
            case Transpose(value):
                yield from self._rows(value)
                return
            case Binary("+" | "-" as op, left, right) if len(left.dims) == len(right.dims) == 2:
                yield from self._rows(left)
                yield from self._rows(right if op == "+" else Negate(right, right.span))
                return
            case Binary("*", left, right) if (len(left.dims) == 2) != (len(right.dims) == 2):
                scale, scaled = (right, left) if len(left.dims) == 2 else (left, right)
                yield from (self._row_scaled(row, scale) for row in self._rows(scaled))
                return
            case Binary("/", left, right) if len(left.dims) == 2 and len(right.dims) < 2:
                reciprocal = Binary("/", ONE, right, right.span)
                yield from (self._row_scaled(row, reciprocal) for row in self._rows(left))
                return
            case Outer(left, right) | Contract(left, right) if set(expr.dims) == set(self.state.dims):
                rank = expr.dim if isinstance(expr, Contract) else None
                rows, columns = (left, right) if self.state.dims[0] in left.dims else (right, left)
                yield RankRow(rows, columns, rank)
                return
        raise OutsideNormalForm(f"`{shown(expr)}` is no product of rows, nor a sum of such", expr.span)

    # -------------------------------------------------------------------------------------------------------- the reads

    def _read(self, expr: Expr) -> Expr:
        """The output in terms of reads."""
        if not reads_state(expr):
            return expr
        if isinstance(expr, StateRead):
            raise OutsideNormalForm("the output uses the state itself, not a read of it", expr.span)
        if isinstance(expr, Contract):
            for state, q in ((expr.left, expr.right), (expr.right, expr.left)):
                inner = state.value if isinstance(state, Transpose) else state
                if isinstance(inner, StateRead) and not reads_state(q) and len(q.dims) < 3:
                    return self._as_read(expr, inner, q)
        return map_children(expr, self._read)

    def _as_read(self, expr: Contract, state: StateRead, q: Expr) -> Expr:
        if next(versions_in(state)) != len(self.versions) - 1:
            raise OutsideNormalForm("the output reads the state as it was before all rows are written", expr.span)
        rank = next((dim for dim in q.dims if dim != expr.dim), None)
        kept = next(dim for dim in expr.dims if dim in self.state.dims)
        dims = (kept,) if rank is None else (rank, kept)
        known = self.reads.get((q, dims))
        name = known.name if known else self._free_name()
        self.reads[q, dims] = RankRead(name, q, rank, dims)
        read = Name(name, "local", dims, expr.span)
        return read if dims == expr.dims else Transpose(read, expr.span)

    def _free_name(self) -> str:
        return fresh(f"read{len(self.reads)}", declared_in(self.spec))


def _times(scale: Expr, value: Expr) -> Expr:
    """`scale * value`, with numbers that multiply one another first."""
    match value:
        case Binary("*", number, rest) if not scale.dims and not number.dims:
            return Binary("*", Binary("*", scale, number, number.span), rest, value.span)
    return Binary("*", scale, value, value.span)


def _is_zero(expr: Expr) -> bool:
    return isinstance(expr, Number) and expr.value == 0


def _ranges(spec: Spec) -> dict[str, Interval]:
    return {decl.name: decl.range for group in (spec.inputs, spec.params, spec.derived) for decl in group}


# ----------------------------------------------------------------------------------------------- the recurrence of rows


def _recurrence(spec: Spec, state: State, decay: Expr | None, read_along: str) -> tuple[Spec, dict[str, str]]:
    """The spec whose tokens are the rows of tokens of `spec`, and what it calls the parts of one."""
    rows, columns = state.dims
    of: dict[str, Dims] = {"q": (read_along,), "k": (rows,), "v": (columns,)}
    if decay is not None:
        of["g"] = decay.dims
    taken = {*state.dims, *state.shape, state.name}
    names = {part: fresh(part, taken) for part in of}
    part: dict[str, Expr] = {role: Name(names[role], "input", dims) for role, dims in of.items()}
    here = StateRead(state.name, previous=False, dims=state.dims)
    decayed: Expr = here if decay is None else Binary("*", Call("exp", (part["g"],)), here)
    value = Binary("+", decayed, Outer(part["k"], part["v"]))
    read = Contract(Transpose(here) if read_along == rows else here, part["q"])
    log = Interval() if decay is None else interval_of(decay, _ranges(spec))
    span = spec.end_of_update
    inputs = tuple(
        Input(
            names[role],
            dims,
            "HV" if spec.has_value_heads else "H",
            "token",
            Interval(min(0.0, log.low), max(0.0, log.high)) if role == "g" else Interval(),
            "",
            wide=role == "g",
        )
        for role, dims in of.items()
    )
    within = replace(
        spec,
        name=f"{spec.name}_rows",
        title=f"{spec.title or spec.name}, row by row",
        paper="",
        class_name=f"{spec.class_name}Rows",
        states=(state,),
        inputs=inputs,
        params=(),
        steps=None,
        following=(),
        derived=(),
        update=(Assign(state.name, value, True, f"{state.name} = {to_source(value)}", span),),
        output=(Assign("o", read, False, f"o = {to_source(read)}", spec.output[-1].span),),
        wide_outputs=frozenset({"o"}),
        layer=None,
        used={},
    )
    return within, names
