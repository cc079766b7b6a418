"""When the rows of a chunk read and write, and the values of tensors over them, for evaluation in exact arithmetic."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass

from gmpy2 import mpq

from flagen.algebra.equations import FAMILY, Letters

Values = dict[tuple[int, ...], mpq]


class OutOfOrder(Exception):
    """A decay runs backwards in time: such a factor exists in no recurrence, and may be infinite."""


@dataclass(frozen=True)
class Timeline:
    """When the rows of one chunk read and write, counted in micro-steps from the chunk's start.

    decays: e^g of each micro-step, by key channel.
    seen: by reader, for each of its rows, how many micro-steps' writes it sees.
    writes: by column index letter, the micro-step each row writes in.
    counts: by offset, for each of its rows, how many micro-steps' decays it includes.
    sizes: by index family (delta, write, token, key, value, register …), how many there are.
    """

    decays: tuple[tuple[mpq, ...], ...]
    seen: Mapping[str, tuple[int, ...]]
    writes: Mapping[str, tuple[int, ...]]
    counts: Mapping[str, tuple[int, ...]]
    sizes: Mapping[str, int]

    def between(self, start: int, stop: int, channel: int) -> mpq:
        """e^{sum of g} over micro-steps start (inclusive) to stop (exclusive)."""
        if stop < start:
            raise OutOfOrder
        result = mpq(1)
        for step in range(start, stop):
            result *= self.decays[step][channel]
        return result


def indices(letters: Letters, timeline: Timeline) -> itertools.product[tuple[int, ...]]:
    """Every index of a tensor with these letters."""
    return itertools.product(*(range(timeline.sizes[FAMILY[letter]]) for letter in letters))
