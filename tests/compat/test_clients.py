"""transformers' models on these operators, against the same models on transformers' own PyTorch functions."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import pytest
import torch

from .client import MODELS, PACKED

ROOT = Path(__file__).parents[2]
PINNED = "5.24.0"
"""Its names and call sites are what the drop-in is held to; pyproject.toml has it among what development needs."""

OUTPUTS, GRADIENTS = 1e-5, 1e-4
"""Relative to what transformers computes, in float32."""


def _installed() -> str:
    try:
        return version("transformers")
    except PackageNotFoundError:
        return "not installed"


pytestmark = [
    pytest.mark.skipif(_installed() != PINNED, reason=f"transformers {PINNED} is needed, it is {_installed()}"),
    pytest.mark.xdist_group("transformers"),
]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What each way of running came to. Names are resolved once a process, so each has its own."""
    place = tmp_path_factory.mktemp("clients")
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["HF_HUB_OFFLINE"] = "1"
    found = {}
    for mode in ("own", "drop_in"):
        command = [sys.executable, "-W", "ignore", "-m", "tests.compat.client", mode, str(place / mode)]
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        found[mode] = torch.load(place / mode)
    return found


def _of(runs: dict[str, Any], model: str) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    own, dropped_in = (runs[mode]["models"][model] for mode in ("own", "drop_in"))
    assert not isinstance(own, str), own
    assert not isinstance(dropped_in, str), dropped_in
    return own, dropped_in


def _far(x: torch.Tensor, from_: torch.Tensor) -> float:
    return float((x - from_).norm() / from_.norm().clamp(min=1e-30))


@pytest.mark.parametrize("what", ["logits", "left padding", "decoding", "packed"])
@pytest.mark.parametrize("model", MODELS)
def test_outputs_are_those_of_transformers(runs: dict[str, Any], model: str, what: str) -> None:
    if what == "packed" and model not in PACKED:
        pytest.skip("the model hands no bounds of sequences on")
    own, dropped_in = _of(runs, model)
    assert _far(dropped_in[what], own[what]) < OUTPUTS


@pytest.mark.parametrize("model", MODELS)
def test_gradients_are_those_of_transformers(runs: dict[str, Any], model: str) -> None:
    own, dropped_in = _of(runs, model)
    places = [name for name in own if name.startswith("gradient of")]
    assert places
    assert {name for name in dropped_in if name.startswith("gradient of")} == set(places)
    far = {name: error for name in places if (error := _far(dropped_in[name], own[name])) >= GRADIENTS}
    assert not far


def test_transformers_took_the_functions(runs: dict[str, Any]) -> None:
    assert runs["own"]["taken"] == []
    assert set(runs["drop_in"]["taken"]) >= {
        "causal_conv1d",
        "fla.ops.gated_delta_rule",
        "fla.ops.kda",
        "mamba_ssm.ops.selective_scan_interface",
        "mamba_ssm.ops.triton.selective_state_update",
        "mamba_ssm.ops.triton.ssd_combined",
    }


def test_transformers_finds_the_packages(runs: dict[str, Any]) -> None:
    assert set(runs["drop_in"]["available"].values()) == {True}
