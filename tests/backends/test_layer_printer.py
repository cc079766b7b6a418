"""A layer's expressions, printed, mean what they say, without a parenthesis too many."""

from __future__ import annotations

import ast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flagen.backends.torch_.layer_printer import LayerPrinter, literal
from flagen.diagnostics import InternalError
from flagen.spec.layer.model import Binary, Call, Compare, Expr, IfElse, Logic, Name, Several, Unary, Value

PRINTER = LayerPrinter(lambda name: name.name)
A, B, C = (Name(name, "config") for name in "abc")
X, W = Name("x", "local"), Name("w", "param")


def written_out(expr: Expr) -> str:
    """Every operation in parentheses."""
    match expr:
        case Value(value):
            return f"({literal(value)})"
        case Name(name):
            return name
        case Unary(op, value):
            return f"({op} {written_out(value)})"
        case Binary(op, left, right) | Compare(op, left, right):
            return f"({written_out(left)} {op} {written_out(right)})"
        case Logic(op, values):
            return f"({f' {op} '.join(map(written_out, values))})"
        case IfElse(condition, then, otherwise):
            return f"({written_out(then)} if {written_out(condition)} else {written_out(otherwise)})"
        case _:
            raise AssertionError(expr)


def grown(inner: st.SearchStrategy[Expr]) -> st.SearchStrategy[Expr]:
    return st.one_of(
        st.builds(Unary, st.sampled_from(["-", "not"]), inner),
        st.builds(Binary, st.sampled_from(["+", "-", "*", "/", "//", "%", "**"]), inner, inner),
        st.builds(Compare, st.sampled_from(["==", "!=", "<", "<=", ">", ">="]), inner, inner),
        st.builds(Logic, st.sampled_from(["and", "or"]), st.tuples(inner, inner)),
        st.builds(IfElse, inner, inner, inner),
    )


Trees = st.recursive(
    st.sampled_from([A, B, C, Value(2), Value(-1.5), Value("silu"), Value(None)]), grown, max_leaves=12
)


@given(Trees)
def test_it_is_read_as_it_was_meant(tree: Expr) -> None:
    assert ast.dump(ast.parse(PRINTER.text(tree))) == ast.dump(ast.parse(written_out(tree)))


@given(Trees)
def test_a_negation_is_the_opposite(tree: Expr) -> None:
    values = {"a": 3, "b": 2, "c": 5}
    try:
        value = eval(PRINTER.text(tree), {}, values)
    except (ArithmeticError, TypeError, ValueError):
        return
    assert bool(eval(PRINTER.negated(tree), {}, values)) is not bool(value)


@pytest.mark.parametrize(
    ("expr", "text"),
    [
        (Binary("-", A, Binary("-", B, C)), "a - (b - c)"),
        (Binary("-", Binary("-", A, B), C), "a - b - c"),
        (Binary("*", Binary("+", A, B), C), "(a + b) * c"),
        (Unary("-", Binary("**", A, B)), "-a ** b"),
        (Call("integer", "function", (Binary("*", A, B),)), 'integer(a * b, "a * b")'),
        (Call("item", "function", (A, Value(0))), "a[0]"),
        (Call("heads", "function", (Binary("+", X, W), A)), "(x + w).unflatten(-1, (a, -1))"),
        (Call("sigmoid", "function", (Unary("-", X),)), "(-x).sigmoid()"),
        (Call("silu", "function", (X,)), "F.silu(x)"),
        (Call("clamp", "function", (X,), (("high", Value(2)),)), "x.clamp(max=2)"),
        (Call("split", "function", (X, Several((A, B)))), "x.split([a, b], dim=-1)"),
        (Binary("*", Value(2), Call("elu_p1", "function", (X,))), "2 * (F.elu(x) + 1)"),
        (Call("exp", "function", (A,)), "math.exp(a)"),
        (Call("exp", "function", (X,)), "x.exp()"),
    ],
)
def test_calls_and_parentheses(expr: Expr, text: str) -> None:
    assert PRINTER.text(expr) == text


UNIFORM = Call("uniform", "init", (Value(0), Value(16)))


@pytest.mark.parametrize(
    ("start", "text"),
    [
        (Call("full", "init", (Value(0),)), "p.zero_()"),
        (Call("full", "init", (A,)), "p.fill_(a)"),
        (Call("log", "init", (UNIFORM,)), "p.copy_(uniform(p, 0, 16).log())"),
        (Call("maximum", "init", (UNIFORM, Value(1))), "p.copy_(uniform(p, 0, 16).clamp(min=1))"),
        (Binary("-", Value(1), Binary("/", Name("index", "constant"), A)), "p.copy_(1 - positions(p) / a)"),
        (Call("orthogonal", "init", (Value(0.1),)), "nn.init.orthogonal_(p, gain=0.1)"),
        (Call("log", "init", (A,)), "p.fill_(math.log(a))"),
    ],
)
def test_starts(start: Expr, text: str) -> None:
    assert PRINTER.start("p", start) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (1e-5, "1e-5"),
        (0.5, "0.5"),
        (True, "True"),
        (None, "None"),
        ("chunk", '"chunk"'),
        ((0.0, float("inf")), "(0.0, math.inf)"),
    ],
)
def test_literals(value: object, text: str) -> None:
    assert literal(value) == text


def test_what_has_no_text_is_a_bug() -> None:
    with pytest.raises(InternalError, match="unheard is a init, and no function"):
        LayerPrinter(lambda name: name.name).print(Call("unheard", "init", ()))
