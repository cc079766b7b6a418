"""The table of functions, row by row: values, ranges, slopes and spellings are those of PyTorch in float64."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from flagen.functions import FUNCTIONS, OF_KERNELS, Function, Operation, operation
from flagen.intervals import EVERYTHING, Interval
from flagen.spec.formulas import formula
from flagen.spec.model import Binary, Call, Name, Number, walk
from flagen.spec.ranges import interval_of
from tests.fuzz import interpreter
from tests.spec import trees

PAGE = Path(__file__).parent.parent / "docs" / "spec_language.md"
POINTS = (-30.0, -2.5, -1.0, -0.5, -1e-3, 0.0, 1e-3, 0.25, 1.0, 3.0, 30.0)
INFINITIES = (-math.inf, math.inf)


def softmax_of_two(a: Tensor, b: Tensor) -> Tensor:
    return torch.where(torch.maximum(a, b) == -math.inf, 0.0, torch.sigmoid(a - b))


MEANING = {
    **interpreter._FUNCTIONS,
    "exp2": torch.exp2,
    "square": torch.square,
    "power": torch.pow,
    "power_slope": lambda x, n: torch.where(n == 0, 0.0, n * x ** (n - 1)),
    "exponent_slope": lambda x, n: torch.where((x == 0) & (n >= 0), 0.0, x**n * torch.log(x)),
    "part_of": softmax_of_two,
}
"""What every operation is, written down by hand."""

every_operation = pytest.mark.parametrize("row", [*FUNCTIONS.values(), *OF_KERNELS.values()], ids=lambda row: row.name)
every_function = pytest.mark.parametrize("row", FUNCTIONS.values(), ids=lambda row: row.name)


def meaning(row: Operation, *args: float) -> float:
    return MEANING[row.name](*(torch.tensor(arg, dtype=torch.float64) for arg in args)).item()


def points(row: Operation, of: tuple[float, ...] = POINTS) -> Iterator[tuple[float, ...]]:
    """Arguments at which the operation has a value."""
    for args in itertools.product(of, repeat=len(row.arguments)):
        if row.at(*args) is not None and math.isfinite(meaning(row, *args)):
            yield args


def evaluated(text: str, **names: object) -> object:
    """A formula, by Python's own reading of it."""
    return eval(text, {**MEANING, **names})


# ----------------------------------------------------------------------------------------------------------- the rows


def test_names_are_the_keys_and_no_operation_is_two() -> None:
    assert all(name == row.name for table in (FUNCTIONS, OF_KERNELS) for name, row in table.items())
    assert not FUNCTIONS.keys() & OF_KERNELS.keys()
    assert operation("exp") is FUNCTIONS["exp"] and operation("exp2") is OF_KERNELS["exp2"] and operation("f") is None


def test_every_row_is_held_to_a_meaning_in_float64() -> None:
    assert interpreter._FUNCTIONS.keys() == FUNCTIONS.keys() == trees._FUNCTIONS.keys()


def test_the_page_of_the_language_has_the_table() -> None:
    """A line for each function, in the order of the table."""
    _, _, table = PAGE.read_text(encoding="utf-8").partition("| elementwise | value |\n| --- | --- |\n")
    lines = table.partition("\n\n")[0].splitlines()
    assert lines == [f"| `{row.signature}` | {row.summary} |" for row in FUNCTIONS.values()]


@every_function
def test_a_row_is_whole(row: Function) -> None:
    assert row.summary
    assert bool(row.definition) != (len(row.slopes) == len(row.arguments))
    assert row.definition or (row.torch and row.python)
    assert not row.bound or len(row.arguments) == 2


@every_operation
def test_formulas_name_arguments_and_call_operations(row: Operation) -> None:
    texts = [*row.slopes, *((row.log, row.definition) if isinstance(row, Function) else ())]
    for text in filter(None, texts):
        for node in walk(formula(text)):
            assert not isinstance(node, Name) or node.name in {*row.arguments, "y"}
            assert not isinstance(node, Call) or operation(node.function) is not None
            assert not isinstance(node, Binary) or node.op != "**" or node.right == Number(Fraction(2))


