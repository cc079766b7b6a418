"""Source text of kernels that knows how tightly it binds: what factors and terms are until a line is written."""

from __future__ import annotations

from dataclasses import dataclass

from flagen import printing
from flagen.printing import ATOM, POWER, PRODUCT, SIGN, SUM, joined

__all__ = ["ATOM", "POWER", "PRODUCT", "SIGN", "SUM", "Printed"]


@dataclass(frozen=True)
class Printed(printing.Printed):
    """An expression over tiles, which an index spreads over the rows or columns of a larger one."""

    def of_rows(self) -> Printed:
        """Numbers of rows, one for each row of a tile."""
        return Printed(f"{self.atom}[:, None]")

    def of_columns(self) -> Printed:
        """Numbers of rows, one for each column of a tile."""
        return Printed(f"{self.atom}[None, :]")


def expression(text: str) -> Printed:
    """Text that is known to be an expression, and no more."""
    return Printed(text, ATOM if text.isidentifier() else SUM)


def product(first: Printed, *rest: Printed | None) -> Printed:
    """The product of these factors from left to right; None is no factor."""
    factors = [factor for factor in rest if factor is not None]
    return joined("*", first, *factors) if factors else first


def common_factor(*factors: Printed | None) -> Printed | None:
    """The product of those factors that there are; None where there are none."""
    given = [factor for factor in factors if factor is not None]
    return product(*given) if given else None


def total(first: Printed, *rest: Printed) -> Printed:
    """The sum of these terms from left to right."""
    return joined("+", first, *rest) if rest else first


def product_of(*texts: str) -> str:
    """The product of atoms: names, numbers, calls; 1 where there are none."""
    return product(*map(Printed, texts)).text if texts else "1"


def total_of(*texts: str) -> str:
    """The sum of products and of what binds more tightly; empty where there are none."""
    return total(*(Printed(text, PRODUCT) for text in texts)).text if texts else ""
