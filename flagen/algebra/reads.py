"""Reads of the state: which version of it they see, and the reads in an output as names of their own."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from fractions import Fraction

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
from flagen.spec.model import Binary, Contract, Expr, Name, Number, Reduce, State, StateRead, walk

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


@dataclass
class Reads:
    """Replaces each read of the state in the output by a name, and remembers (contracted dim, version, q) → name.

    `taken` are the names that the output may use beside the reads.
    """

    expansion: Expansion
    state: State
    taken: frozenset[str]
    found: dict[tuple[str, int, Expr], str] = field(default_factory=dict)

    def extract(self, expr: Expr) -> Expr:
        """`expr` in terms of reads.

        Raises:
            OutsideNormalForm: it uses the state in another way than by `S.T @ q` and `S @ q`.
        """
        if not reads_state(expr):
            return expr
        match expr:
            case Contract() | Reduce("sum" | "mean"):
                known = dict(self.found)
                try:
                    return self._expanded(expr)
                except OutsideNormalForm as outside:
                    self.found = known
                    return self._of_operands(expr, outside)
            case StateRead():
                raise OutsideNormalForm("the output uses the state itself, not a read of it", expr.span)
        return map_children(expr, self.extract)

    def _expanded(self, expr: Expr) -> Expr:
        """`expr` as a sum of reads: `(S + outer(k, v)).T @ q` is one, and what the state has no part in."""
        monomials = self.expansion.monomials(expr, {dim: dim for dim in expr.dims})
        terms = [self._term(monomial, expr) for monomial in monomials]
        return total(terms) or Number(Fraction(0))

    def _of_operands(self, expr: Expr, outside: OutsideNormalForm) -> Expr:
        """`expr` with the reads in its operands taken out: `dot(S.T @ q, S.T @ k)`. Where there are none, `outside`."""
        known = dict(self.found)
        try:
            return map_children(expr, self.extract)
        except OutsideNormalForm:
            self.found = known
            raise outside from None

    def _term(self, monomial: Monomial, expr: Expr) -> Expr:
        if len(expr.dims) > 1:
            raise OutsideNormalForm("the output reads the state through a full matrix", expr.span)
        if not monomial.states:
            return scaled(monomial.coefficient, product(monomial.elements))
        (read,) = monomial.states
        rows, columns = self.state.dims
        if read.index[0] != rows and read.index[1] == columns:
            contracted, side, kept = read.index[0], rows, columns
        elif read.index[0] == rows and read.index[1] != columns:
            contracted, side, kept = read.index[1], columns, rows
        else:
            raise OutsideNormalForm("the output reads the state down to a scalar", expr.span)
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

    def _free_name(self) -> str:
        name = f"read{len(self.found)}"
        while name in self.taken:
            name += "_"
        return name
