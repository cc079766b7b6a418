"""States that numbers mix, as the kernels over the rows of a chunk have them: which numbers there are, as tiles of a
token, and which of what they add up to over a chunk can be anything but zero."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from flagen.plan.rows import TOKEN
from flagen.plan.show import show
from flagen.plan.tiles import Constant, Masked, Tile, tiles_in
from flagen.spec.model import State

Numbers = tuple[Tile | None, ...]
"""A number for each register, over the tokens of a chunk or the same for all of them; None where it is always zero."""


@dataclass(frozen=True)
class Mixed:
    """The registers, and the numbers of a token.

    mix: what each register gets of each, row by row; beyond the end of a sequence each register stays what it is.
    of: by the role of the rows that read, q or y, by which numbers each register is read.
    into: by the role of the rows that write, w or k, how much of a row each register gets.
    """

    states: tuple[State, ...]
    mix: tuple[Numbers, ...]
    of: Mapping[str, Numbers]
    into: Mapping[str, Numbers]

    @property
    def places(self) -> range:
        return range(len(self.states))

    @property
    def reaches(self) -> frozenset[tuple[int, int]]:
        """The pairs (p, r) of registers of which p may have something of what r was some tokens before."""
        found = {(p, r) for p in self.places for r in self.places if p == r or self.mix[p][r] is not None}
        for k in self.places:
            found |= {(p, r) for p in self.places for r in self.places if (p, k) in found and (k, r) in found}
        return frozenset(found)

    def starts(self, reader: str) -> tuple[int, ...]:
        """The registers before a chunk of which rows of `reader` may read something."""
        return tuple(r for r in self.places if any((p, r) in self.reaches for p in _present(self.of[reader])))

    def ends(self, writer: str) -> tuple[int, ...]:
        """The registers behind a chunk that may have something of what rows of `writer` have written."""
        return tuple(p for p in self.places if any((p, r) in self.reaches for r in _present(self.into[writer])))

    @property
    def tiles(self) -> tuple[Tile, ...]:
        """Every number."""
        rows: Iterable[Numbers] = (*self.mix, *self.of.values(), *self.into.values())
        return tuple(tile for row in rows for tile in row if tile is not None)

    def named(self) -> Iterator[tuple[str, Tile]]:
        """The numbers by their names: `mix_0_1`, `q_of_0`, `w_into_1`."""
        for p, row in enumerate(self.mix):
            yield from ((mix_name(p, r), tile) for r, tile in enumerate(row) if tile is not None)
        for name, numbers in ((of_name, self.of), (into_name, self.into)):
            for role, row in numbers.items():
                yield from ((name(role, p), tile) for p, tile in enumerate(row) if tile is not None)

    def dump(self) -> list[str]:
        """Lines of a plan's text."""
        lines = [f"X = {', '.join(state.name for state in self.states)}, mixed: X = {_shown(self.mix)} X"]
        lines += [f"{role} reads X by {_shown([row])}" for role, row in self.of.items()]
        lines += [f"{role} is written to X by {_shown([row])}" for role, row in self.into.items()]
        return [f"    {line}" for line in lines]


def mix_name(p: int, r: int) -> str:
    return f"mix_{p}_{r}"


def of_name(role: str, p: int) -> str:
    return f"{role}_of_{p}"


def into_name(role: str, p: int) -> str:
    return f"{role}_into_{p}"


def is_one(tile: Tile) -> bool:
    return isinstance(tile, Constant) and tile.value == 1


def varies(tile: Tile) -> bool:
    """Whether a number is none of the program's text."""
    return not all(isinstance(part, Constant) for part in tiles_in(tile))


def unmasked(tile: Tile) -> Tile:
    """A number without what it is beyond the end of a sequence."""
    return tile.value if isinstance(tile, Masked) and tile.dim == TOKEN else tile


def _present(numbers: Numbers) -> list[int]:
    return [place for place, tile in enumerate(numbers) if tile is not None]


def _shown(rows: Sequence[Numbers]) -> str:
    texts = [f"[{', '.join('0' if tile is None else show(unmasked(tile)) for tile in row)}]" for row in rows]
    return texts[0] if len(texts) == 1 else f"[{', '.join(texts)}]"
