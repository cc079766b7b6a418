"""Every kernel of generated/, compiled for the GPUs it is to run on: it fits, and spills no more than is recorded.

The rows are those of the committed table (`shipped`); only what no table has is compiled here.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import pytest

from benchmarks import tables
from benchmarks.tables import Tables
from flagen import inspection
from flagen.inspection import ARCHS, DEVICES, Compiled, Size, verdict
from tests.backends.spills import SPILLS_OF
from tests.tiers import exhaustive

# One worker reads the table, and compares its keys, for all that need it.
pytestmark = pytest.mark.xdist_group("compiled")

SIZE = Size(128, 128)
NVIDIA = tuple(arch for arch in ARCHS if arch.startswith("sm_"))
GRADIENTS = tuple(arch for arch, _ in tables.BACKWARD)


class Chosen(NamedTuple):
    """What may spill because it is faster so: the most bytes, and the cycles of a multiprocessor that a chunk of a head
    of `variant` takes with eight warps and with the tiles that ship, as predicted for the kernels of decision 084."""

    spill_bytes: int
    variant: str
    eight_warps: int
    shipped: int


CHOSEN = {
    ("chunk_gradients_kernel", "sm_90", "128x128"): Chosen(1688, "gated_delta_rule", 107048, 33527),
    ("chunk_prepare_kernel", "sm_90", "128x128"): Chosen(1036, "kda", 47667, 24643),
    ("chunk_kernel", "sm_90", "128x128"): Chosen(364, "gated_delta_rule", 14144, 6192),
    ("chunk_states_kernel", "sm_90", "128x128"): Chosen(80, "gated_delta_rule", 9398, 3876),
    ("chunk_reverse_kernel", "sm_90", "128x128"): Chosen(68, "gated_delta_rule", 13024, 6713),
    ("chunk_turned_prepare_kernel", "sm_90", "128x128"): Chosen(696, "kda", 47667, 24643),
    ("chunk_unfolded_kernel", "sm_90", "128x128"): Chosen(140, "rwkv7", 63100, 30000),
    # The same tiles, with rows that are no multiple of a vector's width.
    ("chunk_prepare_kernel", "sm_90", "100x60"): Chosen(1124, "kda", 47667, 24643),
    ("chunk_kernel", "sm_90", "100x60"): Chosen(312, "gated_delta_rule", 14144, 6192),
    ("chunk_states_kernel", "sm_90", "100x60"): Chosen(72, "gated_delta_rule", 9398, 3876),
}
"""Kernels on sm_90 with four warps: two programs of a multiprocessor are worth more than registers for all of one."""

SPILLS = {
    # Where a chunk's rows meet its states: gradients.
    ("chunk_gradients_kernel", "sm_80", "128x128"): 1184,
    ("chunk_reverse_kernel", "sm_80", "128x128"): 36,
    ("chunk_unfolded_kernel", "sm_80", "128x128"): 80,
    ("fused_recurrent_reads_kernel", "sm_80", "128x128"): 16,
    ("fused_recurrent_reads_kernel", "sm_90", "128x128"): 8,
    # Walks that keep more than an output does.
    ("chunk_kernel", "sm_80", "128x128"): 24,
    ("chunk_kernel", "sm_80", "100x60"): 24,
    # At the largest state, where tiles cannot be smaller.
    ("chunk_prepare_kernel", "sm_80", "256x256"): 856,
    ("chunk_prepare_kernel", "sm_90", "256x256"): 968,
    ("chunk_prepare_kernel", "sm_100", "256x256"): 948,
    ("chunk_prepare_kernel", "sm_80", "100x60"): 8,
    ("fused_recurrent_kernel", "sm_100", "256x256"): 24,
    # Reads from the right, at a size that no tile fits.
    ("chunk_output_kernel", "sm_80", "128x128"): 8,
    ("chunk_output_kernel", "sm_80", "100x60"): 72,
    ("chunk_output_kernel", "sm_90", "100x60"): 112,
    ("chunk_output_kernel", "sm_100", "100x60"): 56,
    ("chunk_states_kernel", "sm_80", "100x60"): 8004,
}
"""The most bytes that any variant's kernel of this name spills, where one does; the table says whose it is."""

SERIALIZED = {("chunk_based_s1_gradients_kernel", "sm_90", "128x128")}
"""Whose products by warp groups wait for one another: of 16 keys, between which there is little to do."""

