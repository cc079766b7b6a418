"""In bf16 no layer is further from float64 than fla's layer of that name was: tests.layers.record_bf16."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

import pytest

from tests.layers.cases import LAYERS
from tests.layers.scenarios import with_weights
from tests.layers.sixteen_bits import errors, reference
from tests.layers.test_recorded import made
from tests.margins import beyond
from tests.tiers import tiered

TIMES = 1.25
"""How many times fla's own error: what is left of chance in the median of six sequences."""

OF_PRODUCTS = {"cyclic_flow_attention": 1.6, "mamba3_layer": 1.6, "mlstm_layer": 1.6}
"""How many times that with kernels, which multiply in bf16: theirs are for a GPU alone, and what was recorded in their
place multiplies in float32."""

CASES = [(package, index) for package in LAYERS for index, _ in enumerate(LAYERS[package].configs)]


@cache
def recorded() -> dict[str, list[dict[str, float]]]:
    found: dict[str, list[dict[str, float]]] = json.loads((Path(__file__).parent / "data" / "bf16.json").read_text())
    return found


def compare(package: str, index: int, monkeypatch: pytest.MonkeyPatch, kernels: bool) -> None:
    config = LAYERS[package].configs[index]
    place = config.arguments.get("layer_idx", 0)
    layer = with_weights(made(package, config, place), place).bfloat16()
    with monkeypatch.context() as alone:
        alone.delenv("TRITON_INTERPRET", raising=False)
        expected = reference(layer, config)
        found = None if kernels else errors(expected, layer, config)
    found = found or errors(expected, layer, config)
    theirs, times = recorded()[package][index], TIMES * (OF_PRODUCTS.get(package, 1) if kernels else 1)
    assert not [f for name, error in found.items() for f in beyond(name, error, times * theirs[name])]


@pytest.mark.filterwarnings("ignore:Operators run without kernels")
@tiered(("package", "index"), CASES, lambda package, index: index == 0)
def test_pytorch_forms(package: str, index: int, interpreter: None, monkeypatch: pytest.MonkeyPatch) -> None:
    compare(package, index, monkeypatch, kernels=False)


@pytest.mark.filterwarnings("ignore:Operators run without kernels")
@tiered(("package", "index"), CASES, lambda package, index: index == 0)
def test_kernels(package: str, index: int, kernels: None, monkeypatch: pytest.MonkeyPatch) -> None:
    compare(package, index, monkeypatch, kernels=True)
