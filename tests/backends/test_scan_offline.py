"""Gradients of scans compile where no table has them: a compiler may refuse what the interpreter accepts."""

from __future__ import annotations

from pathlib import Path

import pytest

from flagen.inspection.model import Size
from flagen.inspection.work import Package, compile_kernels
from tests.tiers import exhaustive

ROOT = Path(__file__).parents[2]

# ptxas may spill a handful of bytes to get below a step of registers at which one more program fits.
SPILLED = 40


# Elsewhere test_shipped_kernels has them all: the table has gradients on sm_80 and sm_90 only.
@exhaustive
@pytest.mark.parametrize(("name", "arch"), [("rwkv4", "gfx942"), ("mamba", "sm_100")])
def test_compiles(name, arch):
    package = Package(name, str(ROOT / "specs" / f"{name}.yaml"), str(ROOT / "generated" / name))
    found = compile_kernels([package], [arch], [Size(64, 16)])
    kernels = [kernel for kernel in found if kernel.operator == "chunk"]
    assert {kernel.kernel for kernel in kernels} == {f"chunk_{name}_kernel", f"chunk_backward_{name}_kernel"}
    for kernel in kernels:
        assert kernel.spill_bytes <= SPILLED, kernel
        assert kernel.shared_memory <= 65536, kernel
        assert not kernel.matrix_instructions, kernel