# -------------------------------------------------------------------------------------------------------------- values


@every_operation
def test_values(row: Operation) -> None:
    tried = list(points(row))
    assert len(tried) >= 4
    for args in tried:
        assert row.at(*args) == pytest.approx(meaning(row, *args), rel=1e-13, abs=1e-300), args


@every_operation
def test_where_it_is_finite(row: Operation) -> None:
    large = (*POINTS, -1e18, 1e18)
    everywhere = itertools.product(large, repeat=len(row.arguments))
    values = [meaning(row, *args) for args in everywhere]
    assert row.finite == all(math.isfinite(value) for value in values)


@every_operation
def test_what_becomes_of_a_minus_infinity(row: Operation) -> None:
    """Finite where it says so, whatever the other arguments are; and of one argument, finite where it is."""
    calls = itertools.product((*POINTS, -math.inf), repeat=len(row.arguments))
    values = [meaning(row, *args) for args in calls if -math.inf in args]
    if row.finite_at_minus_infinity:
        assert all(map(math.isfinite, values))
    if len(row.arguments) == 1:
        assert row.finite_at_minus_infinity == math.isfinite(values[0])


@every_function
def test_ranges_hold_every_value(row: Function) -> None:
    ends = (*POINTS, *INFINITIES)
    intervals = [Interval(low, high) for low in ends for high in ends if low <= high]
    few = intervals[:: {1: 1, 2: 7, 3: 17}[len(row.arguments)]]
    for ranges in itertools.product(few, repeat=len(row.arguments)):
        found = row.interval(*ranges)
        inside = [[point for point in POINTS if one.low <= point <= one.high] for one in ranges]
        for args in itertools.product(*inside):
            value = row.at(*args)
            if value is not None and math.isfinite(meaning(row, *args)):
                assert found.low - 1e-12 * abs(value) <= value <= found.high + 1e-12 * abs(value), (ranges, args)


@every_function
def test_the_range_of_a_number_is_its_value(row: Function) -> None:
    """A function of constants is that one number to kernels and proofs."""
    for args in points(row):
        value = row.at(*args)
        assert value is not None
        found = row.interval(*(Interval(arg, arg) for arg in args))
        assert found.low == pytest.approx(value, rel=1e-15, abs=0) == found.high, args


def test_a_wave_reaches_its_extremes_within_a_range() -> None:
    cos, sin = (FUNCTIONS[name].interval for name in ("cos", "sin"))
    assert cos(Interval(-1.0, 1.0)) == Interval(math.cos(1), 1.0)
    assert cos(Interval(1.0, 4.0)) == Interval(-1.0, math.cos(1))
    assert sin(Interval(0.0, 1.0)) == Interval(0.0, math.sin(1))
    assert sin(Interval(1.0, 2.0)) == Interval(math.sin(1), 1.0)
    for whole in (Interval(0.0, 6.3), Interval(-100.0, 100.0), EVERYTHING, Interval(0.0, math.inf)):
        assert cos(whole) == sin(whole) == Interval(-1.0, 1.0)


def test_a_fraction_within_one_period_keeps_its_range() -> None:
    fraction = FUNCTIONS["fraction"].interval
    assert fraction(Interval(2.25, 2.75)) == Interval(0.25, 0.75) == fraction(Interval(-1.75, -1.25))
    for crossing in (Interval(0.75, 1.25), Interval(0.0, 1.0), Interval(0.5, math.inf), EVERYTHING):
        assert fraction(crossing) == Interval(0.0, 1.0)


