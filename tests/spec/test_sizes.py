"""Sizes that follow from others: their order, and which are a multiple of which."""

from __future__ import annotations

from fractions import Fraction

import pytest

from flagen.spec import check_spec, parse_spec
from flagen.spec.model import Spec
from flagen.spec.sizes import ratio, small_fitting

TEXT = """\
flagen: 2
name: example
dims: {{{dims}}}
state: {{S: [{state}, V]}}
inputs: {{q: [K], k: [K], v: [V]}}
update: S = mean(q) * mean(k) * S
output: o = sum(S, {state}) * v * {last}
"""


def spec(state: str, dims: str, last: str = "1") -> Spec:
    """One whose state has a dim, and whose output has the size of the last one."""
    return parse_spec(TEXT.format(state=state, dims=dims, last=last))


@pytest.mark.parametrize(
    ("dims", "expected"),
    [
        ("R: K", Fraction(1)),
        ("R: K / 2", Fraction(1, 2)),
        ("R: 0.75 * K", Fraction(3, 4)),
        ("R: M / 2, M: K * 6", Fraction(3)),
        ("M: K + K, R: M / 4", Fraction(1, 2)),
        ("R: K ** 2 / K", Fraction(1)),
        ("R: K * V / V", Fraction(1)),
        ("R: (K ** 2 - 1) / (K + 1) + 1", Fraction(1)),
        ("R: K ** 8 / K ** 7", Fraction(1)),
        ("R: K ** -1 * (K * K)", Fraction(1)),
        ("R: K + 1", None),
        ("R: V", None),
        ("R: K * V", None),
        ("R: 12", None),
        ("R: K - V + H * HV", None),
    ],
)
def test_a_size_is_a_multiple_of_another_in_every_call_or_of_no_number(dims: str, expected: Fraction | None) -> None:
    given = spec("R", dims)
    assert ratio(given, "R", "K") == expected
    assert ratio(given, "K", "R") == (None if expected is None else 1 / expected)


def test_a_ratio_goes_through_what_both_follow_from() -> None:
    given = spec("R", "R: K / 2, M: K + 4, N: R + 2, P: V", "(M + N + P)")
    assert ratio(given, "N", "M") == Fraction(1, 2)
    assert ratio(given, "V", "P") == ratio(given, "V", "V") == 1


def test_a_constant_is_a_multiple_of_a_constant() -> None:
    assert ratio(spec("L", "L: 12, M: L / 4", "M"), "M", "L") == Fraction(1, 4)


def test_dims_stand_behind_those_they_follow_from() -> None:
    given = spec("R", "R: M * P, M: K / 2, P: V + M")
    assert [entry.name for entry in given.following] == ["M", "P", "R"]
    assert given.dims == ("K", "M", "V", "P", "R")


def test_a_long_chain_of_sizes_is_read_in_no_time() -> None:
    chain = ", ".join(f"D{i}: D{i + 1} + D{i + 2}" for i in range(300))
    assert len(spec("D0", f"{chain}, D300: K, D301: K").following) == 302
    powers = ", ".join(f"D{i}: D{i + 1} ** 8" for i in range(300))
    found = check_spec(TEXT.format(state="D0", dims=f"{powers}, D300: K", last="1"))[1]
    assert [problem.message for problem in found] == ["this is too long for a size"] * len(found) != []


@pytest.mark.parametrize(
    ("dims", "expected"),
    [
        ("L: 64", {"K": 2, "V": 3, "L": 5}),
        ("L: 64, M: L / 2", {"K": 2, "V": 3, "L": 6, "M": 3}),
        ("L: 64, M: 16", {"K": 2, "V": 3, "L": 4, "M": 1}),
        ("L: 64, M: 7", {"K": 2, "V": 3, "L": 64, "M": 7}),
        ("L: K / 2", {"K": 2, "V": 3, "L": 1}),
    ],
)
def test_proofs_take_small_sizes(dims: str, expected: dict[str, int]) -> None:
    known = spec("L", dims, "M" if "M" in dims else "1")
    found = small_fitting(known, {"K": 2, "V": 3, "L": 5, "M": 7, "H": 2, "HV": 2})
    assert {dim: found[dim] for dim in expected} == expected
