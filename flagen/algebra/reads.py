"""Reads of the state: which version of it they see, and the reads in an output as names of their own."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import Generic, TypeVar

from flagen.algebra.monomials import (
    Element,
    Expansion,
    Monomial,
    OutsideNormalForm,
    components,
    product,
    reads_state,
    scaled,
    total,
)
from flagen.algebra.rewrite import map_children
from flagen.diagnostics import Span
from flagen.spec.model import Binary, Contract, Dims, Expr, Name, Number, Reduce, State, StateRead, walk

ONE = Number(Fraction(1))


def at_version(state: StateRead, version: int) -> StateRead:
    """`state` tied to one version of it: the versions of a token's update are counted from 0, the state before it."""
    return StateRead(f"{state.name}@{version}", False, state.dims, state.span)


def version_of(read: Element) -> int:
    """Which version of the state `read` is of."""
    assert isinstance(read.tensor, StateRead)
    return int(read.tensor.name.rpartition("@")[2])


def versions_in(expr: Expr) -> Iterator[int]:
    """The versions of the state that `expr` reads."""
    return (int(node.name.rpartition("@")[2]) for node in walk(expr) if isinstance(node, StateRead))


def freed(elements: Iterable[Element], dummy: str) -> list[Element]:
    """`elements` with `dummy` made a free index over its dim, so that `product` does not sum over it."""
    dim = dummy.split("'")[0]
    return [replace(e, index=tuple(dim if i == dummy else i for i in e.index)) for e in elements]


def contracted_in(read: Element, dims: Dims, span: Span) -> tuple[str, str]:
    """The index that a read of the state sums over, and the dim that it is of."""
    rows, columns = dims
    if read.index[0] != rows and read.index[1] == columns:
        return read.index[0], rows
    if read.index[0] == rows and read.index[1] != columns:
        return read.index[1], columns
    raise OutsideNormalForm("the output reads the state down to a scalar", span)


Key = TypeVar("Key")


@dataclass
class Extraction(ABC, Generic[Key]):
    """Replaces each read of a state in the output by a name, and remembers what it stands for.

    `taken` are the names that the output may use beside the reads.
    """

    expansion: Expansion
    taken: frozenset[str]
    found: dict[Key, str] = field(default_factory=dict, init=False)

    def extract(self, expr: Expr) -> Expr:
        """`expr` in terms of reads.

        Raises:
            OutsideNormalForm: it uses the state in another way than by `S.T @ q` and `S @ q`.
        """
        if not reads_state(expr):
            return expr
        if isinstance(expr, StateRead):
            raise OutsideNormalForm("the output uses the state itself, not a read of it", expr.span)
        if not self._may_be_read(expr):
            return map_children(expr, self.extract)
        known = dict(self.found)
        try:
            return self._expanded(expr)
        except OutsideNormalForm as outside:
            self.found = known
            return self._of_operands(expr, outside)

    def _of_operands(self, expr: Expr, outside: OutsideNormalForm) -> Expr:
        """`expr` with the reads in its operands taken out: `dot(S.T @ q, S.T @ k)`. Where there are none, `outside`."""
        known = dict(self.found)
        try:
            return map_children(expr, self.extract)
        except OutsideNormalForm:
            self.found = known
            raise outside from None

    def _may_be_read(self, expr: Expr) -> bool:
        """Whether `expr` is a product or a sum over a dim, which may be reads and what the state has no part in."""
        return isinstance(expr, Contract) or (isinstance(expr, Reduce) and expr.function in ("sum", "mean"))

    @abstractmethod
    def _expanded(self, expr: Expr) -> Expr:
        """`expr` as a sum of reads, and of what the state has no part in."""

    def _free_name(self) -> str:
        name = f"read{len(self.found)}"
        while name in self.taken:
            name += "_"
        return name


@dataclass
class Reads(Extraction[tuple[str, int, Expr]]):
    """The reads of one state: (contracted dim, version, q) → name."""

    state: State

    def _expanded(self, expr: Expr) -> Expr:
        """`expr` as a sum of reads: `(S + outer(k, v)).T @ q` is one, and what the state has no part in."""
        monomials = self.expansion.monomials(expr, {dim: dim for dim in expr.dims})
        terms = [self._term(monomial, expr) for monomial in monomials]
        return total(terms) or Number(Fraction(0))

    def _term(self, monomial: Monomial, expr: Expr) -> Expr:
        if len(expr.dims) > 1:
            raise OutsideNormalForm("the output reads the state through a full matrix", expr.span)
        if not monomial.states:
            return scaled(monomial.coefficient, product(monomial.elements))
        (read,) = monomial.states
        rows, columns = self.state.dims
        contracted, side = contracted_in(read, self.state.dims, expr.span)
        kept = columns if side == rows else rows
        inner: list[Element] = []
        outer: list[Element] = []
        for indices, members in components(monomial.others()):
            if contracted in indices and indices & {rows, columns}:
                raise OutsideNormalForm("the output reads the state through a full matrix", expr.span)
            (inner if contracted in indices else outer).extend(members)
        q = product(freed(inner, contracted)) or ONE
        key = (side, version_of(read), q)
        name = self.found.setdefault(key, self._free_name())
        result = Name(name, "local", (kept,), expr.span)
        factor = product(outer)
        return scaled(monomial.coefficient, result if factor is None else Binary("*", factor, result, expr.span))
