"""Valid specs: what they come to, and that everything in them knows its place."""

from __future__ import annotations

import hashlib
import math
import re
import subprocess
import sys
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import pytest

from flagen.diagnostics import Source, Span
from flagen.spec import check_file, check_spec, load_spec, parse_spec, to_source
from flagen.spec.model import (
    Assign,
    Expr,
    Input,
    Interval,
    Name,
    Number,
    Param,
    Repeat,
    Spec,
    State,
    StateRead,
    Steps,
    walk,
)
from flagen.spec.renaming import as_written, renamed

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
VALID = sorted((HERE / "valid").glob("*.yaml"))
SHIPPED = sorted((ROOT / "specs").glob("*.yaml"))


def load(name: str) -> Spec:
    return load_spec(HERE / "valid" / f"{name}.yaml")


def every_expression(spec: Spec) -> Iterator[Expr]:
    yield from (entry.value for entry in spec.following)
    yield from (param.default for param in spec.params if param.default is not None)
    yield from (entry.value for entry in spec.derived)
    yield from (assign.value for assign in every_assignment(spec))


def every_assignment(spec: Spec) -> Iterator[Assign]:
    for statement in (*spec.update, *spec.output):
        yield from statement.body if isinstance(statement, Repeat) else (statement,)


def text_at(source: Source, span: Span) -> str:
    return source.line(span.line)[span.column - 1 : span.column - 1 + span.length]


@pytest.mark.parametrize("path", VALID + SHIPPED, ids=lambda path: path.stem)
def test_a_valid_spec_loads_without_a_word(path: Path) -> None:
    spec, warnings = check_file(path)
    assert not [found for found in warnings if path in VALID]
    assert spec.source.file == str(path)
    assert spec.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert load_spec(path) == spec


@pytest.mark.parametrize("path", VALID + SHIPPED, ids=lambda path: path.stem)
def test_every_name_and_number_knows_where_it_stands(path: Path) -> None:
    """Also in folded, quoted and literal scalars, through aliases, after a byte order mark and with CRLF line ends."""
    spec = load_spec(path)
    source = (spec.recurrence_of or spec).source
    kept = {state.name for state in spec.states if state.meaning}
    made = {first.name for first in spec.firsts}
    made |= {"full", "level", "into", "new"} if spec.levels is not None else set()
    written = ("prev(", "first(", "levels(")
    for node in (node for expr in every_expression(spec) for node in walk(expr)):
        found = text_at(source, node.span)
        match node:
            case Name() | Number() | StateRead() if found.startswith(("first(", "levels(")):
                assert made
            case Name(name):
                assert found == name
            case StateRead(name) if name in kept:
                assert found.startswith("prev(")
            case StateRead(name, previous):
                assert found == (f"{name}_prev" if previous else name)
            case Number(value):
                assert Fraction(found) == value
            case _:
                assert found
    for entry in (*spec.states, *spec.inputs, *spec.params, *spec.derived):
        found = text_at(source, entry.span)
        assert found.startswith(written) if entry.name in kept else found == entry.name
    for assign in every_assignment(spec):
        assert text_at(source, assign.span).startswith(written if assign.target in kept | made else assign.target)


def test_the_language_pages_own_example() -> None:
    spec = load_spec(ROOT / "specs" / "gated_delta_product.yaml")
    assert spec.states == (State("S", ("K", "V"), 0.0),)
    assert [entry.name for entry in spec.inputs] == ["q", "k", "v", "g", "beta"]
    assert spec.inputs[4].per == "step" and spec.inputs[4].heads == "HV"
    assert spec.inputs[3].range == Interval(-math.inf, 0)
    assert spec.steps == Steps("n", "num_householder", 2)
    assert [(entry.section, entry.per) for entry in spec.derived] == [("decay", "token"), ("gate", "step")]
    assert spec.derived[0].range == Interval(0, 1)
    assert [type(statement) for statement in spec.update] == [Assign, Repeat]
    assert spec.dims == ("K", "V") and spec.output_dims == ("V",) and spec.has_value_heads
    assert spec.class_name == "GatedDeltaProduct"


def test_defaults_of_a_declaration() -> None:
    spec = load("aliases")
    assert spec.inputs[1] == Input("k", ("K",), "H", "token", Interval(), "a key: or a query")
    assert spec.inputs[2] == Input("v", ("V",), "H", "token", Interval(), "")
    spec = load("precond_kda")
    center, ratio = spec.params[1], spec.params[2]
    assert center == Param("center", ("K",), True, None, Interval(), "")
    assert center.is_tensor and ratio.is_tensor and not spec.params[3].is_tensor


def test_a_running_log_sum_exp_starts_at_minus_infinity() -> None:
    assert load("lightnet").states[1].init == -math.inf


