"""These tests need a GPU and a process without Triton's interpreter: `pytest tests/gpu`."""

from __future__ import annotations

import os

import pytest
import torch


@pytest.fixture(autouse=True)
def _ground_rules(poisoned_memory: None) -> None:
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    if os.environ.get("TRITON_INTERPRET") == "1":
        pytest.skip("Triton's interpreter is on in this process; run `pytest tests/gpu` on its own")
