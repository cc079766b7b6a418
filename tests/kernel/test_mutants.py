"""Every mistake in the data of a kernel is refused by the build, but for changes that are shown to be none."""

from __future__ import annotations

from functools import cache, partial

import pytest

from flagen import pipeline
from flagen.kernel import Programs
from flagen.kernel.prove import prove_program, prove_rows
from flagen.spec import load_spec
from tests.kernel.trial import Record, noted, tried
from tests.specs import OPERATORS
from tests.tiers import REPRESENTATIVES, exhaustive

SOME, SOME_OF_ROWS = 24, 60
"""Of so many mistakes `make test` makes one; which ones differs from kernel to kernel. Kernels over rows have nine
thousand, and one of them takes a tenth of a second: with this the sample takes less than 25 seconds of a core, half of
them for what is done once for all mistakes in a program."""

OF_ROWS = (*(name for name in REPRESENTATIVES if name != "hgrn"), "momentum_delta_rule")
"""Those whose chunks have rows that are multiplied, and states that numbers mix; scans have mistakes of their own, in
test_scan.py."""


def each(some: int) -> pytest.MarkDecorator:
    steps = [pytest.param(1, marks=exhaustive, id="all"), pytest.param(some, id="some")]
    return pytest.mark.parametrize("step", steps)


@cache
def programs_of(name: str) -> Programs:
    spec = load_spec(OPERATORS[name])
    return pipeline.lower(pipeline.make_plan(spec, pipeline.derive(spec)))


@each(SOME)
@pytest.mark.parametrize("name", REPRESENTATIVES)
def test_mistakes_are_refused(name: str, step: int, record_property: Record) -> None:
    of = programs_of(name)
    failed: list[str] = []
    for program in (of.fused_recurrent, of.fused_recurrent_backward):
        if program is not None:
            failed += noted(tried((program,), lambda one: prove_program(of.spec, one), step), record_property)
    assert failed == []


@each(SOME_OF_ROWS)
@pytest.mark.parametrize("name", OF_ROWS)
def test_mistakes_in_kernels_over_rows_are_refused(name: str, step: int, record_property: Record) -> None:
    of = programs_of(name)
    with_rows = [each for each in of.every if each.chunk is not None and each.chunk.ways]
    assert with_rows
    failed: list[str] = []
    for each_of in with_rows:
        assert each_of.chunk is not None and each_of.chunk_backward is not None
        prove = partial(prove_rows, each_of.rows or each_of.spec)
        failed += noted(tried((each_of.chunk, each_of.chunk_backward), prove, step), record_property)
    assert failed == []
