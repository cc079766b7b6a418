"""The recurrent kernels of every variant, and those of scans, stay within their arrays and out of one another's way, at
all sizes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import cache

import pytest
import z3

from flagen import pipeline
from flagen.backends.triton_.kernel_printer import KernelPrinter
from flagen.kernel import Programs
from flagen.kernel.ir import (
    Access,
    FirstBlock,
    If,
    Index,
    Kernel,
    Load,
    Loop,
    Statement,
    Store,
    statements_in,
)
from flagen.kernel.passes import is_aligned
from tests.kernel.bounds import WIDE, Bounds, verdict
from tests.kernel.lemmas import ALIGNED_FOLLOW, CHUNKS_FOLLOW, LEMMAS
from tests.kernel.scans import of, scans_in
from tests.specs import FRONT_ENDS, OPERATORS
from tests.tiers import variants

SPECS = {**OPERATORS, **FRONT_ENDS}
RECURRENT = ("gated_delta_product", "gsa", "linear_attn_normalized")
"""Those that mistakes are made in: they have segments, micro-steps, states of each token, and what only the first block
stores."""
SCANS = ("mamba", "count", "window", "ttt_linear")
"""Of those with chunks, or stretches: they have states that are kept, shares of blocks, and what only the first block
stores."""


@cache
def lowered(name: str) -> Programs:
    spec, _ = pipeline.load(SPECS[name])
    return pipeline.lower(pipeline.make_plan(spec, pipeline.derive(spec)))


def recurrent_in(programs: Programs) -> Iterator[Kernel]:
    """The kernels of a variant's recurrent operator and of its backward."""
    for program in (programs.fused_recurrent, programs.fused_recurrent_backward):
        if program is not None:
            yield from program.kernels


@cache
def mistaken() -> tuple[Kernel, ...]:
    """The kernels that mistakes are made in."""
    recurrent = (kernel for name in RECURRENT for kernel in recurrent_in(lowered(name)))
    return (*recurrent, *(kernel for name in SCANS for kernel in scans_in(of(name))))


@variants(sorted(SPECS))
def test_every_access_is_within_its_array_and_every_element_has_one_program(name: str) -> None:
    programs = lowered(name)
    for kernel in (*recurrent_in(programs), *scans_in(programs)):
        bounds = Bounds(kernel)
        assert bounds.refused == []
        accesses = [s for s in statements_in(kernel.body) if isinstance(s, Load | Store)]
        stores = [s for s in accesses if isinstance(s, Store)]
        assert bounds.proved >= len(accesses) + len(stores) > 0


@pytest.mark.parametrize("title", LEMMAS)
def test_what_is_taken_for_granted_follows_from_what_is_printed(title: str) -> None:
    facts, claim = LEMMAS[title]
    assert verdict(facts, claim) == "follows"
    assert verdict([], claim) == "does not follow"


def test_long_rows_are_counted_in_64_bits() -> None:
    """What comes from a program's number; tokens begin at offsets that are 64 bits wide themselves."""
    for kernel in mistaken():
        assert kernel.run in WIDE
        lines = list(KernelPrinter(kernel).lines())
        (run,) = [line for line in lines if line.startswith(f"{kernel.run} = ")]
        assert run.endswith(".to(tl.int64)")
        loaded = [line for line in lines if "tl.load(cu_seqlens_ptr" in line]
        assert loaded
        assert all(".to(tl.int64)" in line for line in loaded)


def test_chunks_are_counted_as_the_lemma_has_it() -> None:
    """From where a sequence begins, which is 64 bits wide; and each sequence has room for a chunk that is not full."""
    kept = [kernel for kernel in mistaken() if any(array.life == "residual" for array in kernel.arrays)]
    assert kept
    for kernel in kept:
        (row,) = [line.strip() for line in KernelPrinter(kernel).lines() if line.strip().startswith("kept_row = ")]
        count = "(first_token // CHUNK + sequence + (start - first_token) // CHUNK)"
        if is_aligned(kernel):
            count = "(first_token // LENGTH + 2 * sequence + chunk)"
        assert row == f"kept_row = {count} * HV + value_head"
    chunk, count, stretch, sequence, later = z3.Ints("chunk count stretch sequence later")
    facts, _ = LEMMAS[CHUNKS_FOLLOW]
    assert verdict(facts, chunk + count <= stretch) == "does not follow"
    facts, _ = LEMMAS[ALIGNED_FOLLOW]
    assert verdict(facts, chunk + sequence + count <= stretch + later) == "does not follow"


