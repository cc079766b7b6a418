"""Every layer against what fla's layer of that name gave for the same weights and inputs: tests.layers.record."""

from __future__ import annotations

import importlib
import inspect
import json
from collections.abc import Callable, Iterator
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.layers.cases import LAYERS, Config
from tests.layers.scenarios import (
    FEW,
    LENGTHS,
    SCENARIOS,
    TOKENS,
    Array,
    Arrays,
    AsOurs,
    masks,
    scenarios,
    with_weights,
)
from tests.margins import beyond
from tests.tiers import tiered

ROOT = Path(__file__).parents[2]
DATA = Path(__file__).parent / "data"
STATES, GRADIENTS = 1e-5, 1e-4
"""How far apart, in float32, what comes out and what is kept may be, and gradients."""
APART = {"rwkv7_attention": 4, "cyclic_flow_attention": 4}
"""How many times as far: of the first layer fla's chunk kernels are up to 2e-5 and 2e-4 from float64 themselves, where
ours are as near as test_precision asks; of two of the other, fla's gradients are up to 2.4e-4 from it, ours 7e-5."""
CANCELS = {
    "lightnet_attention": "k_conv1d.bias",
    "mlstm_layer": "igate_preact.bias",
    "cyclic_flow_attention": "d_proj.bias",
}
"""Gradients that are zero but for rounding, or nearly so: a softmax over time does not see what is added to all keys,
nor a norm, but for its eps, what all that is read is multiplied by; a clock that is fast for all turns what is written
as what reads it. They are compared with zero, by the largest gradient there is."""


def with_last_product(states: list[Tensor]) -> list[Tensor]:
    """Of Mamba-3, the matrix with what the last token wrote as itself, which ours keeps apart."""
    if not states:
        return []
    phi, S, k, v, now = states
    return [phi, S + now[..., None, None] * k[..., :, None] * v[..., None, :], k, v]


def not_recorded(_: list[Tensor]) -> list[Tensor]:
    return []


AS_RECORDED: dict[str, AsOurs] = {"mamba3_layer": with_last_product, "log_linear_mamba2": not_recorded}
"""The states that a cache keeps as they are recorded, where that is another way."""
OF_PYTORCH = ("device", "dtype")
"""Arguments of fla's Mamba3 that say where parameters are made, as `with torch.device(...)` and `.to(...)` do."""
PRECISION = 3e-6
"""How far float32 may be from the same layer in float64, gradients as well."""
LOSES = {"momentum_deltanet": 7, "cyclic_flow_attention": 4, "mamba3_layer": 4}
"""How many times as far: of the first layer the gradients of what bounds the gates are small sums of large terms; token
by token, the recurrence loses 7e-6 of them, and fla's layer 1e-5. In the others angles add up, which turn what is
written: gradients of biases lose 5e-6 and 3.3e-6, and fla's of the first of them 1.1e-5."""

PACKAGES = [package for package in LAYERS if (ROOT / "specs" / f"{package}.yaml").exists()]
QUICK = ("no_mask", "packed")
MORE = ("decoded", "padded_left", "two_layers")
REPRESENTATIVES = ("simple_gated_linear_attention", "rwkv7_attention", "gated_deltanet", "hgrn_attention")
"""A decay a head; one a channel, a token shift and values handed on; an erasure; and no matrix."""


def layer_class(package: str) -> type[nn.Module]:
    found: type[nn.Module] = getattr(importlib.import_module(f"generated.{package}"), LAYERS[package].class_name)
    return found


def make_cache() -> Any:
    return importlib.import_module("generated.shared.cache").Cache()


def made(package: str, config: Config, index: int) -> nn.Module:
    return layer_class(package)(**{**config.arguments, "layer_idx": index})


@cache
def recorded(package: str) -> dict[str, Array]:
    with np.load(DATA / f"{package}.npz") as arrays:
        return dict(arrays)


@cache
def table() -> dict[str, Any]:
    found: dict[str, Any] = json.loads((DATA / "table.json").read_text())
    return found


@pytest.fixture
def in_pytorch(monkeypatch: pytest.MonkeyPatch) -> None:
    """No kernel runs: the layers take the PyTorch forms, as without Triton."""
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)


def cases() -> Iterator[tuple[str, int, str]]:
    for package in PACKAGES:
        for index, _ in enumerate(LAYERS[package].configs):
            yield from ((package, index, scenario) for scenario in (SCENARIOS if index == 0 else FEW))


def quick(package: str, index: int, scenario: str) -> bool:
    """Of the first config the quick ones, and of representatives a few more."""
    return index == 0 and (scenario in QUICK or (package in REPRESENTATIVES and scenario in MORE))


def compare(package: str, index: int, scenario: str) -> None:
    config = LAYERS[package].configs[index]
    make = partial(made, package, config)
    run = dict(scenarios(make, make_cache, config, index == 0, AS_RECORDED.get(package, list)))[scenario]
    got, prefix = run(), f"{index}/{scenario}/"
    expected = {name.removeprefix(prefix): x for name, x in recorded(package).items() if name.startswith(prefix)}
    assert expected.keys() == got.keys()
    times = APART.get(package, 1)
    compare_what_cancels(package, expected, got, times * STATES)
    bounds = {name: GRADIENTS if name.startswith("gradient") else STATES for name in expected}
    assert not [f for name in expected for f in differs(name, expected[name], got[name], times * bounds[name])]


