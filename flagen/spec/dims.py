"""The order of dims."""

from __future__ import annotations

from collections.abc import Iterable, Mapping


def behind_sources(dims: Iterable[str], sources: Mapping[str, tuple[str, ...]]) -> tuple[str, ...]:
    """Each dim once, behind those it follows from."""
    found: dict[str, None] = {}
    for dim in dims:
        pending = [dim]
        while pending:
            missing = [source for source in sources.get(pending[-1], ()) if source not in found]
            if missing:
                pending += reversed(missing)
            else:
                found[pending.pop()] = None
    return tuple(found)


def with_last(dims: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> tuple[str, ...]:
    """`dims` with the last dim of each of `rows` behind its others; where these contradict, as the last one has it."""
    order = list(dims)
    for *others, last in rows:
        behind = [dim for dim in order[order.index(last) :] if dim in others]
        order = [dim for dim in order if dim not in behind]
        place = order.index(last)
        order[place:place] = behind
    return tuple(order)
