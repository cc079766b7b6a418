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
