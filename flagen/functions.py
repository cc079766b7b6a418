"""The elementwise functions of the language: one table, a row for each, that every stage reads.

A row says what a function is (its value, its range, its slopes), and how it is written: in PyTorch, on a Python number,
in Triton, in LaTeX. A stage that needs something of a function asks here, and knows none by its name, but for what
follows from the algebra of `exp`, `log` and `logaddexp`: decays are exponentials, and a log-sum-exp is a scan.

Formulas are expressions of the language over the names of the arguments; in a slope `y` is the value itself. They add,
subtract, multiply, divide, square (`x ** 2`) and call. `flagen.spec.formulas` reads them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property

from flagen import values
from flagen.intervals import EVERYTHING, Interval, absolute, rising, rising_from


@dataclass(frozen=True, kw_only=True)
class Operation:
    """What a kernel evaluates element by element.

    arguments: their names.
    value: of numbers, as precisely as floats allow, and of infinities as the code that is generated has it; an
        ArithmeticError or a ValueError where there is none.
    interval: the smallest range that is known, from those of the arguments.
    slopes: formulas of the derivatives, one for each argument, as PyTorch has them at kinks, too; none where there is a
        definition.
    exact: a formula in terms of `exp`, `log` and `sqrt`, of which it is made where kernels are proved; without one the
        proof knows its slopes alone.
    finite: whether it is, wherever all its arguments are.
    triton: the function of `tl` that it is, or that of `flagen/runtime/shared/device/maps.py`; the latter goes by the
        operation's own name, unless this is another.
    takes_numbers: whether the Triton function takes a Python number beside a tensor.
    """

    name: str
    arguments: tuple[str, ...] = ("x",)
    value: Callable[..., float]
    interval: Callable[..., Interval] = lambda *_: EVERYTHING
    slopes: tuple[str, ...] = ()
    exact: str = ""
    finite: bool = False
    triton: str = ""
    takes_numbers: bool = True

    def at(self, *args: float) -> float | None:
        """The value at `args`; None where there is none."""
        try:
            return self.value(*args)
        except (ArithmeticError, ValueError):
            return None

    @cached_property
    def finite_at_minus_infinity(self) -> bool:
        """Whether it makes something finite of a -inf, such as that of a log decay."""
        if len(self.arguments) == 1:
            value = self.at(-math.inf)
            return value is not None and math.isfinite(value)
        whole = self.interval(*(EVERYTHING for _ in self.arguments))
        return math.isfinite(whole.low) and math.isfinite(whole.high)


@dataclass(frozen=True, kw_only=True)
class Function(Operation):
    """A function of the language.

    summary: what the page of the language says of it.
    definition: what it is in terms of others, where PyTorch, the derivative and the proof take it as that.
    rational: whether its value is rational wherever its arguments are: the proof then evaluates it, and leaves others
        to an oracle.
    log: a formula of its logarithm that is more accurate than `log` of it, or defined by an argument's.
    order: 1 where it is never less than any of its arguments, -1 where it is never more.
    neutral: an argument that leaves the other one as it is.
    torch: the function of tensors; where it takes more than the arguments, the call of it, `{0}` for the argument.
    bound: the keyword of `Tensor.clamp` that takes an argument which is a number.
    python: the function of Python's numbers, an atom; `{0}` and `{1}` are the arguments, `{x}` and `{y}` the same as
        operands. It must not overflow where its value does not.
    latex: around `%s`, the arguments; the function's name where this is empty.
    since: the first version of the language that has it.
    periodic: whether it takes an angle, in radians or in turns: of which an error counts however large it is.
    """

    summary: str
    since: int = 1
    definition: str = ""
    rational: bool = False
    log: str = ""
    order: int = 0
    neutral: float | None = None
    torch: str = ""
    bound: str = ""
    python: str = ""
    latex: str = ""
    periodic: bool = False

    @property
    def signature(self) -> str:
        return f"{self.name}({', '.join(self.arguments)})"

    def of_tensors(self, *args: str) -> str:
        """The call of PyTorch's function, from how its arguments are written."""
        return self.torch.format(*args) if "{" in self.torch else f"{self.torch}({', '.join(args)})"


# ---------------------------------------------------------------------------------------------------------- the table

_SIGMOID = "math.exp(min({0}, 0.0) - math.log1p(math.exp(-abs({0}))))"


def _by_name(rows: Iterable[Function]) -> dict[str, Function]:
    return {row.name: row for row in rows}


