"""What of the suite `make test` runs, and what it leaves to `make test-all`.

A case marked `exhaustive` is one that only `--all` runs: `make test-all` does. Tests of every variant are marked here,
case by case: eight variants stand for the structures that there are and climb the whole ladder always; of the others
`make test` sees what a test's `few` or `every` says. A new test of all variants takes `variants` or `ladder`; one that
is cheap, or names its variants, takes pytest's own `parametrize`.

A case marked `interpreted` runs its kernels in Triton's interpreter; the others, but for `--all`, run them in PyTorch:
printed from the same data and launched the same way, and ten times as fast (tests/vectorized).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterable, Sequence
from itertools import product
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from hypothesis import settings

REPRESENTATIVES = (
    "simple_gla",
    "gated_delta_product",
    "kda",
    "rwkv7",
    "oja",
    "linear_attn_normalized",
    "gsa",
    "hgrn",
)
"""A scalar decay; micro-steps that erase; a decay of each key, with an erasure and with any two vectors; reads from the
right; a normalizer that rides; several matrices, of slots; channels without a matrix."""

INTERPRETED = (
    *REPRESENTATIVES,
    "abc_attn",
    "comba",
    "lightning_attn",
    "mamba3_mimo",
    "mesa_net",
    "mlstm",
    "momentum_delta_rule",
    "power_attn",
    "precond_kda",
    "rg_lru",
    "titans_linear",
)
"""With what the kernels of layers have besides, these have every kind of node that any kernel has."""

exhaustive = pytest.mark.exhaustive
interpreted = pytest.mark.interpreted

EVERYTHING = "FLAGEN_TEST_ALL"
"""The variable of the environment that stands for --all before any test is there to be marked."""


def nothing(*_: object) -> bool:
    return False


def tiered(
    names: str | Sequence[str],
    cases: Iterable[tuple[object, ...]],
    always: Callable[..., bool],
    in_triton: Callable[..., bool] = nothing,
) -> pytest.MarkDecorator:
    """`parametrize`, of which the cases that are not `always` run are exhaustive, and those `in_triton` interpreted."""

    def marks(*case: object) -> list[pytest.MarkDecorator]:
        return [*([] if always(*case) else [exhaustive]), *([interpreted] if in_triton(*case) else [])]

    marked = [pytest.param(*case, marks=marks(*case)) for case in cases]
    return pytest.mark.parametrize(names, marked, ids=str)


def variants(names: Iterable[str], also: Collection[str] = ()) -> pytest.MarkDecorator:
    """`name`, each of `names`: always the representatives, and those that are `also` to be seen each time."""
    return tiered("name", ((name,) for name in names), lambda name: represents(name) or name in also)


def ladder(names: Iterable[str], shapes: Iterable[object], few: Collection[object] = ()) -> pytest.MarkDecorator:
    """`name` and `shape`, all with all: always the representatives, and of the others the `few` shapes. At these, or
    else the last one, those variants are interpreted that have every kind of node."""
    shapes = list(shapes)
    shown = few or shapes[-1:]

    def always(name: str, shape: object) -> bool:
        return represents(name) or shape in few

    def in_triton(name: str, shape: object) -> bool:
        return name in INTERPRETED and shape in shown

    return tiered(("name", "shape"), product(names, shapes), always, in_triton)


def each_form(pairs: Iterable[tuple[str, str]]) -> pytest.MarkDecorator:
    """`kind` and `name`: every form of a representative always."""
    return tiered(("kind", "name"), pairs, lambda _, name: represents(name))


def examples(count: int) -> settings:
    """So many random examples with --all, and a fifth of them otherwise."""
    from hypothesis import settings  # A machine that runs the GPU tests alone need not have it.

    return settings(max_examples=count if EVERYTHING in os.environ else count // 5, deadline=None)


def represents(name: str) -> bool:
    return name in REPRESENTATIVES
