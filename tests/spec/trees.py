"""Random expressions whose dims fit, and a small evaluator of their meaning."""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction

import numpy as np
from hypothesis import strategies as st

from flagen.diagnostics import Source
from flagen.functions import FUNCTIONS
from flagen.spec.constants import Constants
from flagen.spec.model import (
    Binary,
    Call,
    Contract,
    Dims,
    Expr,
    Following,
    Index,
    Name,
    Negate,
    Number,
    Outer,
    Over,
    Reduce,
    Rotate,
    RowMap,
    StateRead,
    Transpose,
    walk,
)
from flagen.spec.names import Symbol, SymbolKind, Symbols
from flagen.spec.ranges import Interval
from flagen.spec.report import Report
from flagen.spec.scope import Scope

SIZES = {"K": 2, "V": 3, "K2": 2, "R": 1, "H": 2, "HV": 4}
DECLARED: dict[str, tuple[SymbolKind, Dims]] = {
    "K": ("dim", ()),
    "V": ("dim", ()),
    "K2": ("dim", ()),
    "R": ("dim", ()),
    "q": ("input", ("K",)),
    "k": ("input", ("K",)),
    "v": ("input", ("V",)),
    "beta": ("input", ()),
    "w": ("param", ("K", "V")),
    "a": ("input", ("K2",)),
    "phi": ("input", ("R",)),
    "x": ("local", ()),
    "S": ("state", ("K", "V")),
    "z": ("state", ("K",)),
}
ONE_ARGUMENT, TWO_ARGUMENTS = (
    [name for name, row in FUNCTIONS.items() if len(row.arguments) == count] for count in (1, 2)
)
_OPERATORS = st.sampled_from(["+", "-", "*", "/", "**"])
_PRODUCTS = st.sampled_from(["*", "/"])
_REDUCTIONS = st.sampled_from(["sum", "mean", "norm"])


def scope() -> tuple[Scope, Report]:
    """The scope of an update where everything in DECLARED is declared, in version 2: K2 is K, and R half of it."""
    report = Report(Source("<tree>", ""))
    report.version = 2
    symbols = Symbols(report)
    half = Binary("/", Name("K", "size"), Number(Fraction(2)))
    symbols.following = (Following("K2", Name("K", "size")), Following("R", half))
    names = Scope(symbols, report)
    names.place = "update"
    for name, (kind, dims) in DECLARED.items():
        symbols.enter(Symbol(name, kind, span=None, dims=dims))  # type: ignore[arg-type]
    return names, report


LEAVES: dict[Dims, list[Expr]] = {
    (): [Name(name, "size") for name in ("K", "V", "H", "HV")]
    + [Name("head", "head"), Name("beta", "input"), Name("x", "local")],
    ("K",): [Name("q", "input", ("K",)), Name("k", "input", ("K",))]
    + [StateRead("z", previous, ("K",)) for previous in (False, True)],
    ("V",): [Name("v", "input", ("V",)), Index("V")],
    ("K", "V"): [Name("w", "param", ("K", "V"))] + [StateRead("S", previous, ("K", "V")) for previous in (False, True)],
    ("V", "K"): [Transpose(StateRead("S", False, ("K", "V")))],
}

_PHI = Name("phi", "input", ("R",))
_ANGLES = st.sampled_from([_PHI, Negate(_PHI), Binary("*", Number(Fraction(2)), _PHI), Index("R")])
_NUMBERS = st.one_of(
    st.integers(0, 64).map(Fraction),
    st.integers(0, 9999).map(lambda digits: Fraction(digits, 1000)),
    st.builds(lambda digits, power: digits * Fraction(10) ** power, st.integers(1, 10**9), st.integers(-250, 250)),
).map(Number)


@st.composite
def expressions(draw: st.DrawFn, dims: Dims, depth: int = 4) -> Expr:
    """A tree over DECLARED with the dims `dims`, one of (), [K], [V], [K, V], [V, K]."""

    def below(own: Dims) -> Expr:
        return draw(expressions(own, depth - 1))

    leaf = draw(st.sampled_from(LEAVES[dims]) | _NUMBERS if not dims else st.sampled_from(LEAVES[dims]))
    if depth == 0:
        return leaf
    anywhere = ("leaf", "negate", "same", "left", "right", "one", "two", "clamp")
    special: tuple[str, ...]
    special = (("dot", "reduce"), ("row", "contract", "reduce"), ("transpose", "outer", "rows", "columns"))[len(dims)]
    special += ("rotate", "over") if dims == ("K",) else ()
    other = ("V",) if dims == ("K",) else ("K",)
    expr: Expr
    match draw(st.sampled_from(anywhere + special)):
        case "leaf":
            return leaf
        case "negate":
            expr = Negate(below(dims))
        case "same":
            expr = Binary(draw(_OPERATORS), below(dims), below(dims))
        case "left":
            expr = Binary(draw(_OPERATORS), below(()), below(dims))
        case "right":
            expr = Binary(draw(_OPERATORS), below(dims), below(()))
        case "one":
            expr = Call(draw(st.sampled_from(ONE_ARGUMENT)), (below(dims),))
        case "two":
            expr = Call(draw(st.sampled_from(TWO_ARGUMENTS)), (below(dims), below(draw(st.sampled_from([(), dims])))))
        case "clamp":
            expr = Call("clamp", (below(dims), below(()), below(())))
        case "row":
            expr = RowMap(draw(st.sampled_from(["l2norm", "softmax"])), below(dims))
        case "contract" if draw(st.booleans()):
            expr = Contract(below(dims + other), below(other))
        case "contract":
            expr = Contract(below(other), below(other + dims))
        case "dot":
            expr = Contract(below(("K",)), below(("K",)))
        case "rotate":
            expr = Rotate(below(dims), draw(_ANGLES), draw(st.booleans()))
        case "over":
            expr = Over(Name("a", "input", ("K2",)), "K2", "K")
        case "reduce" if dims:
            expr = Reduce(draw(_REDUCTIONS), below(dims + other), other[0])
        case "reduce":
            expr = Reduce(draw(_REDUCTIONS), below(("K", "V")), None)
        case "transpose":
            expr = Transpose(below(dims[::-1]))
        case "outer":
            expr = Outer(below(dims[:1]), below(dims[1:]))
        case "rows":
            expr = Binary(draw(_PRODUCTS), below(dims), below(dims[:1]))
        case _:
            expr = Binary(draw(_PRODUCTS), below(dims[1:]), below(dims))
    # A constant that has no value is no expression of the language.
    constants = Constants()
    legal = all(constants.problem(node) is None for node in reversed(list(walk(expr))))
    return expr if legal else leaf


