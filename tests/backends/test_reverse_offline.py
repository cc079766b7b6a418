"""Kernels that transpose statements, compiled for the GPUs they are to run on: without one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

from flagen.inspection.devices import DEVICES
from tests.tiers import exhaustive

ROOT = Path(__file__).parents[2]

# The whole of a vector beside a block; elementwise; a matrix param; a delta rule; and what is odd.
VARIANTS = ("lightnet", "rwkv4", "mamba", "precond_kda")
ODD = ("steps", "scalars", "not_affine", "crossed_axes", "matrix_products")

# On sm_90. Slots: two matrices, one of which every block has whole, and the gradient of either.
SPILLING = {"gsa": 0, "abc_attn": 188}


@cache
def compiled(arch: str, *names: str) -> dict[str, dict[str, int]]:
    """What each kernel compiles to, K = V = D = E = 128 and N = 16 in bf16: in a process that has the compiler."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "tests.backends.compile_reverse", arch, *names]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@exhaustive
@pytest.mark.parametrize("arch", ["sm_100"])  # The table has the others.
def test_nothing_spills(arch):
    rows = compiled(arch, *VARIANTS)
    assert len(rows) == 2 * len(VARIANTS)
    assert {name: row["spills"] for name, row in rows.items() if row["spills"]} == {}
    assert all(row["shared_memory"] <= DEVICES[arch].shared_memory for row in rows.values())


@exhaustive
@pytest.mark.parametrize("name", SPILLING)
def test_slots_spill_no_more_than_today(name):
    rows = compiled("sm_90", name)
    assert rows[f"fused_recurrent_{name}_states_kernel"]["spills"] == 0
    assert rows[f"fused_recurrent_{name}_gradients_kernel"]["spills"] <= SPILLING[name]


@exhaustive
def test_odd_ones_compile():
    """What the interpreter takes the compiler takes, too, and it fits: micro-steps, numbers for states, axes in another
    order, states that nothing cuts, products of matrices."""
    rows = compiled("sm_80", *ODD)
    assert len(rows) == 2 * len(ODD)
    assert all(row["shared_memory"] <= DEVICES["sm_80"].shared_memory for row in rows.values())


def test_it_compiles_for_amd():
    rows = compiled("gfx942", "lightnet", "mamba")
    assert all(row["spills"] == 0 for row in rows.values()), rows
    assert all(row["shared_memory"] <= DEVICES["gfx942"].shared_memory for row in rows.values())