@every_function
def test_order_and_neutral_arguments(row: Function) -> None:
    differences = [[meaning(row, *args) - arg for arg in args] for args in points(row)]
    if row.order:
        assert all(row.order * difference >= 0 for each in differences for difference in each)
    if row.neutral is not None:
        assert all(row.at(x, row.neutral) == x == row.at(row.neutral, x) for x in POINTS)


@every_function
def test_what_is_rational_gives_rationals(row: Function) -> None:
    thirds = [Fraction(number, 3) for number in (-7, -3, -1, 0, 1, 2, 9)]
    calls = list(itertools.product(thirds, repeat=len(row.arguments)))
    if row.rational:
        assert all(Fraction(row.value(*args)) == pytest.approx(meaning(row, *map(float, args))) for args in calls)
        assert all(Fraction(row.value(*args)).denominator in (1, 3) for args in calls)


# ------------------------------------------------------------------------------------------------------------ formulas


def smooth(row: Operation) -> Iterator[tuple[float, ...]]:
    yield from points(row, (-2.5, -1.0, -0.5, 0.0, 0.25, 1.0, 3.0))


@every_operation
def test_slopes_are_pytorchs_at_kinks_too(row: Operation) -> None:
    for args in smooth(row) if row.slopes else ():
        leaves = [torch.tensor(arg, dtype=torch.float64, requires_grad=True) for arg in args]
        y = MEANING[row.name](*leaves)
        expected = torch.autograd.grad(y + 0 * sum(leaves), leaves)
        for slope, wanted in zip(row.slopes, expected, strict=True):
            found = torch.as_tensor(evaluated(slope, **dict(zip(row.arguments, leaves, strict=True)), y=y))
            if wanted.isfinite():
                torch.testing.assert_close(found.double(), wanted, rtol=1e-12, atol=1e-14, msg=f"{slope} at {args}")


@every_function
def test_definitions_and_logs(row: Function) -> None:
    for args in points(row):
        names = {name: torch.tensor(arg, dtype=torch.float64) for name, arg in zip(row.arguments, args, strict=True)}
        if row.definition:
            assert evaluated(row.definition, **names).item() == pytest.approx(meaning(row, *args))
        if row.log and meaning(row, *args) > 0:
            assert evaluated(row.log, **names).item() == pytest.approx(math.log(meaning(row, *args)), rel=1e-6)


def test_a_formula_is_read_as_an_expression_of_the_language() -> None:
    """Of constants it has the value that Python gives it."""
    for text in ("2 * 3 - 1 / 4", "-2 ** 2", "-(0.5 + exp(1))", "1e-3 * maximum(2, -3)"):
        expected = float(eval(text, {"exp": math.exp, "maximum": max}))
        assert interval_of(formula(text), {}).high == pytest.approx(expected)


# ----------------------------------------------------------------------------------------------------------- spellings


@every_function
def test_spellings_in_python_and_pytorch(row: Function) -> None:
    for args in points(row):
        expected = meaning(row, *args)
        if row.torch:
            tensors = {name: torch.tensor(arg, dtype=torch.float64) for name, arg in zip("abc", args, strict=False)}
            written = eval(row.of_tensors(*tensors), {"torch": torch, "functional": functional, **tensors})
            assert written.item() == expected
        if row.python:
            texts = [repr(arg) for arg in args]
            operands = dict(zip("xy", (f"({text})" for text in texts), strict=False))
            assert eval(row.python.format(*texts, **operands)) == pytest.approx(expected, rel=1e-13, abs=1e-300)


@every_function
def test_latex_takes_all_arguments(row: Function) -> None:
    assert not row.latex or row.latex.count("%s") == 1
    assert re.fullmatch(r"[a-z][a-z0-9]*", row.name)


def test_nothing_is_known_of_an_operation_that_says_nothing() -> None:
    plain = Operation(name="plain", value=lambda x: 1 / x)
    assert plain.interval(Interval(0.0, 1.0)) == EVERYTHING
    assert plain.at(0.0) is None and not plain.finite
