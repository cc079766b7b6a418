"""Which elements of arrays the lanes of tiles are."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

from flagen.kernel.elements import Element, Poison
from flagen.kernel.ir import Access, Array, Index, Kernel
from flagen.kernel.registers import whole
from flagen.kernel.sizes import Illegal
from flagen.kernel.tile_values import TileValues
from flagen.plan.rows import ROW

Elements = Sequence[int | None]
"""The element that each lane of each program has; None where it lies beyond an end."""
_Rows = Callable[[], tuple[int, ...]]


class Addresses:
    """Finds the elements of accesses where programs of a kernel stand: once for each place."""

    def __init__(self, kernel: Kernel, tiles: TileValues) -> None:
        self.kernel, self.tiles = kernel, tiles
        self.registers, self.sizes = tiles.registers, tiles.registers.sizes

    def of(self, access: Access) -> Callable[[], Elements]:
        """The elements of an access, wherever that is asked for."""
        rows, along = self._row(access), self._along(access)
        return self._of_tiles(access, rows, along) if access.tiles else self._of_lanes(access, rows, along)

    def _of_lanes(self, access: Access, rows: _Rows, along: Callable[[], tuple[int, ...]]) -> Callable[[], Elements]:
        known: dict[tuple[int, ...], tuple[list[int | None], bool]] = {}

        def elements() -> Elements:
            at = along()
            if at not in known:
                lanes = self._lanes(access)
                known[at] = lanes, None in lanes
            lanes, ends = known[at]
            if ends:
                return [None if lane is None else row + lane for row in rows() for lane in lanes]
            return [row + lane for row in rows() for lane in lanes]  # type: ignore[operator]

        return elements

    def _of_tiles(self, access: Access, rows: _Rows, along: Callable[[], tuple[int, ...]]) -> Callable[[], Elements]:
        over, known = self.registers.sorted(access.dims), dict[object, Elements]()
        tiles = [self.tiles.spread(tile, over) for tile in access.tiles]

        def elements() -> Elements:
            at, found = rows(), [tile() for tile in tiles]
            key = at, along(), *map(tuple, found)
            if key not in known:
                known[key] = self._placed(access, at, found)
            return known[key]

        return elements

    def _along(self, access: Access) -> Callable[[], tuple[int, ...]]:
        """Where the lanes of an access begin, and where rows along an axis end: all that their places depend on."""
        registers, dims = self.registers, [dim for dim in access.array.dims if dim in self.sizes.dims]
        axes = [axis for axis in access.rows if axis not in dims]

        def along() -> tuple[int, ...]:
            where = (registers.sequence.start, registers.sequence.stop) if access.ago else ()
            return (*map(registers.first, dims), *map(registers.first, axes), *map(registers.end, axes), *where)

        return along

    def extents(self, array: Array) -> tuple[int, ...]:
        return self.sizes.extents(array, self.kernel.block_of)

    def shares(self, access: Access) -> tuple[int, int]:
        """Of an array whose rows have a share of each block: how many rows there are, and how long one is."""
        rows = math.prod(self.sizes.extents(access.array, None))
        return rows, self._length(access.array)

    def _row(self, access: Access) -> _Rows:
        """The first element of each program's row, but for the coordinates that vary along an axis."""
        array, extents = access.array, self.extents(access.array)
        strides = [math.prod(extents[place + 1 :]) * self._length(array) for place in range(len(extents))]
        everywhere, moving, of_heads = 0, list[tuple[Index, int, int]](), list[tuple[Index, int, int]]()
        for index, extent, stride in zip(access.at, extents, strides, strict=True):
            if index.number is not None:
                _check(array, index, index.number, extent)
                everywhere += index.number * stride
            elif index.axis is None:
                (of_heads if index.space in ("head", "key_head") else moving).append((index, extent, stride))
        registers = self.registers

        def row() -> tuple[int, ...]:
            found = everywhere
            for index, extent, stride in moving:
                at = registers.at.get(index.space, -1)
                _check(array, index, at, extent)
                found += at * stride
            rows = [found] * registers.programs
            for index, extent, stride in of_heads:
                heads = registers.heads.get(index.space, (-1,) * registers.programs)
                for program, head in enumerate(heads):
                    _check(array, index, head, extent)
                    rows[program] += head * stride
            return tuple(rows)

        return row

    def _length(self, array: Array) -> int:
        """How many elements a row has."""
        return math.prod(map(self.sizes.of, array.dims))

    def _lanes(self, access: Access) -> list[int | None]:
        """The element that each lane has, counted from its program's row."""
        lanes, registers = list(self._lanes_of_row(access)), self.registers
        found = [None if row is None or lane is None else row + lane for row in self._rows(access) for lane in lanes]
        rows_first, over = (*access.rows, *registers.sorted(access.array.dims)), registers.sorted(access.dims)
        return found if rows_first == over else [found[place] for place in registers.places(rows_first, over, 1)]

    def _rows(self, access: Access) -> list[int | None]:
        """The first element of each row along an axis, counted from the program's; None beyond the axis' end."""
        if not access.rows:
            return [0]
        (axis,), array, registers = access.rows, access.array, self.registers
        place, index = next((place, index) for place, index in enumerate(access.at) if index.axis is not None)
        extents = self.extents(array)
        stride, extent = math.prod(extents[place + 1 :]) * self._length(array), extents[place]
        steps = registers.steps if axis == ROW and any(index.space == "token" for index in access.at) else 1
        first, within = registers.first(axis), range(registers.end(axis))
        if access.ago:
            first, within = first - access.ago, registers.sequence
        rows: list[int | None] = []
        for lane in range(first, first + self.sizes.blocks[axis]):
            if axis in access.within and lane not in within:
                rows.append(None)
                continue
            _check(array, index, lane // steps, extent)
            rows.append(lane // steps * stride)
        return rows

    def _lanes_of_row(self, access: Access) -> Iterator[int | None]:
        """The element of its row that each lane has."""
        array, dims = access.array, self.registers.sorted(access.array.dims)
        along = [(dim, dims.index(dim), self.sizes.of(dim), self._first_index(dim)) for dim in array.dims]
        for point in self.registers.points(dims):
            flat: int | None = 0
            for dim, place, size, first in along:
                at = self.sizes.place(dim, first + point[place])
                if at is None:
                    if dim not in access.within:
                        raise Illegal(f"{array.name}: {dim} {first + point[place]} of {size}")
                    flat = None
                    break
                assert flat is not None
                flat = flat * size + at
            yield flat

    def _first_index(self, dim: str) -> int:
        """The index in memory of the first lane along a dim: of a chunk's rows, as a dim, the first is the first."""
        return self.registers.first(dim) if dim in self.sizes.dims else 0

    def _placed(self, access: Access, at: tuple[int, ...], tiles: Sequence[Sequence[Element]]) -> Elements:
        """The same, of lanes whose index, or whose end, is an expression; `tiles` are those of the access."""
        array, over = access.array, self.registers.sorted(access.dims)
        places, ends = [dim for dim, _ in access.places], [dim for dim, _ in access.ends]
        indices = dict(zip(places, tiles, strict=False))
        limits = dict(zip(ends, tiles[len(places) :], strict=False))
        there = tiles[-1] if access.where is not None else None
        rows, found = self._rows(access), list[int | None]()
        for base in at:
            for point in self.registers.points(over):
                lane, along = len(found), dict(zip(over, point, strict=True))
                row = rows[along[access.rows[0]] if access.rows else 0]
                if row is None or (there is not None and not _is_true(there[lane])):
                    found.append(None)
                    continue
                flat: int | None = 0
                for dim in array.dims:
                    size = self.sizes.of(dim)
                    first = self._first_index(dim)
                    index: int | None = whole(indices[dim][lane]) if dim in indices else first + along[dim]
                    if dim in self.sizes.pairs:
                        index = self.sizes.place(dim, first + along[dim])
                    end = whole(limits[dim][lane]) if dim in limits else size
                    if dim in access.within and (index is None or index >= end):
                        flat = None
                        break
                    if index is None or not 0 <= index < size:
                        raise Illegal(f"{array.name}: {dim} {index} of {size}")
                    assert flat is not None
                    flat = flat * size + index
                found.append(None if flat is None else base + row + flat)
        return found


def _check(array: Array, index: Index, at: int, extent: int) -> None:
    if not 0 <= at < extent:
        where = f"{index.axis or index.space} {at} of {extent}" if at >= 0 else f"no {index.space} here"
        raise Illegal(f"{array.name}: {where}")


def _is_true(x: Element) -> bool:
    if isinstance(x, Poison):
        raise Illegal("poison decides which lanes there are")
    return bool(x)
