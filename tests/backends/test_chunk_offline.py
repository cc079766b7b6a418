"""The chunk kernels, compiled for the GPUs they are to run on, and what they move: without one."""

from __future__ import annotations

from pathlib import Path

import pytest

from flagen import inspection
from flagen.inspection import ARCHS, Compiled, Launched, Size
from flagen.inspection.devices import DEVICES
from flagen.project import Project

PROJECT = Project(Path(__file__).parents[2])
SIZE = Size(128, 128)

# One variant for each way a kernel can be put together: without a decay, with one, one that is computed, with factors
# of its rows; an inverse; micro-steps; rows that erase and rows that write. Then, with a decay of each key: rows that
# write, rows that erase, both.
VARIANTS = (
    "linear_attn",
    "retention",
    "mamba2",
    "gated_delta_rule",
    "gated_delta_product",
    "iplr",
    "gla",
    "kda",
    "dplr",
)
PREPARED = VARIANTS[3:]
# Where the states and the outputs get kernels of their own, these stand for the others.
SPLIT = ("gated_delta_rule", "kda")
NVIDIA = tuple(arch for arch in ARCHS if arch.startswith("sm_"))

MOVED = {
    "simple_gla": 1100,
    "gated_delta_rule": 2200,
    "gated_delta_product": 3200,
    "gla": 2700,
    "kda": 3700,
    "rwkv7": 4500,
}
"""The most bytes a token and head may move, in bf16 with K = V = 128, without a final state."""


def is_split(row: Launched) -> bool:
    return row.kernel.endswith(("_states_kernel", "_output_kernel"))


@pytest.fixture(scope="module")
def compiled() -> list[Compiled]:
    packages = [inspection.find_package(PROJECT, name) for name in VARIANTS]
    recorded = inspection.record(packages, sizes=[SIZE])
    others = [row for row in recorded if row.operator != "chunk" or (is_split(row) and row.variant not in SPLIT)]
    return inspection.compile_kernels(packages, sizes=[SIZE], but={row.key for row in others})


def rows(compiled: list[Compiled], name: str, arch: str, *, split: bool = False) -> list[Compiled]:
    found = [row for row in compiled if row.variant == name and row.arch == arch and is_split(row) == split]
    assert len(found) == (2 if split or name in PREPARED else 1)
    return found


def check(row: Compiled) -> None:
    assert row.spill_bytes == 0, row.kernel
    assert row.shared_memory <= DEVICES[row.arch].shared_memory
    assert row.wgmma_serialized is None


@pytest.mark.parametrize("arch", NVIDIA)
@pytest.mark.parametrize("name", VARIANTS)
def test_a_variant_compiles_without_spills(compiled, name, arch):
    for row in rows(compiled, name, arch):
        check(row)


@pytest.mark.parametrize("arch", NVIDIA)
@pytest.mark.parametrize("name", SPLIT)
def test_states_and_outputs_compile_without_spills(compiled, name, arch):
    for row in rows(compiled, name, arch, split=True):
        check(row)


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


@pytest.mark.parametrize("name", [name for name in PREPARED if name != "iplr"])  # Its chunks are shorter than that.
def test_preparations_multiply_64_rows_by_warp_groups_on_hopper(compiled, name):
    (prepare,) = (row for row in rows(compiled, name, "sm_90") if row.kernel.endswith("_prepare_kernel"))
    assert prepare.matrix_instructions["HGMMA"] > 0


def test_bytes_moved():
    metered = inspection.meter([inspection.find_package(PROJECT, name) for name in MOVED])
    moved = {row.variant: row.moved / row.per for row in metered if row.operator == "chunk"}
    assert moved.keys() == MOVED.keys()
    assert all(moved[name] <= most for name, most in MOVED.items()), moved
