"""Prints the rules for tiles and warps as functions of a package."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from flagen.plan.tiling import Choice, Tiles, Tiling, Where


def tiling_context(tiling: Tiling) -> Mapping[str, object]:
    """What `triton/_tiling.j2` prints: a signature, docstring lines, and the lines of the body."""
    signature = f"{tiling.function}({', '.join(tiling.parameters)}) -> {tiling.returns}"
    return {"signature": signature, "docs": tiling.docs.split("\n"), "lines": list(_lines(tiling))}


def _lines(tiling: Tiling) -> Iterator[str]:
    for part in tiling.body:
        match part:
            case Choice(name, value, why) if len(why) == 1 and _is_short(name, value, why[0]):
                yield f"{name} = {value}  # {why[0]}"
            case Choice(name, value, why):
                yield from _comments(why)
                yield f"{name} = {value}"
            case Tiles():
                yield from _comments(part.why)
                yield from _tiles(part)
            case Where(condition, tiles):
                yield f"if {condition}:"
                yield from (f"    {line}" for line in (*_comments(tiles.why), *_tiles(tiles)))
    if tiling.returned:
        yield f"return {', '.join(tiling.returned)}"


def _comments(why: tuple[str, ...]) -> Iterator[str]:
    return (f"# {line}" for line in why)


def _is_short(name: str, value: str, why: str) -> bool:
    """Whether a comment has room behind its line."""
    return len(f"{name} = {value}  # {why}") <= 100


def _tiles(tiles: Tiles) -> Iterator[str]:
    start = f"{tiles.kernel} = " if tiles.kernel else "return "
    if not tiles.constants:
        yield f"{start}{tiles.base}"
        return
    entries = [f'"{constant.name}": {constant.value}' for constant in tiles.constants]
    if _on_one_line(tiles):
        base = [f"**{tiles.base}"] if tiles.base else []
        yield f"{start}{{{', '.join([*base, *entries])}}}"
        return
    yield f"{start}{{"
    if tiles.base:
        yield f"    **{tiles.base},"
    for entry, constant in zip(entries, tiles.constants, strict=True):
        yield f"    {entry},{''.join(f'  # {line}' for line in constant.why)}"
    yield "}"


def _on_one_line(tiles: Tiles) -> bool:
    """Whether constants stand side by side, if there is room: few, or called what they are."""
    if tiles.base:
        return len(tiles.constants) <= 2
    return all(constant.value == constant.name for constant in tiles.constants if constant.name != "num_warps")
