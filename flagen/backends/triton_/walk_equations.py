"""The equations of a walk over chunks as Triton: one printer for all families, which differ in where rows, scores and
decays come from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from flagen.backends.printed import Printed, total
from flagen.backends.triton_.rows import DOT
from flagen.kernel.walks import Decay, Inverted, Product, Solved, Sum, Tile


class Placement(Protocol):
    """Where a family's kernels have what the equations name."""

    def tile(self, tensor: str) -> Printed | None:
        """A tile over the values and rows, as a term of a sum; None where it is zero."""
        ...

    def values(self, tensor: str) -> str:
        """A tile over the values as an operand of a product: rounded."""
        ...

    def wide(self, tensor: str) -> str:
        """The same before it is rounded, where there is one."""
        ...

    def rows(self, tensor: str) -> str:
        """Rows, or a matrix of scores, as an operand of a product."""
        ...

    def factor(self, tensor: str, decay: Decay) -> Printed | None:
        """What multiplies each row, decay and all, where rows come without it."""
        ...

    def spread(self, text: str, factor: Printed | None, tensor: str) -> Printed:
        """A tile over the values and these rows times numbers of the rows."""
        ...

    def whole(self, decay: Decay) -> str:
        """The tile that is carried from chunk to chunk, decayed across this one."""
        ...


@dataclass(frozen=True)
class WalkPrinter:
    """Prints sums of products; `called`: what the tensors that are found are called."""

    placement: Placement
    called: Mapping[str, str]

    def solved(self, found: Solved) -> list[str]:
        """What is solved for: the right side in one line, then the solution."""
        right, solution = found
        return [self.flat(right), self.inverted(solution)]

    def sum(self, step: Sum) -> list[str]:
        """A sum whose terms are added up one by one, each product onto the one before."""
        name, lines = self.called[step.target], list[str]()
        before = ""
        for term in step.terms:
            if isinstance(term, Tile):
                before = self.placement.whole(term.decay)
                continue
            lines.append(f"{name} = {self.product(term, before).text}")
            before = name
        return lines

    def flat(self, step: Sum) -> str:
        """A sum in one line."""
        found = (
            self.placement.tile(term.tensor) if isinstance(term, Tile) else self.product(term) for term in step.terms
        )
        return f"{self.called[step.target]} = {total(*(term for term in found if term is not None)).text}"

    def inverted(self, step: Inverted) -> str:
        inverse = "inverse" if step.transposed else "tl.trans(inverse)"
        right = self.called[step.right]
        return f"{self.called[step.target]} = tl.dot({right}.to(dtype), {inverse}, {right}, {DOT})"

    def product(self, term: Product, onto: str = "") -> Printed:
        """A product, added onto a tile; numbers of rows that read multiply what comes out, those of others what goes
        in."""
        placement = self.placement
        factor = None if term.matrix else placement.factor(term.by, term.decay)
        values, rows = placement.values(term.values), placement.rows(term.by)
        if factor is not None and not term.reads:
            values = f"({placement.spread(placement.wide(term.values), factor, term.by).text}).to(dtype)"
        operand = f"tl.trans({rows})" if term.reads else rows
        added = f", {onto}" if onto else ""
        dot = f"tl.dot({values}, {operand}{added}, {DOT})"
        return placement.spread(dot, factor if term.reads else None, term.by)
