"""Kernels compiled with no GPU at hand."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from flagen.triton_cpu import InterpreterOnError
from flagen.triton_cpu.offline import inspect_kernel
from tests.triton_cpu import compile_offline

pytestmark = pytest.mark.xdist_group("compiled offline")
"""They share what takes long to make."""


@pytest.fixture(scope="module")
def reports() -> dict[str, dict[str, Any]]:
    variables = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", compile_offline.__name__]
    root = Path(__file__).parents[2]
    done = subprocess.run(command, env=variables, cwd=root, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize(
    ("arch", "instruction", "registers"),
    [("sm_80", "HMMA", 255), ("sm_90", "HGMMA", 255), ("sm_100", "UTCHMMA", 255), ("gfx942", "v_mfma", 512)],
)
def test_a_small_dot_compiles_to_matrix_instructions(
    reports: dict[str, dict[str, Any]], arch: str, instruction: str, registers: int
) -> None:
    report = reports[arch]
    assert (report["kernel"], report["arch"]) == ("matmul_kernel", arch)
    assert (report["num_warps"], report["num_stages"]) == (4, 2)
    assert report["matrix_instructions"]
    assert all(kind.startswith(instruction) for kind in report["matrix_instructions"])
    assert report["spill_bytes"] == 0
    assert report["wgmma_serialized"] is None
    assert 16 <= report["registers"] <= registers
    # Both operands' tiles, two bytes an element; a pipeline may hold more than one of each.
    assert 2 * 64 * 64 * 2 <= report["shared_memory"] <= 65536
    assert next(iter(report["matrix_instructions"])) in report["assembly"]


def test_two_warps_fall_back_from_wgmma(reports: dict[str, dict[str, Any]]) -> None:
    assert set(reports["sm_90, two warps"]["matrix_instructions"]) == {"HMMA"}


def test_divisibility_decides_how_wide_memory_is_read(reports: dict[str, dict[str, Any]]) -> None:
    def wide_loads(job: str) -> int:
        return len(re.findall(r"LDG\S*\.128", reports[job]["assembly"]))

    assert wide_loads("sm_90") > 0
    assert wide_loads("sm_90, nothing divisible") == 0


def test_spills_and_serialization_are_seen(reports: dict[str, dict[str, Any]]) -> None:
    crowded = reports["crowded sm_90"]
    assert crowded["registers"] == 104
    assert crowded["spill_bytes"] > 1000
    assert crowded["wgmma_serialized"] == "insufficient register resources"
    assert reports["crowded gfx942"]["spill_bytes"] > 0


@pytest.mark.parametrize(
    ("job", "said"),
    [
        ("no such architecture", "ValueError: unknown architecture 'h100'; write it like sm_90 or gfx942"),
        ("unknown argument", "ValueError: crowded_kernel has no argument c; it takes a, b, out, N"),
        ("missing argument", "ValueError: crowded_kernel: neither type nor value given for N"),
        ("not a kernel", "TypeError: <built-in function print> is not a @triton.jit function"),
    ],
)
def test_what_cannot_be_compiled_is_said(reports: dict[str, dict[str, Any]], job: str, said: str) -> None:
    assert reports[job] == {"error": said}


def test_a_process_that_interprets_does_not_compile() -> None:
    with pytest.raises(InterpreterOnError, match="without TRITON_INTERPRET"):
        inspect_kernel(compile_offline.crowded_kernel, compile_offline.CROWDED, {"N": 128}, "sm_80")