Values = dict[str, np.ndarray]
_FUNCTIONS: dict[str, Callable[..., np.ndarray]] = {
    "exp": np.exp,
    "log": np.log,
    "log1p": np.log1p,
    "expm1": np.expm1,
    "sqrt": np.sqrt,
    "rsqrt": lambda x: 1 / np.sqrt(x),
    "abs": np.abs,
    "sign": np.sign,
    "sigmoid": lambda x: 1 / (1 + np.exp(-x)),
    "logsigmoid": lambda x: -np.logaddexp(0, -x),
    "softplus": lambda x: np.logaddexp(0, x),
    "tanh": np.tanh,
    "silu": lambda x: x / (1 + np.exp(-x)),
    "relu": lambda x: np.maximum(x, 0),
    "minimum": np.minimum,
    "maximum": np.maximum,
    "clamp": lambda x, lo, hi: np.minimum(np.maximum(x, lo), hi),
    "logaddexp": np.logaddexp,
    "cos": np.cos,
    "sin": np.sin,
    "floor": np.floor,
    "fraction": lambda x: x - np.floor(x),
}


def evaluate(expr: Expr, values: Values) -> np.ndarray:
    """What `expr` means, elementwise in float64."""
    match expr:
        case Number(value):
            return np.asarray(float(value))
        case Name(name):
            return values[name]
        case StateRead(name, previous):
            return values[f"{name}_prev" if previous else name]
        case Negate(value):
            return -evaluate(value, values)
        case Transpose(value):
            return evaluate(value, values).T
        case Binary(op, left, right):
            a = _spread(evaluate(left, values), left.dims, expr.dims)
            b = _spread(evaluate(right, values), right.dims, expr.dims)
            return {"+": np.add, "-": np.subtract, "*": np.multiply, "/": np.divide, "**": np.power}[op](a, b)
        case Contract(left, right):
            return np.tensordot(evaluate(left, values), evaluate(right, values), axes=(-1, 0))
        case Outer(left, right):
            return np.multiply.outer(evaluate(left, values), evaluate(right, values))
        case Reduce(function, value, dim):
            array = evaluate(value, values)
            axis = None if dim is None else value.dims.index(dim)
            if function == "norm":
                return np.sqrt(np.sum(array * array, axis))
            return np.sum(array, axis) if function == "sum" else np.mean(array, axis)
        case Rotate(value, angle, half):
            x, turns = evaluate(value, values), np.exp(1j * evaluate(angle, values))
            pairs = x.reshape(2, -1).T if half else x.reshape(-1, 2)
            turned = (pairs[:, 0] + 1j * pairs[:, 1]) * np.append(turns, np.ones(len(pairs) - len(turns)))
            both = np.stack((turned.real, turned.imag), 0 if half else 1)
            return both.reshape(-1)
        case Over(value):
            return evaluate(value, values)
        case Index(dim):
            return np.arange(float(SIZES[dim]))
        case RowMap("softmax", value):
            weights = np.exp(evaluate(value, values) - np.max(evaluate(value, values)))
            return weights / weights.sum()
        case RowMap(_, value):
            array = evaluate(value, values)
            return array / np.sqrt(np.sum(array * array) + 1e-6)
        case Call(function, args):
            return _FUNCTIONS[function](*(_spread(evaluate(arg, values), arg.dims, expr.dims) for arg in args))


def _spread(array: np.ndarray, own: Dims, dims: Dims) -> np.ndarray:
    """`array` with an axis of one element for each of `dims` that it does not have."""
    return array.reshape([SIZES[dim] if dim in own else 1 for dim in dims])


def points(interval: Interval) -> st.SearchStrategy[float]:
    """Values of a range, its ends among them."""
    low, high = max(interval.low, -1e3), min(interval.high, 1e3)
    return st.one_of(
        st.sampled_from([end for end in (low, high, interval.low, interval.high) if not math.isinf(end)] or [low]),
        st.floats(low, high),
    )