BEYOND_AMD = {"chunk_based_z2_kernel": 32}
"""What holds all pairs of keys of a chunk at once, and the `chunk_size` with which it fits there."""

IN_PYTORCH = {("sm_80", "chunk"): {"titans_linear", "ttt_linear"}}
"""Whose kernels have too little room at this size, and are not launched: they hold matrices whole, several of them."""

ROOM, ROOM_OF = 16384, {"fused_recurrent_mamba3_mimo_kernel": 29248}
"""The most shared memory that a recurrent kernel takes, in bytes; and one that turns several rows of a token there."""

BOUNDS = SPILLS | SPILLS_OF | {place: chosen.spill_bytes for place, chosen in CHOSEN.items()}

# One variant for each way a chunk kernel can be put together: without a decay, with one, one that is computed, with
# factors of its rows; an inverse; micro-steps; rows that erase and rows that write. Then, with a decay of each key:
# rows that write, rows that erase, both.
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
FRESH = (
    ("gated_delta_rule", "gfx942", 1300),
    ("kda", "sm_100", 0),
)
"""A scalar decay with an erasure, a decay of each key; the most that a kernel of their gradients may spill there."""

MOVED = {
    "simple_gla": 1100,
    "gated_delta_rule": 2200,
    "gated_delta_product": 3200,
    "gla": 2700,
    "kda": 3700,
    "rwkv7": 4500,
}
"""The most bytes a token and head may move, in bf16 with K = V = 128, without a final state."""


def role(row: Compiled) -> str:
    """The name of its kernel, without the variant's."""
    return row.kernel.replace(f"_{row.variant}_", "_", 1)


def recorded(row: Compiled) -> tuple[str, str, str] | None:
    """Where it is recorded what a kernel spills: under its own name, else under that of its kind."""
    own, kind = (row.kernel, row.arch, row.size), (role(row), row.arch, row.size)
    return own if own in SPILLS_OF else kind if kind in BOUNDS else None


def bound(row: Compiled) -> int:
    place = recorded(row)
    return 0 if place is None else BOUNDS[place]


def of(rows: list[Compiled], arch: str, **known: str) -> list[Compiled]:
    found = [row for row in rows if row.arch == arch and all(getattr(row, x) == value for x, value in known.items())]
    assert found
    return found


def unfit(rows: Iterable[Compiled]) -> Iterator[str]:
    """What is wrong with rows, but for what they are known to spill. Tiles of small chunks are none for wgmma."""
    for row in rows:
        for wrong in verdict(row):
            if wrong.startswith("wgmma serialized") and (row.kernel, row.arch, row.size) in SERIALIZED:
                continue
            if not ((wrong.startswith("spills") and row.spill_bytes <= bound(row)) or wrong.startswith("no wgmma")):
                yield f"{row.kernel} at {row.size} on {row.arch}: {wrong}"


@pytest.mark.parametrize("arch", NVIDIA)
def test_every_kernel_fits_and_spills_no_more_than_recorded(shipped, arch):
    rows = of(shipped, arch)
    assert {row.operator for row in rows} == {"chunk", "fused_recurrent"}
    assert list(unfit(rows)) == []


@pytest.mark.parametrize("operator", ["chunk", "fused_recurrent"])
@pytest.mark.parametrize("arch", GRADIENTS)
def test_gradients_are_among_them(shipped, arch, operator):
    """As many variants as have kernels of gradients: those that the table of what is moved has."""
    rows = of(shipped, arch, operator=operator, size=str(SIZE))
    has_gradients = {row.variant for row in Tables.read().gradients if row.operator == operator}
    assert has_gradients
    of_gradients = {row.variant for row in rows if role(row).endswith("_gradients_kernel")}
    of_scans = {row.variant for row in rows if role(row).startswith(f"{operator}_backward_")}
    assert of_gradients | of_scans == has_gradients - IN_PYTORCH.get((arch, operator), set())


def test_no_bound_is_higher_than_needed(shipped):
    """A kernel that no longer spills has to lose its record here, or it could come back unseen."""
    most = {}
    for row in shipped:
        if (place := recorded(row)) is not None:
            most[place] = max(most.get(place, 0), row.spill_bytes)
    assert most == BOUNDS