FUNCTIONS: dict[str, Function] = _by_name(
    (
        Function(
            name="exp",
            summary="e to the power of `x`",
            value=values.exp,
            interval=values.exp_interval,
            slopes=("y",),
            log="x",
            torch="torch.exp",
            python="math.exp({0})",
            triton="tl.exp",
            latex="e^{%s}",
        ),
        Function(
            name="log",
            summary="the natural logarithm",
            value=values.log,
            interval=rising_from(0.0, values.log),
            slopes=("1 / x",),
            torch="torch.log",
            python="math.log({0})",
            triton="tl.log",
            latex=r"\log\left(%s\right)",
        ),
        Function(
            name="log1p",
            summary="`log(1 + x)`, accurate near 0",
            value=values.log1p,
            interval=rising_from(-1.0, values.log1p),
            slopes=("1 / (1 + x)",),
            exact="log(1 + x)",
            torch="torch.log1p",
            python="math.log1p({0})",
        ),
        Function(
            name="expm1",
            summary="`exp(x) - 1`, accurate near 0",
            value=values.expm1,
            interval=rising(values.expm1),
            slopes=("y + 1",),
            exact="exp(x) - 1",
            torch="torch.expm1",
            python="math.expm1({0})",
        ),
        Function(
            name="sqrt",
            summary="the square root",
            value=math.sqrt,
            interval=rising_from(0.0, math.sqrt),
            slopes=("0.5 / y",),
            log="0.5 * log(x)",
            torch="torch.sqrt",
            python="math.sqrt({0})",
            triton="tl.sqrt",
            latex=r"\sqrt{%s}",
        ),
        Function(
            name="rsqrt",
            summary="`1 / sqrt(x)`",
            value=lambda x: 1 / math.sqrt(x),
            interval=values.rsqrt_interval,
            slopes=("-(0.5 * y * y ** 2)",),
            exact="1 / sqrt(x)",
            log="-0.5 * log(x)",
            torch="torch.rsqrt",
            python="(1 / math.sqrt({0}))",
            triton="tl.rsqrt",
        ),
        Function(
            name="abs",
            summary="the magnitude",
            value=abs,
            interval=absolute,
            slopes=("sign(x)",),
            finite=True,
            rational=True,
            order=1,
            torch="torch.abs",
            python="abs({0})",
            triton="tl.abs",
            latex=r"\lvert %s \rvert",
        ),
        Function(
            name="sign",
            summary="1, 0 or -1",
            value=values.sign,
            interval=rising(values.sign),
            slopes=("0",),
            finite=True,
            rational=True,
            torch="torch.sign",
            python="math.copysign({x} != 0, {0})",
        ),
        Function(
            name="sigmoid",
            summary="`1 / (1 + exp(-x))`",
            value=values.sigmoid,
            interval=rising(values.sigmoid),
            slopes=("y * (1 - y)",),
            exact="1 / (1 + exp(-x))",
            finite=True,
            log="logsigmoid(x)",
            torch="torch.sigmoid",
            python=_SIGMOID,
            triton="tl.sigmoid",
        ),
        Function(
            name="logsigmoid",
            summary="`log(sigmoid(x))`",
            value=values.logsigmoid,
            interval=rising(values.logsigmoid),
            slopes=("sigmoid(-x)",),
            exact="-log(1 + exp(-x))",
            finite=True,
            torch="functional.logsigmoid",
            python="(min({0}, 0.0) - math.log1p(math.exp(-abs({0}))))",
        ),
        Function(
            name="softplus",
            summary="`log(1 + exp(x))`",
            value=values.softplus,
            interval=rising(values.softplus),
            slopes=("sigmoid(x)",),
            exact="log(1 + exp(x))",
            finite=True,
            order=1,
            torch="functional.softplus",
            python="(max({0}, 0.0) + math.log1p(math.exp(-abs({0}))))",
        ),
        Function(
            name="tanh",
            summary="the hyperbolic tangent",
            value=math.tanh,
            interval=rising(math.tanh),
            slopes=("1 - y ** 2",),
            exact="(exp(2 * x) - 1) / (exp(2 * x) + 1)",
            finite=True,
            torch="torch.tanh",
            python="math.tanh({0})",
            latex=r"\tanh\left(%s\right)",
        ),
        Function(
            name="silu",
            summary="`x * sigmoid(x)`",
            value=values.silu,
            interval=values.silu_interval,
            slopes=("sigmoid(x) * (1 + x * (1 - sigmoid(x)))",),
            exact="x / (1 + exp(-x))",
            finite=True,
            torch="functional.silu",
            python=f"({{x}} * {_SIGMOID})",
        ),
        Function(
            name="relu",
            summary="`maximum(x, 0)`",
            value=values.relu,
            interval=rising(values.relu),
            slopes=("relu(sign(x))",),
            finite=True,
            rational=True,
            order=1,
            torch="torch.relu",
            python="max({0}, 0.0)",
        ),
        Function(
            name="minimum",
            arguments=("a", "b"),
            summary="the smaller",
            value=min,
            interval=values.minimum_interval,
            slopes=("0.5 * (1 + sign(b - a))", "0.5 * (1 - sign(b - a))"),
            finite=True,
            rational=True,
            order=-1,
            neutral=math.inf,
            torch="torch.minimum",
            bound="max",
            python="min({0}, {1})",
        ),
        Function(
            name="maximum",
            arguments=("a", "b"),
            summary="the larger",
            value=max,
            interval=values.maximum_interval,
            slopes=("0.5 * (1 + sign(a - b))", "0.5 * (1 - sign(a - b))"),
            finite=True,
            rational=True,
            order=1,
            neutral=-math.inf,
            torch="torch.maximum",
            bound="min",
            python="max({0}, {1})",
        ),
        Function(
            name="clamp",
            arguments=("x", "lo", "hi"),
            summary="`minimum(maximum(x, lo), hi)`",
            definition="minimum(maximum(x, lo), hi)",
            value=lambda x, lo, hi: min(max(x, lo), hi),
            interval=lambda x, lo, hi: values.minimum_interval(values.maximum_interval(x, lo), hi),
            finite=True,
        ),
        Function(
            name="logaddexp",
            arguments=("a", "b"),
            summary="`log(exp(a) + exp(b))`",
            value=values.logaddexp,
            interval=lambda a, b: Interval(values.logaddexp(a.low, b.low), values.logaddexp(a.high, b.high)),
            slopes=("part_of(a, b)", "part_of(b, a)"),
            exact="log(exp(a) + exp(b))",
            finite=True,
            order=1,
            neutral=-math.inf,
            torch="torch.logaddexp",
            python="(max({0}, {1}) + math.log1p(math.exp(-abs({x} - {y}))))",
        ),
        Function(
            name="cos",
            since=2,
            periodic=True,
            summary="the cosine of an angle in radians",
            value=values.cos,
            interval=values.cos_interval,
            slopes=("-sin(x)",),
            finite=True,
            torch="torch.cos",
            python="math.cos({0})",
            triton="tl.cos",
            latex=r"\cos\left(%s\right)",
        ),
        Function(
            name="sin",
            since=2,
            periodic=True,
            summary="the sine of an angle in radians",
            value=values.sin,
            interval=values.sin_interval,
            slopes=("cos(x)",),
            finite=True,
            torch="torch.sin",
            python="math.sin({0})",
            triton="tl.sin",
            latex=r"\sin\left(%s\right)",
        ),
        Function(
            name="floor",
            since=2,
            summary="the largest whole number that is not above `x`",
            value=values.floor,
            interval=rising(values.floor),
            slopes=("0",),
            finite=True,
            rational=True,
            torch="torch.floor",
            python="math.floor({0})",
            triton="tl.floor",
            latex=r"\lfloor %s \rfloor",
        ),
        Function(
            name="fraction",
            since=2,
            periodic=True,
            summary="`x - floor(x)`: of an angle in turns, what is left of it without the whole ones",
            value=values.fraction,
            interval=values.fraction_interval,
            slopes=("1",),
            finite=True,
            rational=True,
            torch="torch.remainder({0}, 1.0)",
            python="({x} % 1.0)",
        ),
    )
)
"""The functions of the language, by their names."""

