"""States that are kept in levels, by chunks of a power of two.

A state in levels is linear in what is written to it, and the state before a chunk and the values of its tokens are
all that comes into one column of it, a value channel. So a chunk is run on *columns*: the recurrence of the whole
state, with a column for each token of the chunk, whose value is one there, and a column for each key, whose first
state is one there. It gives

    A[i,j]   what of the value of token j token i reads       Q[i,x]   what it reads of the state before the chunk
    W[x,j]   what of that value is left at the end            F[x,z]   what of the state before the chunk is

Inside a chunk the level of a pair of tokens is in a table, l(i, j): the number of binary digits of i xor j. Token i
reads `A[i,j] x_i[l(i,j)] v_j`, whatever the recurrence erases and decays. Of two neighbouring blocks of as many chunks
as a power of two, every token of the right one sees all of the left one at one level: it reads the state that the left
one has written, once, by Q of its own chunk and F of those between. The two are one block then, twice as long.

From the first token of a sequence on, with no state before it, kernels need none of that above chunks. What there is of
a level is one run of the whole state's recurrence: over the blocks of that many tokens, from no state, with the values
of left halves alone. Tokens of right halves read them, whatever is erased and decayed on the way.

Of a call that begins at any token, the first chunk is what is left of one. What is at a level before the call is read
at that level, until a token takes it up: at the larger of its level and l(i, last token before the call).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from flagen.algebra.monomials import OutsideNormalForm
from flagen.algebra.normal_form import NormalForm
from flagen.algebra.staged import flat
from flagen.diagnostics import Span
from flagen.spec.model import Binary, Expr, Levels, Name, Negate, Spec, sizes_in, walk
from flagen.spec.printer import to_source


@dataclass(frozen=True)
class LevelForm:
    """`columns` is the recurrence of the whole state, over `key` and `value`, whose columns are along `value`, and
    `values` the input that is written. The output of `spec` reads each level times what the input `scales` has."""

    spec: Spec
    columns: Spec
    key: str
    value: str
    values: str
    scales: str

    @property
    def levels(self) -> Levels:
        assert self.spec.levels is not None
        return self.spec.levels

    def dump(self) -> str:
        """The form as text."""
        levels = self.levels
        return (
            f"{self.spec.name} by chunks of a power of two, run on columns: one for each token's {self.values}, and "
            f"one for each {self.key} of {levels.state}\nlevels of {levels.state} are read by {self.scales}"
        )


def columns_of(spec: Spec) -> Spec:
    """The recurrence of the whole state of `spec`, which is kept in levels: what columns are run by."""
    assert spec.levels is not None
    whole = spec.levels.whole
    used = _named(assign.value for assign in (*flat(whole.update), *whole.output))
    for entry in reversed(whole.derived):
        if entry.name in used:
            used |= _named((entry.value,))
    return replace(
        whole,
        name=f"{spec.name}_columns",
        title="",
        paper="",
        description="",
        inputs=tuple(decl for decl in whole.inputs if decl.name in used),
        params=tuple(decl for decl in whole.params if decl.name in used),
        derived=tuple(entry for entry in whole.derived if entry.name in used),
        layer=None,
        used={},
    )


def level_form(spec: Spec, columns: Spec, nf: NormalForm | None) -> LevelForm:
    """The chunk form of `spec`, which keeps a state in levels; `nf` is the normal form of `columns`.

    Raises:
        OutsideNormalForm: a chunk of it is not the sum of what it does to columns, and why.
    """
    assert spec.levels is not None
    levels = spec.levels
    if nf is None or nf.registers or [read.side for read in nf.reads] != ["left"]:
        raise OutsideNormalForm("a state in levels has a chunk form where it is the only one, read once", levels.span)
    if nf.transposed:
        dims = f"[{nf.key}, {nf.value}]"
        raise OutsideNormalForm(f"a state in levels has a chunk form where it is declared {dims}", levels.span)
    if nf.spec.steps is not None:
        raise OutsideNormalForm("a state in levels has no chunk form in micro-steps", levels.span)
    scales = _scales(spec)
    values = _Columns(nf, levels.span).values()
    return LevelForm(spec, columns, nf.key, nf.value, values, scales)


def _scales(spec: Spec) -> str:
    """The input that levels are read by."""
    assert spec.levels is not None
    first, *others = spec.levels.scales
    if others or not (isinstance(first, Name) and first.kind == "input"):
        where = others[0] if others else first
        raise OutsideNormalForm("levels have a chunk form where one input says what each of them counts", where.span)
    return first.name


class _Columns:
    """Whether a normal form does the same to every column of its state."""

    def __init__(self, nf: NormalForm, span: Span) -> None:
        self.nf, self.spec, self.span = nf, nf.spec, span
        self.derived = {entry.name: entry.value for entry in self.spec.derived}

    def values(self) -> str:
        """The input along the columns, of which everything that is written is a multiple."""
        nf, spec = self.nf, self.spec
        along = [decl for decl in spec.inputs if nf.value in decl.dims]
        if len(along) != 1 or along[0].dims != (nf.value,):
            raise OutsideNormalForm(f"what is written along {nf.value} is not of one input", self.span)
        values = along[0].name
        writes = [row for step in nf.steps for row in step.writes]
        deltas = [row for step in nf.steps for row in step.deltas]
        for written in (*(row.v for row in writes), *(row.z for row in deltas if row.z is not None)):
            self._check_multiple(written, values, values)
        (read,) = nf.reads
        self._check_multiple(nf.output, read.name, values)
        others = [decay.factor for decay in nf.decays] + [row.k for row in writes] + [read.q]
        for other in (*others, *(row.w for row in deltas), *(row.y for row in deltas)):
            self._check_without(other, values)
        following = [entry for entry in spec.following if nf.value in {entry.name, *sizes_in(entry.value)}]
        for entry in following:
            raise OutsideNormalForm(f"the columns are along {nf.value}, whose size is not free", entry.span)
        return values

    def _check_multiple(self, expr: Expr, vector: str, values: str) -> None:
        """`expr` is a sum of multiples of `vector`, by numbers that do not depend on `values`."""
        match expr:
            case Name(name) if name == vector:
                return
            case Name(name) if name in self.derived:
                return self._check_multiple(self.derived[name], vector, values)
            case Negate(value):
                return self._check_multiple(value, vector, values)
            case Binary("+" | "-", left, right):
                self._check_multiple(left, vector, values)
                return self._check_multiple(right, vector, values)
            case Binary("*", number, value) if not number.dims:
                self._check_without(number, values)
                return self._check_multiple(value, vector, values)
            case Binary("*" | "/", value, number) if not number.dims:
                self._check_without(number, values)
                return self._check_multiple(value, vector, values)
        reason = f"`{to_source(expr)}` is no multiple of `{vector}`: not the same for all of {self.nf.value}"
        raise OutsideNormalForm(reason, expr.span)

    def _check_without(self, expr: Expr, values: str) -> None:
        """`expr` depends neither on `values` nor on how many of them there are."""
        for node in walk(expr):
            if isinstance(node, Name) and node.name in self.derived:
                self._check_without(self.derived[node.name], values)
            elif self.nf.value in node.dims or (isinstance(node, Name) and node.name in (values, self.nf.value)):
                raise OutsideNormalForm(f"this depends on {self.nf.value}, whose columns are taken apart", node.span)


def _named(exprs: Iterable[Expr]) -> set[str]:
    return {node.name for expr in exprs for node in walk(expr) if isinstance(node, Name)}
