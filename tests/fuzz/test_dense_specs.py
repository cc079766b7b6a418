"""Random specs with an expression in every role, through everything; `tests.fuzz.explore` runs any number of them.

The same few examples every time, hundreds with --all. FLAGEN_FUZZ=500 takes that many others instead, per property.
"""

from __future__ import annotations

import pytest
import torch

from tests.fuzz.explore import OF_VERSION_2, climbed, explore, text_of
from tests.fuzz.test_random_specs import EXAMPLES
from tests.tiers import tiered

torch.set_num_threads(1)
pytestmark = [
    pytest.mark.usefixtures("kernels"),
    pytest.mark.filterwarnings("ignore:.*encountered in:RuntimeWarning"),
]


def numbers(start: int, few: int, all_of_them: int) -> pytest.MarkDecorator:
    """`number`: those of `few` specs always, or of as many others as were asked for."""
    first, count = (start + all_of_them, EXAMPLES) if EXAMPLES else (start, all_of_them)
    cases = ((number,) for number in range(first, first + count))
    return tiered(
        "number", cases, lambda number: EXAMPLES > 0 or number < start + few, lambda number: number % few == 0
    )


@numbers(0, 12, 400)
def test_they_build_and_pytorch_runs_what_they_say(number):
    climbed(number, "naive")


@numbers(1_000_000, 6, 200)
def test_kernels_run_what_they_say(number, poisoned_memory):
    climbed(number, "kernels")


@numbers(OF_VERSION_2, 6, 200)
def test_those_of_version_2_build_and_pytorch_runs_what_they_say(number):
    climbed(number, "naive")


def test_what_fails_is_told_and_stops_nothing(monkeypatch):
    monkeypatch.setattr("tests.fuzz.explore.text_of", lambda number: "nothing" if number == 1 else text_of(number))
    monkeypatch.setattr("tests.fuzz.explore.written", lambda plan: 1 / 0)
    covered = explore(range(3), "build")
    assert [number for number, _, _ in covered.failures] == [0, 2]
    assert covered.counts["refused", "E107"] == 1
    assert "ZeroDivisionError" in covered.show()
