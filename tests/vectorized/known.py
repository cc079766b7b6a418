"""Which kernel a Triton function is printed from."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from flagen.backends.triton_.chunk_printer import ChunkPrinter
from flagen.backends.triton_.kernel_printer import KernelPrinter
from flagen.backends.triton_.launched import title_of
from flagen.emit.banner import is_edited
from flagen.kernel import Programs
from flagen.kernel.ir import Kernel, Program
from flagen.pipeline import derive, lower, make_plan
from flagen.spec import load_spec
from tests.specs import SPECS

OF_SPEC = re.compile(r"\(sha256 (\w+)\)")


@dataclass(frozen=True)
class Launchable:
    """A kernel, and the parameters of its Triton function."""

    kernel: Kernel
    parameters: tuple[str, ...]


KNOWN: dict[str, dict[str, Launchable]] = {}
"""The kernels of a spec by the names of their Triton functions; a spec by the first digits of its text's hash."""


def remember(sha256: str, programs: Programs) -> None:
    """Have the kernels of a spec at hand, whose package is somewhere."""
    KNOWN.setdefault(sha256[:16], {}).update(_launchables(programs))


@cache
def kernels_of(name: str) -> dict[str, Launchable]:
    """Those of a spec in specs/, all of them."""
    spec = load_spec(SPECS / f"{name}.yaml")
    remember(spec.sha256, lower(make_plan(spec, derive(spec))))
    return KNOWN[spec.sha256[:16]]


def launchable(function: Callable[..., object]) -> Launchable | None:
    """The kernel that a Triton function is printed from; None if there is none, or somebody has edited the file."""
    text = Path(str(sys.modules[function.__module__].__file__)).read_text(encoding="utf-8")
    found = OF_SPEC.search(text.partition("\n")[0])
    if found is None or is_edited(text):
        return None
    sha256, name = found.group(1), function.__name__
    if name not in KNOWN.get(sha256, {}) and function.__module__.startswith("generated."):
        kernels_of(function.__module__.split(".")[1])
    return KNOWN[sha256][name] if sha256 in KNOWN else None


def _launchables(programs: Programs) -> Iterator[tuple[str, Launchable]]:
    for each in programs.every:
        for program in (each.fused_recurrent, each.fused_recurrent_backward, each.chunk, each.chunk_backward):
            for kernel in () if program is None else program.kernels:
                printer = ChunkPrinter(kernel) if program.ways else KernelPrinter(kernel)
                named = (name.removesuffix(": tl.constexpr") for name in printer.parameters())
                yield _title(program, kernel), Launchable(kernel, tuple(named))


def _title(program: Program, kernel: Kernel) -> str:
    if program.ways:
        return title_of(program, kernel.name)
    return "_".join(filter(None, (program.name, kernel.name, "kernel")))
