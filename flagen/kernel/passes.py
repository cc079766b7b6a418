"""Questions about a kernel, answered from its data."""

from __future__ import annotations

from collections.abc import Iterable

from flagen.kernel.ir import Kernel, Statement, accesses_in, values_of
from flagen.plan.tiles import Head, Masked


def has_key_heads(kernel: Kernel) -> bool:
    """Whether it loads a row of each key head."""
    return any("key_head" in access.array.spaces for access in accesses_in(kernel.body))


def evaluates_head(kernel: Kernel) -> bool:
    """Whether an expression names the value head."""
    return any(isinstance(tile, Head) for tile in values_of(kernel.body))


def dims_with_ends(kernel: Kernel) -> frozenset[str]:
    """The dims whose ends a kernel has to know: it loads, stores or masks a tile over them."""
    found = {dim for access in accesses_in(kernel.body) for dim in (*access.array.dims, *access.within)}
    return frozenset(found | {tile.dim for tile in values_of(kernel.body) if isinstance(tile, Masked)})


def reads_steps(body: Iterable[Statement]) -> bool:
    """Whether it loads or stores a row of each micro-step of a token."""
    return any(access.array.spaces[:2] == ("token", "micro_step") for access in accesses_in(body))