OF_KERNELS: dict[str, Operation] = {
    operation.name: operation
    for operation in (
        Operation(
            name="exp2",
            value=lambda x: 2.0**x,
            slopes=(f"{math.log(2)} * y",),
            exact="power(2, x)",
            triton="tl.exp2",
        ),
        Operation(
            name="square",
            value=lambda x: x * x,
            slopes=("2 * x",),
            exact="x ** 2",
            finite=True,
            triton="_square",
        ),
        Operation(
            name="power",
            arguments=("x", "n"),
            value=lambda x, n: x**n,
            slopes=("power_slope(x, n)", "exponent_slope(x, n)"),
            triton="_power",
            takes_numbers=False,
        ),
        Operation(
            name="power_slope",
            arguments=("x", "n"),
            value=lambda x, n: n * x ** (n - 1),
            exact="n * power(x, n) / x",
            triton="_power_slope",
            takes_numbers=False,
        ),
        Operation(
            name="exponent_slope",
            arguments=("x", "n"),
            value=lambda x, n: x**n * math.log(x),
            exact="power(x, n) * log(x)",
            triton="_exponent_slope",
            takes_numbers=False,
        ),
        Operation(
            name="part_of",
            arguments=("a", "b"),
            value=lambda a, b: 0.0 if max(a, b) == -math.inf else 1 / (1 + math.exp(b - a)),
            exact="exp(a) / (exp(a) + exp(b))",
            interval=lambda a, b: Interval(0.0, 1.0),
            finite=True,
            triton="_part_of",
        ),
    )
}
"""What kernels evaluate besides: what `**` becomes, and the slopes of that and of `logaddexp`."""


def operation(name: str) -> Operation | None:
    """The function of the language, or of kernels alone, that goes by `name`."""
    return FUNCTIONS.get(name) or OF_KERNELS.get(name)
