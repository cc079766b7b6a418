"""`flagen check`, `explain`, `new` and `list`."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from flagen.pipeline import Stages
from flagen.spec import load_spec
from tests.cli.conftest import ROOT, Flagen, Workspace
from tests.specs import OPERATORS, SPECS

OK, WRONG, FAILED = 0, 1, 2

NOT_AFFINE = """\
flagen: 1
name: squashed
state: {S: [K, V]}
inputs: {q: [K], k: [K], v: [V]}
update: S = tanh(S) + outer(k, v)
output: o = S.T @ q
"""

# ---------------------------------------------------------------------------------------------------------------- check


def test_a_right_spec_checks(flagen: Flagen, project: Workspace) -> None:
    project.take("gla")
    done = flagen("check", "gla")
    assert (done.code, done.out, done.err) == (OK, "specs/gla.yaml: ok\n", "")
    assert project.generated() == {}


def test_all_errors_of_all_files_are_shown_at_once(flagen: Flagen, project: Workspace) -> None:
    project.take("gla", "retention", "kda")
    project.edit("gla", "outer(k, v)", "outer(k, vv)")
    project.edit("gla", "name: gla", "name: GLA")
    project.edit("retention", "flagen: 1", "flagen: 99")
    done = flagen("check", "--all")
    assert done.code == WRONG
    assert done.err.count("specs/gla.yaml:") >= 2 and done.err.count("specs/retention.yaml:") >= 1
    assert done.out == "specs/kda.yaml: ok\n"


def test_what_keeps_a_spec_from_a_chunk_form_is_a_note_with_its_place(flagen: Flagen, project: Workspace) -> None:
    project.spec("squashed").write_text(NOT_AFFINE)
    done = flagen("check", "squashed")
    assert done.code == OK
    column = NOT_AFFINE.split("\n")[4].index("tanh(S)") + 1
    assert f"specs/squashed.yaml:5:{column}: note[no-chunk-form]" in done.err
    assert "tanh(S)" in done.err and "^^^^^^^" in done.err


@pytest.mark.parametrize(
    ("refused", "hint", "mended"),
    [
        ("m = minimum(m + f, i)", "a running minimum is", "m = maximum(m - f, -i)"),
        ("m = relu(m + f)", "a sum that does not fall below 0 is", "m = maximum(m + f, 0)"),
    ],
)
def test_a_running_extremum_is_told_what_has_a_chunk_form(
    flagen: Flagen, project: Workspace, refused: str, hint: str, mended: str
) -> None:
    """And whoever does what the hint says gets it."""
    text = (
        "flagen: 1\nname: peak\nstate: {S: [K, V], m: []}\n"
        "inputs: {q: [K], k: [K], v: [V], f: {dims: [], range: [-.inf, 0]}, i: []}\n"
        f"update:\n  - {refused}\n  - S = exp(f) * S + tanh(m) * outer(i * k, v)\n"
        "output: o = S.T @ q\n"
    )
    project.spec("peak").write_text(text)
    said = flagen("check", "peak").err
    assert "specs/peak.yaml:6:9: note[no-chunk-form]" in said and f"hint: {hint}" in said
    project.edit("peak", refused, mended)
    assert flagen("check", "peak").err == ""


def test_whole_turns_that_are_taken_off_by_hand_are_told_what_has_a_chunk_form(
    flagen: Flagen, project: Workspace
) -> None:
    text = (
        "flagen: 2\nname: angle\nstate: {phi: [K]}\ninputs: {x: [K]}\n"
        "update: phi = phi + x - floor(phi + x)\noutput: o = cos(6.2831853 * phi)\n"
    )
    project.spec("angle").write_text(text)
    said = flagen("check", "angle").err
    assert "specs/angle.yaml:5:25: note[no-chunk-form]" in said and "`fraction(phi + x)`, which has" in said
    project.edit("angle", "phi + x - floor(phi + x)", "fraction(phi + x)")
    assert flagen("check", "angle").err == ""


def test_levels_without_a_chunk_form_are_told_nothing_of_pairs_of_keys(flagen: Flagen, project: Workspace) -> None:
    """Both are states of three dims."""
    text = (
        "flagen: 2\nname: smoothed\nstate: {S: [K, V]}\n"
        "inputs: {q: [K], k: [K], v: [V], x: {dims: [L]}}\n"
        "update: S = S + outer(k + prev(k), v)\noutput: o = levels(S, x).T @ q\n"
    )
    project.spec("smoothed").write_text(text)
    said = flagen("check", "smoothed").err
    assert "where it is the only one" in said and "hint" not in said


def test_what_chunk_kernels_cost_or_are_missing_for_is_a_note_with_its_place(
    flagen: Flagen, project: Workspace
) -> None:
    project.take("delta_rule")
    project.edit("delta_rule", "S.T @ q", "l2norm(S.T @ q)")
    done = flagen("check", "delta_rule")
    assert done.code == OK
    assert "note[rows-in-memory]: the chunk kernels get every row of a token from memory, and their" in done.err
    project.edit("delta_rule", "l2norm(S.T @ q)", "(S.T @ q) * sum(S @ v)")
    done = flagen("check", "delta_rule")
    assert done.code == OK
    assert "note[no-kernel]: no chunk kernel: the output reads the state from both sides" in done.err
    project.edit("delta_rule", "(S.T @ q) * sum(S @ v)", "sum(S, K) * mean(q)")
    done = flagen("check", "delta_rule")
    assert done.code == OK
    assert f"specs/delta_rule.yaml:{project.spec('delta_rule').read_text()[:-1].count(chr(10)) + 1}:" in done.err


@pytest.mark.parametrize("command", ["check", "build"])
def test_gradients_that_run_in_pytorch_are_a_note_with_their_place(
    flagen: Flagen, project: Workspace, command: str
) -> None:
    project.take("delta_rule")
    project.edit("delta_rule", "S.T @ q", "beta * (S.T @ q)")
    done = flagen(command, "delta_rule")
    assert done.code == OK
    text = project.spec("delta_rule").read_text()
    line = text[: text.index("output:")].count("\n") + 1
    place = f"specs/delta_rule.yaml:{line}:{len('output: ') + 1}: "
    assert f"{place}note[no-backward-kernel]: the gradients of the chunk kernels run in PyTorch: " in done.err


def test_a_stage_without_backward_kernels_is_a_note_under_its_name(flagen: Flagen, project: Workspace) -> None:
    project.spec("fading").write_text(
        "flagen: 1\nname: fading\nstate: {S: [K, V], z: [K]}\n"
        "inputs: {q: [K], k: [K], v: [V], w: {dims: [V], heads: HV}, g: {dims: [K], range: [-.inf, 0]}}\n"
        "update:\n  - z = exp(g) * z + k\n  - S = S + outer(z, v * w)\noutput: o = S.T @ q\n"
    )
    done = flagen("check", "fading")
    assert done.code == OK
    note = "note[no-backward-kernel]: stage of S: the gradients of the chunk kernels run in PyTorch: value heads share"
    assert f"specs/fading.yaml:4:26: {note} `v`" in done.err


def test_a_spec_without_a_chunk_form_is_built_without_one(flagen: Flagen, project: Workspace) -> None:
    project.spec("squashed").write_text(NOT_AFFINE)
    done = flagen("build", "squashed")
    assert done.code == OK and "note[no-chunk-form]" in done.err
    files = project.generated()
    assert "def naive_recurrent_squashed(" in files["squashed/naive_recurrent.py"]
    assert not any("naive_chunk_squashed" in text for text in files.values())


# -------------------------------------------------------------------------------------------------------------- explain


@pytest.mark.parametrize("stage", Stages.NAMES)
@pytest.mark.parametrize("variant", ["gla", "gated_delta_product"])
def test_every_stage_can_be_looked_at(flagen: Flagen, project: Workspace, stage: str, variant: str) -> None:
    project.take(variant)
    done = flagen("explain", variant, "--stage", stage)
    assert done.code == OK and len(done.out.strip().split("\n")) > 1
    assert done.out.startswith(stage.replace("-", " ").capitalize() + "\n")


def test_every_stage_of_every_operator_has_a_text() -> None:
    """Whatever runs in the place of the whole: stages, mini-batches, columns of levels, rows of a token."""
    for variant in OPERATORS:
        stages = Stages(SPECS / f"{variant}.yaml")
        for stage in ("spec", "normal-form", "chunk-form", "adjoint", "plan"):
            assert stages.dump(stage).strip(), f"{variant}, {stage}"


def test_the_rows_of_a_token_can_be_looked_at(flagen: Flagen, project: Workspace) -> None:
    project.take("mamba3_mimo")
    whole = flagen("explain", "mamba3_mimo")
    assert whole.code == OK
    assert "mamba3_mimo_s: a token is R + R rows" in whole.out and "chunk form of mamba3_mimo_s_rows" in whole.out
    project.spec("erasing").write_text(
        "flagen: 1\nname: erasing\nstate: {S: [K, V]}\ninputs: {q: [R, K], k: [R, K], v: [R, V]}\n"
        "update: S = S + k.T @ (v - k @ S)\noutput: o = q @ S\n"
    )
    done = flagen("check", "erasing")
    note = "note[no-chunk-form]: no chunk form: `k.T @ (v - k @ S)` erases what several rows read at once"
    assert done.code == OK and f"specs/erasing.yaml:5:17: {note}" in done.err


def test_the_spec_is_shown_with_shapes(flagen: Flagen, project: Workspace) -> None:
    project.take("gated_delta_product")
    out = flagen("explain", "gated_delta_product", "--stage", "spec").out
    for said in (
        "[K, V] per value head, starts at 0",
        "[B, T * n, HV, V]",
        "default K ** -0.5",
        "num_householder, default 2",
    ):
        assert said in out
    assert "repeat n times" in out and "S = S + b * outer(k, v - S.T @ k)" in out


def test_all_stages_in_markdown(flagen: Flagen, project: Workspace) -> None:
    project.take("gla")
    out = flagen("explain", "gla", "--format", "markdown").out
    assert [line for line in out.split("\n") if line.startswith("## ")] == [
        "## Spec",
        "## Normal form",
        "## Chunk form",
        "## Adjoint",
        "## Proof",
        "## Plan",
    ]
    assert out.count("```") == 2 * len(Stages.NAMES)


def test_a_stage_that_needs_no_proof_runs_none(
    flagen: Flagen, project: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A form whose proof fails is exactly what one wants to look at."""
    project.take("gla")
    monkeypatch.setattr("flagen.pipeline.prove", None)
    assert flagen("explain", "gla", "--stage", "chunk-form").code == OK


