"""The layer section: what it is read into, and that the page on the language says what there is."""

from __future__ import annotations

import math
import re
from pathlib import Path

import pytest

from flagen.spec import load_spec, parse_spec
from flagen.spec.layer.model import (
    Call,
    Compare,
    Config,
    IfElse,
    Init,
    Kept,
    LayerInput,
    LayerParam,
    Logic,
    Name,
    Value,
    walk,
)
from flagen.spec.layer.printer import to_text
from flagen.spec.layer.vocabulary import CONSTRUCTORS, FUNCTIONS, NUMBER_FUNCTIONS, RULES
from flagen.spec.layer.words import signature
from tests.spec.layer_specs import HERE, ROOT, TEXTS, VALID, every_expression, layer_of, text_at


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
    used = load_spec(HERE / "valid" / "layer_of_everything.yaml").used
    assert used == {layer.uses[0].name: load_spec(HERE / "valid" / "gated_deltanet.yaml")}


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


# ------------------------------------------------------------------------------------------------------------ the page


def page() -> str:
    return (ROOT / "docs" / "spec_language.md").read_text(encoding="utf-8")


def test_the_language_page_lists_every_word_with_its_signature() -> None:
    words = [*CONSTRUCTORS.values(), *FUNCTIONS.values(), *RULES.values()]
    listed = dict(re.findall(r"^\| `([^`]+)` \|(?: (?:`\w+`,? ?)+\|)? (.+) \|$", page(), re.MULTILINE))
    for word in words:
        shown = f"{word.doc} (version {word.since})" if word.since > 1 else word.doc
        assert listed.get(signature(word)) == shown or (signature(word) in listed and word.name in NUMBER_FUNCTIONS)
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
