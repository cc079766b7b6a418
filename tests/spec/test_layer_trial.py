"""What a layer comes to with a config: its parameters, and the shapes of what flows through it."""

from __future__ import annotations

from flagen.spec import load_spec
from flagen.spec.layer.held import Tensor
from flagen.spec.layer.model import Constant
from flagen.spec.layer.printer import to_text
from flagen.spec.layer.trial import Trial
from tests.spec.layer_specs import HERE


def trial(name: str, **config: Constant) -> Trial:
    spec = load_spec(HERE / "valid" / f"{name}.yaml")
    assert spec.layer is not None
    given = {entry.name: entry.default for entry in spec.layer.config} | config
    found = Trial(spec.layer, {"recurrence": spec} | spec.used, given)
    if not found.findings:
        found.call()
    return found


def test_the_parameters_of_a_config() -> None:
    found = trial("gated_deltanet", hidden_size=64, head_dim=16, num_heads=2, num_v_heads=4, expand_v=1.5)
    assert not found.findings
    weights = found.construction.weights()
    assert list(weights)[:3] == ["A_log", "dt_bias", "q_proj.weight"]
    assert weights["q_proj.weight"] == (32, 64) and weights["v_proj.weight"] == (96, 64)
    assert weights["v_conv1d.weight"] == (96, 1, 4) and weights["o_norm.weight"] == (24,)
    assert found.construction.count() == 2 * 4 + 64 * (32 + 32 + 96 + 4 + 4 + 96 + 96) + 4 * (32 + 32 + 96) + 24


def test_what_a_switch_leaves_out_is_not_there() -> None:
    found = trial("gated_deltanet", use_gate=False, use_short_conv=False, conv_bias=True)
    assert not found.findings
    assert found.construction.modules["g_proj"] is None and found.construction.modules["q_conv1d"] is None
    assert not any(name.startswith(("g_proj", "q_conv1d")) for name in found.construction.weights())


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
    assert tied.construction.weights() == apart.construction.weights()
    assert apart.construction.count() - tied.construction.count() == 24 * 24


def test_a_config_that_does_not_fit_is_found() -> None:
    assert [found.code for found in trial("gated_deltanet", num_v_heads=7).findings] == ["E803"]
    assert {found.code for found in trial("gated_deltanet", head_dim=None).findings} == {"E802"}
    assert {found.code for found in trial("gated_deltanet", expand_v=0.001).findings} == {"E802"}