def test_a_missing_chunk_form_is_explained(flagen: Flagen, project: Workspace) -> None:
    project.spec("squashed").write_text(NOT_AFFINE)
    done = flagen("explain", "squashed", "--stage", "chunk-form")
    assert done.code == OK and "tanh" in done.out


LAYERS = ROOT / "tests" / "spec" / "valid"


def test_a_layer_is_shown_with_its_parameters_and_the_shapes_that_flow(flagen: Flagen, project: Workspace) -> None:
    shutil.copy(LAYERS / "gated_deltanet.yaml", project.spec("gated_deltanet"))
    done = flagen("explain", "gated_deltanet", "--stage", "layer")
    assert done.code == OK and done.out.startswith("Layer\n  GatedDeltaNet: 25,215,500 parameters with its defaults\n")
    rows = [line.split() for line in done.out.split("\n")]
    assert ["A_log", "log(uniform(0,", "16))", "[6]", "6"] in rows
    assert any(row[:1] == ["q_conv1d.weight"] and row[1].startswith("short_conv(") for row in rows)
    assert ["q", "[B,", "T,", "1536]", "q_conv1d(q_proj(x))"] in rows


def test_a_layer_is_shown_with_another_config(flagen: Flagen, project: Workspace) -> None:
    shutil.copy(LAYERS / "gated_deltanet.yaml", project.spec("gated_deltanet"))
    given = ["--config", "use_short_conv=false", "--config", "hidden_size=64", "--config", "norm_eps=1e-6"]
    out = flagen("explain", "gated_deltanet", "--stage", "layer", *given).out
    assert "with hidden_size=64, use_short_conv=False, norm_eps=1e-06\n" in out
    assert "conv1d" not in out and "silu(q_proj(x))" in out


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("hiden_size=64", "GatedDeltaNet has no config 'hiden_size'; did you mean `hidden_size`?"),
        ("hidden_size", "--config takes key=value, not 'hidden_size'"),
        ("num_v_heads=7", "cannot be made with num_v_heads=7: specs/gated_deltanet.yaml:58:13: what is required does"),
        ("mode=parallel", "mode is one of chunk, fused_recurrent, not parallel"),
        ("head_dim=wide", "cannot be made with head_dim=wide"),
    ],
)
def test_a_config_that_a_layer_cannot_have(flagen: Flagen, project: Workspace, setting: str, said: str) -> None:
    shutil.copy(LAYERS / "gated_deltanet.yaml", project.spec("gated_deltanet"))
    done = flagen("explain", "gated_deltanet", "--config", setting)
    assert (done.code, done.out) == (FAILED, "") and said in done.err


