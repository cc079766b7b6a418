"""Random specs with an expression in every role, through everything; `tests.fuzz.explore` runs any number of them.

The same few examples every time. FLAGEN_FUZZ=500 takes that many others instead, per property.
"""

from __future__ import annotations

import pytest
import torch

from tests.fuzz.explore import climbed, explore, text_of
from tests.fuzz.test_random_specs import EXAMPLES

torch.set_num_threads(1)
pytestmark = [
    pytest.mark.usefixtures("interpreter"),
    pytest.mark.filterwarnings("ignore:.*encountered in:RuntimeWarning"),
]


def numbers(start: int, few: int) -> range:
    """The numbers of the `few` specs of every run, or of as many others as were asked for."""
    return range(start + few, start + few + EXAMPLES) if EXAMPLES else range(start, start + few)


@pytest.mark.parametrize("number", numbers(0, 24))
def test_they_build_and_pytorch_runs_what_they_say(number):
    climbed(number, "naive")


@pytest.mark.parametrize("number", numbers(1_000_000, 12))
def test_kernels_run_what_they_say(number, poisoned_memory):
    climbed(number, "kernels")


def test_what_fails_is_told_and_stops_nothing(monkeypatch):
    monkeypatch.setattr("tests.fuzz.explore.text_of", lambda number: "nothing" if number == 1 else text_of(number))
    monkeypatch.setattr("tests.fuzz.explore.written", lambda plan: 1 / 0)
    covered = explore(range(3), "build")
    assert [number for number, _, _ in covered.failures] == [0, 2]
    assert covered.counts["refused", "E107"] == 1
    assert "ZeroDivisionError" in covered.show()
