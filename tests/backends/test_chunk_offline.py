"""The chunk kernels, compiled for the GPUs they are to run on, and what they move: without one."""

from __future__ import annotations

from pathlib import Path

import pytest

from flagen import inspection
from flagen.inspection import ARCHS, Compiled, Size
from flagen.inspection.devices import DEVICES
from flagen.project import Project

PROJECT = Project(Path(__file__).parents[2])
SIZE = Size(128, 128)

# One variant for each way a kernel can be put together: without a decay, with one, one that is computed, with factors
# of its rows; an inverse; micro-steps; rows that erase and rows that write.
VARIANTS = ("linear_attn", "retention", "mamba2", "gated_delta_rule", "gated_delta_product", "iplr")
NVIDIA = tuple(arch for arch in ARCHS if arch.startswith("sm_"))

MOVED = {"simple_gla": 1100, "gated_delta_rule": 2200, "gated_delta_product": 3200}
"""The most bytes a token and head may move, in bf16 with K = V = 128, without a final state."""


@pytest.fixture(scope="module")
def compiled() -> list[Compiled]:
    packages = [inspection.find_package(PROJECT, name) for name in VARIANTS]
    recorded = inspection.record(packages, sizes=[SIZE])
    others = {row.key for row in recorded if row.operator != "chunk"}
    return inspection.compile_kernels(packages, sizes=[SIZE], but=others)


def rows(compiled: list[Compiled], name: str, arch: str) -> list[Compiled]:
    found = [row for row in compiled if row.variant == name and row.arch == arch]
    assert len(found) == (1 if name in ("linear_attn", "retention", "mamba2") else 2)
    return found


@pytest.mark.parametrize("arch", NVIDIA)
@pytest.mark.parametrize("name", VARIANTS)
def test_a_variant_compiles_without_spills(compiled, name, arch):
    for row in rows(compiled, name, arch):
        assert row.spill_bytes == 0, row.kernel
        assert row.shared_memory <= DEVICES[arch].shared_memory
        assert row.wgmma_serialized is None


@pytest.mark.parametrize("name", VARIANTS)
def test_a_variant_compiles_for_amd(compiled, name):
    """There the walk keeps part of what it reads in scratch memory; the bound is what it does today."""
    for row in rows(compiled, name, "gfx942"):
        assert row.spill_bytes <= 1300, row.kernel
        assert row.shared_memory <= DEVICES["gfx942"].shared_memory
        assert any("mfma" in kind for kind in row.matrix_instructions)


@pytest.mark.parametrize("name", VARIANTS)
def test_walks_multiply_by_warp_groups_on_hopper(compiled, name):
    (walk,) = (row for row in rows(compiled, name, "sm_90") if not row.kernel.endswith("_prepare_kernel"))
    assert walk.matrix_instructions["HGMMA"] > 0
    assert "HMMA" not in walk.matrix_instructions


def test_bytes_moved():
    metered = inspection.meter([inspection.find_package(PROJECT, name) for name in MOVED])
    moved = {row.variant: row.moved / row.per for row in metered if row.operator == "chunk"}
    assert moved.keys() == MOVED.keys()
    assert all(moved[name] <= most for name, most in MOVED.items()), moved