def test_a_spec_without_a_layer_has_none_to_show(flagen: Flagen, project: Workspace) -> None:
    project.take("gla")
    assert "gla has no layer" in flagen("explain", "gla", "--stage", "layer").err
    assert "Layer" not in flagen("explain", "gla", "--stage", "spec").out


def test_a_layer_comes_after_the_spec_it_belongs_to(flagen: Flagen, project: Workspace) -> None:
    shutil.copy(LAYERS / "gated_deltanet.yaml", project.spec("gated_deltanet"))
    out = flagen("explain", "gated_deltanet", "--format", "markdown").out
    assert [line for line in out.split("\n") if line.startswith("## ")][:3] == ["## Spec", "## Layer", "## Normal form"]


def test_an_error_in_a_layer_is_an_error_of_the_spec(flagen: Flagen, project: Workspace) -> None:
    shutil.copy(LAYERS / "gated_deltanet.yaml", project.spec("gated_deltanet"))
    project.edit("gated_deltanet", "merge(o))", "merge(oo))")
    for command in ("check", "build"):
        done = flagen(command, "gated_deltanet")
        assert done.code == WRONG and "error[E304]: unknown name `oo`" in done.err
    assert project.generated() == {}


# ------------------------------------------------------------------------------------------------------------------ new


@pytest.mark.parametrize("model", sorted(path.stem for path in (ROOT / "specs").glob("*.yaml")))
def test_a_new_variant_is_another_under_its_own_name(flagen: Flagen, project: Workspace, model: str) -> None:
    done = flagen("new", "my_variant", "--like", model)
    assert done.code == OK and "wrote specs/my_variant.yaml" in done.out
    new, old = load_spec(project.spec("my_variant")), load_spec(ROOT / "specs" / f"{model}.yaml")
    assert (new.name, new.title, new.class_name) == ("my_variant", "My variant", "MyVariant")
    assert (new.inputs, new.update, new.output, new.paper) == (old.inputs, old.update, old.output, old.paper)


