"""Every mistake in the data of a kernel is refused by the build, but for changes that are shown to be none."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from flagen import pipeline
from flagen.kernel.ir import Program
from flagen.kernel.prove import prove_program
from flagen.spec import load_spec
from flagen.spec.model import Spec
from tests.kernel.trial import tried
from tests.specs import OPERATORS
from tests.tiers import REPRESENTATIVES, exhaustive

SOME = 24
"""Of so many mistakes `make test` makes one; which ones differs from kernel to kernel."""


@pytest.mark.parametrize("step", [pytest.param(1, marks=exhaustive, id="all"), pytest.param(SOME, id="some")])
@pytest.mark.parametrize("name", REPRESENTATIVES)
def test_mistakes_are_refused(name: str, step: int, record_property: Callable[[str, object], None]) -> None:
    spec = load_spec(OPERATORS[name])
    failed: list[str] = []
    for program in programs_of(spec):
        for kernel, trial in tried(program, lambda mistaken: prove_program(spec, mistaken), step):
            record_property("mutants", (program.name, kernel or "forward", dict(trial.caught)))
            failed += trial.failed
    assert failed == []


def programs_of(spec: Spec) -> list[Program]:
    programs = pipeline.lower(pipeline.make_plan(spec, pipeline.derive(spec)))
    recurrent = (programs.fused_recurrent, programs.fused_recurrent_backward)
    return [program for program in recurrent if program is not None]
