"""Printed expressions, evaluated: whatever the nodes, the levels of their operands and the order of their dims."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from fractions import Fraction
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from flagen.backends.torch_.printer import Code, Printer, letters_of
from flagen.backends.torch_.scope import Scope
from flagen.diagnostics import InternalError, Source
from flagen.spec.expr import parse_expression
from flagen.spec.model import Binary, Call, Contract, Expr, Name, Negate, Number, Outer, Spec, Transpose
from flagen.spec.names import VERSIONS
from flagen.spec.report import Report
from tests.algebra.cases import recurrence
from tests.fuzz.interpreter import Scope as Meaning
from tests.spec.test_expressions import as_scalar

BATCH, TOKENS, STEPS, HEADS = 2, 3, 2, 4
SIZES = {"K": 3, "V": 2, "M": 5}

# Everything has another level: a number, one for all heads, one a head, one a token, one a micro-step.
NAMES = {
    "tau": Name("tau", "param"),
    "w": Name("w", "param", ("V",)),
    "A": Name("A", "param"),
    "u": Name("u", "param", ("K",)),
    "s": Name("s", "input"),
    "k": Name("k", "input", ("K",)),
    "v": Name("v", "input", ("V",)),
    "x": Name("x", "input", ("M",)),
    "X": Name("X", "input", ("K", "V")),
    "XM": Name("XM", "input", ("K", "M")),
    "MV": Name("MV", "input", ("M", "V")),
    "gj": Name("gj", "input"),
    "kj": Name("kj", "input", ("K",)),
    "vj": Name("vj", "input", ("V",)),
}
UPDATE = "- repeat: n\n  do:\n  - S = exp(gj) * S + tau * outer(kj, vj)\n- S = A * s * S + outer(k, v)"
OUTPUT = "o = S.T @ (q + u) + w + sum(X @ v) + sum(XM @ x) + sum(MV @ v)"


@pytest.fixture(scope="module")
def spec() -> Spec:
    return recurrence(UPDATE, OUTPUT)


@pytest.fixture(scope="module")
def values() -> dict[str, Tensor]:
    """A value for each name, in (0.3, 1.3), with the axes that generated code gives it."""
    random = torch.Generator().manual_seed(0)

    def axes(name: str, leading: dict[str, tuple[int, ...]]) -> tuple[int, ...]:
        return (*leading.get(name, (BATCH, TOKENS, HEADS)), *(SIZES[dim] for dim in NAMES[name].dims))

    leading = {
        "tau": (),
        "w": (),
        "A": (HEADS,),
        "u": (HEADS,),
        **dict.fromkeys(("gj", "kj", "vj"), (BATCH, TOKENS, STEPS, HEADS)),
    }
    return {name: 0.3 + torch.rand(axes(name, leading), generator=random, dtype=torch.float64) for name in NAMES}


def printed(spec: Spec, expr: Expr) -> tuple[Code, set[str]]:
    printer = Scope(spec).printer()
    return printer.print(expr), printer.needs


def run(code: Code, values: dict[str, Tensor]) -> Tensor | float:
    """What the printed text evaluates to, a number where it is one."""
    scope = {"torch": torch, "functional": functional, "math": math, "l2norm": l2norm, "args": SimpleNamespace(**SIZES)}
    return eval(code.text, scope, {**values, "tau": values["tau"].item()})


def l2norm(x: Tensor) -> Tensor:
    return x * torch.rsqrt((x * x).sum(-1, keepdim=True) + 1e-6)


def meaning(expr: Expr, values: dict[str, Tensor]) -> Tensor:
    """`expr` at every token and micro-step: [batch, tokens, steps, heads, *dims]."""
    rows = BATCH * TOKENS * STEPS

    def everywhere(name: str) -> Tensor:
        x, dims = values[name], len(NAMES[name].dims)
        if x.ndim - dims == 3:
            x = x.unsqueeze(2)
        return x.expand(BATCH, TOKENS, STEPS, HEADS, *x.shape[x.ndim - dims :]).reshape(
            rows, HEADS, *x.shape[x.ndim - dims :]
        )

    names = {name: everywhere(name) for name in NAMES}
    sizes = {dim: torch.full((rows, HEADS), float(size), dtype=torch.float64) for dim, size in SIZES.items()}
    found = Meaning(names | sizes, {}, {}, (rows, HEADS)).evaluate(expr)
    return found.unflatten(0, (BATCH, TOKENS, STEPS))


def check(spec: Spec, expr: Expr, values: dict[str, Tensor]) -> None:
    code, needs = printed(spec, expr)
    found = run(code, values)
    if code.level == "number":
        assert isinstance(found, int | float)
    found = torch.as_tensor(found, dtype=torch.float64)
    assert set(code.dims) == set(expr.dims)
    # The axes stand in the order the code says; the expression's own order is another matter.
    order = [code.dims.index(dim) - len(code.dims) for dim in expr.dims]
    found = found.permute((*range(found.ndim - len(order)), *(found.ndim + place for place in order)))
    if code.level == "token":
        found = found.unsqueeze(2)
    expected = meaning(expr, values)
    assert torch.allclose(found.expand(expected.shape), expected, rtol=1e-12, atol=1e-12), code.text
    for module, name in (("math", "math."), ("functional", "functional."), ("l2norm", "l2norm(")):
        assert module in needs or name not in code.text, code.text


# ------------------------------------------------------------------------------------------------------------ operators


def operands(*names: str) -> tuple[Expr, ...]:
    return tuple(NAMES[name] for name in names)


def nests(small: tuple[str, ...], large: tuple[str, ...]) -> bool:
    rest = iter(large)
    return all(dim in rest for dim in small)


def products() -> Iterator[Binary]:
    """Every operator between operands of every level whose dims go together, transposed ones among them."""
    sides = [*NAMES.values(), Transpose(NAMES["X"]), Transpose(NAMES["XM"]), Number(2)]
    for left, right in itertools.product(sides, sides):
        fits = nests(left.dims, right.dims) or nests(right.dims, left.dims)
        for op in ("*", "/", "**") if fits else ():
            yield Binary(op, left, right)
        if left.dims == right.dims or (fits and not (left.dims and right.dims)):
            yield from (Binary(op, left, right) for op in ("+", "-"))


def test_broadcasting_by_name(spec, values):
    found = list(products())
    assert len(found) > 300
    for expr in found:
        check(spec, expr, values)


def test_broadcasting_into_three_dims(spec, values):
    matrix, x = operands("X", "x")
    wide = Outer(matrix, x)
    for name in ("k", "v", "x", "X", "s", "tau", "u", "w", "XM", "kj"):
        check(spec, Binary("*", NAMES[name], wide), values)
        check(spec, Binary("/", wide, NAMES[name]), values)
    check(spec, Binary("*", Transpose(wide), Outer(x, NAMES["k"])), values)
    check(spec, Outer(Outer(NAMES["kj"], x), NAMES["w"]), values)


CONTRACTIONS = """
    X @ v; v @ X.T; X.T @ k; k @ X; X @ w; u @ X; X @ vj; kj @ X; XM @ MV; MV.T @ XM.T; X.T @ XM; X @ (X.T @ k)
    k @ (XM @ MV); k @ k; dot(k, kj); dot(u, k); dot(w, vj); (kj * X.T) @ k; outer(k, v) @ vj; (outer(k, v).T @ u) * v
    outer(X, x) @ x; x @ outer(x, X); XM @ outer(x, vj)
