"""Mistakes in the accesses of a kernel over rows, one at a time: in each bound, end, place, mask and coordinate.

They are such that an array is left, or an element met twice. What a load takes from elsewhere in its array is a mistake
in values, which executing the kernel finds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Literal

from flagen.kernel.ir import Access, Apply, If, Index, Kernel, Load, Loop, Statement, Store
from flagen.plan.tiles import Arithmetic, Product, Tile, Whole

Kind = Literal["bound", "end", "place", "where", "coordinate"]


@dataclass(frozen=True)
class Mistake:
    """A kernel with one access that is not what it was."""

    kernel: Kernel
    kind: Kind
    was: Access
    now: Access
    stores: bool

    def __str__(self) -> str:
        what = "store" if self.stores else "load"
        return (
            f"{self.kernel.name or 'forward'}: {what} of {self.was.array.name}, {self.kind}: {self.was} -> {self.now}"
        )


def mistakes_in(kernel: Kernel) -> Iterator[Mistake]:
    """The kernel with each mistake that its accesses, and those of its routines, could have."""
    for statement, put in _places(kernel.body, lambda body: replace(kernel, body=body)):
        access = statement.source if isinstance(statement, Load) else statement.target
        stores = isinstance(statement, Store)
        for kind, now in _changed(access, stores=stores):
            yield Mistake(put(_with(statement, now)), kind, access, now, stores)


def _with(statement: Load | Store, access: Access) -> Statement:
    return replace(statement, **{"source" if isinstance(statement, Load) else "target": access})


def _places(
    body: tuple[Statement, ...], around: Callable[[tuple[Statement, ...]], Kernel]
) -> Iterator[tuple[Load | Store, Callable[[Statement], Kernel]]]:
    """Every load and store, and what puts another statement in its place."""
    for place, statement in enumerate(body):

        def put(new: Statement, place: int = place) -> Kernel:
            return around((*body[:place], new, *body[place + 1 :]))

        match statement:
            case Load() | Store():
                yield statement, put
            case Loop(_, inner):
                yield from _places(inner, lambda new, loop=statement, put=put: put(replace(loop, body=new)))
            case If(_, then, otherwise):
                yield from _places(then, lambda new, old=statement, put=put: put(replace(old, then=new)))
                yield from _places(otherwise, lambda new, old=statement, put=put: put(replace(old, otherwise=new)))
            case Apply(routine):
                yield from _places(routine.body, lambda new, old=routine, put=put: put(Apply(replace(old, body=new))))


def _changed(access: Access, *, stores: bool) -> Iterator[tuple[Kind, Access]]:
    for dim in access.within:
        yield "bound", replace(access, within=tuple(other for other in access.within if other != dim))
    for number, (dim, end) in enumerate(access.ends):
        others = (*access.ends[:number], *access.ends[number + 1 :])
        yield "end", replace(access, ends=(*others, (dim, _and_one(end))))
        if stores:
            yield "end", replace(access, ends=others)
    for number, (dim, place) in enumerate(access.places):
        others = (*access.places[:number], *access.places[number + 1 :])
        yield "place", replace(access, places=(*others, (dim, Product((place, Whole(2)), place.dims))))
    if access.where is not None and (stores or access.places):
        yield "where", replace(access, where=None)
    for number, index in enumerate(access.at):
        indices = [other for other in access.at if other != index]
        indices += [Index(index.space, 2), *([Index(index.space, 0)] if stores else [])]
        for now in indices:
            yield "coordinate", replace(access, at=(*access.at[:number], now, *access.at[number + 1 :]))


def _and_one(tile: Tile) -> Tile:
    return Arithmetic("+", tile, Whole(1), tile.dims)
