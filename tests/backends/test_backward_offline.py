"""The kernels of the backward for decays of each key, compiled for the GPUs they are to run on: without one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from flagen.inspection.devices import DEVICES
from tests.backends import compile_backward

ROOT = Path(__file__).parents[2]

SPILLS = {
    ("sm_80", "kda"): 120,
    ("sm_90", "gla"): 0,
    ("sm_90", "kda"): 0,
    ("sm_90", "oja"): 0,
    ("sm_90", "rwkv7"): 80,
}
"""The most bytes that a kernel of each variant spills, in bf16 with K = V = 128. One variant writes, one erases, one
does both, with blocks of rows anchored at their middle; one reads from the right."""
ARCHS = ("sm_80", "sm_90", "sm_100", "gfx942")


@pytest.fixture(scope="module")
def reports() -> list[dict[str, Any]]:
    variables = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}

    def compiled(arch: str) -> Iterator[dict[str, Any]]:
        names = [name for known, name in SPILLS if known == arch] or ["kda"]
        command = [sys.executable, "-m", compile_backward.__name__, arch]
        done = subprocess.run(
            command, input=json.dumps(names), env=variables, cwd=ROOT, capture_output=True, text=True, timeout=1200
        )
        assert done.returncode == 0, done.stderr
        return map(json.loads, done.stdout.splitlines())

    with ThreadPoolExecutor(2) as pool:  # A machine that runs this has two cores.
        return [report for group in pool.map(compiled, ARCHS) for report in group]


def of(reports: list[dict[str, Any]], arch: str) -> list[dict[str, Any]]:
    found = [report for report in reports if report["arch"] == arch]
    assert found
    return found


@pytest.mark.parametrize("arch", ARCHS)
def test_every_kernel_compiles_and_fits(reports, arch):
    for report in of(reports, arch):
        assert report["shared_memory"] <= DEVICES[arch].shared_memory, report["kernel"]
        assert report["wgmma_serialized"] is None, report["kernel"]
        assert report["matrix_instructions"], report["kernel"]


@pytest.mark.parametrize(("arch", "name"), SPILLS)
def test_no_kernel_spills_more_than_recorded(reports, arch, name):
    spilled = {r["kernel"]: r["spill_bytes"] for r in of(reports, arch) if r["variant"] == name}
    assert any(kernel.endswith("_gradients_kernel") for kernel in spilled)
    assert max(spilled.values()) <= SPILLS[arch, name], spilled
