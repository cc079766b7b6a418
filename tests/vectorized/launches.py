"""Launches of Triton kernels, run as what they are data for: arguments, grids and memory stay the launchers' own."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch

from flagen.counting.known import Launchable
from flagen.counting.launches import launch_of, programs_of
from flagen.counting.launching import instead_of_interpreting
from flagen.kernel.ir import Kernel
from tests.vectorized.known import launchable
from tests.vectorized.printer import print_kernel
from tests.vectorized.programs import Programs


@contextmanager
def vectorized(dtype: torch.dtype = torch.float32) -> Iterator[None]:
    """Within it, kernels of packages run in PyTorch, all programs at once, which compute in `dtype`; others as ever."""

    def run(found: Launchable, count: int, values: Mapping[str, Any]) -> None:
        launch(found.kernel, count, values, dtype)

    with instead_of_interpreting(run, launchable):
        yield


def launch(kernel: Kernel, count: int, values: Mapping[str, Any], dtype: torch.dtype) -> None:
    """Run `count` programs of a kernel, whose parameters have these `values`.

    Raises:
        AssertionError: so many programs there are not, or arrays say of packed sequences what is not so.
    """
    if not count:
        return
    printed, launched = print_kernel(kernel), launch_of(kernel, count, values, dtype)
    with torch.no_grad():
        for programs in programs_of(launched, count, Programs):
            printed.run(programs)
