"""Against results of fla.ops 0.6.0, whose kernels gave them in float32."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from .recorded import CASES, inputs

RECORDED = np.load(Path(__file__).parent / "fla_outputs.npz")
CLOSE = 1e-5
"""Of the largest result: both compute in float32, in other orders."""


def _tensors(results: Any) -> list[Tensor]:
    if isinstance(results, Tensor):
        return [results]
    return [x for part in results if part is not None for x in _tensors(part)]


@pytest.mark.parametrize("case", CASES)
def test_results_are_those_of_fla(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    module, function, _, options = CASES[case]
    run = getattr(import_module(f"generated.compat.fla.ops.{module}"), function)
    found = _tensors(run(**inputs(case), **options))
    expected = [torch.from_numpy(RECORDED[key]) for key in RECORDED.files if key.startswith(f"{case}/")]
    assert len(found) == len(expected) > 0
    for x, y in zip(found, expected, strict=True):
        assert (x.shape, x.dtype) == (y.shape, torch.float32)
        assert (x - y).abs().max() < CLOSE * y.abs().max()
