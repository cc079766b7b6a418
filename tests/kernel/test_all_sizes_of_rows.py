"""The kernels over the rows of chunks stay within their arrays and out of one another's way, at all sizes."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from flagen.kernel import Programs
from flagen.kernel.ir import Kernel, Load, Store, statements_in
from tests.kernel.access_mistakes import Mistake, mistakes_in
from tests.kernel.bounds import verdict
from tests.kernel.row_bounds import AXES, AtChunk, RowBounds
from tests.kernel.test_all_sizes import SPECS, lowered
from tests.tiers import exhaustive, variants

MISTAKEN = ("simple_gla", "gated_delta_product", "kda", "rwkv7", "oja", "linear_attn_normalized", "gsa", "comba")
"""Those that mistakes are made in: the representatives that have rows, and one that takes the row before each."""
ALWAYS = "linear_attn_normalized"
"""Of these on every run: it has ends, masks, shares of blocks and neighbours."""


def rows_in(programs: Programs) -> Iterator[Kernel]:
    """The kernels over rows of a variant, those of stages among them; one that two ways have, once."""
    chunks = [program for each in programs.every for program in (each.chunk, each.chunk_backward)]
    for program in chunks:
        if program is not None and program.ways:
            yield from program.kernels


@variants(sorted(SPECS))
def test_every_access_is_within_its_array_and_every_element_has_one_program(name: str) -> None:
    for kernel in rows_in(lowered(name)):
        bounds = RowBounds(kernel)
        assert bounds.refused == []
        stores = [s for s in statements_in(kernel.body) if isinstance(s, Store)]
        loads = [s for s in statements_in(kernel.body) if isinstance(s, Load)]
        assert bounds.proved >= len(loads) + 2 * len(stores) > 0


def is_needless(bounds: RowBounds, mistake: Mistake) -> bool:
    """Whether what a mistake no longer masks is not there: an earlier chunk is full."""
    (dim,) = set(mistake.was.within) - set(mistake.now.within)
    for touch in bounds.touches:
        if touch.access == mistake.now:
            assert isinstance(touch.place, AtChunk)
            assert touch.place.tokens is not None
            axes = [index.axis for index in mistake.now.at]
            at = axes.index(dim) if dim in axes else -len(mistake.now.array.dims) + mistake.now.array.dims.index(dim)
            end = touch.place.tokens.end if dim in AXES else bounds.dim[dim]
            if verdict((*touch.facts, *touch.unmasked), touch.at[at] < end) != "follows":
                return False
    return True


@pytest.mark.parametrize(
    "name", [ALWAYS, *(pytest.param(name, marks=exhaustive) for name in MISTAKEN if name != ALWAYS)]
)
def test_a_mistake_in_an_access_is_refused(name: str) -> None:
    """Each is, but for masks of what is not there."""
    refused, through = 0, []
    for kernel in rows_in(lowered(name)):
        for mistake in mistakes_in(kernel):
            bounds = RowBounds(mistake.kernel, {mistake.was.array.name}, mistake.now)
            if bounds.refused:
                refused += 1
            elif mistake.kind != "bound" or not is_needless(bounds, mistake):
                through.append(str(mistake))
    assert through == []
    assert refused > 100
