"""Every mistake in the data of a kernel is refused by the build, but for changes that are shown to be none."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace

import pytest

from flagen import pipeline
from flagen.diagnostics import InternalError
from flagen.kernel.ir import Kernel, Program
from flagen.kernel.prove import prove_program
from flagen.spec import load_spec
from flagen.spec.model import Spec
from tests.kernel.equivalent import harmless
from tests.kernel.mutants import Mutant, mutants
from tests.specs import OPERATORS
from tests.tiers import REPRESENTATIVES, exhaustive

SOME = 24
"""Of so many mistakes `make test` makes one; which ones differs from kernel to kernel."""


@pytest.mark.parametrize("step", [pytest.param(1, marks=exhaustive, id="all"), pytest.param(SOME, id="some")])
@pytest.mark.parametrize("name", REPRESENTATIVES)
def test_mistakes_are_refused(name: str, step: int, record_property: Callable[[str, object], None]) -> None:
    spec = load_spec(OPERATORS[name])
    survivors: list[str] = []
    for program in programs_of(spec):
        for kernel in program.kernels:
            caught, told = refused(spec, program, kernel, step)
            survivors += told
            record_property("mutants", (name, program.name, kernel.name or "forward", dict(caught)))
    assert survivors == []


def programs_of(spec: Spec) -> list[Program]:
    programs = pipeline.lower(pipeline.make_plan(spec, pipeline.derive(spec)))
    recurrent = (programs.fused_recurrent, programs.fused_recurrent_backward)
    return [program for program in recurrent if program is not None]


def refused(spec: Spec, program: Program, kernel: Kernel, step: int) -> tuple[Counter[str], list[str]]:
    """How many mutants of each kind were refused, or are equivalent; and those that got through."""
    caught: Counter[str] = Counter()
    survivors = []
    for number, mutant in enumerate(mutants(kernel)):
        if (number + len(kernel.name)) % step:
            continue
        try:
            prove_program(spec, with_mutant(program, kernel, mutant))
        except InternalError:
            caught[mutant.kind] += 1
            continue
        if harmless(kernel, mutant) is None:
            survivors.append(str(mutant))
        caught["equivalent"] += 1
    return caught, survivors


def with_mutant(program: Program, kernel: Kernel, mutant: Mutant) -> Program:
    return replace(program, kernels=tuple(mutant.kernel if k is kernel else k for k in program.kernels))
