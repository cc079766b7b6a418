"""Transposed expressions against PyTorch's autograd, at smooth points and at kinks."""

from __future__ import annotations

import math
from collections.abc import Mapping
from fractions import Fraction

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from flagen.diagnostics import InternalError
from flagen.functions import FUNCTIONS as LANGUAGE
from flagen.plan.gradients import Transposition
from flagen.plan.lowering import Lowering
from flagen.plan.tiles import (
    Along,
    Arithmetic,
    Constant,
    Function,
    Head,
    Lane,
    Masked,
    MatMul,
    Negative,
    Normalize,
    OfAngles,
    OfPairs,
    Once,
    Paired,
    Product,
    Rotated,
    Size,
    StateTile,
    Sum,
    Tile,
    Value,
    Widened,
    tiles_in,
)
from flagen.spec import parse_spec
from flagen.spec.model import Dims

torch.set_num_threads(1)

ORDER = ("token", "K", "K2", "R", "K_R", "V")
SIZES = {"token": 3, "K": 5, "K2": 5, "R": 3, "K_R": 15, "V": 4}
REAL = {"token": 3, "K": 4, "K2": 4, "R": 1, "K_R": 15, "V": 4}
"""What of each axis is no padding."""

x, y = (Value(name, "input", ("K",)) for name in "xy")
a = Value("a", "input", ())
p = Value("p", "param", ())
S = StateTile("S", False, ("K", "V"))
rows = Value("rows", "input", ("token", "K"))
each = Value("each", "input", ("token",))
v = Value("v", "input", ("V",))
phi = Value("phi", "input", ("R",))
phis = Value("phis", "input", ("token", "R"))


def l2norm(x: Tensor) -> Tensor:
    return x * torch.rsqrt((x * x).sum(-1, keepdim=True) + 1e-6)


FUNCTIONS = {
    "exp2": torch.exp2,
    "square": torch.square,
    "power": torch.pow,
    "softplus": functional.softplus,
    "silu": functional.silu,
    "logsigmoid": functional.logsigmoid,
    "relu": torch.relu,
    "clamp": lambda value, low, high: torch.minimum(torch.maximum(value, low), high),
    "fraction": lambda x: x - x.floor(),
    "part_of": lambda x, y: torch.sigmoid(x - y),
    "power_slope": lambda x, y: torch.where(y == 0, 0, y * x ** (y - 1)),
    "exponent_slope": lambda x, y: torch.where((x == 0) & (y >= 0), 0, x**y * x.log()),
}


def spread(tensor: Tensor, dims: Dims, over: Dims) -> Tensor:
    """`tensor` over `dims` as one over `over`, where what it lacks has one element."""
    for place, dim in enumerate(over):
        if dim not in dims:
            tensor = tensor.unsqueeze(place)
    return tensor