def test_only_what_is_faster_for_it_spills_by_choice(shipped):
    assert all(chosen.shipped < 0.9 * chosen.eight_warps for chosen in CHOSEN.values())
    rows = [row for row in shipped if row.spill_bytes and recorded(row) in CHOSEN]
    assert {row.config for row in rows if "num_warps=4" not in row.config.split()} == set()


def test_recurrent_kernels_leave_room_for_each_other(shipped):
    """Enough programs for a multiprocessor's warps fit side by side."""
    rows = [row for arch in ARCHS for row in of(shipped, arch, operator="fused_recurrent")]
    most = {row.kernel: 0 for row in rows if role(row) == "fused_recurrent_kernel"}
    for row in rows:
        if row.kernel in most:
            most[row.kernel] = max(most[row.kernel], row.shared_memory)
    assert {kernel: taken for kernel, taken in most.items() if taken > ROOM} == ROOM_OF


@pytest.mark.parametrize("operator", ["chunk", "fused_recurrent"])
def test_every_kernel_fits_on_amd(shipped, operator):
    """There a walk keeps part of what it reads in scratch memory; the bound is what it does today."""
    rows = of(shipped, "gfx942", operator=operator)
    most = 1300 if operator == "chunk" else 0
    assert [row.kernel for row in rows if row.spill_bytes > max(most, bound(row))] == []
    beyond = {row.kernel: row.shared_memory for row in rows if row.shared_memory > DEVICES["gfx942"].shared_memory}
    assert beyond.keys() == (BEYOND_AMD.keys() if operator == "chunk" else set())
    # What it takes is that of its tiles, whose rows are a chunk's.
    assert all(taken * BEYOND_AMD[kernel] / 64 <= DEVICES["gfx942"].shared_memory for kernel, taken in beyond.items())
    if operator == "chunk":
        products = {row.kernel for row in of(shipped, "sm_90", operator=operator) if row.matrix_instructions}
        rows = [row for row in rows if row.kernel in products]  # Scans have none.
        assert all(any("mfma" in kind for kind in row.matrix_instructions) for row in rows)


@pytest.mark.parametrize("name", VARIANTS)
def test_walks_multiply_by_warp_groups_on_hopper(shipped, name):
    walks = of(shipped, "sm_90", size=str(SIZE), kernel=f"chunk_{name}_kernel")
    assert all(walk.matrix_instructions["HGMMA"] > 0 and "HMMA" not in walk.matrix_instructions for walk in walks)


@pytest.mark.parametrize("name", [name for name in PREPARED if name != "iplr"])  # Its chunks are shorter than that.
def test_preparations_multiply_64_rows_by_warp_groups_on_hopper(shipped, name):
    prepare = of(shipped, "sm_90", size=str(SIZE), kernel=f"chunk_{name}_prepare_kernel")
    assert all(row.matrix_instructions["HGMMA"] > 0 for row in prepare)


# ------------------------------------------------------------------------------------ what no table has: gradients, AMD


@pytest.fixture(scope="module")
def fresh(shipped: list[Compiled]) -> list[Compiled]:
    """The kernels of gradients for the architectures for which the table does not have them."""
    packages, known = {package.name: package for package in tables.packages()}, {row.key for row in shipped}
    asked = ((packages[name], arch) for name, arch, _ in FRESH)
    return [row for package, arch in asked for row in inspection.compile_kernels([package], [arch], [SIZE], but=known)]


@exhaustive
@pytest.mark.parametrize(("name", "arch", "most"), FRESH)
def test_kernels_of_gradients_fit_on_the_other_architectures(fresh, name, arch, most):
    rows = of(fresh, arch, variant=name)
    for operator in ("chunk", "fused_recurrent"):
        assert any(role(row) == f"{operator}_gradients_kernel" for row in rows)
    assert {row.kernel: row.spill_bytes for row in rows if row.spill_bytes > most} == {}
    assert all(row.shared_memory <= DEVICES[arch].shared_memory for row in rows)
    assert all(row.matrix_instructions for row in rows if row.operator == "chunk")


# ------------------------------------------------------------------------------------------------------------ bytes


def test_bytes_moved():
    moved = {row.variant: row.moved / row.per for row in Tables.read().metered if row.operator == "chunk"}
    assert moved.keys() >= MOVED.keys()
    assert {name: moved[name] for name, most in MOVED.items() if moved[name] > most} == {}
