"""How near comparisons come to their bounds: sums in another order, as on another processor, must not decide a test.

Every comparison of the numeric tests goes through `beyond`, which writes it down where FLAGEN_MARGINS names a file:

    FLAGEN_MARGINS=margins.tsv python -m pytest tests/numeric
    python -m tests.margins margins.tsv
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

SPARE = 3
"""What a comparison keeps between itself and its bound, in float32 and wider."""

SIXTEEN_BITS = 5e-3
"""From here on bounds are those of results in 16 bits, which have no factor of three to spare: rounding o is 1.7e-3 in
bf16 by itself. Sums in another order do not decide there: they change the 20th bit of what is rounded to 8 or 11, and
measured as on two processors, errors are the same to three digits."""


def beyond(name: str, ratio: float, bound: float) -> list[str]:
    """What to say of a comparison that is off by more than its bound; nothing where it is not."""
    if record := os.environ.get("FLAGEN_MARGINS"):
        test = os.environ.get("PYTEST_CURRENT_TEST", "").removesuffix(" (call)")
        with Path(record).open("a") as file:
            file.write(f"{ratio / bound:.3f}\t{bound:.1e}\t{name}\t{test}\n")
    # Not `ratio > bound`: a NaN has to fail.
    return [] if ratio <= bound else [f"{name}: RMS ratio {ratio:.2e}, bound {bound:.0e}"]


def near(record: Path) -> Iterator[str]:
    """The comparisons of a record with less than SPARE to their bound, the nearest first."""
    rows = (line.split("\t") for line in record.read_text().splitlines())
    close = [row for row in rows if not float(row[0]) <= 1 / SPARE and float(row[1]) < SIXTEEN_BITS]
    return ("\t".join(row) for row in sorted(close, key=lambda row: -float(row[0])))


if __name__ == "__main__":
    print("\n".join(near(Path(sys.argv[1]))))
