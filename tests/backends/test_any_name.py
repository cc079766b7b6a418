"""A spec may give what it declares any name that is no word of the language: generated code gives way.

Every identifier that a package uses besides the spec's is the name of something in the same spec. Where two things in a
function came to have one name, it has fewer identifiers than with names that nothing else has.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import re
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from functools import cache
from pathlib import Path

import pytest
import torch
import yaml

from flagen import pipeline
from flagen.plan.own_names import WORDS, for_generated_code, is_word
from flagen.project import RUNTIME
from flagen.runtime.shared.arguments import Arguments
from flagen.spec import parse_spec
from flagen.spec.model import Spec
from flagen.spec.names import SymbolKind, identifier_problem
from tests.backends.test_torch_names import identifiers, names_of
from tests.fuzz import kernels, ladder
from tests.fuzz.packages import build, imported
from tests.tiers import tiered

SPECS = Path(__file__).parents[2] / "specs"

FAMILIES = {
    "hgrn": ("x",),
    "gated_delta_product": ("k", "v"),
    "kda": ("k", "v"),
}
"""A spec of each family of kernels, and the vectors that the further inputs scale."""

Functions = Mapping[tuple[str, str], set[str]]


def text_of(name: str) -> str:
    return (SPECS / f"{name}.yaml").read_text()


def functions(name: str, further: Sequence[str], kind: str = "inputs") -> Functions:
    """The identifiers in each function of the package of a spec with `further` inputs, params or names of `let`."""
    return identifiers_in(spec_with(name, further, kind))


def spec_with(name: str, further: Sequence[str], kind: str) -> Spec:
    tree = yaml.safe_load(text_of(name))
    size = parse_spec(text_of(name)).dims[0]
    given: dict[str, object] = {
        "inputs": {other: {"dims": []} for other in further},
        "params": {other: {"default": 1} for other in further},
        "let": {other: f"{number} * {size}" for number, other in enumerate(further)},
    }[kind]
    tree[kind] = tree.get(kind, {}) | given
    scaled = {vector: f"spare_{vector}" for vector in FAMILIES[name]}
    for section in ("update", "output"):
        used = re.sub(r"\b\w+\b", lambda word: scaled.get(word[0], word[0]), yaml.safe_dump(tree[section]))
        tree[section] = yaml.safe_load(used)
    sums = {f"spare_sum{i}": " + ".join(further[i : i + 40]) for i in range(0, len(further), 40)}
    made = {new: f"{vector} * ({' + '.join(sums)})" for vector, new in scaled.items()}
    tree["let"] = {**(given if kind == "let" else {}), **sums, **made, **tree.get("let", {})}
    return parse_spec(yaml.safe_dump(tree, sort_keys=False), f"{name}.yaml")


def identifiers_in(spec: Spec) -> Functions:
    """The identifiers in each function of the package of `spec`."""
    found: dict[tuple[str, str], set[str]] = {}
    for path, text in rendered(spec).items():
        if path.endswith(".py"):
            compile(text, path, "exec")  # An argument that is there twice does not get through.
            module = ast.parse(text)
            methods = [n for c in module.body if isinstance(c, ast.ClassDef) for n in c.body]
            defined = (n for n in (*module.body, *methods) if isinstance(n, ast.FunctionDef))
            found |= {(path, function.name): identifiers(function) for function in defined}
    return found


def rendered(spec: Spec) -> dict[str, str]:
    """Every file of the package of `spec`, as it comes out of the templates."""
    plan = pipeline.make_plan(spec, pipeline.derive(spec))
    return pipeline.rendered(spec, plan, pipeline.lower(plan), "spec.yaml")


def spare(number: int) -> list[str]:
    return [f"spare{i}" for i in range(number)]


def allowed(words: Iterable[str], kind: SymbolKind) -> list[str]:
    return sorted(word for word in words if identifier_problem(word, kind) is None)


def met(expected: Functions, got: Functions, names: Iterable[str]) -> dict[tuple[str, str], list[str]]:
    """The functions in which two things have one name, and which names of a spec they use."""
    assert set(got) == set(expected)
    # More of them is no harm: a line is kept where its target is mentioned, if only in the name of something else.
    return {place: sorted(got[place] & set(names)) for place in got if len(got[place]) < len(expected[place])}


@cache
def own_words(name: str) -> set[str]:
    """What the package of a spec calls its own, where its inputs have names that nothing else has."""
    own = names_of(parse_spec(text_of(name)))
    return {word for word in set().union(*functions(name, spare(2)).values()) if "spare" not in word} - own


@tiered(
    ("name", "kind", "part"),
    [(name, kind, part) for name in FAMILIES for kind in ("inputs", "params", "let") for part in range(4)],
    lambda name, kind, part: (
        name == "gated_delta_product" and (kind, part) in (("inputs", 0), ("params", 1), ("let", 2))
    ),
)
def test_further_names_may_be_any(name: str, kind: str, part: int) -> None:
    """A part of the words at a time: the more there are, the longer each takes."""
    of_kind: dict[str, SymbolKind] = {"inputs": "input", "params": "param", "let": "derived"}
    words = allowed(own_words(name), of_kind[kind])
    assert {"token", "torch", "args"} <= set(words)
    names = words[part::4]
    assert len(names) > 20
    assert not met(functions(name, spare(len(names)), kind), functions(name, names, kind), names)


def backward_functions(spec: Spec) -> dict[str, ast.FunctionDef]:
    """The public functions of a package that take what comes in of gradients, by their files."""
    files = {path: text for path, text in rendered(spec).items() if "_backward" in path and path.endswith(".py")}
    defined = ((path, node) for path, text in files.items() for node in ast.parse(text).body)
    return {
        path: node
        for path, node in defined
        if isinstance(node, ast.FunctionDef) and "wanted" in {argument.arg for argument in node.args.kwonlyargs}
    }


@pytest.mark.parametrize("name", FAMILIES)
def test_params_may_be_called_like_the_gradients_that_come_in(name: str) -> None:
    """They are passed by name, and these by their place: these give way, in their documentation, too."""
    spec = parse_spec(text_of(name))
    inputs = {declared.name for declared in spec.inputs}
    found = backward_functions(spec)
    incoming = {argument.arg for function in found.values() for argument in function.args.args} - inputs
    assert len(found) == 2
    assert "do" in incoming
    for function in backward_functions(spec_with(name, sorted(incoming), "params")).values():
        assert incoming <= {argument.arg for argument in function.args.kwonlyargs}
        entries = re.findall(r"^ +(\w+): the gradients? of", ast.get_docstring(function) or "", re.MULTILINE)
        assert set(entries) == {argument.arg for argument in function.args.args} - inputs


TIME = ("T", "t")
"""No dim is called so: shapes are written without batch, time and heads."""


def called(text: str, names: Mapping[str, str]) -> str:
    """The text of a spec with other names."""
    before = {f"{old}_prev": f"{new}_prev" for old, new in names.items()}
    return re.sub(r"\w+", lambda word: (before | dict(names)).get(word[0], word[0]), text)


def kinds(spec: Spec) -> dict[str, SymbolKind]:
    """Everything that a spec declares, and as what."""
    found: dict[str, SymbolKind] = dict.fromkeys(sorted(names_of(spec) - {"o"}), "local")
    found |= dict.fromkeys(spec.dims, "dim")
    found |= {state.name: "state" for state in spec.states}
    found |= {decl.name: "input" for decl in spec.inputs}
    found |= {decl.name: "param" for decl in spec.params}
    found |= {decl.name: "derived" for decl in spec.derived}
    return found | ({spec.steps.symbol: "step count", spec.steps.argument: "step argument"} if spec.steps else {})


def named(spec: Spec, words: Iterable[str]) -> tuple[dict[str, str], list[str]]:
    """Other names for those of a spec, words as far as they go, each one that it may have; and the words left."""
    left, names = list(words), {}
    for number, (name, kind) in enumerate(kinds(spec).items()):
        taken = TIME if kind == "dim" else ()
        word = next((word for word in left if word not in taken and identifier_problem(word, kind) is None), None)
        names[name] = f"spare{number}" if word is None else word
        left = [other for other in left if other != word]
    return names, left


@tiered(
    ("name", "part"),
    [(name, part) for name in (*FAMILIES, "oja", "rwkv4") for part in range(6)],
    lambda name, part: (name, part) in (("hgrn", 0), ("gated_delta_product", 1), ("kda", 2)),
)
def test_everything_may_have_any_name(name: str, part: int) -> None:
    """Dims, states, inputs, params, locals and what counts steps, all of them at once."""
    text = text_of(name)
    spec = parse_spec(text)
    neutral, _ = named(spec, ())
    expected = identifiers_in(parse_spec(called(text, neutral)))
    words = sorted({word for word in set().union(*expected.values()) | WORDS if "spare" not in word} - names_of(spec))
    left = words[part::6]
    assert len(left) > 40
    while True:
        names, others = named(spec, left)
        if others == left:  # What may be nothing's name.
            break
        assert not met(expected, identifiers_in(parse_spec(called(text, names))), names.values()), names
        left = others
    assert len(left) < 10


def test_sizes_of_a_call_are_words() -> None:
    """What the arguments of a call have as attributes, beside the sizes of dims."""
    own = {field.name for field in fields(Arguments)} | {name for name, _ in inspect.getmembers(Arguments)}
    free = {name for name in own if identifier_problem(name, "dim") is None}
    assert {"tokens", "offsets", "promote"} <= free
    assert all(is_word(name) for name in free)


NAMES = {
    "simple_gla": "S:state K:tile V:walk q:row k:start v:tokens g:dtype alpha:chunk scale:args",
    "gated_delta_product": "S:block K:R V:L q:keep k:torch v:args g:row beta:tokens n:token num_householder:rows "
    "alpha:device b:segment scale:launches",
    "kda": "S:U K:tl V:row q:q_ptr k:k_gradient v:NoneType g:log_decay beta:scores alpha:decay scale:max",
    "oja": "S:rows K:BLOCK_K V:tokens q:operators k:Tensor v:wanted g:saved beta:CALL alpha:state scale:len",
    "hgrn": "h:token D:batch x:row g:tokens alpha:args",
    "rwkv4": "D:offsets k:start v:sequences w:block u:row v:tile p:dtype z:chunk m:final",
    "linear_attn_normalized": "S:state z:read K:row V:chunk q:scans k:column v:tokens scale:torch",
    "gsa": "K:token M:tile V:tokens q:args k:row v:dtype s:state_ g:start alpha:keep p:chunk scale:wanted_",
}
"""Names of a spec of each structure that there is, and what they are called now: all of it words of generated code."""


@pytest.mark.usefixtures("interpreter", "poisoned_memory")
@pytest.mark.filterwarnings("ignore:.*encountered in:RuntimeWarning")
@tiered("name", [(name,) for name in NAMES], lambda name: name in ("gated_delta_product", "kda", "hgrn", "oja"))
def test_all_forms_are_the_recurrence_whatever_it_is_called(name: str) -> None:
    """Derived, proved, and right in float64 and on tiles, with its gradients."""
    names = dict(pair.split(":") for pair in NAMES[name].split())
    spec = parse_spec(called(text_of(name), names))
    assert for_generated_code(spec).written.keys() >= {f"{word}_" for word in WORDS & set(names.values())}
    forms = ("naive_recurrent", "naive_chunk", "fused_recurrent", "chunk")
    with imported(build(spec)) as package:
        assert all(hasattr(package, f"{form}_{name}") for form in forms)
        assert ladder.check(spec, package, shapes=ladder.SHAPES[:3]) == 3
        told = kernels.check(spec, package, shapes=kernels.SHAPES[:1])
    assert told >= {"o", *(f"d {decl.name}" for decl in spec.inputs)}


PASSED_BY_NAME = {
    "linear_attn_normalized": "scale:column",
    "gated_delta_product": "num_householder:prepared scale:wanted",
    "comba_layer": "A_log:wanted dt_bias:saved scale:prepared",
    "kda": "scale:saved",
    "oja": "scale:saved",
    "rwkv4": "w:wanted u:kept_states",
}
"""Params and step counts by the names of what functions for gradients take as keywords, as they take these."""


def passed_by_name(name: str) -> tuple[Spec, set[str]]:
    """A spec whose params are called so, and what they are called."""
    names = dict(pair.split(":") for pair in PASSED_BY_NAME[name].split())
    recurrence, *_ = text_of(name).partition("\nlayer:")
    return parse_spec(called(recurrence, names)), set(names.values())


@pytest.mark.parametrize("name", PASSED_BY_NAME)
def test_functions_for_gradients_take_a_param_by_its_name(name: str) -> None:
    spec, names = passed_by_name(name)
    backward = rendered(spec)["chunk_backward.py"]
    (function,) = (n for n in ast.parse(backward).body if isinstance(n, ast.FunctionDef) and n.name[0] != "_")
    arguments = [argument.arg for argument in (*function.args.args, *function.args.kwonlyargs)]
    assert names <= set(arguments)
    assert len(arguments) == len(set(arguments))


@pytest.mark.usefixtures("interpreter", "poisoned_memory")
@tiered("name", [(name,) for name in PASSED_BY_NAME], lambda name: name in ("linear_attn_normalized", "rwkv4"))
def test_gradients_of_what_is_passed_by_such_a_name(name: str) -> None:
    spec, _ = passed_by_name(name)
    with imported(build(spec)) as package:
        assert hasattr(package, f"chunk_{name}") and hasattr(package, f"fused_recurrent_{name}")
        told = kernels.check(spec, package, shapes=kernels.SHAPES[:2])
    tensors = [*spec.inputs, *(param for param in spec.params if param.is_tensor)]
    assert told >= {f"d {decl.name}" for decl in tensors}


def test_a_layer_calls_its_operator_by_the_names_that_the_spec_has() -> None:
    """Its own names are apart from those of the recurrence, and stay."""
    text = text_of("gated_deltanet")
    head, recurrence, layer = re.split("(?=\nstate:|\nlayer:)", text)
    names = {"A_log": "row", "strength": "tokens", "q": "args", "k": "torch"}
    layer = layer.replace("A_log=A_log", "row=A_log").replace("strength=2", "tokens=2")
    expected = rendered(parse_spec(text))["layer.py"]
    assert " A_log=self.A_log," in expected and " strength=2 if" in expected
    expected = expected.replace(" A_log=self.A_log,", " row=self.A_log,").replace(" strength=2 if", " tokens=2 if")
    spec = parse_spec(head + called(recurrence, names) + layer)
    assert set(for_generated_code(spec).written.values()) == set(names.values())
    assert without_banner(rendered(spec)["layer.py"]) == without_banner(expected)


def without_banner(text: str) -> str:
    return "\n".join(line for line in text.splitlines() if not line.startswith("# "))


OF_A_LAYER = {
    "hidden_size": "torch",
    "head_dim": "nn",
    "use_gate": "attention_mask",
    "conv_size": "range",
    "norm_eps": "run",
    "H": "Tensor",
    "HV": "len",
    "K": "math",
    "V": "F",
    "A_log": "cls",
    "q_proj": "packing",
    "o_norm": "Layer",
}
"""Config, dims, params and modules of a layer, and what they are called now."""


def test_a_layer_calls_what_is_its_own_by_any_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same module under other names: constructor, attributes, state_dict, and what it computes."""
    text = text_of("gated_deltanet")
    recurrence, layer = text.split("\nlayer:")
    layer = re.sub(r"\w+", lambda word: OF_A_LAYER.get(word[0], word[0]), layer).replace("cls=cls", "A_log=cls")
    for name, local in (("q", "past"), ("k", "hidden_states")):
        layer = layer.replace(f"- {name} = ", f"- {local} = ").replace(f"heads({name}, ", f"heads({local}, ")
    for package, spec_text in (("plain", text), ("other", f"{recurrence}\nlayer:{layer}")):
        files = build(parse_spec(spec_text, "gated_deltanet.yaml"))
        for path, content in files.items():
            target = tmp_path / "layers_by_any_name" / package / path
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(content)
    for shared in ("shared", "modules"):
        shutil.copytree(RUNTIME / shared, tmp_path / "layers_by_any_name" / shared)
    monkeypatch.syspath_prepend(tmp_path)
    plain, other = (
        importlib.import_module(f"layers_by_any_name.{name}.layer").GatedDeltaNet for name in ("plain", "other")
    )
    sizes = {"hidden_size": 12, "head_dim": 4, "num_heads": 2, "conv_size": 3}
    expected = plain(**sizes)
    found = other(**{OF_A_LAYER.get(name, name): size for name, size in sizes.items()})
    assert (found.torch, found.nn, found.range) == (12, 4, 3)

    def called_now(path: str) -> str:
        first, *rest = path.split(".")
        return ".".join((OF_A_LAYER.get(first, first), *rest))

    found.load_state_dict({called_now(path): tensor for path, tensor in expected.state_dict().items()})
    x = torch.randn(2, 5, 12, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(found(x)[0], expected(x)[0], rtol=0, atol=0)
    with pytest.raises(ValueError, match=r"^torch: expected"):
        other(torch=0)
