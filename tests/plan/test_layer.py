"""The statements of a layer come to stand in blocks as a person writes them, and mean the same."""

from __future__ import annotations

import ast
from pathlib import Path
from types import SimpleNamespace

import pytest

from flagen.plan.layer import LayerPlan
from flagen.plan.layer_planner import plan_layer
from flagen.spec import check_file
from flagen.spec.layer.scope import BASE_ATTRIBUTES, BASE_CONFIG

ROOT = Path(__file__).resolve().parents[2]
VALID = ROOT / "tests" / "spec" / "valid" / "gated_deltanet.yaml"


def planned(tmp_path: Path, *forward: str) -> LayerPlan:
    """The plan of GatedDeltaNet with other statements in its `forward`."""
    text = VALID.read_text()
    head = text[: text.index("  forward:\n")]
    path = tmp_path / "gated_deltanet.yaml"
    path.write_text(head + "  forward:\n" + "".join(f"    - {statement}\n" for statement in forward))
    spec, _ = check_file(path)
    assert spec.layer is not None
    forms = SimpleNamespace(spec=spec, chunk=None, fused=None, chunk_kernel=None)
    return plan_layer(spec.layer, forms, {})  # type: ignore[arg-type]


def lines(plan: LayerPlan) -> list[str]:
    return plan.dump().split("forward\n")[1].splitlines()


CALL = (
    "o = recurrence(heads(q, H), heads(k, H), heads(v, HV), a_proj(x), b_proj(x), "
    "A_log=A_log, dt_bias=dt_bias, strength=2 if allow_neg_eigval else 1)"
)
REST = (CALL, "o = o_norm(o, heads(g_proj(x), HV)) if use_gate else o_norm(o)", "y = o_proj(merge(o))")


def test_one_block_a_condition(tmp_path: Path) -> None:
    each = (f"{n} = {n}_conv1d({n}_proj(x)) if use_short_conv else silu({n}_proj(x))" for n in "qkv")
    assert lines(planned(tmp_path, *each, *REST))[:9] == [
        "  if use_short_conv:",
        "      q = q_conv1d(q_proj(x))",
        "      k = k_conv1d(k_proj(x))",
        "      v = v_conv1d(v_proj(x))",
        "  else:",
        "      q = silu(q_proj(x))",
        "      k = silu(k_proj(x))",
        "      v = silu(v_proj(x))",
        f"  {CALL}",
    ]


def test_what_keeps_something_stands_alone_and_passes_what_does_not_mind(tmp_path: Path) -> None:
    each = (f"{n} = 2 * ({n}_conv1d({n}_proj(x)) if use_short_conv else {n}_proj(x))" for n in "qkv")
    assert lines(planned(tmp_path, *each, *REST))[:11] == [
        "  if use_short_conv:",
        "      q = q_conv1d(q_proj(x))",
        "      k = k_conv1d(k_proj(x))",
        "      v = v_conv1d(v_proj(x))",
        "  else:",
        "      q = q_proj(x)",
        "      k = k_proj(x)",
        "      v = v_proj(x)",
        "  q = 2 * q",
        "  k = 2 * k",
        "  v = 2 * v",
    ]


def test_a_block_does_not_pass_what_it_reads(tmp_path: Path) -> None:
    forward = (
        "q = q_conv1d(q_proj(x)) if use_short_conv else q_proj(x)",
        "k = 2 * k_proj(x) + 0 * q",
        "k = k_conv1d(k) if use_short_conv else k",
        "v = v_conv1d(v_proj(x)) if use_short_conv else v_proj(x)",
    )
    found = lines(planned(tmp_path, *forward, *REST))
    changed = found.index("  k = (2 * k_proj(x)) + (0 * q)")
    assert changed < found.index("      k = k_conv1d(k)")
    # v minds nothing and may stand in either block; the branch without a convolution of k is gone.
    assert not any(line.strip() == "k = k" for line in found)


def test_what_a_statement_still_reads_is_not_written_over(tmp_path: Path) -> None:
    forward = (
        "q = q_proj(x)",
        "q = q + (q_conv1d(2 * q) if use_short_conv else silu(q))",
        "k = k_conv1d(k_proj(x)) if use_short_conv else k_proj(x)",
        "v = v_conv1d(v_proj(x)) if use_short_conv else v_proj(x)",
    )
    found = lines(planned(tmp_path, *forward, *REST))
    assert "      of_q_conv1d = q_conv1d(2 * q)" in found
    assert "  q = q + of_q_conv1d" in found


def test_a_choice_of_several_is_a_chain(tmp_path: Path) -> None:
    forward = (
        *(f"{n} = {n}_conv1d({n}_proj(x)) if use_short_conv else {n}_proj(x)" for n in "qkv"),
        "q = relu(q) if conv_size == 1 else tanh(q) if conv_size == 2 else q",
    )
    found = lines(planned(tmp_path, *forward, *REST))
    start = found.index("  if conv_size == 1:")
    assert found[start : start + 5] == [
        "  if conv_size == 1:",
        "      q = relu(q)",
        "  else:",
        "      if conv_size == 2:",
        "          q = tanh(q)",
    ]


def test_what_is_registered_keeps_its_order(tmp_path: Path) -> None:
    each = (f"{n} = {n}_conv1d({n}_proj(x)) if use_short_conv else {n}_proj(x)" for n in "qkv")
    plan = planned(tmp_path, *each, *REST)
    modules = plan.dump().split("modules\n")[1].split("\n\n")[0]
    blocks = [line.strip() for line in modules.splitlines()]
    assert blocks.count("if use_short_conv:") == 1 and blocks.count("if use_gate:") == 1
    assert list(plan.keeping) == ["q_conv1d", "k_conv1d", "v_conv1d"]


@pytest.mark.parametrize("spec", sorted((ROOT / "specs").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_layer_is_written_whole(spec: Path) -> None:
    found, _ = check_file(spec)
    if found.layer is None:
        return
    written = (spec.parents[1] / "generated" / found.name / "layer.py").read_text()
    tree = ast.parse(written)
    (layer,) = (node for node in tree.body if isinstance(node, ast.ClassDef))
    assert layer.name == found.layer.class_name
    methods = {node.name: node for node in layer.body if isinstance(node, ast.FunctionDef)}
    given = {argument.arg for argument in methods["__init__"].args.args}
    assert given == {"self", *(config.name for config in found.layer.config)}
    kept = {node.attr for node in ast.walk(methods["__init__"]) if isinstance(node, ast.Attribute)}
    read = {
        node.attr
        for node in ast.walk(methods["forward"])
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "self"
    }
    assert read - BASE_ATTRIBUTES - BASE_CONFIG <= kept