def test_a_new_variant_has_a_layer_of_its_own_name(flagen: Flagen, project: Workspace) -> None:
    shutil.copy(LAYERS / "gated_deltanet.yaml", project.spec("gated_deltanet"))
    assert flagen("new", "my_delta_net", "--like", "gated_deltanet").code == OK
    old, new = (project.spec(name).read_text().split("\n") for name in ("gated_deltanet", "my_delta_net"))
    changed = [line for line, other in zip(new, old, strict=True) if line != other]
    assert changed == ["name: my_delta_net", "title: My delta net", "  class_name: MyDeltaNet"]
    assert flagen("check", "my_delta_net").code == OK


def test_only_the_lines_that_name_it_change(flagen: Flagen, project: Workspace) -> None:
    text = """\
# A spec with everything that could trip a line editor.
flagen: 1
"name":   "odd"    # the name
title: >-
  a folded
  title
class_name: OddOne
state: {S: [K, V]}   # name: not this
inputs: {q: [K], k: [K], v: {dims: [V], description: "title: nor this"}}
update: S = S + outer(k, v)
output: o = S.T @ q
"""
    project.spec("odd").write_text(text)
    assert flagen("new", "mine", "--like", "odd").code == OK
    kept = text.split("\n")[7:]
    lines = project.spec("mine").read_text().split("\n")
    assert lines[-len(kept) :] == kept
    assert lines[:2] == text.split("\n")[:2]
    assert load_spec(project.spec("mine")).class_name == "Mine"


