"""Tiles as Triton source: every node, every function, and the errors for what is neither."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import get_args

import pytest

from flagen.backends.triton_.axes import Axes
from flagen.backends.triton_.device import FUNCTIONS
from flagen.backends.triton_.printer import Printer, literal
from flagen.diagnostics import InternalError
from flagen.functions import FUNCTIONS as LANGUAGE
from flagen.plan.tiles import (
    Along,
    Arithmetic,
    AtLeast,
    Both,
    Call,
    Compare,
    Constant,
    Coordinate,
    Cumulative,
    Dot,
    Edge,
    Either,
    Function,
    Head,
    InSequence,
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
    Rounded,
    Scan,
    Select,
    Shifted,
    Size,
    Spread,
    StateTile,
    Sum,
    Tile,
    Value,
    Whole,
    Widened,
)

KV = ("K", "V")
S = StateTile("S", False, KV)
R = Value("R", "local", ("V", "P"))
k = Value("k", "input", ("K",))
v = Value("v", "input", ("V",))
c = Value("c", "param", ())
rows = Value("x", "local", ("token", "K"))
turns = Value("turns", "local", ("token", "V"))
first = Value("x_first", "local", ("K",))
LANES = Lane("token", ("token",))
EARLY = Compare("<", LANES, Whole(3), ("token",))
TWO, HALF = Constant(Fraction(2)), Constant(Fraction(1, 2))

EXPECTED: list[tuple[Tile, str]] = [
    (TWO, "2.0"),
    (Constant(Fraction(-1, 8)), "-0.125"),
    (Constant(-math.inf), 'float("-inf")'),
    (Size("K"), "K"),
    (Head(), "head"),
    (k, "k"),
    (S, "S"),
    (StateTile("S", True, KV), "S_prev"),
    (Negative(k, ("K",)), "-k"),
    (Negative(Arithmetic("+", k, c, ("K",)), ("K",)), "-(k + c)"),
    (Product((c, k), ("K",)), "c * k"),
    (Product((k, v), KV), "k[:, None] * v[None, :]"),
    (Product((k, Product((c, v), ("V",))), KV), "k[:, None] * (c * v)[None, :]"),
    (Product((S, Arithmetic("-", k, c, ("K",))), KV), "S * (k - c)[:, None]"),
    (Product((Negative(c, ()), k), ("K",)), "-c * k"),
    (Arithmetic("-", S, Product((k, v), KV), KV), "S - k[:, None] * v[None, :]"),
    (Arithmetic("-", k, Arithmetic("-", k, c, ("K",)), ("K",)), "k - (k - c)"),
    (Arithmetic("/", S, v, KV), "S / v[None, :]"),
    (Arithmetic("/", k, Product((c, c), ()), ("K",)), "k / (c * c)"),
    (Arithmetic("+", S, TWO, KV), "S + 2.0"),
    (Arithmetic("**", Size("K"), Constant(Fraction(-1, 2)), ()), "K ** -0.5"),
    (Function("exp", (k,), ("K",)), "tl.exp(k)"),
    (Function("square", (k,), ("K",)), "k * k"),
    (Function("square", (Negative(k, ("K",)),), ("K",)), "_square(-k)"),
    (Function("power", (k, TWO), ("K",)), "_power(k, tl.full((), 2.0, tl.float32))"),
    (Function("clamp", (k, Constant(Fraction(0)), Size("K")), ("K",)), "clamp(k, 0.0, K)"),
    (Function("minimum", (TWO, k), ("K",)), "minimum(2.0, k)"),
    (
        Function("minimum", (Size("K"), Size("V")), ()),
        "minimum(tl.full((), K, tl.float32), tl.full((), V, tl.float32))",
    ),
    (Function("sqrt", (Size("K"),), ()), "tl.sqrt(tl.full((), K, tl.float32))"),
    (Sum(Product((S, k), KV), "K", ("V",)), "tl.sum(S * k[:, None], axis=0)"),
    (Sum(Product((S, v), KV), "V", ("K",)), "tl.sum(S * v[None, :], axis=1)"),
    (Sum(k, "K", ()), "tl.sum(k, axis=0)"),
    (MatMul(S, R, "V", ("K", "P")), 'tl.dot(S, R, input_precision="ieee")'),
    (
        MatMul(StateTile("S", False, ("V", "K")), Value("R", "local", ("P", "V")), "V", ("K", "P")),
        'tl.dot(tl.trans(S), tl.trans(R), input_precision="ieee")',
    ),
    (Normalize("l2norm", k, ("K",)), "l2norm(k)"),
    (Masked(k, "K", 0.0, ("K",)), "tl.where(K_mask, k, 0.0)"),
    (Masked(S, "V", -math.inf, KV), 'tl.where(V_mask[None, :], S, float("-inf"))'),
    (Once(v, ("V",)), "tl.where(block == 0, v, 0.0)"),
    (Spread(k, KV), "tl.broadcast_to(k[:, None], (BLOCK_K, BLOCK_V))"),
    (Spread(TWO, rows.dims), "tl.full((CHUNK, BLOCK_K), 2.0, tl.float32)"),
    (
        Scan("affine", rows, Spread(k, rows.dims), first, "token", False, rows.dims),
        "_affine_scan(x, tl.broadcast_to(k[None, :], (CHUNK, BLOCK_K)), x_first[None, :], is_first[:, None])",
    ),
    (
        Scan("affine", rows, rows, first, "token", True, rows.dims),
        "_back_scan(x, x, x_first[None, :], is_last[:, None])",
    ),
    (
        Scan("logaddexp", rows, rows, first, "token", False, rows.dims),
        "_logaddexp_scan(x, x, x_first[None, :], is_first[:, None])",
    ),
    (
        Scan("maximum", rows, rows, first, "token", False, rows.dims),
        "_maximum_scan(x, x, x_first[None, :], is_first[:, None])",
    ),
    (
        Scan("phase", None, rows, first, "token", False, rows.dims),
        "_phase_scan(x, x_first[None, :], is_first[:, None])",
    ),
    (Shifted(rows, first, "token", False, rows.dims), "_row_before(x, x_first[None, :], is_first[:, None])"),
    (Shifted(rows, first, "token", True, rows.dims), "_row_after(x, x_first[None, :], is_last[:, None])"),
    (Edge(rows, "token", False, ("K",)), "_only_row(x, is_last[:, None])"),
    (Edge(rows, "token", True, ("K",)), "_only_row(x, is_first[:, None])"),
    (InSequence("token", 0, ("token",)), "token_mask"),
    (InSequence("token", 2, ("token",)), "token_mask_2_ago"),
    (InSequence("token", -2, ("token",)), "token_mask_in_2"),
    (
        Select(InSequence("start", 0, ("token",)), rows, TWO, rows.dims),
        "tl.where((token == first_token)[:, None], x, 2.0)",
    ),
    (Select(InSequence("end", 0, ("token",)), rows, TWO, rows.dims), "tl.where((token == end_token)[:, None], x, 2.0)"),
    (Whole(3), "3"),
    (Coordinate("block"), "block"),
    (LANES, "token_index"),
    (Compare("<", LANES, Whole(3), ("token",)), "token_index < 3"),
    (Both(EARLY, Compare(">=", LANES, Whole(1), ("token",)), ("token",)), "(token_index < 3) & (token_index >= 1)"),
    (Either(EARLY, EARLY, ("token",)), "(token_index < 3) | (token_index < 3)"),
    (Select(EARLY, rows, TWO, rows.dims), "tl.where((token_index < 3)[:, None], x, 2.0)"),
    (Rounded(Arithmetic("+", k, c, ("K",)), ("K",)), "(k + c).to(dtype)"),
    (Widened(k, ("K",)), "k.to(tl.float32)"),
    (Along(v, ("P",)), "v"),
    (Rotated(k, v, Size("K"), Size("V"), False, ("K",)), "rotate(k, v, K, V)"),
    (Rotated(rows, turns, Size("K"), Size("V"), True, rows.dims), "rotate_half(x, turns, K, V)"),
    (OfAngles(k, Negative(k, ("K",)), Size("K"), Size("V"), True, "V", ("V",)), "of_angles_half(k, -k, K, V, BLOCK_V)"),
    (Paired(k, v, ("K_V",)), "all_pairs(k, v)"),
    (Paired(k, turns, ("token", "K_V")), "all_pairs(tl.broadcast_to(k[None, :], (CHUNK, BLOCK_K)), turns)"),
    (OfPairs(Value("g", "local", ("K_V",)), v, True, ("K",)), "of_first(g, v)"),
    (OfPairs(Value("g", "local", ("K_V",)), k, False, ("V",)), "of_second(g, k)"),
    (OfAngles(rows, rows, Size("K"), Size("V"), False, "V", turns.dims), "of_angles(x, x, K, V, BLOCK_V)"),
    (AtLeast(k, -2.0, ("K",)), "tl.maximum(k, -2.0, propagate_nan=tl.PropagateNan.ALL)"),
    (Cumulative(rows, "token", False, rows.dims), "tl.cumsum(x, axis=0)"),
    (Cumulative(rows, "token", True, rows.dims), "tl.cumsum(x, axis=0, reverse=True)"),
    (Dot(rows, S, "K", None, ("token", "V")), "tl.dot(x, S, input_precision=PRECISION)"),
    (Dot(S, rows, "K", R, ("V", "token")), "tl.dot(tl.trans(S), tl.trans(x), R, input_precision=PRECISION)"),
    (Call("put", (k, Whole(1), Size("MEMBERS")), KV), "put(k, 1, MEMBERS)"),
]


@pytest.mark.parametrize(("tile", "text"), EXPECTED, ids=[text for _, text in EXPECTED])
def test_a_tile_is_printed(tile: Tile, text: str) -> None:
    assert Printer(Axes(("token", "K", "V", "K_V", "P")))(tile) == text


def test_every_kind_of_tile_is_among_them() -> None:
    assert {type(tile) for tile, _ in EXPECTED} == set(get_args(Tile))


@pytest.mark.parametrize("function", LANGUAGE)
def test_every_function_of_the_language_is_printed(function: str) -> None:
    args = (k,) * len(LANGUAGE[function].arguments)
    text = Printer(Axes(KV))(Function(function, args, ("K",)))
    assert text.startswith((f"tl.{function}(k", f"{function}(k"))
    assert text.startswith("tl.") or text.partition("(")[0] in FUNCTIONS["maps"]


def test_what_is_assigned_is_a_tensor() -> None:
    printer = Printer(Axes(KV))
    assert printer.assigned(Arithmetic("/", TWO, Size("K"), ())) == "tl.full((), 2.0 / K, tl.float32)"
    assert printer.assigned(k) == "k"


def test_what_is_not_known_is_an_internal_error() -> None:
    printer = Printer(Axes(KV))
    with pytest.raises(InternalError, match="does not know the function erf"):
        printer(Function("erf", (k,), ("K",)))
    with pytest.raises(InternalError, match="does not know object"):
        printer(object())  # type: ignore[arg-type]
    with pytest.raises(InternalError, match="cannot be spread"):
        printer(Product((S, Value("p", "input", ("P",))), KV))


@pytest.mark.parametrize(
    ("number", "text"),
    [(0.1, "0.1"), (Fraction(1, 3), "0.3333333333333333"), (1e-30, "1e-30"), (math.inf, 'float("inf")'), (-2, "-2.0")],
)
def test_numbers_are_printed_whole(number: Fraction | float, text: str) -> None:
    assert literal(number).text == text


def test_addresses_follow_memory_and_tiles_the_order_of_the_kernel() -> None:
    axes = Axes(("K", "V"))
    assert axes.address("row", ()) == "row"
    assert axes.address("row", ("K",)) == "row * K + K_index"
    assert axes.address("a + b", ("K", "V")) == "(a + b) * (K * V) + K_index[:, None] * V + V_index[None, :]"
    assert axes.address("row", ("V", "K")) == "row * (V * K) + V_index[None, :] * K + K_index[:, None]"
    assert axes.address("", ("V",)) == "V_index"
    assert axes.within(("V", "K")) == "K_mask[:, None] & V_mask[None, :]"
    assert axes.within(()) == ""


def test_names_of_axes_give_way_to_names_of_the_spec() -> None:
    axes = Axes(("K",), frozenset(("K_index", "K_mask", "K_mask_")))
    assert axes.address("row", ("K",)) == "row * K + K_index_"
    assert axes.within(("K",)) == "K_mask__"
