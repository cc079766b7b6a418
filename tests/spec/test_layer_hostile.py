"""No text in the place of a layer is anything but a layer or a diagnostic, and work on it is bounded."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flagen.diagnostics import SpecError
from flagen.spec import check_spec, parse_spec
from tests.spec.layer_specs import OPERATOR, TEXTS
from tests.spec.test_hostile import PIECES
from tests.tiers import examples

LAYER_PIECES = [
    *PIECES,
    *(
        " if ",
        " else ",
        "not ",
        " is ",
        "None",
        "recurrence(",
        "x",
        "layer_idx",
        "y = ",
        "'",
        "**",
        "//",
        "null",
        "true",
    ),
    *("linear(", "heads(", "hidden_size", "1e300", "{value: ", "if: ", "one_of: ", "9 ** 9 ** 9", "shift()", "index"),
]


@st.composite
def mutations(draw: st.DrawFn) -> str:
    """A spec with a layer, with some of the slices of the layer cut out, doubled or replaced."""
    text = draw(st.sampled_from(TEXTS))
    top = text.index("layer:\n")
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(top, len(text)))
        stop = min(len(text), start + draw(st.integers(0, 12)))
        middle = draw(st.one_of(st.sampled_from(LAYER_PIECES), st.just(text[start:stop] * 2), st.just("")))
        text = text[:start] + middle + text[stop:]
    return text


@examples(150)
@given(mutations())
def test_no_slip_in_a_layer_is_anything_but_a_spec_or_a_diagnostic(text: str) -> None:
    try:
        parse_spec(text)
    except SpecError as error:
        assert error.diagnostics
        assert all(char.isprintable() or char in "\t\n" for char in str(error))


WORDS = [
    *(
        "class_name",
        "config",
        "kwargs",
        "dims",
        "attributes",
        "require",
        "params",
        "modules",
        "init",
        "inputs",
        "outputs",
    ),
    *("mask", "cache", "uses", "forward", "default", "shape", "if", "value", "x", "y", "H", "q_proj", "layer_idx"),
]
LEAVES = [
    "",
    "null",
    "1",
    "1.5",
    ".inf",
    "true",
    "linear(H, 2)",
    "x",
    "y = x",
    "H = H",
    "heads(x, H)",
    "y = recurrence(x)",
]


def nested(depth: int) -> st.SearchStrategy[object]:
    leaf = st.sampled_from([None, 1, 2.5, True, *LEAVES])
    if depth == 0:
        return leaf
    inner = nested(depth - 1)
    return st.one_of(leaf, st.lists(inner, max_size=3), st.dictionaries(st.sampled_from(WORDS), inner, max_size=5))


@examples(150)
@given(st.dictionaries(st.sampled_from(WORDS[:15]), nested(3), max_size=15))
def test_no_tree_in_the_place_of_a_layer_does_harm(layer: dict[str, object]) -> None:
    import yaml

    text = OPERATOR[: OPERATOR.index("layer:")] + yaml.safe_dump({"layer": layer})
    try:
        parse_spec(text)
    except SpecError as error:
        assert error.diagnostics


def test_work_is_bounded_whatever_a_layer_says() -> None:
    switches = "".join(f"    s{i}: true\n" for i in range(300))
    head = OPERATOR.replace("  config: {hidden_size: 64,", "  config:\n" + switches + "    hidden_size: 64\n    #{")
    head = head.replace("    #{", "    num_heads: 4\n    a: true\n    b: true\n    kind: x\n    may: null\n    #")
    chain = "".join(f"    - r = r * (1 if s{i} else 2)\n" for i in range(300))
    text = head + chain + "    - o = recurrence(r, q, q)\n    - y = o_proj(merge(o))\n"
    assert check_spec(text)[1] == ()
    many = (
        head
        + "".join(f"    - r = recurrence(r, q, q) if s{i} else r\n" for i in range(300))
        + "    - y = o_proj(merge(r))\n"
    )
    assert "E806" in {found.code for found in check_spec(many)[1]}


@pytest.mark.parametrize(
    "deep",
    [
        "silu(" * 60 + "q" + ")" * 60,
        "heads(merge(" * 30 + "q" + "), H)" * 30,
        "lerp(q, 1, " * 60 + "q" + ")" * 60,
        "q * (1 if " + "(" * 55 + "1" + " < 2)" * 55 + " else 2)",
        "q * abs(" + "-" * 55 + "2)",
        "q * (" + "1 if a else " * 60 + "2)",
        "q * (" + "(1 if " * 50 + "a" + " else 2)" * 50 + ")",
        "q * max(" + "max(1, " * 55 + "2" + ")" * 55 + ")",
    ],
)
def test_work_is_bounded_where_an_expression_is_deep(deep: str) -> None:
    """What looked at a part twice at every level would take 2 ** 60 steps."""
    statements = f"    - r = r + {deep}\n    - o = recurrence(r, q, q)\n    - y = o_proj(merge(o))\n"
    assert check_spec(OPERATOR + statements)[1] == ()