def test_a_model_is_found_in_the_project_first(flagen: Flagen, project: Workspace) -> None:
    project.take("gla")
    project.edit("gla", "description: ", "description: ours and ")
    flagen("new", "mine", "--like", "gla")
    assert load_spec(project.spec("mine")).description.startswith("ours and ")


@pytest.mark.parametrize(
    "name", ["../evil", "/etc/evil", "Upper", "1st", "a-b", "a b", "a" * 65, "", "class", "torch", "a\nb", "..", "a.b"]
)
def test_a_bad_name_is_refused(flagen: Flagen, project: Workspace, name: str) -> None:
    done = flagen("new", name, "--like", "gla")
    assert done.code in (WRONG, FAILED) and done.err
    assert not list(project.root.parent.rglob("*.yaml"))


def test_nothing_is_overwritten(flagen: Flagen, project: Workspace) -> None:
    project.spec("mine").write_text("precious\n")
    done = flagen("new", "mine", "--like", "gla")
    assert done.code == FAILED and "exists" in done.err
    assert project.spec("mine").read_text() == "precious\n"


def test_an_unknown_model_is_refused(flagen: Flagen, project: Workspace) -> None:
    project.take("gla")
    done = flagen("new", "mine", "--like", "glaa")
    assert done.code == FAILED and "did you mean gla?" in done.err
    assert not project.spec("mine").exists()


def test_a_new_variant_builds(flagen: Flagen, project: Workspace) -> None:
    flagen("new", "mine", "--like", "gated_delta_rule")
    assert flagen("build", "mine").code == OK
    assert "def naive_recurrent_mine(" in project.generated()["mine/naive_recurrent.py"]


# ----------------------------------------------------------------------------------------------------------------- list


def test_the_table_has_a_row_for_each_variant(flagen: Flagen, project: Workspace) -> None:
    project.take("gla", "retention", "gated_delta_product", "gated_delta_rule")
    project.spec("wrong").write_text("flagen: 1\n")
    flagen("build", "gla")
    done = flagen("list")
    assert done.code == OK
    header, *rows = (line.split() for line in done.out.splitlines())
    assert header[0] == "name" and header[-4:] == ["naive_recurrent", "naive_chunk", "fused_recurrent", "chunk"]
    by_name = {row[0]: " ".join(row[1:]) for row in rows}
    assert list(by_name) == ["gated_delta_product", "gated_delta_rule", "gla", "retention", "wrong"]
    assert "S [K, V] per K 1 yes yes" in by_name["gla"]
    assert "S [K, V] scalar, constant 1 - - - -" in by_name["retention"]
    assert "S [K, V] scalar n = 2 - - - -" in by_name["gated_delta_product"]
    assert "flagen check" in by_name["wrong"]


def test_an_empty_project_has_an_empty_table(flagen: Flagen) -> None:
    done = flagen("list")
    assert done.code == OK and len(done.out.splitlines()) == 1


def test_help_and_version(flagen: Flagen) -> None:
    assert all(command in flagen("--help").out for command in ("build", "check", "explain", "new", "list"))
    assert flagen("--version").out.startswith("flagen ")
    assert "Exit codes" in flagen("--help").out


def test_specs_may_live_outside_the_project(flagen: Flagen, project: Workspace, tmp_path: Path) -> None:
    outside = tmp_path / "outside.yaml"
    outside.write_text((ROOT / "specs" / "gla.yaml").read_text())
    assert flagen("build", str(outside)).code == OK
    assert "from outside.yaml (" in project.generated()["gla/naive_recurrent.py"]
