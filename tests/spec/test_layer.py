"""The layer section: what it is read into, what it comes to with a config, and that whatever is wrong is told."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from flagen.diagnostics import Source, Span, SpecError
from flagen.spec import check_spec, load_spec, parse_spec
from flagen.spec.layer.expressions import parse_layer_expression
from flagen.spec.layer.model import (
    Call,
    Compare,
    Config,
    Constant,
    Expr,
    IfElse,
    Init,
    Kept,
    Layer,
    LayerInput,
    LayerParam,
    Logic,
    Name,
    Value,
    walk,
)
from flagen.spec.layer.numbers import NoValue, Numbers
from flagen.spec.layer.printer import to_text
from flagen.spec.layer.trial import Tensor, Trial
from flagen.spec.layer.vocabulary import CONSTRUCTORS, FUNCTIONS, NUMBER_FUNCTIONS, RULES, signature
from flagen.spec.loader import Lines, Scalar
from flagen.spec.report import Report
from tests.spec.layer_trees import NUMBERS, TRUTHS, conditions, numbers, scope
from tests.spec.test_hostile import PIECES

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
VALID = [HERE / "valid" / f"{name}.yaml" for name in ("gated_deltanet", "layer_of_everything")]
TEXTS = [path.read_text(encoding="utf-8") for path in VALID]


def layer_of(name: str) -> Layer:
    layer = load_spec(HERE / "valid" / f"{name}.yaml").layer
    assert layer is not None
    return layer


def every_expression(layer: Layer) -> Iterator[Expr]:
    for entry in (*layer.dims, *layer.attributes, *layer.modules, *layer.init, *layer.forward):
        yield entry.value
    for require in layer.require:
        yield require.condition
    for param in layer.params:
        yield from (*param.shape, param.init)
    yield from (guard for guard in (entry.condition for entry in (*layer.params, *layer.init)) if guard is not None)


def text_at(source: Source, span: Span) -> str:
    return source.line(span.line)[span.column - 1 : span.column - 1 + span.length]


# --------------------------------------------------------------------------------------------------------------- data


def test_a_layer_is_data_in_the_order_of_the_text() -> None:
    layer = layer_of("gated_deltanet")
    assert (layer.class_name, layer.kwargs, layer.mask) == ("GatedDeltaNet", True, "unpad")
    assert [entry.name for entry in layer.config][-3:] == ["layer_idx", "norm_eps", "output_gate_activation"]
    assert layer.config[1] == Config("expand_v", 2, "float", "value channels of a head, in head_dim")
    assert layer.config[4].default is None and layer.config[4].type == "int"
    assert [module.name for module in layer.modules][:2] == ["q_proj", "k_proj"]
    assert layer.params[0].weight_decay is False and layer.params[0].dtype == "float32"
    assert to_text(layer.params[0].init) == "log(uniform(0, 16))"
    assert [assign.targets for assign in layer.forward] == [("q",), ("k",), ("v",), ("o",), ("o",), ("y",)]
    call = layer.forward[3].value
    assert isinstance(call, Call) and call.kind == "recurrence"
    assert [name for name, _ in call.keywords] == ["A_log", "dt_bias", "strength"]
    assert layer.require[0].text == "HV % H == 0"


def test_everything_that_a_section_takes_is_read() -> None:
    layer = layer_of("layer_of_everything")
    config = {entry.name: entry for entry in layer.config}
    assert config["limits"].default == (-8.0, math.inf, 1, "text", None)
    assert config["backend"].ignored and not config["tie"].ignored
    assert config["feature_map"].one_of == ("none", "t2r", "dpfp")
    assert (config["rank"].default, config["rank"].type, config["head_dim"].type) == (15.0, "float", "int")
    assert layer.inputs == (
        LayerInput("v_first", None),
        LayerInput("floor_", None, "layer", "the least of something"),
    )
    assert layer.outputs == ("v_first", "floor_")
    assert layer.cache == (Kept("z", "ffn_state"),)
    late = layer.params[-1]
    assert isinstance(late, LayerParam) and late.condition is not None and to_text(late.condition) == "not first"
    weight = next(init for init in layer.init if init.path == "w_proj.weight")
    assert weight == Init("w_proj.weight", weight.value, weight_decay=False, condition=weight.condition)
    assert [use.package for use in layer.uses] == ["gated_deltanet"]
    assert layer.uses[0].spec == load_spec(HERE / "valid" / "gated_deltanet.yaml")


def test_the_index_of_a_layer_is_an_argument_wherever_it_is_not_placed() -> None:
    text = TEXTS[0].replace("    layer_idx: null\n", "")
    layer = parse_spec(text).layer
    assert layer is not None
    assert [entry.name for entry in layer.config][-1] == "layer_idx"
    assert (layer.config[-1].default, layer.config[-1].type) == (None, "int")


def test_an_init_that_computes_a_number_is_no_rule() -> None:
    layer = layer_of("layer_of_everything")
    bonus = next(param.init for param in layer.params if param.name == "bonus")
    kinds = {node.name: node.kind for node in walk(bonus) if isinstance(node, Call)}
    assert kinds == {"normal": "init", "full": "init", "sqrt": "function"}


@pytest.mark.parametrize("path", VALID, ids=lambda path: path.stem)
def test_every_part_knows_where_it_stands(path: Path) -> None:
    spec = load_spec(path)
    assert spec.layer is not None
    for node in (node for expr in every_expression(spec.layer) for node in walk(expr)):
        found = text_at(spec.source, node.span)
        match node:
            case Name(name):
                assert found == name
            case Call(name):
                assert found.startswith(f"{name}(")
            case Value(value) if value is None or isinstance(value, bool):
                assert found == str(value)
            case Value(value) if isinstance(value, str):
                assert found == repr(value)
            case Value(value):
                assert float(found.replace(" ", "")) == value
            case _:
                assert found
    declared = (*spec.layer.config, *spec.layer.dims, *spec.layer.params, *spec.layer.modules, *spec.layer.inputs)
    for entry in declared:
        assert text_at(spec.source, entry.span) == entry.name
    for assign in spec.layer.forward:
        assert text_at(spec.source, assign.span).startswith(assign.targets[0])


def test_a_spec_with_a_layer_is_the_spec_without_it_beside() -> None:
    text = TEXTS[0]
    plain = parse_spec(text[: text.index("layer:\n")])
    spec = parse_spec(text)
    assert plain.layer is None and spec.layer is not None
    for part in ("states", "inputs", "params", "derived", "update", "output", "class_name"):
        assert getattr(spec, part) == getattr(plain, part)


# -------------------------------------------------------------------------------------------------------- expressions


def as_scalar(text: str) -> Scalar:
    lines = Lines(Source("<tree>", text))
    return Scalar(text, True, lines.span(0, len(text)), 0, len(text), lines)


def parse(text: str) -> tuple[Expr | None, Report]:
    report = Report(Source("<tree>", text))
    return parse_layer_expression(as_scalar(text), 0, scope(report), report), report


@settings(max_examples=150, deadline=None)
@given(st.one_of(numbers(), conditions()))
def test_reading_what_is_printed_gives_the_expression_again(expr: Expr) -> None:
    text = to_text(expr)
    found, report = parse(text)
    assert found == expr, (text, report.diagnostics)


@pytest.mark.filterwarnings("ignore::SyntaxWarning")
@settings(max_examples=150, deadline=None)
@given(st.one_of(numbers(), conditions()))
def test_a_number_is_what_python_says_it_is(expr: Expr) -> None:
    """Or there is none: where Python has no number, an infinite one that is none, or one larger than any size."""
    given: dict[str, Constant] = {**NUMBERS, **TRUTHS}
    functions = {"floor": math.floor, "ceil": math.ceil}
    try:
        value = Numbers(given).of(expr)
    except NoValue:
        return
    expected = eval(
        to_text(expr), {"__builtins__": {}, "max": max, "min": min, "abs": abs, "round": round}, given | functions
    )
    assert value == expected and type(value) is type(expected)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("2 + 3 * 4 - 1", 13),
        ("2 ** 3 ** 2", 512),
        ("-2 ** 2", -4),
        ("7 // 2 + 7 % 4", 6),
        ("D ** 0.5", 8.0),
        ("none or a", 3),
        ("c or off or a", 3),
        ("a and text", "silu"),
        ("'x' if off else 'y' if off else 'z'", "z"),
        ("none is None and c is not None", True),
        ("not on == off", True),
        ("max(a, 1, D) + min(2, c)", 64),
        ("integer(a * 1.000001)", 3),
        ("round(2.5 * 7)", 18),
        ("item((4, 5, 6), a - 1)", 6),
        ("True if true else false", True),
    ],
)
def test_values(text: str, value: Constant) -> None:
    expr, report = parse(text)
    assert expr is not None, report.diagnostics
    assert Numbers({**NUMBERS, **TRUTHS}).of(expr) == value


@pytest.mark.parametrize(
    "text",
    [
        *("1 / c", "1 // c", "1 % c", "c ** -1", "b ** 0.5", "9 ** 99", "10 ** 9 ** 9", "text + 1", "none * 2"),
        *("exp(1000)", "log(c)", "sqrt(b)", "integer(b)", "integer(inf)", "round(inf)", "inf - inf", "inf * c"),
        *("item((1, 2), 2)", "item((1, 2), b)", "item(a, 0)", "text < 1", "2 ** 60", "-text", "item((1, (2, 3)), 0)"),
    ],
)
def test_what_is_no_number_is_none(text: str) -> None:
    expr, report = parse(text)
    assert expr is not None, report.diagnostics
    with pytest.raises(NoValue) as caught:
        Numbers({**NUMBERS, **TRUTHS}).of(expr)
    assert caught.value.message


@pytest.mark.parametrize(
    "text",
    [
        *("a if on", "(a if on) else c", "a else c", "max(a if on, c)", "a if on else", "if on", "not", "a not b"),
        *("a == ", "a = b", "max(a = b = c)", "max(1)(2)", "(a)(b)", "'x' 'y'", "f'x'", "'x", "'x\\n'", "a is b"),
        *("a < b < c", "a in b", "a not in b", "[a]", "a[0]", "a.b", "a @ b", "a, b", "()", "(a,)", "*a", "max(*a)"),
        *("lambda: a", "a := b", "+a", "~a", "a & b", "a ? b : c", "a if on else b if off", "max(x=1)", "a!", "$a"),
        *(
            "__import__('os')",
            "exec('x')",
            "a.__class__",
            "{a}",
            "yield a",
            "await a",
            "1if on else 2",
            "\N{DEGREE SIGN}",
        ),
    ],
)
def test_what_is_not_of_the_language_is_told(text: str) -> None:
    expr, report = parse(text)
    assert expr is None and report.failed(), to_text(expr) if expr else ""


TOKENS = [*"abD(),.'=<>! +-*/%1_", " if ", " else ", " and ", " not ", " is ", "None", "max(", "on"]


@settings(max_examples=150, deadline=None)
@given(st.lists(st.sampled_from(TOKENS), max_size=20).map("".join))
@example("a" + " if on else a" * 700)
@example("(" * 70 + "a" + ")" * 70)
@example("not " * 80 + "a")
@example("max(" * 63 + "a" + ")" * 63)
def test_no_text_is_anything_but_an_expression_or_a_diagnostic(text: str) -> None:
    expr, report = parse(text)
    assert (expr is None) == report.failed()
    if expr is not None:
        assert parse(to_text(expr))[0] == expr


# --------------------------------------------------------------------------------------------------------- the config


def trial(name: str, **config: Constant) -> Trial:
    spec = load_spec(HERE / "valid" / f"{name}.yaml")
    assert spec.layer is not None
    given = {entry.name: entry.default for entry in spec.layer.config} | config
    found = Trial(spec.layer, {"recurrence": spec} | {use.name: use.spec for use in spec.layer.uses}, given)
    if not found.findings:
        found.call()
    return found


def test_the_parameters_of_a_config() -> None:
    found = trial("gated_deltanet", hidden_size=64, head_dim=16, num_heads=2, num_v_heads=4, expand_v=1.5)
    assert not found.findings
    weights = found.weights()
    assert list(weights)[:3] == ["A_log", "dt_bias", "q_proj.weight"]
    assert weights["q_proj.weight"] == (32, 64) and weights["v_proj.weight"] == (96, 64)
    assert weights["v_conv1d.weight"] == (96, 1, 4) and weights["o_norm.weight"] == (24,)
    assert found.count() == 2 * 4 + 64 * (32 + 32 + 96 + 4 + 4 + 96 + 96) + 4 * (32 + 32 + 96) + 24


def test_what_a_switch_leaves_out_is_not_there() -> None:
    found = trial("gated_deltanet", use_gate=False, use_short_conv=False, conv_bias=True)
    assert not found.findings
    assert found.modules["g_proj"] is None and found.modules["q_conv1d"] is None
    assert not any(name.startswith(("g_proj", "q_conv1d")) for name in found.weights())


def test_the_shapes_of_what_flows() -> None:
    found = trial("gated_deltanet", num_v_heads=12)
    shapes = [values[0].shape for _, values in found.lines if isinstance(values[0], Tensor)]
    assert shapes == [
        ("B", "T", 1536),
        ("B", "T", 1536),
        ("B", "T", 12 * 512),
        ("B", "T", 12, 512),
        ("B", "T", 12, 512),
        ("B", "T", 2048),
    ]
    assert to_text(found.chosen(found.layer.forward[0].value)) == "q_conv1d(q_proj(x))"


def test_a_module_under_two_names_counts_once() -> None:
    tied, apart = (
        trial("layer_of_everything", feature_map="t2r", tie=True),
        trial("layer_of_everything", feature_map="t2r"),
    )
    assert not tied.findings and not apart.findings
    assert tied.weights() == apart.weights()
    assert apart.count() - tied.count() == 24 * 24


def test_a_config_that_does_not_fit_is_found() -> None:
    assert [found.code for found in trial("gated_deltanet", num_v_heads=7).findings] == ["E803"]
    assert {found.code for found in trial("gated_deltanet", head_dim=None).findings} == {"E802"}
    assert {found.code for found in trial("gated_deltanet", expand_v=0.001).findings} == {"E802"}


# ---------------------------------------------------------------------------------------------------------- the checks

OPERATOR = """\
flagen: 1
name: example
state: {S: [K, V]}
inputs: {q: [K], k: [K], v: [V]}
params: {scale: {default: 1}}
update: S = S + outer(k, v)
output: o = scale * (S.T @ q)
layer:
  class_name: Example
  config: {hidden_size: 64, num_heads: 4, a: true, b: false, kind: {default: x, one_of: [x, y, z]}, may: null}
  dims: {H: num_heads}
  modules:
    q_proj: linear(hidden_size, hidden_size)
    o_proj: linear(hidden_size, hidden_size)
  forward:
    - q = heads(q_proj(x), H)
    - r = q * (1 if a else 2 if b else 3 if kind == 'x' else 4 if may is None else 5)
