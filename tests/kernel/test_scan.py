"""Kernels of elementwise scans: what they are as data, and that mistakes in them are refused."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import fields, is_dataclass, replace
from functools import partial
from typing import Any

import pytest
from gmpy2 import mpq

from flagen import pipeline
from flagen.diagnostics import InternalError
from flagen.kernel.check import check
from flagen.kernel.elementary import Elementary
from flagen.kernel.ir import (
    Access,
    Add,
    Array,
    FirstBlock,
    Given,
    If,
    Index,
    Let,
    Load,
    Loop,
    Program,
    Store,
    statements_in,
)
from flagen.kernel.passes import live, values_of
from flagen.kernel.prove import prove_chunk
from flagen.kernel.registers import Lanes, Registers
from flagen.kernel.sizes import Illegal, Sizes
from flagen.kernel.tile_values import TileValues
from flagen.plan.rows import TOKEN
from flagen.plan.scan_kernel import MAX_WINDOW
from flagen.plan.tiles import Arithmetic, Constant, Edge, Masked, Negative, Product, Scan, Shifted, Spread, Sum, Value
from flagen.spec import parse_spec
from tests.kernel.scans import CASES, of
from tests.kernel.trial import noted, tried
from tests.tiers import exhaustive


def prove(name: str, *, chunk: Program | None = None, chunk_backward: Program | None = None) -> None:
    programs = of(name)
    forward, backward = chunk or programs.chunk, chunk_backward or programs.chunk_backward
    assert forward is not None and backward is not None
    prove_chunk(programs.spec, forward, backward)


# ---------------------------------------------------------------------------------------------------------- as they are


@pytest.mark.parametrize("name", CASES)
def test_they_are_proved(name):
    prove(name)


def test_what_the_forward_keeps_the_backward_takes():
    programs = of("rwkv4")
    forward, backward = (
        [array.name for array in program.kernels[0].arrays if array.life == "residual"]
        for program in (programs.chunk, programs.chunk_backward)
    )
    assert forward == backward == ["z_kept", "p_kept"]


def test_nothing_that_is_made_goes_unused():
    """But for what another chunk takes, or a launch."""
    for name in CASES:
        for program in (of(name).chunk, of(name).chunk_backward):
            (kernel,) = program.kernels
            body = next((s.body for s in kernel.body if isinstance(s, Loop)), kernel.body)
            lets = [statement for statement in body if isinstance(statement, Let)]
            handed_on = [let.target for let in lets if isinstance(let.value, Edge) or let.target.endswith("_first")]
            totals = [statement.target for statement in body if isinstance(statement, Add)]
            assert live(body, [*handed_on, *totals]) == body


def test_what_nobody_reads_is_left_out():
    x, y = Value("x", "local", ()), Value("y", "local", ())
    body = (Let("a", x), Let("b", y), Add("c", y, ()), Let("a", y), Add("d", Value("a", "local", ()), ()))
    assert live(body, ["d"]) == (Let("a", y), Add("d", Value("a", "local", ()), ()))
    assert live(body, []) == ()


# ------------------------------------------------------------------------------------------------------------- mistakes


def changed(node: Any, change: Callable[[Any], Any]) -> Any:
    """`node` with every part changed; parts that become None are gone."""
    if isinstance(node, tuple):
        parts = [changed(part, change) for part in node]
        return tuple(part for part, was in zip(parts, node, strict=True) if part is not None or was is None)
    if is_dataclass(node) and not isinstance(node, Index):
        node = replace(node, **{f.name: changed(getattr(node, f.name), change) for f in fields(node)})
    return change(node)


def refused(name: str, which: str, change: Callable[[Any], Any]) -> str:
    """What the proof says of a kernel with a mistake."""
    program = getattr(of(name), which)
    (kernel,) = program.kernels
    body = changed(kernel.body, change)
    assert body != kernel.body, "no such mistake can be made"
    with pytest.raises(InternalError) as error:
        prove(name, **{which: replace(program, kernels=(replace(kernel, body=body),))})
    return str(error.value)


def on(kind: type, change: Callable[[Any], Any]) -> Callable[[Any], Any]:
    return lambda node: change(node) if isinstance(node, kind) else node


def no_carry(node):
    """The next chunk starts where this one did."""
    return None if isinstance(node, Let) and isinstance(node.value, Edge) else node


def everywhere(node):
    """Tokens of the next sequence are taken along."""
    return replace(node, within=tuple(axis for axis in node.within if axis != TOKEN))


def first_row(node):
    return replace(node, at=tuple(Index("chunk", 0) if index.space == "chunk" else index for index in node.at))


def unmasked(fill):
    """Padding of the last chunk is what it happens to be."""
    return on(Masked, lambda node: node.value if (node.dim, node.fill) == (TOKEN, fill) else node)


def from_nothing(node):
    return replace(node, first=Spread(Constant(0.0), node.first.dims))


STORED_BEYOND = on(Store, lambda node: replace(node, target=everywhere(node.target)) if node.target.rows else node)
LOADED_BEYOND = on(Load, lambda node: replace(node, source=everywhere(node.source)) if node.source.rows else node)

BOTH = {
    "nothing is handed on": no_carry,
    "the other end is handed on": on(Edge, lambda node: replace(node, reverse=not node.reverse)),
    "each chunk starts from nothing": on(Scan, from_nothing),
    "scans go the other way": on(Scan, lambda node: replace(node, reverse=not node.reverse)),
    "factors and terms are swapped": on(Scan, lambda node: replace(node, factor=node.term, term=node.factor)),
    "rows are shifted the other way": on(Shifted, lambda node: replace(node, reverse=not node.reverse)),
    "rows are not shifted": on(Shifted, lambda node: node.value),
    "nothing comes before the first row": on(Shifted, from_nothing),
    "padding is no neutral element": unmasked(1.0),
    "tokens beyond the sequence are stored": STORED_BEYOND,
    "tokens beyond the sequence are loaded": LOADED_BEYOND,
    "chunks come in the other order": on(Loop, lambda node: replace(node, reverse=not node.reverse)),
    "all chunks have one row": on(Access, first_row),
}
FORWARD = {
    **BOTH,
    "padding writes to the state": unmasked(float("-inf")),
    "the state after a chunk is kept": lambda node: kept_last(node) if isinstance(node, Loop) else node,
    "keeping is not asked for": on(If, lambda node: node.then[0] if keeps(node) else node),
}
BACKWARD = {
    **BOTH,
    "padding is summed": unmasked(0.0),
    "sums are those of one chunk": on(Add, lambda node: Let(node.target, Spread(node.value, node.dims))),
    "sums are not made": on(Add, lambda _: None),
    "the gradient of the last state is forgotten": on(If, lambda node: node.then[0] if node.otherwise else node),
    "a gradient is stored that is not asked for": on(If, lambda node: node if node.otherwise else node.then[0]),
}


def keeps(node):
    return any(isinstance(condition, Given) and condition.array.life == "residual" for condition in node.conditions)


def kept_last(loop):
    keeping = tuple(node for node in loop.body if isinstance(node, If) and keeps(node))
    return replace(loop, body=(*(node for node in loop.body if node not in keeping), *keeping))


@pytest.mark.parametrize("mistake", FORWARD)
def test_a_mistake_in_the_forward_is_refused(mistake):
    assert "chunk_rwkv4" in refused("rwkv4", "chunk", FORWARD[mistake])


TURNS = {
    "whole turns are kept": on(
        Scan,
        lambda node: (
            replace(node, combine="affine", factor=Spread(Constant(1.0), node.dims)) if node.factor is None else node
        ),
    ),
    "turns start from nothing": on(Scan, lambda node: from_nothing(node) if node.factor is None else node),
    "turns go the other way": on(
        Scan, lambda node: replace(node, reverse=not node.reverse) if node.factor is None else node
    ),
    "nothing is turned": on(
        Scan, lambda node: replace(node, term=Spread(Constant(0.0), node.dims)) if node.factor is None else node
    ),
}


@pytest.mark.parametrize("which", ["chunk", "chunk_backward"])
@pytest.mark.parametrize("mistake", TURNS)
def test_a_mistake_in_turns_is_refused(mistake, which):
    assert "turning" in refused("turning", which, TURNS[mistake])


SHIFTS = {
    "rows are not shifted": ("chunk", on(Shifted, lambda node: node.value if len(node.dims) > 1 else node)),
    "the row that pads the chunk is handed on": (
        "chunk",
        on(Sum, lambda node: Edge(node.value.factors[1], TOKEN, False, node.dims) if node.dim == TOKEN else node),
    ),
    "the last row is handed on again": ("chunk", on(Sum, lambda node: Product((Constant(2.0), node), node.dims))),
    "the gradient of the last row is lost": (
        "chunk_backward",
        on(Product, lambda node: Constant(0.0) if isinstance(node.factors[0], Spread) else node),
    ),
    "gradients are not shifted": (
        "chunk_backward",
        on(Shifted, lambda node: node.value if node.reverse and len(node.dims) > 1 else node),
    ),
}


@pytest.mark.parametrize("mistake", SHIFTS)
def test_a_mistake_in_a_shift_is_refused(mistake):
    which, change = SHIFTS[mistake]
    assert "shifted" in refused("shifted", which, change)


def test_a_shift_scans_nothing():
    programs = of("shifted")
    for program, scanned in ((programs.chunk, {"z"}), (programs.chunk_backward, {"z", "dz_before"})):
        (kernel,) = program.kernels
        lets = [s for s in statements_in(kernel.body) if isinstance(s, Let)]
        assert {let.target for let in lets if isinstance(let.value, Scan)} == scanned


@pytest.mark.parametrize(("tokens", "run"), [(MAX_WINDOW, "stretch"), (MAX_WINDOW + 1, "sequence")])
def test_a_long_window_is_walked(tokens, run):
    """What is evaluated again grows with the square of its length."""
    text = f"""
        flagen: 2
        name: far
        state: {{c: [K]}}
        inputs: {{x: [K]}}
        update: c = x
        output: o = c_prev + prev(x, {tokens})
    """
    spec = parse_spec(text, "far.yaml")
    programs = pipeline.lower(pipeline.make_plan(spec, pipeline.derive(spec)))
    assert [program.kernels[0].run for program in (programs.chunk, programs.chunk_backward)] == [run, run]
    prove_chunk(spec, programs.chunk, programs.chunk_backward)


def test_a_window_walks_nothing():
    programs = of("window")
    for program in (programs.chunk, programs.chunk_backward):
        (kernel,) = program.kernels
        assert kernel.run == "stretch"
        assert not [tile for tile in values_of(kernel.body) if isinstance(tile, Scan | Shifted | Edge)]
        assert not [statement for statement in statements_in(kernel.body) if isinstance(statement, Loop)]


@pytest.mark.parametrize("mistake", BACKWARD)
def test_a_mistake_in_the_backward_is_refused(mistake):
    assert "chunk_rwkv4" in refused("rwkv4", "chunk_backward", BACKWARD[mistake])


def test_what_all_blocks_have_is_stored_by_one_and_counted_once():
    def alone(node):
        return replace(node, conditions=tuple(c for c in node.conditions if not isinstance(c, FirstBlock)))

    assert "two programs" in refused("count", "chunk", on(If, alone))
    told = refused("count", "chunk_backward", on(Load, lambda node: replace(node, once=False)))
    assert "is not the recurrence's derivative" in told


@pytest.mark.parametrize("step", [pytest.param(1, marks=exhaustive, id="all"), pytest.param(97, id="some")])
@pytest.mark.parametrize("name", CASES)
def test_mistakes_are_refused(name, step, record_property):
    programs = of(name)
    prove = partial(prove_chunk, programs.spec)
    assert noted(tried((programs.chunk, programs.chunk_backward), prove, step), record_property) == []


# ------------------------------------------------------------------------------------------------------------ execution


@pytest.mark.parametrize("lengths", [(1, 1, 1), (4, 4), (0, 5, 0, 3), (7, 2, 9, 4), (3, 0, 0, 2)])
@pytest.mark.parametrize("chunk", [1, 2, 3, 4])
def test_no_two_chunks_have_one_row(lengths, chunk):
    sizes = Sizes(lengths, 1, 1, {}, {TOKEN: chunk}, {}, 1)
    starts = [(n, at) for n, first in enumerate(sizes.borders[:-1]) for at in range(first, first + lengths[n], chunk)]
    rows = [sizes.chunk_at(sequence, start) for sequence, start in starts]
    array = Array("kept", ("chunk",))
    assert len(set(rows)) == len(rows) and max(rows) < sizes.extents(array, None)[0]


def registers(chunk: range | None) -> Registers:
    """Two tokens of three lanes, and two indices of K."""
    sizes = Sizes((2,), 1, 1, {"K": 2}, {TOKEN: 3, "K": 2}, {}, 1)
    return Registers((TOKEN, "K"), None, sizes, Elementary(random.Random(0)), {}, at={"block": 0}, chunk=chunk)


QUARTERS = Arithmetic("/", Value("x", "local", (TOKEN, "K")), Constant(4.0), (TOKEN, "K"))
X, START = Value("x", "local", (TOKEN, "K")), Value("start", "local", ("K",))
LESS = Negative(X, X.dims)


def evaluated(tile):
    held = registers(range(4, 6))
    held.values = {
        "x": Lanes(X.dims, [mpq(n) for n in (1, 2, 3, 4, 5, 6)]),
        "start": Lanes(START.dims, [mpq(10), mpq(20)]),
    }
    return TileValues(held).value(tile).data


@pytest.mark.parametrize(
    ("tile", "expected"),
    [
        (Shifted(X, START, TOKEN, False, X.dims), [10, 20, 1, 2, 3, 4]),
        (Shifted(X, START, TOKEN, True, X.dims), [3, 4, 5, 6, 10, 20]),
        (Edge(X, TOKEN, False, START.dims), [5, 6]),
        (Edge(X, TOKEN, True, START.dims), [1, 2]),
        (Spread(START, X.dims), [10, 20, 10, 20, 10, 20]),
        (Masked(X, TOKEN, 0.0, X.dims), [1, 2, 3, 4, 0, 0]),
        (Sum(X, TOKEN, ("K",)), [9, 12]),
        (Scan("affine", X, X, START, TOKEN, False, X.dims), [11, 42, 36, 172, 185, 1038]),
        (Scan("affine", X, X, START, TOKEN, True, X.dims), [169, 1018, 168, 508, 55, 126]),
        (Scan("maximum", LESS, X, START, TOKEN, False, X.dims), [9, 18, 6, 14, 5, 8]),
        (Scan("maximum", LESS, X, START, TOKEN, True, X.dims), [2, 8, 3, 10, 5, 14]),
        (Scan("phase", None, QUARTERS, START, TOKEN, False, X.dims), [0.25, 0.5, 0, 0.5, 0.25, 0]),
        (Scan("phase", None, QUARTERS, START, TOKEN, True, X.dims), [0.25, 0, 0, 0.5, 0.25, 0.5]),
    ],
)
def test_what_is_done_with_rows(tile, expected):
    assert evaluated(tile) == expected


def test_rows_are_those_of_a_chunk():
    with pytest.raises(Illegal, match="no chunk here"):
        registers(None).first(TOKEN)
    with pytest.raises(Illegal, match="rows along K"):
        evaluated(Scan("affine", X, X, Value("start", "local", ("K",)), "K", False, X.dims))
    with pytest.raises(Illegal, match="has to be over"):
        evaluated(Scan("affine", START, X, START, TOKEN, False, X.dims))


def test_tiles_of_rows_are_checked_where_kernels_are_made():
    kernel = of("hgrn").chunk.kernels[0]
    for wrong in (
        Scan("affine", START, X, START, TOKEN, False, X.dims),
        Scan("affine", X, X, X, TOKEN, False, X.dims),
        Scan("phase", None, START, START, TOKEN, False, X.dims),
        Shifted(X, START, "K", False, X.dims),
        Edge(X, "K", False, START.dims),
    ):
        with pytest.raises(InternalError, match="along"):
            check(replace(kernel, order=X.dims, body=(Let("y", wrong),)))
    for kind, factor, reason in (("phase", X, "a phase scan with a factor"), ("affine", None, "without a factor")):
        with pytest.raises(InternalError, match=reason):
            scan = Scan(kind, factor, X, START, TOKEN, False, X.dims)
            check(replace(kernel, order=X.dims, body=(Let("y", scan),)))