def evaluate(tile: Tile, names: Mapping[str, Tensor]) -> Tensor:
    """`tile` as PyTorch computes it."""

    def over(part: Tile) -> Tensor:
        return spread(evaluate(part, names), part.dims, tile.dims)

    match tile:
        case Constant(number):
            return torch.tensor(float(number), dtype=torch.float64)
        case Size(name):
            return torch.tensor(float(REAL[name]), dtype=torch.float64)
        case Value(name) | StateTile(name):
            return names[name]
        case Negative(value) | Once(value):
            return -over(value) if isinstance(tile, Negative) else over(value)
        case Product(factors):
            return math.prod(map(over, factors))
        case Arithmetic(op, left, right):
            return {"+": torch.add, "-": torch.sub, "/": torch.div}[op](over(left), over(right))
        case Function("minimum" | "maximum" as name, (left, right)) if isinstance(right, Constant):
            return over(left).clamp(**{"max" if name == "minimum" else "min": float(right.value)})
        case Function(name, args):
            return FUNCTIONS.get(name, getattr(torch, name, None))(*torch.broadcast_tensors(*map(over, args)))
        case Sum(value, dim):
            return evaluate(value, names).sum(value.dims.index(dim))
        case MatMul(left, right, dim):
            sides = [evaluate(side, names) for side in (left, right)]
            letters = ["".join(d[0] for d in side) for side in (left.dims, right.dims, tile.dims)]
            return torch.einsum(f"{letters[0]},{letters[1]}->{letters[2]}", *sides)
        case Normalize("l2norm", value):
            return l2norm(evaluate(value, names))
        case Normalize(_, value):
            return torch.softmax(evaluate(value, names), dim=-1)
        case Rotated(value, angle, half=half):
            lies = (*(dim for dim in tile.dims if dim != tile.channel), tile.pair)
            turned, by = over(value), spread(evaluate(angle, names), angle.dims, lies)
            return rotated(turned.expand([SIZES[dim] for dim in tile.dims]), by, half=half)
        case OfAngles(gradient, turned, half=half):
            lies = (*(dim for dim in tile.dims if dim != tile.pair), turned.dims[-1])
            sides = (spread(evaluate(part, names), part.dims, lies) for part in (gradient, turned))
            return of_angles(*sides, half=half)
        case Paired(left, right, (*lead, _)):
            sides = [spread(evaluate(side, names), side.dims, (*lead, side.dims[-1])) for side in (left, right)]
            return (sides[0][..., :, None] * sides[1][..., None, :]).flatten(-2)
        case OfPairs(gradient, other, second, (*lead, _)):
            lies = [spread(evaluate(part, names), part.dims, (*lead, part.dims[-1])) for part in (gradient, other)]
            pairs = lies[0].unflatten(-1, (SIZES["K"], SIZES["R"]))
            return torch.einsum("...kr,...r->...k" if second else "...kr,...k->...r", pairs, lies[1])
        case Along(value) | Widened(value):
            return evaluate(value, names)
        case Lane(axis):
            return torch.arange(SIZES[axis], dtype=torch.float64)
        case Masked(value, dim, fill):
            mask = spread(torch.arange(SIZES[dim]) < REAL[dim], (dim,), tile.dims)
            return torch.where(mask, over(value), fill)
    raise AssertionError(tile)


