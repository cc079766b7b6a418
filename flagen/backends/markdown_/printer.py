"""Prints spec expressions and chunk equations as LaTeX that code hosts render."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction

from flagen.algebra.equations import (
    Equation,
    Exponent,
    Factor,
    Mask,
    OffsetGradient,
    Solve,
    Statement,
    Term,
    Weights,
    WeightsGradient,
)
from flagen.functions import FUNCTIONS
from flagen.printing import PRODUCT, SIGN, SUM, Printed, joined
from flagen.spec.model import (
    Binary,
    Call,
    Contract,
    Expr,
    Index,
    Name,
    Negate,
    Number,
    Outer,
    Over,
    Pairs,
    Reduce,
    Rotate,
    RowMap,
    Solution,
    StateRead,
    Transpose,
)

_GREEK = frozenset(
    (
        *("alpha", "beta", "gamma", "delta", "epsilon", "zeta", "eta", "theta", "iota", "kappa", "lambda", "mu"),
        *("nu", "xi", "pi", "rho", "sigma", "tau", "phi", "chi", "psi", "omega"),
    )
)

Subscript = Callable[[Name], str]
"""What a name's value belongs to: `t`, `t,j`, or nothing."""


def symbol(name: str) -> str:
    """A name of the spec as LaTeX: Greek where it is Greek, upright where it is a word."""
    if name in _GREEK:
        return rf"\{name}"
    stem, _, digits = name.partition("_")
    if len(name) == 1:
        return name
    if len(stem) == 1 and digits.isdigit():
        return f"{stem}_{{{digits}}}"
    escaped = name.replace("_", r"\_")
    return rf"\mathrm{{{escaped}}}"


class Latex(Printed):
    """LaTeX: a sign binds as a sum does, and brackets grow with what they hold."""

    def bracketed(self) -> str:
        return rf"\left({self.text}\right)"


@dataclass(frozen=True)
class ExpressionPrinter:
    """Prints expressions; `subscript` says which token a name's value belongs to."""

    subscript: Subscript

    def print(self, expr: Expr) -> str:
        return self._printed(expr).text

    def _printed(self, expr: Expr) -> Latex:
        match expr:
            case Number(value):
                return _number(value)
            case Name(name):
                subscript = self.subscript(expr)
                return Latex(f"{symbol(name)}_{{{subscript}}}" if subscript else symbol(name))
            case StateRead(name, previous):
                return Latex(f"{symbol(name)}_{{t-1}}" if previous else symbol(name))
            case Negate(value):
                return Latex(f"-{self._printed(value).within(PRODUCT)}", SUM)
            case Binary("+" | "-" as op, left, right):
                return joined(op, self._printed(left), self._printed(right), regrouped=True)
            case Binary("*", left, right):
                return self._product(left, right)
            case Binary("/", left, right):
                return Latex(rf"\frac{{{self.print(left)}}}{{{self.print(right)}}}")
            case Binary(_, left, right):
                return Latex(f"{{{self._printed(left).atom}}}^{{{self.print(right)}}}")
            case Outer(left, right):
                return Latex(rf"{self._printed(left).within(PRODUCT)}\,{self._transposed(right)}", PRODUCT)
            case Contract(left, right):
                return Latex(rf"{self._left_operand(left)}\,{self._printed(right).within(SIGN)}", PRODUCT)
            case Transpose(value):
                return Latex(self._transposed(value))
            case Call(function, args):
                return Latex(self._call(function, args))
            case Reduce(function, value, dim):
                where = f"_{{{symbol(dim)}}}" if dim else ""
                return Latex(rf"\operatorname{{{function}}}{where}\left({self.print(value)}\right)")
            case RowMap(function, value):
                return Latex(rf"\operatorname{{{function}}}\left({self.print(value)}\right)")
            case Rotate(value, angle, half):
                function = r"rotate\_half" if half else "rotate"
                return Latex(rf"\operatorname{{{function}}}\left({self.print(value)}, {self.print(angle)}\right)")
            case Over(value, source, target):
                renamed = f"{symbol(source)} \\to {symbol(target)}"
                return Latex(rf"{self._printed(value).atom}^{{({renamed})}}")
            case Pairs(left, right):
                return joined("*", self._printed(left), self._printed(right), between=r" \otimes ")
            case Index(dim):
                return Latex(rf"\operatorname{{index}}_{{{symbol(dim)}}}")
            case Solution(matrix, right, shift):
                return self._solution(self._printed(matrix), right, shift)

    def _product(self, left: Expr, right: Expr) -> Latex:
        one, other = self._printed(left), self._printed(right)
        if left.dims and right.dims and left.dims != right.dims:
            diagonal, matrix = (one, other) if len(left.dims) < len(right.dims) else (other, one)
            small, large = (left, right) if len(left.dims) < len(right.dims) else (right, left)
            diagonal = Latex(rf"\operatorname{{Diag}}\left({diagonal.text}\right)")
            one, other = (diagonal, matrix) if large.dims[0] == small.dims[0] else (matrix, diagonal)
        elementwise = left.dims and left.dims == right.dims
        return joined("*", one, other, regrouped=True, between=r" \odot " if elementwise else r"\,")

    def _solution(self, matrix: Latex, right: Expr, shift: Expr | None) -> Latex:
        if shift is None:
            inverse = rf"{{{matrix.atom}}}^{{-1}}"
        else:
            diagonal = (
                rf"\operatorname{{Diag}}\left({self.print(shift)}\right)"
                if shift.dims
                else (rf"{self._printed(shift).within(PRODUCT)}\,I")
            )
            inverse = rf"\left({matrix.text} + {diagonal}\right)^{{-1}}"
        return Latex(rf"{inverse}\,{self._printed(right).within(SIGN)}", PRODUCT)

    def _left_operand(self, left: Expr) -> str:
        if isinstance(left, Transpose):
            return self._transposed(left.value)
        return self._printed(left).within(SIGN) if len(left.dims) > 1 else self._transposed(left)

    def _transposed(self, expr: Expr) -> str:
        text = self._printed(expr).atom
        return rf"{{{text}}}^\top" if "^" in text else rf"{text}^\top"

    def _call(self, function: str, args: tuple[Expr, ...]) -> str:
        written = FUNCTIONS[function].latex or rf"\operatorname{{{function}}}\left(%s\right)"
        return written % ", ".join(map(self.print, args))


