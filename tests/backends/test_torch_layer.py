"""What a section says stands in `layer.py`, and nothing of what a config leaves out."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from types import SimpleNamespace

import pytest

from flagen.backends.torch_.layer import layer_file
from flagen.backends.torch_.layer_printer import MODULES
from flagen.diagnostics import SpecError
from flagen.emit.env import environment, render
from flagen.emit.format import format_python
from flagen.plan.layer_planner import plan_layer
from flagen.project import bundled
from flagen.spec import check_file
from flagen.spec.layer.renaming import OWN
from flagen.spec.layer.scope import BASE_ATTRIBUTES, BASE_CONFIG
from flagen.spec.layer.vocabulary import CONSTRUCTORS, FUNCTIONS, RULES
from generated.shared.layer import Layer

VALID = Path(__file__).resolve().parents[1] / "spec" / "valid"


def written(path: Path) -> str:
    """`layer.py` as it is written where the operator has every form; ruff finds no fault with it, or this raises."""
    spec, _ = check_file(path)
    assert spec.layer is not None
    forms = {"chunk": None, "fused": None, "chunk_kernel": None}
    others = {name: SimpleNamespace(spec=used, **forms) for name, used in spec.used.items()}
    plan = plan_layer(spec.layer, SimpleNamespace(spec=spec, **forms), others)  # type: ignore[arg-type]
    rendering = layer_file(plan, spec)
    text = render(environment(bundled("templates")), rendering.template, rendering.context)
    return format_python({"layer.py": text})["layer.py"]


def edited(tmp_path: Path, **replaced: str) -> str:
    """GatedDeltaNet's layer, written from its section with some lines replaced."""
    text = (VALID / "gated_deltanet.yaml").read_text()
    for line in replaced.values():
        before, _, after = line.partition(" => ")
        assert text.count(before) == 1, before
        text = text.replace(before, after)
    path = tmp_path / "gated_deltanet.yaml"
    path.write_text(text)
    return written(path)


def method(text: str, name: str) -> str:
    (layer,) = (node for node in ast.parse(text).body if isinstance(node, ast.ClassDef))
    (found,) = (node for node in layer.body if isinstance(node, ast.FunctionDef) and node.name == name)
    return ast.unparse(found)


@pytest.fixture(scope="module")
def everything() -> str:
    return written(VALID / "layer_of_everything.yaml")


def test_a_start_of_what_a_config_leaves_out_is_left_out(everything: str) -> None:
    starts = method(everything, "reset_parameters")
    assert "if self.feature_map == 't2r':\n        nn.init.xavier_uniform_(self.map_q.layer.weight" in starts
    assert "if not self.first:\n        nn.init.orthogonal_(self.w_proj.weight" in starts


def test_every_attribute_that_a_method_reads_is_kept(everything: str) -> None:
    made = {n.attr for n in ast.walk(ast.parse(method(everything, "__init__"))) if isinstance(n, ast.Attribute)}
    for name in ("forward", "reset_parameters"):
        tree = ast.walk(ast.parse(method(everything, name)))
        read = {n.attr for n in tree if isinstance(n, ast.Attribute) and ast.unparse(n.value) == "self"}
        assert read <= made | BASE_ATTRIBUTES | BASE_CONFIG


def test_a_module_of_several_kinds_says_so_where_it_is_first_assigned(everything: str) -> None:
    assigned = [line.strip() for line in everything.splitlines() if line.strip().startswith("self.map_k")]
    assert assigned[0].startswith("self.map_k: nn.Module =")
    assert not any(line.startswith("self.map_k:") for line in assigned[1:])


def test_an_attribute_may_have_a_name_of_the_config(tmp_path: Path) -> None:
    text = edited(tmp_path, a="attributes: {num_v_heads: HV, => attributes: {num_v_heads: HV, num_heads: H + 0,")
    assert "self.num_heads = num_heads + 0" in method(text, "__init__")
    assert "self.H = num_heads" in method(text, "__init__")
    assert "q.unflatten(-1, (self.H, -1))" in method(text, "forward")


def test_what_does_not_fit_is_refused_before_anything_is_made(tmp_path: Path) -> None:
    init = method(edited(tmp_path), "__init__")
    assert init.index("if HV % num_heads != 0") < init.index("self.q_proj")
    assert "got num_v_heads = {HV}, num_heads = {num_heads}" in init


def test_a_dim_and_a_config_of_one_name_are_two_in_a_message(tmp_path: Path) -> None:
    init = method(edited(tmp_path, a="  require: [HV % H == 0] =>   require: [(num_v_heads or HV) == HV]"), "__init__")
    assert "expected (num_v_heads or HV) == HV, got num_v_heads = {num_v_heads}, HV = {HV}" in init


def test_states_may_go_to_other_entries_of_the_cache(tmp_path: Path) -> None:
    text = edited(tmp_path, a="  kwargs: true =>   kwargs: true\n  cache: {S: ffn_state}")
    forward = method(text, "forward")
    assert "initial_state=past['ffn_state']" in forward
    assert "ffn_state=state" in forward and "recurrent_state" not in forward


def test_a_dim_that_only_a_mark_asks_for_is_computed(tmp_path: Path) -> None:
    init = "  init:\n    q_proj.weight: {value: 'normal(0, 1)', weight_decay: false, if: wide > 2}\n"
    modules, dims = f"  modules:\n => {init}  modules:\n", "dims: {H => dims: {wide: 3 * num_heads, H"
    constructor = method(edited(tmp_path, modules=modules, dims=dims), "__init__")
    assert "wide = 3 * num_heads" in constructor and "if wide > 2:\n" in constructor