# ------------------------------------------------------------------------------------------------------------- mistakes


def replaced(body: Iterable[Statement], old: Statement, new: tuple[Statement, ...]) -> Iterator[Statement]:
    """The statements of `body` with others in place of one, wherever it is."""
    for statement in body:
        match statement:
            case _ if statement is old:
                yield from new
            case Loop(_, inner):
                yield replace(statement, body=tuple(replaced(inner, old, new)))
            case If(_, then, otherwise):
                then, otherwise = (tuple(replaced(part, old, new)) for part in (then, otherwise))
                yield replace(statement, then=then, otherwise=otherwise)
            case _:
                yield statement


def access_of(statement: Load | Store) -> Access:
    return statement.source if isinstance(statement, Load) else statement.target


def with_access(statement: Load | Store, access: Access) -> Statement:
    return replace(statement, **{"source" if isinstance(statement, Load) else "target": access})


Mistakes = Iterator[tuple[Statement, tuple[Statement, ...]]]


def masks_dropped(kernel: Kernel) -> Mistakes:
    for statement in statements_in(kernel.body):
        if isinstance(statement, Load | Store):
            access = access_of(statement)
            for dim in access.within:
                less = replace(access, within=tuple(other for other in access.within if other != dim))
                yield statement, (with_access(statement, less),)


def coordinates_fixed(kernel: Kernel) -> Mistakes:
    """All store where one should."""
    shared = {"sequence", "segment", "chunk", "stretch", "token", "head", "block"}
    for statement in statements_in(kernel.body):
        if isinstance(statement, Store):
            at = statement.target.at
            for place, index in enumerate(at):
                if index.space in shared:
                    fixed = (*at[:place], Index(index.space, 0), *at[place + 1 :])
                    yield statement, (with_access(statement, replace(statement.target, at=fixed)),)


def coordinates_exchanged(kernel: Kernel) -> Mistakes:
    for statement in statements_in(kernel.body):
        if isinstance(statement, Load | Store):
            access = access_of(statement)
            for place in range(len(access.at) - 1):
                one, other = access.at[place : place + 2]
                at = (*access.at[:place], other, one, *access.at[place + 2 :])
                yield statement, (with_access(statement, replace(access, at=at)),)


def first_blocks_forgotten(kernel: Kernel) -> Mistakes:
    """All blocks store, or all but the first."""
    for statement in statements_in(kernel.body):
        if isinstance(statement, If) and FirstBlock() in statement.conditions:
            rest = tuple(condition for condition in statement.conditions if condition != FirstBlock())
            yield statement, (If(rest, statement.then) if rest else statement.then[0],)
            yield statement, (If((FirstBlock(),), (), statement.then),)


def rows_turned(kernel: Kernel) -> Mistakes:
    """Arrays that lie the other way round in memory: long rows are counted from a number of 32 bits."""
    for statement in statements_in(kernel.body):
        if isinstance(statement, Load | Store):
            access = access_of(statement)
            spaces = access.array.spaces
            if len(spaces) > 1 and spaces[-1] not in WIDE:
                turned = replace(access, array=replace(access.array, spaces=spaces[::-1]), at=access.at[::-1])
                yield statement, (with_access(statement, turned),)


@pytest.mark.parametrize(
    ("mistakes", "refused"),
    [
        (masks_dropped, "is left"),
        (coordinates_fixed, "is met by two programs"),
        (coordinates_exchanged, "is left"),
        (first_blocks_forgotten, "is met by two programs"),
        (rows_turned, "its rows are counted in 32 bits"),
    ],
)
def test_a_mistake_is_refused(mistakes: Callable[[Kernel], Mistakes], refused: str) -> None:
    made = 0
    for kernel in mistaken():
        for old, new in mistakes(kernel):
            arrays = {access_of(s).array.name for s in statements_in((old,)) if isinstance(s, Load | Store)}
            wrong = replace(kernel, body=tuple(replaced(kernel.body, old, new)))
            made += 1
            found = Bounds(wrong, arrays).refused
            assert any(reason.endswith(refused) for reason in found), f"{kernel.name}: {old} taken for {new}: {found}"
    assert made > 2
