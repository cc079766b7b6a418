"""Prints spec expressions as PyTorch.

A printed tensor has leading axes (batch, heads; tokens where a whole sequence is meant) and then its named dims in some
order. Broadcasting aligns the named dims; leading axes align by themselves from the right.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import Literal

from flagen.diagnostics import InternalError
from flagen.functions import FUNCTIONS, Function
from flagen.printing import ATOM, PRODUCT, SIGN, Printed, joined, negative
from flagen.spec.formulas import definition_of
from flagen.spec.model import (
    Binary,
    Call,
    Contract,
    Dims,
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

Level = Literal["number", "constant", "token", "step"]
"""What a value depends on: a Python number; a tensor that is the same for every token; one row a token; one row a
micro-step."""

_LEVELS: tuple[Level, ...] = ("number", "constant", "token", "step")


@dataclass(frozen=True)
class Code:
    """A printed expression: its text, how tightly it binds, its named dims in the order of its axes, what it depends
    on.

    `rows`: the text ends in an index that picks a row and leaves (batch, heads, *dims); more may be written into it.
    """

    text: str
    dims: Dims = ()
    level: Level = "token"
    binds: int = ATOM
    rows: bool = False

    @property
    def printed(self) -> Printed:
        return Printed(self.text, self.binds)

    @property
    def atom(self) -> str:
        """The text where an index or a method is written behind it."""
        return self.printed.atom


Look = Callable[[Expr], Code]
"""How a name or a state read is written where the code stands."""


@dataclass
class Printer:
    """Prints expressions in one place of the generated code.

    `look` writes names. `imports` collects what the printed code needs: `math`, `functional`, and the helpers of
    `helpers`.
    """

    look: Look
    needs: set[str] = field(default_factory=set)

    def print(self, expr: Expr) -> Code:
        match expr:
            case Number(value):
                return self._number(value)
            case Name() | StateRead() | Index():
                return self.look(expr)
            case Negate(value):
                code = self.print(value)
                return _code(negative(code.printed), code.dims, code.level)
            case Binary(op, left, right):
                return self._binary(op, self.print(left), self.print(right), expr.dims)
            case Contract(left, right):
                return self._contract(self.print(left), self.print(right), expr)
            case Transpose(value):
                return self.print(value)  # dims are named: only their order on the page changes
            case Outer(left, right):
                return self._binary("*", self.print(left), self.print(right), expr.dims)
            case Call() if (definition := definition_of(expr)) is not None:
                return self.print(definition)
            case Call(function, args):
                return self._call(function, tuple(self.print(arg) for arg in args), expr.dims)
            case Reduce(function, value, dim):
                return self._reduce(function, self.print(value), dim)
            case RowMap(function, value):
                return self._row_map(function, self.print(value))
            case Rotate(value, angle, half):
                return self._rotate(self.print(value), self.print(angle), half, value.dims)
            case Over(value):
                code = self.print(value)
                return replace(code, dims=tuple(expr.target if dim == expr.source else dim for dim in code.dims))
            case Pairs(left, right):
                product = self._binary("*", self.print(left), self.print(right), left.dims + right.dims)
                return Code(f"{product.atom}.flatten(-2)", expr.dims, product.level)
            case Solution():
                return self._solution(expr)

    def aligned(self, code: Code, dims: Dims, level: Level | None = None) -> Code:
        """`code` broadcast to `dims` (and, for a token's value among micro-steps, to their axis)."""
        step_axis = level == "step" and code.level == "token"
        if code.level == "number" or (code.dims == dims and not step_axis):
            return code
        ordered = tuple(dim for dim in dims if dim in code.dims)
        text = code.atom
        if ordered != code.dims:
            text = f"{text}.{_transposed(code.dims, ordered)}"
        index = [":" if dim in ordered else "None" for dim in dims]
        if step_axis:
            trailing = [":", *index] if "None" in index else (["..."] if index else [])
            return Code(f"{text}[{', '.join([':', ':', 'None', *trailing])}]", dims, level or code.level)
        if "None" not in index:
            return Code(text, dims, code.level)
        if code.rows and ordered == code.dims:
            last = len(index) - index[::-1].index("None")
            return Code(f"{text[:-1]}, {', '.join([':', *index[:last]])}]", dims, code.level)
        # Trailing axes are all that has to be said; `...` stands for the leading ones and what comes before the first
        # None.
        return Code(f"{text}[{', '.join(['...', *index[index.index('None') :]])}]", dims, code.level)

    # ---------------------------------------------------------------------------------------------------------- nodes

    def _number(self, value: Fraction | float) -> Code:
        if isinstance(value, float):
            self.needs.add("math")
            return Code("math.inf" if value > 0 else "-math.inf", (), "number", ATOM if value > 0 else SIGN)
        return Code(*_literal(value)) if value >= 0 else Code(f"-{_literal(-value)[0]}", (), "number", SIGN)

    def _binary(self, op: str, left: Code, right: Code, dims: Dims) -> Code:
        level = level_of((left, right))
        one, other = self.aligned(left, dims, level), self.aligned(right, dims, level)
        return _code(joined(op, one.printed, other.printed, regrouped=True), dims, level)

    def _contract(self, left: Code, right: Code, expr: Contract) -> Code:
        level = level_of((left, right))
        dims = tuple(dim for dim in (*left.dims, *right.dims) if dim != expr.dim)
        if left.dims == right.dims:
            product = self._binary("*", left, right, left.dims)
            return Code(f"{product.atom}.sum(-1)", (), level)
        letters = letters_of((*left.dims, *right.dims))
        operands = (self.aligned(side, side.dims, level).text for side in (left, right))
        first, second, result = ("..." + "".join(letters[d] for d in axes) for axes in (left.dims, right.dims, dims))
        subscripts = f"{first},{second}->{result}"
        return Code(f'torch.einsum("{subscripts}", {", ".join(operands)})', dims, level)

    def _call(self, function: str, args: tuple[Code, ...], dims: Dims) -> Code:
        row = FUNCTIONS.get(function)
        if row is None:
            raise InternalError(f"the PyTorch printer has no {function}")
        level = level_of(args)
        if level == "number":
            self.needs.add("math")
            operands = dict(zip("xy", (arg.atom for arg in args), strict=False))
            return Code(row.python.format(*(arg.text for arg in args), **operands), (), level)
        if row.bound:
            return self._extremum(row, args, dims, level)
        if row.torch.startswith("functional"):
            self.needs.add("functional")
        texts = [self._as_tensor(arg, args, dims, level) for arg in args]
        return Code(row.of_tensors(*texts), dims, level)

    def _extremum(self, row: Function, args: tuple[Code, ...], dims: Dims, level: Level) -> Code:
        numbers = [arg for arg in args if arg.level == "number"]
        if len(numbers) == 1:
            (tensor,) = (arg for arg in args if arg.level != "number")
            return Code(f"{tensor.atom}.clamp({row.bound}={numbers[0].text})", tensor.dims, level)
        return Code(f"{row.torch}({', '.join(self.aligned(arg, dims, level).text for arg in args)})", dims, level)

    def _as_tensor(self, arg: Code, args: Iterable[Code], dims: Dims, level: Level) -> str:
        if arg.level != "number":
            return self.aligned(arg, dims, level).text
        like = next(other for other in args if other.level != "number")
        return f"torch.full_like({like.text}, {arg.text})"

    def _reduce(self, function: str, value: Code, dim: str | None) -> Code:
        if not value.dims:
            raise InternalError("a reduction needs a dim")
        kept = () if dim is None else tuple(d for d in value.dims if d != dim)
        axes = [str(place - len(value.dims)) for place, d in enumerate(value.dims) if d not in kept]
        where = axes[0] if len(axes) == 1 else f"({', '.join(axes)})"
        if function == "norm":
            return Code(f"torch.linalg.vector_norm({value.text}, dim={where})", kept, value.level)
        return Code(f"{value.atom}.{function}({where})", kept, value.level)

    def _row_map(self, function: str, value: Code) -> Code:
        if function == "softmax":
            return Code(f"torch.softmax({value.text}, dim=-1)", value.dims, value.level)
        self.needs.add("l2norm")
        return Code(f"l2norm({value.text})", value.dims, value.level)

    def _rotate(self, value: Code, angle: Code, half: bool, dims: Dims) -> Code:
        function, level = "rotate_half" if half else "rotate", level_of((value, angle))
        given = self.aligned(value, dims, level), self.aligned(angle, (*dims[:-1], *angle.dims), level)
        return Code(f"{function}({', '.join(code.text for code in given)})", dims, level)

    def _solution(self, expr: Solution) -> Code:
        given = [self.aligned(self.print(expr.matrix), expr.matrix.dims), self.print(expr.right)]
        if expr.shift is not None:
            given.append(self.aligned(self.print(expr.shift), expr.right.dims))
        return Code(f"solves.direct({', '.join(code.text for code in given)})", expr.dims, level_of(given))


def _code(printed: Printed, dims: Dims, level: Level) -> Code:
    return Code(printed.text, dims, level, printed.binding)


def level_of(codes: Iterable[Code]) -> Level:
    """What an expression over `codes` depends on: the most any of them does."""
    return max((code.level for code in codes), key=_LEVELS.index)


def letters_of(dims: Iterable[str]) -> dict[str, str]:
    """A subscript letter for each dim: its own first letter where it is free."""
    letters: dict[str, str] = {}
    for dim in dict.fromkeys(dims):
        wanted = [c for c in dim.lower() if c.isascii() and c.isalpha()] + list("abcdefghijklmnopqrstuvwxyz")
        letters[dim] = next(letter for letter in wanted if letter not in letters.values())
    return letters


def _transposed(dims: Dims, ordered: Dims) -> str:
    if len(dims) == 2:
        return "mT"
    order = [dims.index(dim) - len(dims) for dim in ordered]
    return f"movedim({tuple(order)}, {tuple(range(-len(dims), 0))})"


def _literal(value: Fraction) -> tuple[str, Dims, Level, int]:
    if value.denominator == 1 and abs(value.numerator) < 10**16:
        return (str(value.numerator), (), "number", ATOM)
    short = repr(float(value))
    if Fraction(short) == value:
        return (short, (), "number", ATOM)
    return (f"{value.numerator} / {value.denominator}", (), "number", PRODUCT)