"""

REDUCTIONS = """
    sum(X, K); sum(X, V); sum(X); mean(X.T, K); mean(X); norm(X, V); norm(X); norm(kj); sum(u); mean(w); sum(k * X, K)
    sum(outer(kj, w), K); sum(outer(X, x), V); mean(outer(X, x)); sum(-X, K)
    softmax(k); softmax(w); softmax(kj - k); softmax(2 * w); l2norm(k); l2norm(X @ v); l2norm(u + kj); l2norm(-k)
"""

SHAPES = "abs sign sigmoid logsigmoid softplus tanh silu relu exp expm1 cos sin floor fraction"
POSITIVE = f"{SHAPES} log log1p sqrt rsqrt"

FUNCTIONS = """
    minimum(u - k, 0); maximum(u - k, 0)
    clamp(k, 0.5, 0.8); clamp(k, -1, s); clamp(k, s, 1); clamp(tau, 0, s); clamp(0.5, s, kj); clamp(kj, k, u)
    clamp(k - u, tau - 1, tau); clamp(2, 1, A); clamp(tau, 0.5, 0.6); clamp(-tau, -1, 1) ** 2
"""

NUMBERS = """
    K ** -0.5; tau ** 2 * K / V; 1 / 3 - tau; 1e-6 + tau; 2 ** -70; (1 / 3) ** 2; 0.1 ** tau
    logaddexp(tau, -tau) - logaddexp(-tau, tau); 123456789012345678901234567890 * tau
