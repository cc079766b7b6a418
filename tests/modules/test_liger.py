"""liger-kernel is used where it is asked for, on a GPU, for what it has; its values are its own business."""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

from generated.modules import FusedLinearCrossEntropyLoss, liger

ON_A_GPU: Any = SimpleNamespace(is_cuda=True, dtype=torch.bfloat16)


def test_when_it_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not liger.wanted(ON_A_GPU, 1.0, False)
    monkeypatch.setenv("FLAGEN_LIGER", "1")
    assert liger.wanted(ON_A_GPU, 1.0, False)
    assert not liger.wanted(ON_A_GPU, 0.5, False)
    assert not liger.wanted(ON_A_GPU, 1.0, True)
    assert not liger.wanted(torch.zeros(2), 1.0, False)
    assert not liger.wanted(SimpleNamespace(is_cuda=True, dtype=torch.float64), 1.0, False)  # type: ignore[arg-type]


def test_what_it_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    given: dict[str, Any] = {}

    def stand_in(x: Any, weight: Any, target: Any, **options: Any) -> Any:
        given.update(x=x, weight=weight, target=target, **options)
        return x.sum()

    module: Any = ModuleType("liger_kernel.transformers.functional")
    module.liger_fused_linear_cross_entropy = stand_in
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr(liger, "wanted", lambda *_: True)
    x, weight, target = torch.ones(2, 3), torch.zeros(5, 3), torch.tensor([1, 2])
    loss = FusedLinearCrossEntropyLoss(7, 0.1, logit_softcapping=30.0, reduction="sum")(x, target, weight)
    assert loss == 6
    options = {"ignore_index": 7, "label_smoothing": 0.1, "softcap": 30.0, "reduction": "sum", "bias": None}
    assert {name: given[name] for name in options} == options
    assert given["accum_dtype"] == torch.float32
    assert given["weight"] is weight and torch.equal(given["target"], target)
