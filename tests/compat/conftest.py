"""What tests of the drop-in have in common."""

from __future__ import annotations

import pytest


@pytest.fixture
def pytorch_forms(monkeypatch: pytest.MonkeyPatch) -> None:
    """In 16 bits and float32, too: what the kernels compute is for other tests to say."""
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