def compare_what_cancels(package: str, expected: dict[str, Array], got: dict[str, Array], bound: float) -> None:
    """Of what is taken out of both then."""
    gradients = [name for name in got if name.startswith("gradient")]
    largest = max((float(np.linalg.norm(got[name])) for name in gradients), default=0.0)
    for name in gradients:
        if package in CANCELS and name.endswith(f".{CANCELS[package]}"):
            assert float(np.linalg.norm(expected.pop(name) - got.pop(name))) <= bound * largest


def differs(name: str, expected: Array, got: Array, bound: float) -> list[str]:
    if expected.shape != got.shape:
        return [f"{name}: {got.shape}, expected {expected.shape}"]
    ratio = float(np.linalg.norm(expected - got) / max(float(np.linalg.norm(expected)), 1e-12))
    return beyond(name, ratio, bound)


@pytest.mark.filterwarnings("ignore:Operators run without kernels")
@tiered(("package", "index", "scenario"), cases(), quick)
def test_recorded(package: str, index: int, scenario: str, in_pytorch: None) -> None:
    compare(package, index, scenario)


@tiered(
    ("package", "index", "scenario"),
    cases(),
    lambda package, index, scenario: index == 0 and scenario == "no_mask",
)
def test_recorded_with_kernels(package: str, index: int, scenario: str, kernels: None) -> None:
    compare(package, index, scenario)


@pytest.mark.filterwarnings("ignore:Operators run without kernels")
@tiered("package", [(package,) for package in PACKAGES], lambda package: package in REPRESENTATIVES)
def test_precision(package: str, in_pytorch: None) -> None:
    """Float32 is near float64, whatever fla's is near to."""
    config = LAYERS[package].configs[0]

    def run(dtype: torch.dtype) -> Arrays:
        make = lambda index: made(package, config, index).to(dtype)  # noqa: E731
        found: Arrays = dict(scenarios(make, make_cache, config, whole=False, dtype=dtype))["no_mask"]()
        return found

    expected, got = run(torch.float64), run(torch.float32)
    bound = LOSES.get(package, 1) * PRECISION
    compare_what_cancels(package, expected, got, bound)
    assert not [failure for name in expected for failure in differs(name, expected[name], got[name], bound)]


@pytest.mark.filterwarnings("ignore:Operators run without kernels")
@pytest.mark.parametrize("package", PACKAGES)
def test_masked_positions_are_zero(package: str, in_pytorch: None) -> None:
    config = LAYERS[package].configs[0]
    layer = with_weights(made(package, config, 0), 0)
    x = torch.randn(len(LENGTHS), TOKENS, config.arguments["hidden_size"])
    for mask in masks():
        with torch.no_grad():
            output = layer(x, attention_mask=mask)[0]
        assert (output[mask == 0] == 0).all() and (output[mask == 1] != 0).any(-1).all()


@pytest.mark.parametrize("package", PACKAGES)
def test_signatures(package: str) -> None:
    """Names, order and defaults of the constructor and of `forward`, which has cu_seqlens in every layer here."""
    known, cls = table()[package], layer_class(package)
    assert signature(cls.__init__) == [each for each in known["init"] if each[0] not in OF_PYTORCH]
    assert without_cu_seqlens(signature(cls.forward)) == without_cu_seqlens(known["forward"])


def signature(function: Callable[..., Any]) -> list[list[Any]]:
    parameters = [p for p in inspect.signature(function).parameters.values() if p.name != "self"]
    return [[p.name, default(p)] for p in parameters]


def default(parameter: inspect.Parameter) -> Any:
    if parameter.kind is inspect.Parameter.VAR_KEYWORD:
        return "**"
    if parameter.default is inspect.Parameter.empty:
        return "required"
    return list(parameter.default) if isinstance(parameter.default, tuple) else parameter.default


def without_cu_seqlens(parameters: list[list[Any]]) -> list[list[Any]]:
    """Every `forward` here ends in keywords."""
    named = [[name, value] for name, value in parameters if name != "cu_seqlens" and value != "**"]
    return [*named, ["kwargs", "**"]]


@pytest.mark.parametrize("package", PACKAGES)
def test_state_dicts(package: str) -> None:
    """Keys in their order, shapes and dtypes, the order of parameters, and which of them have no weight decay."""
    for known in table()[package]["configs"]:
        layer = layer_class(package)(**known["arguments"])
        state = [[key, list(p.shape), str(p.dtype).removeprefix("torch.")] for key, p in layer.state_dict().items()]
        assert state == known["state_dict"], known["arguments"]
        assert [name for name, _ in layer.named_parameters()] == known["parameters"]
        undecayed = [name for name, p in layer.named_parameters() if getattr(p, "_no_weight_decay", False)]
        assert undecayed == known["no_weight_decay"]
