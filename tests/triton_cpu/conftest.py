"""Every test of the tools runs on the repaired interpreter."""

from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def _repaired_interpreter(interpreter: None) -> None:
    """Kernels here are interpreted, honestly."""
