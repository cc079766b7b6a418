"""What does not fit a layer is named, of every layer: sizes and names in its constructor, and what a call is given."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from generated import layers
from generated.shared.functional import activate
from generated.shared.layer import Layer
from tests.layers.cases import LAYERS

SMALL = {case.class_name: case.configs[0].arguments for case in LAYERS.values()}
NAMES = sorted(set(layers.__all__) & SMALL.keys())
SIZES = ("hidden_size", "num_heads", "num_v_heads", "num_kv_heads", "head_dim", "num_slots", "conv_size", "state_size")
ACTIVATIONS = ("gate_fn", "feature_map", "hidden_act", "output_gate_activation", "qk_activation")

pytestmark = pytest.mark.filterwarnings("ignore:Operators run without kernels")


@pytest.fixture(autouse=True)
def _in_pytorch(interpreter: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """No kernel runs; Triton is imported with the interpreter before, for the tests that follow."""
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)


def layer_class(name: str) -> type[Layer]:
    found: type[Layer] = getattr(layers, name)
    return found


def made(name: str, **varied: Any) -> Layer:
    return layer_class(name)(**{**SMALL[name], **varied})


def argument(names: tuple[str, ...], *without: tuple[str, str]) -> list[tuple[str, str]]:
    """Every layer with each of its arguments that is called so."""
    found = [(layer, name) for layer in NAMES for name in inspect.signature(layer_class(layer)).parameters]
    return [(layer, name) for layer, name in found if name in names and (layer, name) not in without]


@pytest.mark.parametrize(("layer", "name"), argument(SIZES, ("Mamba2", "num_heads")))
def test_what_is_no_size_is_named(layer: str, name: str) -> None:
    varied = {"use_short_conv": True} if name == "conv_size" else {}
    shown = "kernel_size" if name == "conv_size" else name
    for size in (0, -2, 2.5, "4", True):
        try:
            made(layer, **{**varied, name: size})
            said = "nothing"
        except ValueError as error:
            said = str(error)
        assert f"{shown}: expected a positive integer, got {size!r}" in said


@pytest.mark.parametrize(("layer", "name"), argument(("expand_k", "expand_v", "expand_ratio", "expand")))
@pytest.mark.parametrize("factor", [0, -1])
def test_what_makes_no_size_is_named(layer: str, name: str, factor: int) -> None:
    with pytest.raises(ValueError, match=rf"{name}.*: expected a positive integer|{name}: expected a positive"):
        made(layer, **{name: factor})


@pytest.mark.parametrize(
    ("layer", "name"), argument(("num_heads", "num_kv_heads", "hidden_size", "head_dim", "expand_ratio"))
)
@pytest.mark.parametrize("size", [7, 1 << 20])
def test_sizes_that_do_not_go_together_say_so(layer: str, name: str, size: int) -> None:
    if name == "hidden_size" and size > 7:
        return
    try:
        with torch.device("meta"):
            made(layer, **{name: size})
    except ValueError as error:
        assert "expected" in str(error)
    except NotImplementedError:
        pass  # Some starts cannot be made without numbers.


@pytest.mark.parametrize(("layer", "name"), argument(ACTIVATIONS))
def test_a_name_of_no_activation_is_named(layer: str, name: str) -> None:
    with pytest.raises(ValueError, match=rf"{name}: expected .*, got 'swisch'"):
        made(layer, **{name: "swisch"})


@pytest.mark.parametrize("layer", NAMES)
def test_hidden_states_that_do_not_fit_are_named(layer: str) -> None:
    size = SMALL[layer]["hidden_size"]
    one = made(layer, layer_idx=0)
    for shape in ((2, 3, size + 1), (2, 3, 1, size), (3, size)):
        with pytest.raises(ValueError, match=r"hidden_states: expected \[B, T, "):
            one(torch.zeros(shape))
    with pytest.raises(ValueError, match=r"hidden_states: expected torch.float32 as .*, got torch.bfloat16"):
        one(torch.zeros(2, 3, size, dtype=torch.bfloat16))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert one(torch.zeros(2, 3, size, dtype=torch.bfloat16))[0].shape == (2, 3, size)


def test_what_another_layer_hands_on_is_asked_for() -> None:
    x = torch.randn(2, 3, SMALL["RWKV7Attention"]["hidden_size"])
    for index in (None, 1):
        with pytest.raises(ValueError, match=r"v_first: expected values of the first layer, .*, got None"):
            made("RWKV7Attention", layer_idx=index)(x)
    assert made("RWKV7Attention", layer_idx=0)(x)[0].shape == x.shape
    with pytest.raises(ValueError, match=r"v_first: expected a tensor \[2, 3, ...\] as hidden_states, got \(2, 4, 5\)"):
        made("RWKV7Attention", layer_idx=1)(x, v_first=torch.zeros(2, 4, 5))


def test_retention_has_the_exact_gelu_and_others_its_tanh_form() -> None:
    x = torch.randn(1, 2, 5, 4)
    for name, approximate in (("gelu_exact", "none"), ("gelu", "tanh")):
        assert torch.equal(activate(x, name), F.gelu(x, approximate=approximate))
    retention = made("MultiScaleRetention", gate_fn="gelu", feature_map="gelu", fuse_norm=False)
    assert (retention.gated, retention.mapped) == ("gelu_exact", "gelu_exact")
    assert made("GatedLinearAttention", gate_fn="gelu", fuse_norm=False).gate_fn == "gelu"
