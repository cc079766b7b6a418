"""What tells how near comparisons come to their bounds, and what rounds as another processor."""

from __future__ import annotations

import math
import sys
from pathlib import Path

import pytest

from tests import margins, processors


def test_what_is_beyond_its_bound_is_said_and_nan_always_is() -> None:
    assert not margins.beyond("o", 1e-6, 1e-5)
    assert margins.beyond("o", 2e-5, 1e-5) == ["o: RMS ratio 2.00e-05, bound 1e-05"]
    assert margins.beyond("o", math.nan, 1e-5)


def test_comparisons_near_their_bounds_are_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record = tmp_path / "margins.tsv"
    monkeypatch.setenv("FLAGEN_MARGINS", str(record))
    for name, ratio, bound in [("far", 1e-6, 1e-5), ("near", 5e-6, 1e-5), ("nearer", 9e-6, 1e-5), ("bf16", 4e-3, 5e-3)]:
        margins.beyond(name, ratio, bound)
    assert [row.split("\t")[2] for row in margins.near(record)] == ["nearer", "near"]


def test_a_command_runs_as_each_processor(capfd: pytest.CaptureFixture[str]) -> None:
    said = [sys.executable, "-c", "import os; print('runs with', os.environ['ATEN_CPU_CAPABILITY'])"]
    assert processors.main(said) == 0
    output = capfd.readouterr().out
    assert "runs with default" in output and "runs with avx2" in output
    assert processors.main([sys.executable, "-c", "raise SystemExit(3)"]) == len(processors.settings())
