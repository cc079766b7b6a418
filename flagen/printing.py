"""How tightly operators bind, and the parentheses that follow: the one place where operands are joined.

Whoever prints an expression gives the spelling of its leaves and calls, and joins them here. The order is Python's,
which the language of specs shares; LaTeX has other brackets and no spelling of its own for precedence.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TypeVar

from flagen.diagnostics import InternalError

CHOICE, OR, AND, NOT, COMPARE, SUM, PRODUCT, SIGN, POWER, ATOM = range(10)
"""How tightly an expression binds, by its outermost operator."""

BINDING = {
    "or": OR,
    "and": AND,
    **dict.fromkeys(("==", "!=", "<", "<=", ">", ">=", "is", "is not", "in", "not in"), COMPARE),
    **dict.fromkeys("+-", SUM),
    **dict.fromkeys(("*", "/", "//", "%", "@"), PRODUCT),
    "**": POWER,
}
"""How tightly the operators between two operands bind."""

_ASSOCIATIVE = ("+", "*")


@dataclass(frozen=True)
class Printed:
    """The text of an expression, and how tightly its outermost operator binds.

    It cannot be put into a string as it is: `text` stands alone, as an argument or the right side of an assignment;
    `within` is an operand.
    """

    text: str
    binding: int = ATOM

    def within(self, level: int) -> str:
        """The text, in brackets where it binds less tightly than `level`."""
        return self.text if self.binding >= level else self.bracketed()

    @property
    def atom(self) -> str:
        """The text where something is written behind it: an index, a method."""
        return self.within(ATOM)

    def bracketed(self) -> str:
        return f"({self.text})"

    def __str__(self) -> str:
        raise InternalError(f"`{self.text}` is put into a line that does not say how tightly it has to bind")


P = TypeVar("P", bound=Printed)


def joined(op: str, first: P, *rest: P, regrouped: bool = False, between: str = "") -> P:
    """The operands joined by `op` from left to right.

    regrouped: `a + (b + c)` and `a * (b * c)` lose their parentheses, though a sum may then round differently.
    between: what stands for the operator, where that is not itself between spaces.
    """
    level = BINDING[op]
    # A power is taken from the right, and a sign in its exponent needs no parentheses; what compares does not chain.
    left = ATOM if op == "**" else level + 1 if level <= COMPARE else level
    right = SIGN if op == "**" else level if regrouped and op in _ASSOCIATIVE else level + 1
    texts = [first.within(left), *(operand.within(right) for operand in rest)]
    return replace(first, text=(between or f" {op} ").join(texts), binding=level)


def negative(value: P) -> P:
    return replace(value, text=f"-{value.within(SIGN)}", binding=SIGN)


def opposite(value: P) -> P:
    """`not value`."""
    return replace(value, text=f"not {value.within(NOT)}", binding=NOT)


def choice(then: P, condition: P, otherwise: P) -> P:
    """`then if condition else otherwise`."""
    text = f"{then.within(OR)} if {condition.within(OR)} else {otherwise.within(CHOICE)}"
    return replace(then, text=text, binding=CHOICE)
