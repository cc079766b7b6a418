"""The ladder's ground rules: one thread, kernels that can be believed, and memory nobody wrote is NaN."""

from __future__ import annotations

import pytest
import torch

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _ground_rules(interpreter: None, kernels: None, poisoned_memory: None) -> None:
    """Every test here may launch a kernel, and every launcher may forget to write. The interpreter is asked for by
    itself: where a test has a param called `kernels`, that is not the fixture, which would bring it."""