"""


def told(forward: str, head: str = OPERATOR) -> list[str]:
    return [found.code for found in check_spec(head + forward)[1]]


CALL = "recurrence(r, q, q)"


@pytest.mark.parametrize(
    ("operator", "right"),
    [
        (CALL, True),
        (f"{CALL} if a else {CALL}", True),
        (f"{CALL} if a and b else {CALL} * 2 if not a else {CALL}", True),
        (f"{CALL} if kind == 'x' else {CALL} if kind == 'y' else {CALL}", True),
        (f"{CALL} if a else r", False),
        (f"{CALL} + {CALL}", False),
        (f"recurrence({CALL}, q, q)", False),
        (f"({CALL} if a else r * 0) + (r * 0 if a else {CALL})", True),
        (f"({CALL} if a else r * 0) + (r * 0 if b else {CALL})", False),
        (f"({CALL} if a and b else r * 0) + ({CALL} if not a or not b else r)", True),
        (f"({CALL} if may is None else r * 0) + ({CALL} if may is not None else r)", True),
        (f"({CALL} if kind == 'x' else r * 0) + ({CALL} if kind != 'x' else r)", True),
        (f"({CALL} if kind == 'x' else r * 0) + ({CALL} if kind == 'y' else r)", False),
        (f"({CALL} if kind == 'x' else {CALL}) + ({CALL} if kind == 'x' and kind == 'y' else r)", True),
        (f"({CALL} if num_heads > 2 else r * 0) + ({CALL} if num_heads <= 2 else r)", True),
    ],
)
def test_on_every_path_one_operator_runs_once(operator: str, right: bool) -> None:
    assert told(f"    - o = {operator}\n    - y = o_proj(merge(o))\n") == ([] if right else ["E806"])


@pytest.mark.parametrize(
    ("statements", "codes"),
    [
        (["o = recurrence(r, q, q)", "y = o_proj(merge(o))"], []),
        (["o = recurrence(r, k=q, v=q, scale=0.5 if a else 2)", "y = o_proj(merge(o))"], []),
        (["o = recurrence(r, q, q, scale=None)", "y = o_proj(merge(o))"], []),
        (["o = recurrence(r, q, q, scale=q)", "y = o_proj(merge(o))"], ["E808"]),
        (["o = recurrence(r, q, None)", "y = o_proj(merge(o))"], ["E808"]),
        (["o = recurrence(r, q, merge(q))", "y = o_proj(merge(o))"], ["E808"]),
        (["o = recurrence(r, q, repeat_heads(q, 2))", "y = o_proj(merge(o))"], ["E808"]),
        (["o = recurrence(r, q, repeat_heads(q, 2) if b else q)", "y = o_proj(merge(o))"], ["E808"]),
        (["o = recurrence(r, q, steps(q_proj(x), 2))", "y = o_proj(merge(o))"], ["E808"]),
        (["o = recurrence(r, q, zeros(q, 3))", "y = o_proj(merge(o))"], ["E808"]),
        (["o = recurrence(r, q, q)", "y = o_proj(merge(sum(o) * o))"], []),
        (["o, p = recurrence(r, q, q)", "y = o_proj(merge(o + p))"], ["E810"]),
        (["o = recurrence(r, q, q)", "y = o_proj(merge(o)) if o_proj else x"], ["E312"]),
    ],
)
def test_what_an_operator_is_given(statements: list[str], codes: list[str]) -> None:
    assert told("".join(f"    - {statement}\n" for statement in statements)) == codes


def test_a_mistake_with_one_setting_names_it() -> None:
    _, found = check_spec(
        OPERATOR + "    - o = recurrence(r, q, zeros(q, 3) if kind == 'z' else q)\n    - y = o_proj(merge(o))\n"
    )
    assert len(found) == 1 and found[0].message.endswith("with `kind='z'`")


def test_a_layer_in_a_wrong_spec_is_read_all_the_same() -> None:
    text = OPERATOR.replace("outer(k, v)", "outer(k, vv)") + "    - o = recurrence(r, q)\n    - y = o_projj(merge(o))\n"
    assert [found.code for found in check_spec(text)[1]] == ["E304", "E408"]


def test_another_spec_is_looked_for_beside_this_one_only(tmp_path: Path) -> None:
    text = OPERATOR.replace("  modules:", "  uses: {other: second}\n  modules:")
    text += "    - o = recurrence(r, q, q) if a else other(r, q, q, q)\n    - y = o_proj(merge(o))\n"
    (tmp_path / "example.yaml").write_text(text)
    parse_spec(text)  # Nothing is known of the other one.

    def codes() -> list[str]:
        with pytest.raises(SpecError) as caught:
            load_spec(tmp_path / "example.yaml")
        return [found.code for found in caught.value.diagnostics]

    assert codes() == ["E812"]
    second = text.replace("name: example", "name: second").replace("other: second", "other: example")
    (tmp_path / "second.yaml").write_text(second)
    assert codes() == ["E807"]
    (tmp_path / "second.yaml").write_text(
        second.replace("[V]}", "[V], w: [V]}").replace("outer(k, v)", "outer(k, v * w)")
    )
    assert codes() == ["E812"]  # Its own layer calls its recurrence with too few.
    right = second[: second.index("layer:")].replace("[V]}", "[V], w: [V]}").replace("outer(k, v)", "outer(k, v * w)")
    (tmp_path / "second.yaml").write_text(right)
    layer = load_spec(tmp_path / "example.yaml").layer
    assert layer is not None and layer.uses[0].spec == parse_spec(right)


# ------------------------------------------------------------------------------------------------------------ hostile

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


@settings(max_examples=150, deadline=None)
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


@settings(max_examples=150, deadline=None)
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


# ------------------------------------------------------------------------------------------------------------ the page


def page() -> str:
    return (ROOT / "docs" / "spec_language.md").read_text(encoding="utf-8")


def test_the_language_page_lists_every_word_with_its_signature() -> None:
    words = [*CONSTRUCTORS.values(), *FUNCTIONS.values(), *RULES.values()]
    listed = dict(re.findall(r"^\| `([^`]+)` \|(?: (?:`\w+`,? ?)+\|)? (.+) \|$", page(), re.MULTILINE))
    for word in words:
        assert listed.get(signature(word)) == word.doc or (signature(word) in listed and word.name in NUMBER_FUNCTIONS)
    for name, (given_, doc) in NUMBER_FUNCTIONS.items():
        shown = "a, b, ..." if given_ is None else ", ".join(map(str, given_))
        assert f"| `{name}({shown})` | {doc} |" in page()


def test_the_language_pages_layer_is_one() -> None:
    (text,) = re.findall(r"```yaml\n(layer:\n.*?)```", page(), re.DOTALL)
    operator = (
        "flagen: 1\nname: gated_attention\nstate: {S: [K, V]}\n"
        "inputs: {q: [K], k: [K], v: [V], a: []}\nparams: {A_log: {per: head}}\n"
        "decay: {alpha: exp(-exp(A_log) * softplus(a))}\n"
        "update: S = alpha * S + outer(k, v)\noutput: o = S.T @ q\n"
    )
    layer = parse_spec(operator + text).layer
    assert layer is not None
    assert not {type(node) for expr in every_expression(layer) for node in walk(expr)}.isdisjoint(
        {IfElse, Logic, Compare}
    )
