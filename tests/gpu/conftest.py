"""These tests need a GPU and a process without Triton's interpreter: `pytest tests/gpu`.

Where there is none, one test of each kind stays, skipped, and says how many it stands for.
"""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

import pytest
import torch


def _reason() -> str | None:
    if not torch.cuda.is_available():
        return "needs a CUDA device"
    if os.environ.get("TRITON_INTERPRET") == "1":
        return "Triton's interpreter is on in this process; run `pytest tests/gpu` on its own"
    return None


def _kind(item: pytest.Item) -> str:
    return item.nodeid.partition("[")[0]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The hook sees the items of every directory."""
    reason = _reason()
    if reason is None:
        return
    here = f"{Path(__file__).parent}{os.sep}"
    ours = [item for item in items if str(item.path).startswith(here)]
    counts = Counter(map(_kind, ours))
    kept = {_kind(item): item for item in reversed(ours)}
    for kind, item in kept.items():
        item.add_marker(pytest.mark.skip(f"{reason} ({counts[kind]} tests)"))
    left_out = {id(item) for item in ours} - {id(item) for item in kept.values()}
    items[:] = [item for item in items if id(item) not in left_out]


@pytest.fixture(autouse=True)
def _ground_rules(poisoned_memory: None) -> None:
    """Memory that nobody wrote is NaN."""
