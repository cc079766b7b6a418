"""The kernels of the recurrent backward, compiled for the GPUs they are to run on, and what they move: without one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

from flagen.inspection.devices import DEVICES

ROOT = Path(__file__).parents[2]

# A scalar decay with an erasure; a decay of each key, and rows that read before it; reads from the other side.
VARIANTS = ("gated_delta_rule", "rwkv7", "oja")
NVIDIA = ("sm_80", "sm_90", "sm_100")


@cache
def compiled(arch: str) -> dict[str, dict[str, int]]:
    """What each kernel of the variants compiles to, K = V = 128 in bf16: in a process that has the compiler."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "tests.backends.compile_fused_backward", arch, *VARIANTS]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("arch", NVIDIA)
def test_nothing_spills(arch):
    rows = compiled(arch)
    assert len(rows) == 4 * len(VARIANTS)
    assert {name: row["spills"] for name, row in rows.items() if row["spills"]} == {}
    assert all(row["shared_memory"] <= DEVICES[arch].shared_memory for row in rows.values())


def test_it_compiles_for_amd():
    """There the bound is what it does today."""
    rows = compiled("gfx942")
    assert len(rows) == 4 * len(VARIANTS)
    assert all(row["spills"] <= 0 for row in rows.values()), rows
    assert all(row["shared_memory"] <= DEVICES["gfx942"].shared_memory for row in rows.values())
