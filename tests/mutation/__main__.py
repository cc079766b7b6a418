"""Mistakes in the kernels of variants, one at a time, and what catches each.

    python -m tests.mutation kda gsa --each 4     of every file and class, four
    python -m tests.mutation --each 0             every mistake of the representatives: a day on one core

Which are tried does not depend on chance. Prints a table, and what nothing caught; exits with 1 if
tests/mutation/equivalent.py does not explain that.
"""

from __future__ import annotations

import argparse
import os
import sys
import warnings
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

os.environ["TRITON_INTERPRET"] = "1"

import torch

from flagen.triton_cpu import repair
from tests.mutation.equivalent import reason
from tests.mutation.mutants import CLASSES, Mutant
from tests.mutation.trial import NEUTRAL, UNTOLD, Bench
from tests.tiers import REPRESENTATIVES

TOLD = ("values", "gradients", "writes", "raises", "crashes", "equivalent", *UNTOLD)
"""The columns of the table."""


def chosen(bench: Bench, each: int, limit: int) -> list[tuple[Path, Mutant]]:
    """Of every file and class `each`, or all for 0; of these the first `limit`, or all for 0."""
    found = []
    for path in bench.files:
        of_file = bench.mutants(path)
        for kind in CLASSES:
            of_kind = [m for m in of_file if m.kind == kind]
            shuffled = sorted(of_kind, key=lambda m: zlib.crc32(f"{path.name} {m}".encode()))
            found += [(path, m) for m in (shuffled[:each] if each else of_kind)]
    spread = sorted(found, key=lambda pair: zlib.crc32(f"{pair[0].name} {pair[1]}".encode()))
    return spread[:limit] if limit else found


def report(counts: Counter[tuple[str, str]]) -> Iterator[str]:
    columns = [told for told in TOLD if any(told == column for _, column in counts)]
    yield "  ".join([f"{'':10}", *(f"{column:>12}" for column in columns), f"{'all':>6}"])
    for kind in (*CLASSES, "all"):
        row = [sum(n for (k, told), n in counts.items() if told == column and kind in (k, "all")) for column in columns]
        yield "  ".join([f"{kind:10}", *(f"{n:>12}" for n in row), f"{sum(row):>6}"])


def summary(said: str) -> str:
    """The column of the table for what told a mistake."""
    for start, column in (("raises", "raises"), ("ended", "crashes"), ("writes", "writes"), ("d ", "gradients")):
        if said.startswith(start):
            return column
    return said if said in TOLD else "values"


def tried(name: str, each: int, limit: int) -> tuple[Counter[tuple[str, str]], list[str]]:
    """How many mistakes of which class were told by what; those that nothing told, and nothing explains."""
    bench = Bench(name)
    counts: Counter[tuple[str, str]] = Counter()
    survivors = []
    for path, mutant in chosen(bench, each, limit):
        said = bench.tried(path, mutant)
        if said in UNTOLD and said != NEUTRAL:
            why = reason(name, path, mutant)
            where = f"{said}: {path.relative_to(bench.root.parent)} {mutant}"
            print(f"  {where}" if why is None else f"  {where}: {why}", flush=True)
            if why is None:
                survivors.append(where)
            else:
                said = "equivalent"
        counts[mutant.kind, summary(said)] += 1
    return counts, survivors


def main(arguments: Iterable[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.mutation", description=__doc__.partition("\n")[0])
    parser.add_argument("names", nargs="*", default=REPRESENTATIVES)
    parser.add_argument("--each", type=int, default=2, help="mistakes of each file and class; 0 for all")
    parser.add_argument("--limit", type=int, default=0, help="of all these no more than so many of a variant")
    given = parser.parse_args(None if arguments is None else list(arguments))
    torch.set_num_threads(1)
    repair()
    warnings.simplefilter("ignore")
    total: Counter[tuple[str, str]] = Counter()
    survivors = []
    for name in given.names:
        print(name, flush=True)
        counts, survived = tried(name, given.each, given.limit)
        total += counts
        survivors += survived
        print("\n".join(report(counts)), flush=True)
    if len(given.names) > 1:
        print("all variants", "\n".join(report(total)), sep="\n")
    return 1 if survivors else 0


if __name__ == "__main__":
    sys.exit(main())
