"""The plan of the chunk form: what runs for all chunks at once, what chunk after chunk, and which rows are seen."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from flagen import algebra
from flagen.algebra import NormalForm
from flagen.algebra.equations import Equation, Solve, Statement, Weights
from flagen.algebra.normal_form import Position
from flagen.plan.chunk import DEFAULT_CHUNK, ChunkPlan, Count, plan_chunk
from flagen.spec import load_spec, parse_spec
from tests.algebra.cases import SPECS, VARIANTS, recurrence, text_of
from tests.algebra.shapes import SHAPES


def planned(name: str) -> ChunkPlan:
    spec = SHAPES[name].spec if name in SHAPES else load_spec(SPECS / f"{name}.yaml")
    form = algebra.derive(spec).chunk_form
    assert form is not None
    return plan_chunk(form)


def uses(statement: Statement) -> set[str]:
    match statement:
        case Equation(_, terms):
            return {tensor for term in terms for tensor in term.tensors()}
        case Solve(_, matrix, right):
            return {matrix, right}
        case Weights(_, mixes, reader, _, writer):
            return {factor.tensor for factor in (mixes, reader, writer) if factor is not None}
    raise AssertionError(f"a chunk form has no {statement}")


CHUNKED = [name for name in VARIANTS if algebra.derive(load_spec(SPECS / f"{name}.yaml")).chunk_form]


@pytest.mark.parametrize("name", [*CHUNKED, *SHAPES])
def test_each_phase_has_what_it_uses(name):
    """The state reaches the scan first, and everything before it does without."""
    plan = planned(name)
    known = set(plan.system.inputs) - {"S0"}
    for statement in plan.before:
        assert uses(statement) <= known, statement
        known.add(statement.target.tensor)
    in_scan = known | {"S0"}
    for statement in plan.scan:
        assert uses(statement) <= in_scan, statement
        in_scan.add(statement.target.tensor)
    afterwards = known | {"S0"} | set(plan.kept)
    for statement in plan.after:
        assert uses(statement) <= afterwards, statement
        afterwards.add(statement.target.tensor)


@pytest.mark.parametrize("name", [*CHUNKED, *SHAPES])
def test_every_equation_is_in_one_phase(name):
    plan = planned(name)
    phases = [statement.target.tensor for phase in (plan.before, plan.scan, plan.after) for statement in phase]
    assert sorted(phases) == sorted(statement.target.tensor for statement in plan.system.statements)
    assert plan.scan[-1].target.tensor == "S1"
    # Nothing stands in the serial part that the next state does not need.
    needed = {"S1"}
    for statement in reversed(plan.scan):
        assert statement.target.tensor in needed
        needed |= uses(statement)


def micro_steps(nf: NormalForm, n: int) -> Iterator[Position]:
    """Every micro-step of a token with n repetitions, in order."""
    for number, block in enumerate(nf.blocks):
        for _ in range(n if block.repeated else 1):
            yield from (Position(number, step) for step in range(len(block.steps)))


@pytest.mark.parametrize("name", [*CHUNKED, *SHAPES])
def test_readers_see_the_rows_before_them(name):
    for n in (1, 2, 3):
        check_readers(planned(name), n)


def check_readers(plan: ChunkPlan, n: int) -> None:
    nf = plan.normal_form
    order = list(micro_steps(nf, n))
    assert rows(plan.rows, n) == plan.slots * len(order)
    for number, read in enumerate(nf.reads):
        reader = plan.reader(f"q{number}")
        before = [step for step in order if (step.block, step.step) < (read.position.block, read.position.step)]
        assert reader.seen is not None
        assert rows(reader.seen, n) == plan.slots * len(before)
        assert reader.after_decay == read.position.after_decay
    if nf.has_delta:
        assert plan.reader("y").seen is None
        decaying = [step for block in nf.blocks for step in block.steps if step.decay or block.lead]
        assert {plan.reader("y").after_decay} >= {row.after_decay for step in decaying for row in step.deltas}


def rows(count: Count, n: int) -> int:
    return count.fixed + count.repeated * n


@pytest.mark.parametrize("name", [*CHUNKED, *SHAPES])
def test_slots_hold_every_row(name):
    plan = planned(name)
    for step in plan.normal_form.steps:
        assert max(len(step.deltas), len(step.writes)) <= plan.slots
    assert plan.slots >= 1


def test_counts_add_up():
    assert Count(1, 2) + Count(3, 4) == Count(4, 6)
    assert Count(1, 2) * 3 == Count(3, 6)


def test_the_size_is_the_specs_hint_or_the_usual_one():
    form = algebra.derive(recurrence("S = S + outer(k, v)")).chunk_form
    assert plan_chunk(form).size == DEFAULT_CHUNK
    spec = parse_spec(text_of("S = S + outer(k, v)", more="chunk: {size: 32}"))
    assert plan_chunk(algebra.derive(spec).chunk_form).size == 32


def test_dump_has_a_line_for_every_equation():
    plan = planned("gated_delta_product")
    dump = plan.dump().splitlines()
    assert dump[0] == "chunks of 64 tokens; decay: scalar; 1 row(s) a micro-step"
    assert sum(line.startswith("  ") for line in dump) == len(plan.system.statements)
