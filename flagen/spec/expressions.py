"""Expressions as data: a tree whose nodes carry their named dims and position.

Positions take no part in equality: expressions are equal that say the same. Dims are computed once a node, for asking
below each time would double the work at every level.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from functools import cached_property
from typing import Literal

from flagen.diagnostics import NOWHERE, Span

Dims = tuple[str, ...]

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
    with `half` as far apart as half the channels, i and i + size / 2. Of a matrix, the vectors along its last dim are
    turned by the same angles."""

    value: Expr
    angle: Expr
    half: bool
    span: Span = field(default=NOWHERE, compare=False)

    @property
    def dim(self) -> str:
        return self.value.dims[-1]

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
