"""Outputs and gradients against what flash-linear-attention 0.6.0 gave for the same numbers."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from .cases import CASES, Case, run, state

DATA = Path(__file__).parent / "data"
INDEX = json.loads((DATA / "values.json").read_text())


def recorded() -> dict[str, dict[str, np.ndarray]]:
    """The peer's values: by case, by name."""
    values = np.load(DATA / "values.npz")["values"]
    found: dict[str, dict[str, np.ndarray]] = {}
    at = 0
    for case, entry in INDEX.items():
        found[case] = {}
        for name, shape in entry["shapes"].items():
            size = int(np.prod(shape))
            found[case][name] = values[at : at + size].reshape(shape)
            at += size
    assert at == len(values)
    return found


PEER = recorded()


def distance(found: np.ndarray, expected: np.ndarray) -> float:
    """The largest difference, by the largest magnitude expected."""
    if expected.size == 0:
        return 0.0
    return float(np.abs(found - expected).max() / max(np.abs(expected).max(), 1e-30))


def test_every_case_is_recorded() -> None:
    assert [case.name for case in CASES] == list(INDEX)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_values(case: Case) -> None:
    found, dtypes = run(case, "generated.modules")
    expected = PEER[case.name]
    assert dtypes == INDEX[case.name]["dtypes"]
    assert {name: array.shape for name, array in found.items()} == {name: a.shape for name, a in expected.items()}
    if case.dtype == torch.float32:
        for name, array in found.items():
            assert distance(array, expected[name]) < (1e-4 if name.startswith("gradient") else 1e-5), name
        return
    exact, _ = run(case, "generated.modules", torch.float64)
    for name, array in found.items():
        ours, theirs = distance(array, exact[name]), distance(expected[name], exact[name])
        print(f"{case.name} {name}: {ours:.2e} {theirs:.2e}")
        # Both are rounded at the end, to half a unit of the last of eight bits.
        assert ours <= max(1.25 * theirs, 2**-9), (name, ours, theirs)


@pytest.mark.parametrize("case", [case for case in CASES if case.init is not None], ids=lambda case: case.name)
def test_state_dict(case: Case) -> None:
    assert state(case, "generated.modules") == INDEX[case.name]["state"]
