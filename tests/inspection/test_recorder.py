"""What is kept of a launch is what a launch would have been compiled for."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.inspection import record_launches

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.xdist_group("recorder")
"""They share what takes long to make."""


@pytest.fixture(scope="module")
def recorded() -> dict[str, Any]:
    variables = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", record_launches.__name__]
    done = subprocess.run(command, env=variables, cwd=ROOT, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_arguments_become_types_and_constants(recorded: dict[str, Any]) -> None:
    (launch,) = recorded["every kind"]
    assert launch["kernel"] == "every_kind_kernel"
    assert launch["signature"] == {
        "x": "*bf16",
        "y": "*fp32",
        "offsets": "*i64",
        "scale": "fp32",
        "n": "i32",
        "wide": "i64",
        "flag": "u1",
        # 1, but not specialized.
        "T": "i32",
    }
    assert launch["constexprs"] == {"absent": None, "one": 1, "SIZE": 64, "BLOCK": 8}


def test_alignment_is_that_of_the_arguments(recorded: dict[str, Any]) -> None:
    (launch,) = recorded["every kind"]
    # y starts at an odd element.
    assert launch["divisible_by_16"] == ["x", "offsets", "n", "wide"]


def test_options_are_the_launches_and_else_the_backends(recorded: dict[str, Any]) -> None:
    (launch,) = recorded["every kind"]
    assert launch["options"] == {"num_warps": 2, "maxnreg": 80}
    assert launch["told"] == {"num_warps": 2, "num_stages": 3, "maxnreg": 80}
    assert recorded["options on gfx942"]["num_stages"] == 3, "a configuration of an autotuner names its stages"


def test_every_configuration_of_an_autotuned_kernel_is_kept(recorded: dict[str, Any]) -> None:
    first, second = recorded["tuned"]
    assert first["constexprs"] == {"EVEN": True, "BLOCK": 16}
    assert second["constexprs"] == {"EVEN": False, "BLOCK": 32}
    assert (first["options"]["num_warps"], second["options"]["num_warps"]) == (4, 8)
    assert first["key"] != second["key"]


def test_a_launcher_that_asks_is_told_the_architecture(recorded: dict[str, Any]) -> None:
    chosen = [recorded[f"by device, {arch}"][0] for arch in ("sm_80", "sm_90")]
    assert [(x["constexprs"]["BLOCK"], x["options"]["num_warps"]) for x in chosen] == [(108, 8), (132, 9)]


def test_an_argument_that_is_not_understood_is_named(recorded: dict[str, Any]) -> None:
    assert recorded["not understood"] == "tuned_kernel: x is launched with a list, which cannot be inspected"


def test_nothing_is_left_behind(recorded: dict[str, Any]) -> None:
    import torch

    assert recorded["afterwards"] == [torch.cuda.is_available(), "function"]
