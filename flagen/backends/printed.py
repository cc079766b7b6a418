"""Source text that knows how tightly it binds: what factors and terms are until a line of code is written."""

from __future__ import annotations

from dataclasses import dataclass

from flagen.diagnostics import InternalError

SUM, PRODUCT, SIGN, POWER, ATOM = range(5)
"""How tightly Python's operators bind."""


@dataclass(frozen=True)
class Printed:
    """An expression and how tightly its outermost operator binds.

    It cannot be put into a string as it is: `text` stands alone, as an argument or the right side of an assignment;
    `within` is an operand.
    """

    text: str
    binding: int = ATOM

    def within(self, level: int) -> str:
        """The text, in parentheses where it binds less tightly than `level`."""
        return self.text if self.binding >= level else f"({self.text})"

    @property
    def atom(self) -> str:
        """The text where something is written behind it: an index, a method."""
        return self.within(ATOM)

    def of_rows(self) -> Printed:
        """Numbers of rows, one for each row of a tile."""
        return Printed(f"{self.atom}[:, None]")

    def of_columns(self) -> Printed:
        """Numbers of rows, one for each column of a tile."""
        return Printed(f"{self.atom}[None, :]")

    def __str__(self) -> str:
        raise InternalError(f"`{self.text}` is put into a line that does not say how tightly it has to bind")


def expression(text: str) -> Printed:
    """Text that is known to be an expression, and no more."""
    return Printed(text, ATOM if text.isidentifier() else SUM)


def product(first: Printed, *rest: Printed | None) -> Printed:
    """The product of these factors from left to right; None is no factor."""
    factors = [factor for factor in rest if factor is not None]
    if not factors:
        return first
    texts = [first.within(PRODUCT), *(factor.within(PRODUCT + 1) for factor in factors)]
    return Printed(" * ".join(texts), PRODUCT)


def common_factor(*factors: Printed | None) -> Printed | None:
    """The product of those factors that there are; None where there are none."""
    given = [factor for factor in factors if factor is not None]
    return product(*given) if given else None


def total(first: Printed, *rest: Printed) -> Printed:
    """The sum of these terms from left to right."""
    if not rest:
        return first
    return Printed(" + ".join([first.within(SUM), *(term.within(SUM + 1) for term in rest)]), SUM)


def product_of(*texts: str) -> str:
    """The product of atoms: names, numbers, calls; 1 where there are none."""
    return product(*map(Printed, texts)).text if texts else "1"


def total_of(*texts: str) -> str:
    """The sum of products and of what binds more tightly; empty where there are none."""
    return total(*(Printed(text, PRODUCT) for text in texts)).text if texts else ""
