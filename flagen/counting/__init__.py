"""What launches of kernels move and compute, counted from the kernels as data.

    known.py       which kernel a Triton function is printed from, and whether it is
    launches.py    programs of a launch, by the way that they take through a kernel
    standing.py    where programs stand: their loops and coordinates
    located.py     which elements of arrays their tiles are
    indices.py     expressions that say which: of whole numbers, and nothing else
    counter.py     bytes and flops of a launch, by a walk through its kernel
    launching.py   launches that are not interpreted

No kernel runs: only where programs stand is found out, which elements they ask for, and how often. `counted` is the
meter (`flagen.triton_cpu.meter`) with that in the interpreter's place, and agrees with it to the byte.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from flagen.counting.counter import traffic
from flagen.counting.known import Launchable, printed_from
from flagen.counting.launching import NotCountedError, instead_of_interpreting
from flagen.triton_cpu.meter import Report, metered
from flagen.triton_cpu.shapes import NumberDecidesError


@contextmanager
def counted() -> Iterator[Report]:
    """Count what kernels and torch operators do within: nothing computes numbers, so that what is called returns none.

    Raises:
        NotCountedError: a kernel is not what is printed of any data at hand, or numbers decide what it moves, or which
            is launched. `metered` tells what they do.
    """

    def count(found: Launchable, programs: int, values: Mapping[str, Any]) -> None:
        report.add(found.title, traffic(found.kernel, programs, values))

    with metered(numbers=False) as report, instead_of_interpreting(count, _at_hand):
        try:
            yield report
        except NumberDecidesError as error:
            raise NotCountedError(str(error)) from error


def _at_hand(function: Callable[..., object]) -> Launchable:
    found = printed_from(function)
    if found is None:
        raise NotCountedError(f"{function.__name__} is not what is printed of any kernel at hand")
    return found


__all__ = ["NotCountedError", "counted"]
