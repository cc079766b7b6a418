"""The spec as data: a frozen, fully checked tree that every later stage reads.

Expressions carry their named dims and position. Positions take no part in equality: expressions are equal that say
the same. Dims are computed once a node, for asking below each time would double the work at every level.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from functools import cached_property
from typing import Literal

from flagen.diagnostics import NOWHERE, Source, Span
from flagen.intervals import Interval as Interval
from flagen.spec.dims import behind_sources
from flagen.spec.layer.model import Layer

Dims = tuple[str, ...]


# ------------------------------------------------------------------------------------------------- expressions
REDUCTIONS = ("sum", "mean", "norm")
ROW_MAPS = ("l2norm", "softmax")
ROTATIONS = ("rotate", "rotate_half")


@dataclass(frozen=True)
class Number:
    """A literal. `value` is exact, or infinite."""

    value: Fraction | float
    span: Span = field(default=NOWHERE, compare=False)

    @property
    def dims(self) -> Dims:
        return ()


Operator = Literal["+", "-", "*", "/", "**"]
NameKind = Literal["input", "param", "derived", "local", "size", "head"]


@dataclass(frozen=True)
class Name:
    """A declared name: an input, a param, a `let`/`decay`/`gate` name (derived), a local of the update, a size (a dim's
    name, `H`, `HV` or the step count's symbol), or `head`, the index of the value head."""

    name: str
    kind: NameKind
    dims: Dims = ()
    span: Span = field(default=NOWHERE, compare=False)


@dataclass(frozen=True)
class StateRead:
    """A state by name: as it stands at this statement, or (`previous`) as it was before this token."""

    name: str
    previous: bool
    dims: Dims
    span: Span = field(default=NOWHERE, compare=False)


@dataclass(frozen=True)
class Negate:
    value: Expr
    span: Span = field(default=NOWHERE, compare=False)

    @cached_property
    def dims(self) -> Dims:
        return self.value.dims


@dataclass(frozen=True)
class Binary:
    """`left op right`, elementwise. Broadcasting is by name: the dims of one side are a subset of the other's, and the
    result has the dims of the larger side (the left one's order where they are equal)."""

    op: Operator
    left: Expr
    right: Expr
    span: Span = field(default=NOWHERE, compare=False)

    @cached_property
    def dims(self) -> Dims:
        return self.left.dims if len(self.left.dims) >= len(self.right.dims) else self.right.dims


@dataclass(frozen=True)
class Contract:
    """`left @ right` and `dot(left, right)`: contracts the last dim of `left` with the first of `right`."""

    left: Expr
    right: Expr
    span: Span = field(default=NOWHERE, compare=False)

    @property
    def dim(self) -> str:
        return self.right.dims[0]

    @cached_property
    def dims(self) -> Dims:
        return self.left.dims[:-1] + self.right.dims[1:]


@dataclass(frozen=True)
class Transpose:
    """`value.T`: the dims reversed."""

    value: Expr
    span: Span = field(default=NOWHERE, compare=False)

    @cached_property
    def dims(self) -> Dims:
        return self.value.dims[::-1]


@dataclass(frozen=True)
class Outer:
    """`outer(left, right)`: dims of `left`, then dims of `right`."""

    left: Expr
    right: Expr
    span: Span = field(default=NOWHERE, compare=False)

    @cached_property
    def dims(self) -> Dims:
        return self.left.dims + self.right.dims


@dataclass(frozen=True)
class Call:
    """An elementwise function of `flagen.functions`; every argument has the result's dims, or none."""

    function: str
    args: tuple[Expr, ...]
    span: Span = field(default=NOWHERE, compare=False)

    @cached_property
    def dims(self) -> Dims:
        return max((arg.dims for arg in self.args), key=len)


@dataclass(frozen=True)
class Reduce:
    """`sum`, `mean` or `norm` over one dim, or over all of them (`dim` is None)."""

    function: str
    value: Expr
    dim: str | None
    span: Span = field(default=NOWHERE, compare=False)

    @cached_property
    def dims(self) -> Dims:
        return () if self.dim is None else tuple(dim for dim in self.value.dims if dim != self.dim)


@dataclass(frozen=True)
class RowMap:
    """`l2norm` or `softmax` over the only dim of `value`, which it keeps."""

    function: str
    value: Expr
    span: Span = field(default=NOWHERE, compare=False)

    @cached_property
    def dims(self) -> Dims:
        return self.value.dims


@dataclass(frozen=True)
class Rotate:
    """`rotate(value, angle)`: each pair of channels of a vector turned by the angle of that pair, (x, y) to
    (x cos - y sin, x sin + y cos); pairs for which there is no angle stay. Pairs are neighbours, 2 i and 2 i + 1, or
    with `half` as far apart as half the channels, i and i + size / 2."""

    value: Expr
    angle: Expr
    half: bool
    span: Span = field(default=NOWHERE, compare=False)

    @property
    def dim(self) -> str:
        return self.value.dims[0]

    @cached_property
    def dims(self) -> Dims:
        return self.value.dims


@dataclass(frozen=True)
class Over:
    """`over(value, source, target)`: the same numbers, with the dim `source` called `target`, which is as long."""

    value: Expr
    source: str
    target: str
    span: Span = field(default=NOWHERE, compare=False)

    @cached_property
    def dims(self) -> Dims:
        return tuple(self.target if dim == self.source else dim for dim in self.value.dims)


@dataclass(frozen=True)
class Pairs:
    """Each element of the vector `left` times each of `right`, along `dim`, those with the same element of `left`
    beside one another: an outer product whose two dims are taken for one (`flagen.algebra.products`)."""

    left: Expr
    right: Expr
    dim: str
    span: Span = field(default=NOWHERE, compare=False)

    @property
    def dims(self) -> Dims:
        return (self.dim,)


@dataclass(frozen=True)
class Index:
    """`index(dim)`: for each element along `dim` its place, from 0."""

    dim: str
    span: Span = field(default=NOWHERE, compare=False)

    @property
    def dims(self) -> Dims:
        return (self.dim,)


@dataclass(frozen=True)
class Solution:
    """`solve(matrix, right, shift)`: the vector x, over the second dim of a matrix state [D, D2], for which
    `matrix @ x + shift * x` is `right`, over D; without a `shift`, `matrix @ x`."""

    matrix: Expr
    right: Expr
    shift: Expr | None
    span: Span = field(default=NOWHERE, compare=False)

    @cached_property
    def dims(self) -> Dims:
        return self.matrix.dims[1:]


Expr = (
    Number
    | Name
    | StateRead
    | Negate
    | Binary
    | Contract
    | Transpose
    | Outer
    | Call
    | Reduce
    | RowMap
    | Rotate
    | Over
    | Pairs
    | Index
    | Solution
)


def children(expr: Expr) -> tuple[Expr, ...]:
    """The direct operands of `expr`, left to right."""
    match expr:
        case Number() | Name() | StateRead() | Index():
            return ()
        case Negate(value) | Transpose(value) | Reduce(_, value) | RowMap(_, value) | Over(value):
            return (value,)
        case Rotate(left, right) | Contract(left, right) | Outer(left, right) | Pairs(left, right):
            return (left, right)
        case Binary(_, left, right):
            return (left, right)
        case Call(_, args):
            return args
        case Solution(matrix, right, shift):
            return (matrix, right) if shift is None else (matrix, right, shift)


def sizes_in(expr: Expr) -> tuple[str, ...]:
    """The names that a size is made of, in the order in which it has them."""
    return tuple(dict.fromkeys(node.name for node in walk(expr) if isinstance(node, Name)))


def dims_in(expr: Expr) -> Dims:
    """Those of them that are dims: neither H nor HV."""
    return tuple(name for name in sizes_in(expr) if name not in ("H", "HV"))


def walk(expr: Expr) -> Iterator[Expr]:
    """`expr` and everything below it, parents first."""
    yield expr
    for child in children(expr):
        yield from walk(child)


# -------------------------------------------------------------------------------------------------------- spec
@dataclass(frozen=True)
class Following:
    """A dim whose size follows from those of others, and from `H` and `HV`."""

    name: str
    value: Expr
    span: Span = field(default=NOWHERE, compare=False)


@dataclass(frozen=True)
class State:
    name: str
    dims: Dims
    init: float
    span: Span = field(default=NOWHERE, compare=False)
    meaning: str = ""
    """What the state before a token is, where no one declared it: `prev(k, 2)`."""
    shape: Dims = ()
    """The dims that callers know, where two of them are one of `dims`."""

    @property
    def declared(self) -> Dims:
        """The dims that callers know."""
        return self.shape or self.dims


@dataclass(frozen=True)
class Input:
    name: str
    dims: Dims
    heads: Literal["H", "HV"]
    per: Literal["token", "step"]
    range: Interval
    description: str
    span: Span = field(default=NOWHERE, compare=False)
    wide: bool = False
    """Given in the dtype of the states, whatever that of the others is: only what a stage gets from another is."""


@dataclass(frozen=True)
class Param:
    """A param with dims or `per_head` is a tensor (`is_tensor`) and is differentiated; a plain scalar is a number."""

    name: str
    dims: Dims
    per_head: bool
    default: Expr | None
    range: Interval
    description: str
    span: Span = field(default=NOWHERE, compare=False)

    @property
    def is_tensor(self) -> bool:
        return self.per_head or bool(self.dims)


@dataclass(frozen=True)
class Steps:
    """The micro-step count: `symbol` in the spec, `argument` in the generated signature."""

    symbol: str
    argument: str
    default: int | None
    span: Span = field(default=NOWHERE, compare=False)


@dataclass(frozen=True)
class Derived:
    """A name of `let`, `decay` or `gate`; `per` is "step" where it depends on a per-step input."""

    name: str
    section: Literal["let", "decay", "gate"]
    value: Expr
    per: Literal["token", "step"]
    range: Interval
    span: Span = field(default=NOWHERE, compare=False)


@dataclass(frozen=True)
class Assign:
    """`target = value`; the target is a state (`to_state`), a local name, or the output `o`. `text` is the source."""

    target: str
    value: Expr
    to_state: bool
    text: str
    span: Span = field(default=NOWHERE, compare=False)


@dataclass(frozen=True)
class Repeat:
    """`repeat: n` / `do:`; runs its body once for each micro-step of the token."""

    body: tuple[Assign, ...]
    span: Span = field(default=NOWHERE, compare=False)


Statement = Assign | Repeat


@dataclass(frozen=True)
class First:
    """The local `name` of the update that is 1 at the first token of each `every` tokens, as the state `source` counts
    them, else 0."""

    name: str
    every: Expr
    source: str
    span: Span = field(default=NOWHERE, compare=False)


@dataclass(frozen=True)
class Levels:
    """The state `state` is kept in levels, along its dim `dim`, as the state `source` counts tokens. `scales` are what
    the output reads them by; `whole` is the recurrence of their sum: what the spec would be without levels."""

    state: str
    dim: str
    source: str
    scales: tuple[Expr, ...]
    whole: Spec
    span: Span = field(default=NOWHERE, compare=False)


@dataclass(frozen=True)
class ChunkHints:
    size: int | None = None
    subchunk: int | None = None


@dataclass(frozen=True)
class Spec:
    """A whole spec, checked: every name resolves, every shape fits, nothing is unused."""

    name: str
    title: str
    paper: str
    description: str
    class_name: str
    states: tuple[State, ...]
    inputs: tuple[Input, ...]
    params: tuple[Param, ...]
    steps: Steps | None
    derived: tuple[Derived, ...]
    update: tuple[Statement, ...]
    output: tuple[Assign, ...]
    chunk: ChunkHints
    version: int
    """That of the language."""
    source: Source = field(compare=False, repr=False)
    sha256: str = field(compare=False, default="")
    layer: Layer | None = None
    """The module around the operator, where the spec has one."""
    used: Mapping[str, Spec] = field(default_factory=dict, compare=False, repr=False)
    """The specs whose operators the layer uses, by what it calls these; none where only this spec's text was read."""
    wide_outputs: frozenset[str] = frozenset()
    """The outputs that have the dtype of the states: only stages have such, for others to go on with."""
    written: Mapping[str, str] = field(default_factory=dict, compare=False)
    """What its author calls what has another name here (`flagen.spec.renaming`)."""
    following: tuple[Following, ...] = ()
    """The sizes that follow from others, each behind those it follows from."""
    firsts: tuple[First, ...] = ()
    """Where mini-batches begin."""
    levels: Levels | None = None
    """The state that is kept in levels."""
    pairs: Mapping[str, Dims] = field(default_factory=dict, compare=False)
    """The dims that are pairs of two others (`flagen.algebra.products`)."""

    @property
    def dims(self) -> Dims:
        """Every dim's name, in order of first declaration (states, inputs, params), each behind those it follows
        from."""
        declared = [decl.dims for decl in self.states] + [decl.dims for decl in self.inputs]
        declared += [decl.dims for decl in self.params]
        declared += [tuple(entry.name for entry in self.following)]
        sources = {entry.name: dims_in(entry.value) for entry in self.following}
        return behind_sources((dim for dims in declared for dim in dims), sources)

    @property
    def axes(self) -> Dims:
        """The dims that something has; the others are numbers that expressions and other sizes name."""
        had = {dim for state in self.states for dim in state.dims}
        had |= {dim for decl in self.inputs for dim in decl.dims} | {dim for decl in self.params for dim in decl.dims}
        every = (statement.body if isinstance(statement, Repeat) else (statement,) for statement in self.update)
        values = [assign.value for body in every for assign in body]
        values += [*(assign.value for assign in self.output), *(entry.value for entry in self.derived)]
        had |= {dim for value in values for part in walk(value) for dim in part.dims}
        return tuple(dim for dim in self.dims if dim in had)

    @property
    def output_dims(self) -> Dims:
        return self.output[-1].value.dims

    @property
    def has_value_heads(self) -> bool:
        """Whether some input declares HV; otherwise HV is H."""
        return any(decl.heads == "HV" for decl in self.inputs)
