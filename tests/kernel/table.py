"""What was mutated, and what caught it, as a table at the end of a run."""

from __future__ import annotations

from collections import Counter
from typing import Any

from tests.kernel.mutants import KINDS


def write_table(terminalreporter: Any) -> None:
    """Print what the tests that are over have noted down."""
    reports = [report for outcome in ("passed", "failed") for report in terminalreporter.stats.get(outcome, [])]
    found = [value for report in reports for key, value in getattr(report, "user_properties", ()) if key == "mutants"]
    if not found:
        return
    columns = (*KINDS, "equivalent")
    terminalreporter.write_sep("-", "mistakes made in kernels, and refused")
    terminalreporter.write_line(" ".join(("kernel".ljust(52), *(column[:10].rjust(10) for column in columns))))
    total: Counter[str] = Counter()
    for program, kernel, caught in found:
        total.update(caught)
        numbers = (str(caught.get(column, 0)).rjust(10) for column in columns)
        terminalreporter.write_line(" ".join((f"{program} {kernel}".ljust(52), *numbers)))
    terminalreporter.write_line(" ".join(("all".ljust(52), *(str(total[column]).rjust(10) for column in columns))))