def test_what_version_2_has_besides(tmp_path: Path) -> None:
    start = "  modules:\n =>   init: {o_proj.weight: identity()}\n  modules:\n    scaled: affine(K, beta=False)\n"
    turn = "    dt_bias:\n =>     turn: {shape: [H, K, K], init: full(0)}\n    dt_bias:\n"
    read, call = "heads(q, H), => scaled(map_heads(heads(q, H), turn)),", "b_proj(x), => b_proj(detach(x)),"
    text = edited(tmp_path, version="flagen: 1 => flagen: 2", start=start, turn=turn, read=read, call=call)
    assert "self.b_proj(x.detach())" in method(text, "forward")
    assert "torch.einsum('...ni,nio->...no', q.unflatten(-1, (self.num_heads, -1)), self.turn)" in method(
        text, "forward"
    )
    assert "self.scaled = Affine(head_dim, use_beta=False)" in method(text, "__init__")
    assert "self.o_proj.weight.copy_(torch.eye(*self.o_proj.weight.shape[-2:]))" in method(text, "reset_parameters")


def test_what_a_layer_asks_of_may_be_none(tmp_path: Path) -> None:
    norm = "o_norm: rms_norm_gated(V, norm_eps, => o_norm: rms_norm_gated(V, 0 if norm_eps is None else norm_eps,"
    constructor = method(edited(tmp_path, norm=norm), "__init__")
    assert "norm_eps: float | None=1e-05" in constructor and "conv_size: int=4" in constructor


def test_a_word_of_version_2_is_a_name_in_version_1(tmp_path: Path) -> None:
    text = (VALID / "gated_deltanet.yaml").read_text().replace("q_proj", "identity").replace("k_proj", "detach")
    path = tmp_path / "gated_deltanet.yaml"
    path.write_text(text)
    assert "self.identity(x)" in method(written(path), "forward")


def test_inputs_stand_before_cu_seqlens_and_outputs_come_last(everything: str) -> None:
    spec, _ = check_file(VALID / "layer_of_everything.yaml")
    assert spec.layer is not None
    (layer,) = (node for node in ast.parse(everything).body if isinstance(node, ast.ClassDef))
    (forward,) = (n for n in layer.body if isinstance(n, ast.FunctionDef) and n.name == "forward")
    names = [argument.arg for argument in forward.args.args]
    assert names[-1] == "cu_seqlens" and names[6:-1] == [given.name for given in spec.layer.inputs]
    returned = forward.body[-1]
    assert isinstance(returned, ast.Return) and isinstance(returned.value, ast.Tuple)
    assert len(returned.value.elts) == 3 + len(spec.layer.outputs)


def imported(text: str) -> set[str]:
    """What a file imports, and what it calls its own beside its class."""
    own = [n for n in ast.parse(text).body if isinstance(n, ast.Import | ast.ImportFrom)]
    return {alias.asname or alias.name for node in own for alias in node.names if not alias.name.startswith("__")}


def test_whatever_a_layer_imports_is_a_word_of_the_language_or_its_own(everything: str) -> None:
    own = imported(everything) | {name for names in MODULES.values() for name in names}
    operators = {name for name in own if name.endswith(("_layer_of_everything", "_gated_deltanet"))}
    assert operators and own - operators <= OWN | FUNCTIONS.keys() | CONSTRUCTORS.keys() | RULES.keys()


def test_what_a_layer_has_of_its_base_is_a_name_that_a_spec_cannot_use() -> None:
    own = {name for name in vars(Layer) if not name.startswith("_")} - {"training"}
    assert own <= BASE_ATTRIBUTES


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("class_name: GatedDeltaNet", "class_name: Packing"),
        ("class_name: GatedDeltaNet", "class_name: RMSNorm"),
        ("conv_bias", "kwargs"),
        ("q_proj", "choose"),
        ("b_proj", "outputs"),
        ("g_proj", "mode"),
        ("attributes: {", "attributes: {seen_tokens: HV, "),
    ],
)
def test_a_name_that_the_code_needs_is_refused(tmp_path: Path, before: str, after: str) -> None:
    head, _, layer = (VALID / "gated_deltanet.yaml").read_text().partition("\nlayer:")
    assert before in layer
    path = tmp_path / "gated_deltanet.yaml"
    path.write_text(f"{head}\nlayer:{layer.replace(before, after)}")
    with pytest.raises(SpecError, match=r"reserved|cannot name a class|cannot be kept|attribute of this name"):
        check_file(path)


def test_an_operators_constant_makes_way_for_a_value(tmp_path: Path) -> None:
    head, _, layer = (VALID / "gated_deltanet.yaml").read_text().partition("\nlayer:")
    path = tmp_path / "gated_deltanet.yaml"
    path.write_text(f"{head}\nlayer:{layer}".replace("- o = recurrence", "- RECURRENCE = recurrence"))
    path.write_text(
        re.sub(r"\bo = o_norm\(o", "o = o_norm(RECURRENCE", path.read_text()).replace("o_norm(o)", "o_norm(RECURRENCE)")
    )
    text = written(path)
    assert "\nRECURRENCE_ = Forms(" in text
    assert "self.choose(RECURRENCE_, hidden_states)" in text
