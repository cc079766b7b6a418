"""What was mutated, and what caught it, as tables at the end of a run."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tests.kernel.mutants import KINDS

TOLD = {
    "result": "is not the recurrence's$",
    "gradient": "is not the recurrence's derivative$",
    "unwritten": "is not all written|is nowhere put out",
    "other way": "in another way to run$",
    "race": "two programs|another program|written twice|without a barrier",
    "beyond": r" -?\d+ of \d+$",
    "nothing": "has no value$|is not given$|^no | no [a-z ]+ here$",
    "misfit": "",
}
"""What a proof tells of a mistake, by what it says: a result or a gradient differs, or is not written; two ways to run
leave different things behind; programs get in each other's way; an array ends before; there is no such thing; or tiles
do not fit."""


@dataclass(frozen=True)
class Row:
    """A kernel of a program; how many mistakes of each kind were caught in it, and how many were none; and how often
    what was told of a kind of mistake, and at which setting."""

    program: str
    kernel: str
    caught: Mapping[str, int]
    told: Mapping[tuple[str, str, str], int]

    @property
    def plain(self) -> tuple[str, str, dict[str, int], dict[tuple[str, str, str], int]]:
        """Its fields, as one process of tests can send them to another."""
        return self.program, self.kernel, dict(self.caught), dict(self.told)


def told(kind: str, refusal: str) -> tuple[str, str, str]:
    """What a proof tells of a mistake of some kind, and at which setting."""
    what, _, where = refusal.removesuffix("; nothing was written").rpartition(" (")
    said = next(word for word, pattern in TOLD.items() if re.search(pattern, what))
    return kind, said, where.partition(": lengths")[0]


def write_table(terminalreporter: Any) -> None:
    """Print what the tests that are over have noted down."""
    reports = [report for outcome in ("passed", "failed") for report in terminalreporter.stats.get(outcome, [])]
    noted = [value for report in reports for key, value in getattr(report, "user_properties", ()) if key == "mutants"]
    if not noted:
        return
    rows = [Row(*value) for value in noted]
    terminalreporter.write_sep("-", "mistakes made in kernels, and refused")
    caught = {f"{row.program} {row.kernel}": row.caught for row in rows}
    caught["all"] = _sum(row.caught for row in rows)
    _write(terminalreporter, "kernel", (*KINDS, "equivalent"), caught)
    counted = [item for row in rows for item in row.told.items()]
    by_kind: dict[str, Counter[str]] = {kind: Counter() for kind in KINDS}
    by_setting: dict[str, Counter[str]] = {}
    for (kind, said, setting), number in counted:
        by_kind[kind][said] += number
        by_setting.setdefault(setting, Counter())[said] += number
    terminalreporter.write_sep("-", "what caught them")
    _write(terminalreporter, "mistake", tuple(TOLD), by_kind)
    _write(terminalreporter, "at the setting", tuple(TOLD), by_setting)


def _sum(counts: Iterable[Mapping[str, int]]) -> Counter[str]:
    total: Counter[str] = Counter()
    for count in counts:
        total.update(count)
    return total


def _write(terminalreporter: Any, title: str, columns: Sequence[str], rows: Mapping[str, Mapping[str, int]]) -> None:
    width = max(map(len, (title, *rows)))
    terminalreporter.write_line(" ".join((title.ljust(width), *(column[:10].rjust(10) for column in columns))))
    for name, counts in rows.items():
        numbers = (str(counts.get(column, 0)).rjust(10) for column in columns)
        terminalreporter.write_line(" ".join((name.ljust(width), *numbers)))
