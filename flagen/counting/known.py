"""Which kernel a Triton function is printed from."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from flagen.backends.triton_.chunk_printer import ChunkPrinter
from flagen.backends.triton_.kernel_printer import KernelPrinter
from flagen.backends.triton_.launched import title_of
from flagen.backends.triton_.routine_printer import RoutinePrinter
from flagen.emit.banner import is_edited
from flagen.kernel import Programs
from flagen.kernel.ir import Kernel, Program, routines_in
from flagen.pipeline import derive, lower, make_plan
from flagen.spec.model import Spec

OF_SPEC = re.compile(r"\(sha256 (\w+)\)")


@dataclass(frozen=True)
class Launchable:
    """A kernel, the name and the parameters of its Triton function, and whether it is one of several over the rows of
    chunks."""

    kernel: Kernel
    title: str
    parameters: tuple[str, ...]
    of_chunks: bool


KNOWN: dict[str, dict[str, Launchable]] = {}
"""The kernels of a spec by the names of their Triton functions; a spec by the first digits of its text's hash."""


def remember(sha256: str, programs: Programs) -> None:
    """Have the kernels of a spec at hand, whose package is somewhere."""
    KNOWN.setdefault(sha256[:16], {}).update({each.title: each for each in _launchables(programs)})


def remember_spec(spec: Spec) -> dict[str, Launchable]:
    """The same, derived again."""
    if spec.sha256[:16] not in KNOWN:
        remember(spec.sha256, lower(make_plan(spec, derive(spec))))
    return KNOWN[spec.sha256[:16]]


def known(function: Callable[..., object]) -> Launchable | None:
    """The kernel of that name in the spec that a Triton function comes from; None if there is none at hand, or somebody
    has edited the file."""
    text = _text(function)
    sha256 = hash_of_spec(text)
    return None if sha256 is None or is_edited(text) else KNOWN.get(sha256, {}).get(function.__name__)


def hash_of_spec(text: str) -> str | None:
    """The first digits of the hash of the spec that a generated file names as its origin."""
    found = OF_SPEC.search(text.partition("\n")[0])
    return None if found is None else found.group(1)


def printed_from(function: Callable[..., object]) -> Launchable | None:
    """The kernel that a Triton function is printed from, statement by statement; None if there is none at hand."""
    found = known(function)
    if found is None:
        return None
    printer = ChunkPrinter(found.kernel) if found.of_chunks else KernelPrinter(found.kernel)
    if not _has_body(function, printer.lines()):
        return None
    for routine in routines_in(found.kernel.body):
        lines = RoutinePrinter(found.kernel, routine).lines()
        called = getattr(sys.modules[function.__module__], routine.name).fn
        if not _has_body(called, (*lines, f"return {', '.join(routine.carried)}")):
            return None
    return found


def _has_body(function: Callable[..., object], lines: Iterable[str]) -> bool:
    """Whether a function does what lines say, however they are laid out."""
    return _bodies(_text(function)).get(function.__name__) == _dump(ast.parse("\n".join(lines)).body)


def _text(function: Callable[..., object]) -> str:
    return Path(str(sys.modules[function.__module__].__file__)).read_text(encoding="utf-8")


@cache
def _bodies(text: str) -> dict[str, str]:
    """What the functions of a module do, without docstrings."""
    functions = (node for node in ast.parse(text).body if isinstance(node, ast.FunctionDef))
    return {each.name: _dump(each.body[1:] if ast.get_docstring(each) is not None else each.body) for each in functions}


def _dump(body: Iterable[ast.stmt]) -> str:
    return "\n".join(map(ast.dump, body))


def _launchables(of_spec: Programs) -> Iterator[Launchable]:
    for each in of_spec.every:
        programs = each.fused_recurrent, each.fused_recurrent_backward, each.chunk, each.chunk_backward
        for program in filter(None, programs):
            for kernel in program.kernels:
                over_chunks = bool(program.ways)
                printer = ChunkPrinter(kernel) if over_chunks else KernelPrinter(kernel)
                named = (name.removesuffix(": tl.constexpr") for name in printer.parameters())
                yield Launchable(kernel, _title(program, kernel), tuple(named), over_chunks)


def _title(program: Program, kernel: Kernel) -> str:
    if program.ways:
        return title_of(program, kernel.name)
    return "_".join(filter(None, (program.name, kernel.name, "kernel")))
