"""Whatever the language can say is either refused with a documented code, or compiled into what it says.

A few examples always, the same ones every time. FLAGEN_FUZZ=500 draws that many new ones instead, per property.
"""

from __future__ import annotations

import os
from collections.abc import Callable

import torch
from hypothesis import HealthCheck, given, settings

from flagen.diagnostics import SpecError
from flagen.spec import CODES, parse_spec
from tests.fuzz.ladder import check
from tests.fuzz.mixed import mixed_specs
from tests.fuzz.packages import build, imported
from tests.fuzz.specs import affine_specs, wild_specs
from tests.fuzz.staged import staged_specs

torch.set_num_threads(1)

EXAMPLES = int(os.environ.get("FLAGEN_FUZZ", "0"))


def some(few: int) -> Callable:
    """Settings of a property: the `few` examples of every run, or as many new ones as were asked for."""
    return settings(
        max_examples=EXAMPLES or few,
        derandomize=not EXAMPLES,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )


def compiled(text: str) -> None:
    """`text` is refused with codes that are documented, or the package it becomes climbs the ladder."""
    try:
        spec = parse_spec(text)
    except SpecError as error:
        assert {diagnostic.code for diagnostic in error.diagnostics} <= set(CODES)
        return
    with imported(build(spec)) as package:
        check(spec, package)


@some(10)
@given(affine_specs())
def test_updates_that_papers_write(text):
    compiled(text)


@some(5)
@given(wild_specs())
def test_updates_that_nobody_writes(text):
    compiled(text)


@some(5)
@given(mixed_specs())
def test_states_that_numbers_mix(text):
    compiled(text)


@some(5)
@given(staged_specs())
def test_states_that_feed_one_another(text):
    compiled(text)
