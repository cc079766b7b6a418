"""What the kernels of the backward that are source lines have in common."""

from __future__ import annotations

import re
from collections import Counter

from flagen.backends.triton_.chunk_kernel import tiles
from flagen.backends.triton_.rows import RowWriter, steps_symbol
from flagen.plan.chunk_kernel import ChunkKernelPlan


def compile_time(plan: ChunkKernelPlan) -> tuple[str, ...]:
    """Every size that a kernel of the backward is compiled for."""
    symbol = steps_symbol(plan)
    return (*([symbol] if symbol else []), "H", "HV", *tiles(plan, plan.key, plan.value))


def place_of(kernel: RowWriter[ChunkKernelPlan]) -> str:
    """The numbers of a chunk's rows."""
    return "row" if kernel.grouped else "token"


def trimmed(sections: dict[str, list[str]], *used: str) -> dict[str, list[str]]:
    """`sections` without assignments of names that nothing reads; `used` are those the template reads."""
    every = [*used, *(line for lines in sections.values() for line in lines)]
    read = Counter(re.findall(r"\w+", "\n".join(every)))
    read.subtract(name for line in every for name in _assigned(line))

    def is_read(line: str) -> bool:
        names = _assigned(line)
        return not names or any(read[name] > 0 for name in names)

    kept = {name: list(filter(is_read, lines)) for name, lines in sections.items()}
    return kept if kept == sections else trimmed(kept, *used)


def _assigned(line: str) -> list[str]:
    """The names that a line assigns."""
    found = re.match(r"\w+(, \w+)* = ", line)
    return re.findall(r"\w+", found[0]) if found else []