"""

PAIRS = [
    f"{function}({arguments})"
    for function in ("minimum", "maximum", "logaddexp")
    for arguments in ("k, kj", "tau, k", "X, 0.7", "s, X", "A, u", "gj, X", "tau - 1, 0.3")
]
OF_ONE = [f"{function}({x})" for function in POSITIVE.split() for x in ("X", "kj", "tau")]
OF_NEGATIVE = [f"{function}(-{x})" for function in SHAPES.split() for x in ("kj", "tau", "w")]
UNDER_OPERATORS = [
    text.format(f"{function}(tau)") for function in POSITIVE.split() for text in ("2 / {} ** 2", "-{} * k", "k - {}")
]


def listed(text: str) -> list[str]:
    return [part.strip() for line in text.strip().splitlines() for part in line.split(";")]


EXPRESSIONS = [*listed(CONTRACTIONS), *listed(REDUCTIONS), *listed(FUNCTIONS), *listed(NUMBERS)]
EXPRESSIONS += [*PAIRS, *OF_ONE, *OF_NEGATIVE, *UNDER_OPERATORS]


def parsed(text: str) -> Expr:
    """`text` as an expression over the names above and the sizes of dims."""
    report = Report(Source("<test>", text))
    report.version = VERSIONS[-1]
    sizes = {dim: Name(dim, "size") for dim in SIZES}
    found = parse_expression(as_scalar(text), 0, lambda name, _: (NAMES | sizes)[name], report)
    assert found is not None, report.diagnostics
    return found


@pytest.mark.parametrize("text", EXPRESSIONS)
def test_expression(text, spec, values):
    check(spec, parsed(text), values)


# ----------------------------------------------------------------------------------------------------------- precedence


def test_every_operator_inside_every_other(spec, values):
    """`a op (b op c)` and `(a op b) op c`, with minus signs anywhere, for numbers and for tensors."""
    three, two = Number(Fraction(3)), Number(Fraction(2))
    for a, b, c in ((NAMES["tau"], three, two), (NAMES["k"], NAMES["u"], two), operands("s", "A", "gj")):
        for outside, inside in itertools.product(("+", "-", "*", "/", "**"), repeat=2):
            if outside == "**" and inside == "-" and c is not two:
                continue  # a root of what may be negative
            for left, right in ((Binary(inside, a, b), c), (a, Binary(inside, b, c))):
                check(spec, Binary(outside, left, right), values)
                check(spec, Negate(Binary(outside, left, right)), values)
                check(spec, Binary(outside, left, Negate(right)), values)
                if outside != "**" or right is two:
                    check(spec, Binary(outside, Negate(left), right), values)


@pytest.mark.parametrize(
    "wrap", [Negate, Transpose, lambda x: Binary("**", x, Number(2)), lambda x: Call("tanh", (x,))]
)
@pytest.mark.parametrize("op", ["+", "-", "*", "/"])
def test_an_operator_under_an_index_a_method_or_a_sign(op, wrap, spec, values):
    k, X, v = operands("k", "X", "v")
    inner = wrap(Binary(op, X, X))
    for expr in (Contract(inner, v) if inner.dims[-1] == "V" else Contract(inner, k), Negate(inner)):
        check(spec, expr, values)
    check(spec, Outer(Binary(op, k, k), Negate(v)), values)
    check(spec, Binary("*", Binary(op, k, k), X), values)


# -------------------------------------------------------------------------------------------------------------- numbers


def test_numbers_are_exact():
    """A decimal is printed as it was written, a fraction as one; neither is rounded twice."""
    for text in ("0.1", "1e-6", "3", "1 / 3", "0.30000000000000004", "1e300", "123456789012345678901"):
        code = Printer(lambda _: Code("", ())).print(Number(Fraction(text.replace(" ", ""))))
        assert eval(code.text) == float(Fraction(text.replace(" ", "")))
        assert code.level == "number"


def test_a_number_binds_as_what_it_is():
    """A fraction is a quotient, and a negative number has a sign."""
    look = Printer(lambda _: Code("x", ()))
    third, minus = Number(Fraction(1, 3)), Number(Fraction(-2))
    x = NAMES["s"]
    assert eval(look.print(Binary("/", x, third)).text, {"x": 1.0}) == pytest.approx(3)
    assert eval(look.print(Binary("**", minus, Number(Fraction(2)))).text) == 4
    assert eval(look.print(Binary("-", x, minus)).text, {"x": 1.0}) == 3


@pytest.mark.parametrize(
    "function", ["sigmoid", "logsigmoid", "softplus", "silu", "tanh", "relu", "logaddexp", "sign", "abs"]
)
@pytest.mark.parametrize("x", [-1e6, -800.0, -40.0, 0.0, 40.0, 800.0, 1e6])
def test_functions_of_numbers_reach_as_far_as_those_of_tensors(function, x):
    args = (Number(Fraction(x)),) * (2 if function == "logaddexp" else 1)
    found = eval(Printer(lambda _: Code("", ())).print(Call(function, args)).text)
    numbers = (torch.tensor(x, dtype=torch.float64),) * len(args)
    owner = functional if hasattr(functional, function) and function not in ("sigmoid", "tanh", "relu") else torch
    expected = getattr(owner, function)(*numbers).item()
    # PyTorch's softplus is the identity from 20 on.
    assert found == pytest.approx(expected, rel=1e-14, abs=1e-300)


def test_letters_of_dims_are_their_own_where_that_can_be():
    assert letters_of(("K", "V")) == {"K": "k", "V": "v"}
    assert letters_of(("K", "K2", "Key")) == {"K": "k", "K2": "a", "Key": "e"}
    assert letters_of(("D", "d", "DD")) == {"D": "d", "d": "a", "DD": "b"}


def test_a_function_without_a_printer_is_a_bug_of_flagen():
    with pytest.raises(InternalError, match="no gamma"):
        Printer(lambda _: Code("x", (), "token")).print(Call("gamma", (NAMES["s"],)))