def _number(value: Fraction | float) -> Latex:
    if isinstance(value, float):
        return Latex(r"\infty") if value > 0 else Latex(r"-\infty", SUM)
    if value < 0:
        return Latex(f"-{_number(-value).text}", SUM)
    if value.denominator == 1:
        return Latex(str(value.numerator))
    digits = math.floor(math.log10(value)) if value else 0
    if digits < -3 and (value * Fraction(10) ** -digits).denominator == 1:
        mantissa = value * Fraction(10) ** -digits
        power = f"10^{{{digits}}}"
        return Latex(power) if mantissa == 1 else Latex(rf"{mantissa} \cdot {power}", PRODUCT)
    short = repr(float(value))
    if Fraction(short) == value:
        return Latex(short)
    return Latex(rf"\frac{{{value.numerator}}}{{{value.denominator}}}")


# ------------------------------------------------------------------------------------------------------------ equations


@dataclass(frozen=True)
class EquationPrinter:
    """Prints the equations of a chunk form. With one read, its tensors need no number (`numbered`); a decay `per_key`
    has offsets for every key channel."""

    numbered: bool
    per_key: bool

    def print(self, statement: Statement) -> str:
        match statement:
            case Equation(target, terms):
                return f"{self._factor(target)} &= {self._sum(terms, target)}"
            case Solve(target, matrix, right, transposed):
                power = r"-\top" if transposed else "-1"
                return f"{self._name(target.tensor)} &= (I - {self._name(matrix)})^{{{power}}} {self._name(right)}"
            case Weights():
                return f"{self._factor(statement.target)} &= {self._weights(statement)}"
            case WeightsGradient(target, uses):
                through = joined("+", *(Latex(self._through(target, use), PRODUCT) for use in uses))
                return f"{self._factor(target)} &= {through.text}"
            case OffsetGradient(target, pairs):
                return f"{self._gradient(target)} &= {self._pairs(pairs, target)}"

    def _weights(self, weights: Weights) -> str:
        """Reader, mixes and writer: what stands between two rows, from behind the writer's to the reader's."""
        upto = self._offset(weights.upto, weights.reader.index[0] if weights.reader else "")
        since = self._offset(weights.since, weights.writer.index[0]) if weights.writer else "0"
        mixes = rf"\Phi_{{{since} \to {upto}}}"
        ends = (
            rf"{self._name(weights.reader.tensor)}_{{{weights.reader.index[0]}}}^\top" if weights.reader else "",
            f"{self._name(weights.writer.tensor)}_{{{weights.writer.index[0]}}}" if weights.writer else "",
        )
        product = r"\,".join(part for part in (ends[0], mixes, ends[1]) if part)
        product = product if all(ends) else rf"({product})_{{{self._free(weights)}}}"
        return rf"{_mask(weights.mask)}\,{product}" if weights.mask else product

    def _free(self, weights: Weights) -> str:
        """The registers that a weight is of."""
        rows = {end.index[0] for end in (weights.reader, weights.writer) if end}
        return "".join(letter for letter in weights.target.index if letter not in rows)

    def _through(self, target: Factor, use: Weights) -> str:
        """What comes back through one weight."""
        gradient = Factor(f"d{use.target.tensor}", use.target.index)
        summed = " ".join(letter for letter in use.target.index if letter not in target.index)
        slope = rf"\frac{{\partial {self._factor(use.target)}}}{{\partial {self._factor(_undone(target))}}}"
        return (
            rf"\sum_{{{summed}}} {self._factor(gradient)}\,{slope}" if summed else rf"{self._factor(gradient)}\,{slope}"
        )

    def _sum(self, terms: tuple[Term, ...], target: Factor) -> str:
        if not terms:
            return "0"
        text = ""
        for term in terms:
            text += (" - " if term.sign < 0 else " + " if text else "") + self._term(term, target)
        return text.strip()

    def _term(self, term: Term, target: Factor) -> str:
        summed = sorted(term.letters - set(target.index), key="ijmtprabxy".index)
        parts = [rf"\sum_{{{' '.join(summed)}}}"] if summed else []
        if term.mask:
            parts.append(_mask(term.mask))
        parts += [self._factor(factor) for factor in term.factors]
        if term.exponents:
            parts.append(f"e^{{{self._exponents(term.exponents)}}}")
        return r"\,".join(parts)

    def _pairs(self, pairs: tuple[tuple[int, Factor, Factor], ...], target: Factor) -> str:
        text = ""
        for sign, left, right in pairs:
            summed = [letter for letter in left.index if letter not in target.index]
            total = rf"\sum_{{{' '.join(summed)}}} " if summed else ""
            text += ("-" if sign < 0 else "+" if text else "") + rf"{total}{self._factor(left)}\,{self._factor(right)}"
        return text

    def _exponents(self, exponents: tuple[Exponent, ...]) -> str:
        text = " ".join(f"{'+' if e.sign > 0 else '-'} {self._offset(e.offset, e.row)}" for e in exponents)
        return text.removeprefix("+ ")

    def _offset(self, offset: str, row: str) -> str:
        channel = "x" if self.per_key else ""
        if offset == "Gend":
            return rf"\Gamma_{{C{channel}}}"
        return rf"\Gamma^{{{self._name(offset.removeprefix('G'))}}}_{{{row}{channel}}}"

    def _gradient(self, target: Factor) -> str:
        row = next((letter for letter in target.index if letter != "x"), "")
        return rf"\mathrm{{d}}{self._offset(target.tensor.removeprefix('d'), row)}"

    def _factor(self, factor: Factor) -> str:
        return f"{self._name(factor.tensor)}_{{{''.join(factor.index)}}}"

    def _name(self, tensor: str) -> str:
        if tensor == "S0":
            return "S^0"
        if tensor == "S1":
            return "S^C"
        if tensor.startswith("d") and len(tensor) > 1:
            return rf"\mathrm{{d}}{self._name(tensor[1:])}"
        letter, digits = tensor[:1], tensor[1:]
        if tensor == "mix":
            return r"\Phi"
        if letter in "qkwy" and digits[-1:] in ("a", "b"):
            return f"{letter}^{{{digits if self.numbered else digits[-1]}}}"  # Of a row over pairs, one side.
        if letter in "acFEM" and digits:
            # Numbers of registers are called after the rows that they belong to; a single read is the one numbered 0.
            return f"{letter}^{{{digits if self.numbered else digits.replace('0', '')}}}"
        return f"{letter}^{{{digits}}}" if digits and self.numbered else letter


def _undone(gradient: Factor) -> Factor:
    return Factor(gradient.tensor.removeprefix("d"), gradient.index)


def _mask(mask: Mask) -> str:
    return rf"[{mask.column} \prec {mask.row}]"