def test_sizes_that_follow_from_others_are_dims_like_any() -> None:
    spec = load("following_sizes")
    assert [(entry.name, to_source(entry.value)) for entry in spec.following] == [
        ("K2", "K"),
        ("R", "(K + 2) / 4"),
        ("M", "2"),
        ("G", "HV / H"),
        ("L", "3 * M ** 2"),
    ]
    assert spec.dims == ("K", "K2", "R", "M", "L", "G")
    other = renamed(spec, {"M": "M_", "K": "key", "R": "R_"})
    assert [to_source(entry.value) for entry in other.following] == [
        "key",
        "(key + 2) / 4",
        "2",
        "HV / H",
        "3 * M_ ** 2",
    ]
    assert as_written(other) == spec


def test_a_dim_that_is_renamed_is_renamed_in_expressions_too() -> None:
    text = """
flagen: 2
name: renamed
dims: {R: K, V: row}
state: {S: [K, V]}
inputs: {q: [K], k: [R], v: [row], m: [R, row]}
update: S = S + outer(over(k, K) * index(K), over(v, V)) + over(over(m, R, K), row, V)
output: o = S.T @ q * mean(index(row)) * sum(k, R)
"""
    spec = parse_spec(text)
    other = renamed(spec, {"R": "R_", "row": "row_", "V": "V_"})
    assert [to_source(statement.value) for statement in (*other.update, *other.output)] == [
        "S + outer(over(k, K) * index(K), over(v, V_)) + over(over(m, R_, K), row_, V_)",
        "S.T @ q * mean(index(row_)) * sum(k, R_)",
    ]
    assert [statement.value.dims for statement in other.update] == [("K", "V_")]
    assert as_written(other) == spec


def test_class_names_are_given_or_made() -> None:
    assert load("chunk_hints").class_name == "ChunkHints2"
    assert load("rwkv4").class_name == "Rwkv4"
    assert (load("chunk_hints").chunk.size, load("chunk_hints").chunk.subchunk) == (64, 16)


def test_a_statement_keeps_its_text_and_whether_it_assigns_a_state() -> None:
    spec = load("steps_and_locals")
    repeat = spec.update[1]
    assert isinstance(repeat, Repeat)
    assert [(assign.target, assign.to_state) for assign in repeat.body] == [
        ("read", False),
        ("error", False),
        ("S", True),
    ]
    assert repeat.body[2].text == "S = S + b * outer(kn, error)"
    assert spec.steps == Steps("n", "n", 2)
    assert [entry.per for entry in spec.derived] == ["step", "token", "token", "step"]


def test_text_over_several_lines_is_one_expression() -> None:
    spec = load("block_scalars")
    assert spec.description == "Text over\n  several lines.\n"
    same = parse_spec(
        "{flagen: 1, name: x, state: {S: [K, V]}, inputs: {k: [K], v: [V], g: []}, let: {alpha: exp(g)}, "
        'update: "S = alpha * S + outer(k, v)", output: o = S}'
    )
    assert next(every_assignment(spec)).value == next(every_assignment(same)).value


def test_names_resolve_by_kind() -> None:
    spec = load("mamba2_raw")
    kinds = {node.name: node.kind for expr in every_expression(spec) for node in walk(expr) if isinstance(node, Name)}
    assert kinds == {
        "a": "input",
        "dt_bias": "param",
        "A_log": "param",
        "dt": "derived",
        "alpha": "derived",
        "step": "derived",
        "B": "input",
        "x": "input",
        "C": "input",
        "D": "param",
    }


def test_ranges_flow_into_derived_names() -> None:
    ranges = {entry.name: entry.range for name in ("retention", "lightning") for entry in load(name).derived}
    assert ranges["alpha"] == Interval(0, 1)
    assert load("retention").derived[0].range == Interval(1 - 2**-5, 1)
    assert ranges["depth"] == Interval(0, 1)
    assert ranges["slope"] == Interval(0, 8)


def test_warnings_come_with_the_spec() -> None:
    text = (HERE / "invalid" / "w701_no_range.yaml").read_text()
    spec, diagnostics = check_spec(text)
    assert spec is not None
    assert [(found.code, found.severity) for found in diagnostics] == [("W701", "warning")]
    assert check_spec(text.replace("outer", "inner"))[0] is None


def test_equality_says_nothing_of_positions_and_files() -> None:
    text = (HERE / "valid" / "gsa.yaml").read_text()
    assert parse_spec(text) == parse_spec("# One line more.\n" + text, "elsewhere.yaml")


def test_the_front_end_is_light() -> None:
    program = (
        "import sys, flagen.spec; assert not {'sympy', 'torch', 'jinja2', 'numpy', 'difflib'} & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", program], check=True, cwd=ROOT)


def test_the_language_page_shows_specs_that_load() -> None:
    page = (ROOT / "docs" / "spec_language.md").read_text(encoding="utf-8")
    examples = [text for text in re.findall(r"```yaml\n(.*?)```", page, re.DOTALL) if text.startswith("flagen:")]
    assert {text.partition("\n")[0] for text in examples} == {"flagen: 1", "flagen: 2"}
    for text in examples:
        parse_spec(text)
