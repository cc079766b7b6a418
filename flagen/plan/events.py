"""What happens to a state within a token, in order: it is read, it decays, rows are written to it.

A read and a write are both an outer product of a vector along the keys and one along the values. A read adds it to the
gradient of the state where it stands; a write adds it to the state.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count

from flagen.algebra.normal_form import Block, Decay, DeltaRow, MicroStep, NormalForm, Position, Read, WriteRow


@dataclass(frozen=True)
class Erase:
    """u = z + S^T y: the delta row number `number` reads the state. The other half of it is `Insert`."""

    number: int
    row: DeltaRow


@dataclass(frozen=True)
class Look:
    """The output reads the state."""

    read: Read


@dataclass(frozen=True)
class Insert:
    """S += w u^T for the delta row number `number`."""

    number: int
    row: DeltaRow


@dataclass(frozen=True)
class Write:
    """S += k v^T for the write row number `number`."""

    number: int
    row: WriteRow


@dataclass(frozen=True)
class Fade:
    """S = Diag(e^g) S."""

    decay: Decay


@dataclass(frozen=True)
class Again:
    """What happens for each micro-step."""

    events: tuple[Event, ...]


Event = Erase | Look | Insert | Write | Fade | Again
Reader = Erase | Look
Writer = Insert | Write


def events_of(nf: NormalForm) -> tuple[Event, ...]:
    """The events of a token."""
    return tuple(_Sorter(nf).token())


def flat(events: tuple[Event, ...]) -> Iterator[Event]:
    """`events` with those of micro-steps among them."""
    for event in events:
        if isinstance(event, Again):
            yield from flat(event.events)
        else:
            yield event


class _Sorter:
    def __init__(self, nf: NormalForm) -> None:
        self.nf = nf
        self.deltas, self.writes = count(), count()

    def token(self) -> Iterator[Event]:
        for number, block in enumerate(self.nf.blocks):
            yield from self._block(number, block)
        yield from self._looks(self.nf.end)

    def _block(self, number: int, block: Block) -> Iterator[Event]:
        if block.repeated:
            yield from self._looks(Position(number, 0))
            if block.lead is not None:
                yield Fade(block.lead)
            yield from self._looks(Position(number, 0, after_decay=True))
            yield Again(tuple(event for step in block.steps for event in self._step(step)))
            return
        for place, step in enumerate(block.steps):
            yield from self._looks(Position(number, place))
            yield from self._step(step, tuple(self._looks(Position(number, place, after_decay=True))))

    def _step(self, step: MicroStep, looks: tuple[Look, ...] = ()) -> Iterator[Event]:
        """A micro-step: all its rows read before any of them is written."""
        erasing = [Erase(next(self.deltas), row) for row in step.deltas]
        late = [erase for erase in erasing if step.decay is None or erase.row.after_decay]
        yield from (erase for erase in erasing if erase not in late)
        if step.decay is not None:
            yield Fade(step.decay)
        yield from looks
        yield from late
        yield from (Insert(erase.number, erase.row) for erase in erasing)
        yield from (Write(next(self.writes), row) for row in step.writes)

    def _looks(self, position: Position) -> Iterator[Look]:
        return (Look(read) for read in self.nf.reads if read.position == position)
