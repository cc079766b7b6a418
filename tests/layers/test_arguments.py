"""What does not fit a layer is named, of every layer: sizes and names in its constructor, and what a call is given."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from flagen.spec import check_file
from generated import layers
from generated.shared.functional import activate
from generated.shared.layer import Layer
from tests.layers.cases import LAYERS
from tests.specs import LAYERS as SPECS

SMALL = {case.class_name: case.configs[0].arguments for case in LAYERS.values()}
NAMES = sorted(set(layers.__all__) & SMALL.keys())
FACTORS = ("expand_k", "expand_v", "expand_ratio", "expand")
"""What sizes are multiplied by; a fraction will do where the product is an integer."""
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


def sizes() -> Iterator[tuple[str, str]]:
    """Every layer with each of its arguments that is an integer and has an effect, but factors and its place."""
    for path in SPECS.values():
        section = check_file(path)[0].layer
        assert section is not None
        annotations = inspect.get_annotations(layer_class(section.class_name).__init__)
        for config in section.config:
            counts = annotations[config.name] in ("int", "int | None") and not config.ignored
            if counts and config.name not in (*FACTORS, "layer_idx"):
                yield section.class_name, config.name


@pytest.mark.parametrize(("layer", "name"), list(sizes()))
@pytest.mark.parametrize("size", [0, -2, 2.5, "4", True])
def test_what_is_no_size_is_named(layer: str, name: str, size: Any) -> None:
    """Not zero either, which stands for no default."""
    varied = {"use_short_conv": True} if name == "conv_size" else {}
    with pytest.raises(ValueError, match=rf"^{name}: expected a positive integer, got {size!r}$"):
        made(layer, **{**varied, name: size})


@pytest.mark.parametrize("layer", NAMES)
@pytest.mark.parametrize("place", [-1, True, 2.5, "4"])
def test_what_is_no_place_in_a_cache_is_named(layer: str, place: Any) -> None:
    with pytest.raises(ValueError, match=rf"^layer_idx: expected the layer's place in a cache, from 0, got {place!r}$"):
        made(layer, layer_idx=place)


@pytest.mark.parametrize(("layer", "name"), argument(FACTORS))
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


@pytest.mark.parametrize("layer", NAMES)
@pytest.mark.parametrize("weights", [torch.float32, torch.bfloat16])
def test_hidden_states_of_another_dtype_are_named(layer: str, weights: torch.dtype) -> None:
    one = made(layer, layer_idx=0).to(weights)
    for dtype in {torch.float32, torch.bfloat16, torch.float64} - {weights}:
        with pytest.raises(ValueError, match=rf"hidden_states: expected {weights} as .*, got {dtype}"):
            one(torch.zeros(2, 3, SMALL[layer]["hidden_size"], dtype=dtype))


@pytest.mark.parametrize("layer", NAMES)
@pytest.mark.parametrize("weights", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_autocast_takes_any(layer: str, weights: torch.dtype, dtype: torch.dtype) -> None:
    """Forward and backward, and near what it is without in float32."""
    torch.manual_seed(0)
    one = made(layer, layer_idx=0).to(weights)
    x = torch.randn(2, 9, SMALL[layer]["hidden_size"]).to(dtype).requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = one(x)[0]
    output.float().square().sum().backward()
    assert x.grad is not None and x.grad.dtype == dtype and x.grad.isfinite().all()
    assert all(p.grad is not None and p.grad.dtype == p.dtype and p.grad.isfinite().all() for p in one.parameters())
    expected = one.float()(x.detach().float())[0]
    assert (output - expected).norm() <= 0.05 * expected.norm()


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