def channels(pair: int, *, half: bool) -> list[int]:
    return [pair, pair + REAL["K"] // 2] if half else [2 * pair, 2 * pair + 1]


def rotated(x: Tensor, angle: Tensor, *, half: bool) -> Tensor:
    """Lanes beyond the ends have neither partners nor angles."""
    for pair in range(REAL["R"]):
        cos, sin = angle[..., pair].cos(), angle[..., pair].sin()
        first, second = (x[..., place] for place in channels(pair, half=half))
        turned = (first * cos - second * sin, first * sin + second * cos)
        lanes = dict(zip(channels(pair, half=half), turned, strict=True))
        x = torch.stack(torch.broadcast_tensors(*(lanes.get(i, x[..., i]) for i in range(x.shape[-1]))), -1)
    return x


def of_angles(gradient: Tensor, x: Tensor, *, half: bool) -> Tensor:
    found = []
    for pair in range(REAL["R"]):
        i, j = channels(pair, half=half)
        found.append(x[..., i] * gradient[..., j] - x[..., j] * gradient[..., i])
    return functional.pad(torch.stack(found, -1), (0, SIZES["R"] - len(found)))


def turned(value: Tile, angle: Tile, *, half: bool = False) -> Tile:
    dims = tuple(dim for dim in ORDER if dim in {*value.dims, *angle.dims} - {"R"})
    return Rotated(value, angle, Size("K"), Size("R"), half, dims)


def of(function: str, *args: Tile) -> Function:
    return Function(function, args, max((arg.dims for arg in args), key=len))


def check(tile: Tile, **names: Tensor) -> None:
    """The transposed `tile` gives what autograd does, for a random gradient."""
    generator = torch.Generator().manual_seed(0)

    def normal(dims: Dims) -> Tensor:
        return torch.randn([SIZES[dim] for dim in dims], generator=generator, dtype=torch.float64)

    leaves = {part.name: part for part in tiles_in(tile) if isinstance(part, Value | StateTile)}
    points = {name: names.get(name, normal(leaf.dims)).requires_grad_() for name, leaf in leaves.items()}
    incoming = normal(tile.dims)
    expected = torch.autograd.grad((evaluate(tile, points) * incoming).sum(), list(points.values()))
    transposed = Transposition(ORDER)(tile, Value("incoming", "local", tile.dims))
    assert [leaf for leaf, _ in transposed] == list(leaves.values())
    for (leaf, gradient), wanted in zip(transposed, expected, strict=True):
        got = evaluate(gradient, points | {"incoming": incoming})
        got = spread(got, gradient.dims, leaf.dims).expand(wanted.shape)
        torch.testing.assert_close(got, wanted, rtol=1e-12, atol=1e-12)


def at(*numbers: float) -> Tensor:
    return torch.tensor(numbers, dtype=torch.float64)


POSITIVE = at(0.1, 0.7, 1.0, 3.0, 40.0)
AROUND_ZERO = at(-1.5, -0.3, 0.0, 0.4, 2.0)
ONE_ARGUMENT = [name for name, row in LANGUAGE.items() if len(row.arguments) == 1]


@pytest.mark.parametrize("name", [*ONE_ARGUMENT, "exp2", "square"])
def test_functions(name):
    check(of(name, x), x=POSITIVE)
    check(of(name, of("exp", x)))


@pytest.mark.parametrize("name", ["abs", "sign", "relu", "tanh", "silu", "softplus", "sigmoid", "logsigmoid", "expm1"])
def test_functions_around_zero(name):
    check(of(name, x), x=AROUND_ZERO)


@pytest.mark.parametrize("name", ["minimum", "maximum", "logaddexp", "power"])
def test_functions_of_two(name):
    check(of(name, of("exp", x), y))
    check(of(name, x, a), x=POSITIVE)
    check(of(name, x, y), x=at(0.5, 1, 2, 3, 4), y=at(0.5, 2, 1, 3, 4))


def test_powers_of_zero():
    check(of("power", x, y), x=at(0, 0, 2, 1, 3), y=at(2, 1, 0, 0, -1))
    check(of("power", x, Constant(Fraction(3))), x=AROUND_ZERO)
    check(of("power", x, Constant(Fraction(0))), x=AROUND_ZERO)


@pytest.mark.parametrize("name", ["minimum", "maximum"])
def test_a_bound_that_is_a_number_takes_no_gradient(name):
    check(of(name, x, Constant(Fraction(2, 5))), x=at(-1, 0.4, 0.4, 0.5, 0.3))


def test_clamp_is_what_its_two_bounds_are():
    check(of("clamp", x, y, a), x=at(-3, 0, 1, 2, 5), y=at(-4, 0, 2, 1, 1), a=at(2)[0])


def test_a_number_is_known_by_its_name():
    transposition = Transposition(ORDER, frozenset({"p"}), frozenset({"p"}))
    ((leaf, gradient),) = transposition(of("minimum", x, p), Value("incoming", "local", ("K",)))
    assert leaf == x
    names = {"x": at(1, 2, 3, 2, 2), "p": at(2)[0], "incoming": torch.ones(5).double()}
    assert evaluate(gradient, names).tolist() == [1, 1, 0, 1, 1]


def test_what_is_fixed_gets_no_gradient():
    transposition = Transposition(ORDER, frozenset({"p"}))
    assert [leaf for leaf, _ in transposition(Product((p, x, Head()), ("K",)), x)] == [x]
    assert not transposition.reaches(p)


@pytest.mark.parametrize(
    "tile",
    [
        Negative(x, ("K",)),
        Product((x, x, a), ("K",)),
        Product((a, S, Product((x, y), ("K",)), v), ("K", "V")),
        Product((each, Product((rows, rows), ("token", "K"))), ("token", "K")),
        Arithmetic("+", x, a, ("K",)),
        Arithmetic("-", S, Product((x, v), ("K", "V")), ("K", "V")),
        Arithmetic("/", x, of("exp", y), ("K",)),
        Arithmetic("/", a, of("exp", S), ("K", "V")),
        Sum(Product((x, S), ("K", "V")), "K", ("V",)),
        Sum(Arithmetic("+", x, y, ("K",)), "K", ()),
        Product((Sum(x, "K", ()), x), ("K",)),
        MatMul(Value("R", "local", ("token", "V")), S, "V", ("token", "K")),
        MatMul(S, Value("R", "local", ("token", "V")), "V", ("K", "token")),
        Once(x, ("K",)),
        turned(x, phi),
        turned(x, phi, half=True),
        turned(Product((x, a), ("K",)), Negative(phi, ("R",))),
        turned(rows, phis),
        turned(rows, phi, half=True),
        turned(x, phis),
        turned(turned(x, phi), phi, half=True),
        Product((v, Sum(Masked(turned(x, phi), "K", 0.0, ("K",)), "K", ())), ("V",)),
        Sum(Product((turned(x, phi), S), ("K", "V")), "K", ("V",)),
        Paired(x, phi, ("K_R",)),
        Paired(Product((x, a), ("K",)), Negative(of("exp", phi), ("R",)), ("K_R",)),
        Paired(rows, phis, ("token", "K_R")),
        Paired(rows, phi, ("token", "K_R")),
        Sum(Product((Paired(x, phis, ("token", "K_R")), each), ("token", "K_R")), "K_R", ("token",)),
        Along(Product((x, x), ("K",)), ("K2",)),
        Product((Along(x, ("K2",)), Sum(x, "K", ()), a), ("K2",)),
        Product((Along(rows, ("token", "K2")), Along(each, ("token",))), ("token", "K2")),
        Product((x, Widened(Lane("K", ("K",)), ("K",))), ("K",)),
        Normalize("l2norm", x, ("K",)),
        Normalize("softmax", Product((x, a), ("K",)), ("K",)),
        Product((each, Normalize("l2norm", rows, ("token", "K"))), ("token", "K")),
        Product((rows, Normalize("softmax", rows, ("token", "K"))), ("token", "K")),
        Masked(of("exp", x), "K", 0.0, ("K",)),
        Masked(each, "K", 1.0, ("token", "K")),
        Sum(Masked(of("exp", Product((x, a), ("K",))), "K", 0.0, ("K",)), "K", ()),
        of("sqrt", Sum(Masked(of("square", rows), "K", 0.0, ("token", "K")), "K", ("token",))),
    ],
    ids=repr,
)
def test_nodes(tile):
    check(tile)


def test_a_dim_along_which_the_gradient_is_the_same():
    """A sum spreads its gradient over what it summed; a name without that dim gets it as often as there are lanes."""
    real = {name: torch.randn(REAL["K"], dtype=torch.float64) for name in "xy"}
    tile = Sum(Arithmetic("+", x, a, ("K",)), "K", ())
    gradients = dict(Transposition(ORDER)(tile, Value("incoming", "local", ())))
    assert evaluate(gradients[a], real | {"incoming": at(2.0)[0]}) == 2 * REAL["K"]
    assert evaluate(gradients[x], real | {"incoming": at(2.0)[0]}) == 2


def test_the_norm_of_nothing_has_no_gradient():
    tile = of("sqrt", Sum(of("square", x), "K", ()))
    ((_, gradient),) = Transposition(ORDER)(tile, a)
    assert evaluate(gradient, {"x": torch.zeros(5).double(), "a": at(3.0)[0]}).tolist() == [0] * 5


def test_sums_are_taken_of_vectors():
    """Sums move past what they do not run over, so that no product of two vectors is ever built to be summed."""
    tile = Product((a, x, v), ("K", "V"))
    gradients = dict(Transposition(ORDER)(tile, Product((x, v), ("K", "V"))))
    assert all(len(part.dims) < 2 for part in tiles_in(gradients[a]))


def test_an_expression_of_a_spec():
    spec = parse_spec(
        "flagen: 1\nname: example\nstate: {S: [K, V]}\n"
        "inputs: {q: [K], k: [K], v: {dims: [V], heads: HV}, dt: [], b: []}\nparams: {A: {per: head}}\n"
        "let: {g: -exp(A) * softplus(dt + b), kk: l2norm(silu(k)) * sigmoid(b) ** 1.5 + norm(k) * q}\n"
        "update: S = exp(g) * S + outer(kk, v)\noutput: o = S.T @ q\n"
    )
    for decl in spec.derived:
        check(Lowering(("K", "V"))(decl.value))


def test_what_it_does_not_know_is_an_error():
    with pytest.raises(InternalError, match="no derivative for the function sinc"):
        Transposition(ORDER)(of("sinc", x), x)
