"""What makes a kernel unfit to ship."""

from __future__ import annotations

from dataclasses import replace

import pytest

from flagen.inspection import ARCHS, DEVICES, Compiled, verdict

FIT = Compiled(
    "x", "chunk", "chunk_x_kernel", "128x128", "num_warps=4", "sm_90", "0", 255, 0, 232448, {"HGMMA": 8}, None
)


def test_a_kernel_within_its_limits_is_fit() -> None:
    assert verdict(FIT) == ()
    assert verdict(replace(FIT, matrix_instructions={})) == ()
    # Batches of small blocks are no tiles for wgmma.
    assert verdict(replace(FIT, matrix_instructions={"HGMMA": 8, "HMMA": 4})) == ()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"spill_bytes": 8}, "spills 8 bytes"),
        ({"shared_memory": 232449}, "shared memory over 232448 bytes"),
        ({"wgmma_serialized": "insufficient register resources"}, "wgmma serialized: insufficient register resources"),
        ({"matrix_instructions": {"HMMA": 8}}, "no wgmma: HMMA only"),
        ({"arch": "gfx942", "shared_memory": 65537}, "shared memory over 65536 bytes"),
    ],
)
def test_what_is_wrong_is_said(changes: dict[str, object], said: str) -> None:
    assert verdict(replace(FIT, **changes)) == (said,)


def test_everything_wrong_is_said() -> None:
    assert len(verdict(replace(FIT, spill_bytes=8, shared_memory=10**6, wgmma_serialized="x"))) == 3


def test_wgmma_is_expected_where_there_is_one() -> None:
    assert verdict(replace(FIT, arch="sm_80", shared_memory=0, matrix_instructions={"HMMA": 8})) == ()


def test_the_architectures_of_the_tables_are_known() -> None:
    assert DEVICES.keys() >= set(ARCHS)
