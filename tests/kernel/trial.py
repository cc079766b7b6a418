"""Makes the mistakes that could be in the kernels of programs, and tells what becomes of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from unittest.mock import patch

from flagen.diagnostics import InternalError
from flagen.kernel.ir import Kernel, Program
from tests.kernel.calls import KnownCalls
from tests.kernel.equivalent import harmless
from tests.kernel.mutants import mutants
from tests.kernel.numbering import Numbering
from tests.kernel.table import Row, told

Record = Callable[[str, object], None]
"""Pytest's `record_property`."""

Prove = Callable[..., object]
"""Proves programs, which it is given one after the other."""


@dataclass
class Trial:
    """How many mistakes of each kind were refused, or are none; what they were refused with; those that got through;
    changes that are told to be no mistakes, and were refused; and mistakes over which the proof itself stumbled."""

    caught: Counter[str] = field(default_factory=Counter)
    told: Counter[tuple[str, str, str]] = field(default_factory=Counter)
    survivors: list[str] = field(default_factory=list)
    wronged: list[str] = field(default_factory=list)
    stumbled: list[str] = field(default_factory=list)

    @property
    def failed(self) -> list[str]:
        wronged = (f"no mistake, and refused: {what}" for what in self.wronged)
        return [*self.survivors, *wronged, *(f"no refusal, but an error: {what}" for what in self.stumbled)]


def tried(programs: tuple[Program, ...], prove: Prove, step: int) -> Iterator[tuple[Row, list[str]]]:
    """Every `step`-th mistake in each kernel of some programs, as a row of the table, and what failed; which ones
    differs from kernel to kernel. In a kernel that several programs have, it is made in all of them."""
    programs = _sharing(programs)
    with patch("flagen.kernel.prove.Call", KnownCalls()):
        prove(*programs)
        for program, kernel in _kernels(programs):
            trial = _tried(programs, kernel, prove, step)
            yield Row(program.name, kernel.name or "walk", trial.caught, trial.told), trial.failed


def noted(rows: Iterable[tuple[Row, list[str]]], record_property: Record) -> list[str]:
    """What failed, of mistakes that are noted down for the table."""
    failed: list[str] = []
    for row, of_row in rows:
        record_property("mutants", row.plain)
        failed += of_row
    return failed


def _sharing(programs: tuple[Program, ...]) -> tuple[Program, ...]:
    """The programs, whose kernels are one object where they are the same."""
    known: list[Kernel] = []

    def shared(kernel: Kernel) -> Kernel:
        found = next((other for other in known if other == kernel), None)
        known.append(found or kernel)
        return known[-1]

    return tuple(replace(program, kernels=tuple(map(shared, program.kernels))) for program in programs)


def _kernels(programs: tuple[Program, ...]) -> Iterator[tuple[Program, Kernel]]:
    """Each kernel once, with the first program that has it."""
    seen: set[int] = set()
    for program in programs:
        yield from ((program, kernel) for kernel in program.kernels if id(kernel) not in seen)
        seen |= {*map(id, program.kernels)}


def _tried(programs: tuple[Program, ...], kernel: Kernel, prove: Prove, step: int) -> Trial:
    trial, numbering = Trial(), Numbering(kernel)
    for mutant in mutants(kernel, step):
        reason, what = harmless(numbering, mutant), f"{programs[0].name}: {mutant}"
        try:
            prove(*(_with(program, kernel, mutant.kernel) for program in programs))
        except InternalError as refusal:
            trial.caught[mutant.kind] += 1
            trial.told[told(mutant.kind, str(refusal))] += 1
            if reason is not None:
                trial.wronged.append(f"{what}: {reason}")
        except Exception as error:  # Whatever it is, it has to be told here, and which mistake it was.
            trial.stumbled.append(f"{what}: {error!r}")
        else:
            trial.caught["equivalent"] += 1
            if reason is None:
                trial.survivors.append(what)
    return trial


def _with(program: Program, kernel: Kernel, mistaken: Kernel) -> Program:
    """A program with another kernel in the place of one of its own, if it has it."""
    return replace(program, kernels=tuple(mistaken if other is kernel else other for other in program.kernels))
