"""Source lines of kernels: what of them is needed for what a kernel is to leave behind."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from functools import cache

_ASSIGNMENT = re.compile(r"\s*(?P<targets>\w+(?:, \w+)*) (?P<sum>\+?)= (?P<value>.*)")


def live(lines: Sequence[str], wanted: Iterable[str] = ()) -> list[str]:
    """`lines` without the assignments that neither `wanted` nor what follows them uses; other statements stay."""
    used = set(wanted)
    kept: list[str] = []
    for line in reversed(lines):
        assignment = _ASSIGNMENT.match(line)
        if assignment is None:
            used |= names_in(line)
        else:
            targets = set(assignment["targets"].split(", "))
            if not targets & used:
                continue
            used -= set() if assignment["sum"] else targets
            used |= names_in(assignment["value"])
        kept.insert(0, line)
    return kept


def names_in(*lines: str) -> set[str]:
    """The names that stand in `lines`, but for those of keywords and attributes: `mask=` is no use of a `mask`, nor
    `tl.float32` of a `float32`."""
    return set().union(*map(_names_in, lines))


@cache
def _names_in(line: str) -> frozenset[str]:
    return frozenset(re.findall(r"(?<![\w.])[^\W\d]\w*\b(?!=)", line))
