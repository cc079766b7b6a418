"""Which elements of arrays the lanes of tiles are."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

from flagen.kernel.elements import Element, Infinity, Poison
from flagen.kernel.ir import Access, Array, Index, Kernel
from flagen.kernel.sizes import Illegal
from flagen.kernel.tile_values import TileValues
from flagen.plan.rows import ROW

Elements = Sequence[int | None]
"""The element that each lane of each program has; None where it lies beyond an end."""


class Addresses:
    """Finds the elements of accesses where programs of a kernel stand: once for each place."""

    def __init__(self, kernel: Kernel, tiles: TileValues) -> None:
        self.kernel, self.tiles = kernel, tiles
        self.registers, self.sizes = tiles.registers, tiles.registers.sizes

    def of(self, access: Access) -> Callable[[], Elements]:
        """The elements of an access, wherever that is asked for."""
        rows = self._row(access)
        firsts = [dim for dim in access.array.dims if dim in self.sizes.dims]
        axes = [axis for axis in access.rows if axis not in firsts]
        placed = [self.tiles.spread(tile, self.registers.sorted(access.dims)) for tile in access.tiles]
        registers, known = self.registers, dict[object, Elements]()

        def elements() -> Elements:
            at = rows()
            key: tuple[object, ...] = (at, *map(registers.first, firsts))
            for axis in axes:
                key += registers.first(axis), registers.end(axis)
            lanes = [tile() for tile in placed]
            key += tuple(map(tuple, lanes))
            if key not in known:
                known[key] = self._placed(access, at, lanes) if placed else self._found(access, at)
            return known[key]

        return elements

    def extents(self, array: Array) -> tuple[int, ...]:
        return self.sizes.extents(array, self.kernel.block_of)

    def shares(self, access: Access) -> tuple[int, int]:
        """Of an array whose rows have a share of each block: how many rows there are, and how long one is."""
        rows = math.prod(self.sizes.extents(access.array, None))
        return rows, math.prod(map(self.sizes.of, access.array.dims))

    def _row(self, access: Access) -> Callable[[], tuple[int, ...]]:
        """The number of each program's row, but for the coordinates that vary along an axis."""
        array, extents = access.array, self.extents(access.array)
        strides = [math.prod(extents[place + 1 :]) for place in range(len(extents))]
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

    def _found(self, access: Access, at: tuple[int, ...]) -> Elements:
        array, registers = access.array, self.registers
        lanes, size = list(self._lanes_of_row(access)), math.prod(map(self.sizes.of, array.dims))
        rows = [row for base in at for row in self._rows_along(access, base)]
        found = [None if row is None or lane is None else row * size + lane for row in rows for lane in lanes]
        rows_first, over = (*access.rows, *registers.sorted(array.dims)), registers.sorted(access.dims)
        return found if rows_first == over else [found[place] for place in registers.places(rows_first, over)]

    def _rows_along(self, access: Access, base: int) -> Iterator[int | None]:
        """The row of each lane of the axis along which there are rows; None beyond its end."""
        if not access.rows:
            yield base
            return
        (axis,) = access.rows
        place, index = next((place, index) for place, index in enumerate(access.at) if index.axis is not None)
        extents = self.extents(access.array)
        stride, extent = math.prod(extents[place + 1 :]), extents[place]
        steps = self.registers.steps if axis == ROW and any(index.space == "token" for index in access.at) else 1
        first = self.registers.first(axis)
        end = self.registers.end(axis) if axis in access.within else None
        for lane in range(first, first + self.sizes.blocks[axis]):
            if end is not None and lane >= end:
                yield None
                continue
            _check(access.array, index, lane // steps, extent)
            yield base + lane // steps * stride

    def _lanes_of_row(self, access: Access) -> Iterator[int | None]:
        """The element of its row that each lane has."""
        array, dims = access.array, self.registers.sorted(access.array.dims)
        along = [(dim, dims.index(dim), self.sizes.of(dim), self._first_index(dim)) for dim in array.dims]
        for point in self.registers.points(dims):
            flat: int | None = 0
            for dim, place, size, first in along:
                at = first + point[place]
                if at >= size:
                    if dim not in access.within:
                        raise Illegal(f"{array.name}: {dim} {at} of {size}")
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
        found: list[int | None] = []
        for base in at:
            rows = list(self._rows_along(access, base))
            for point in self.registers.points(over):
                lane, along = len(found), dict(zip(over, point, strict=True))
                if there is not None and not _is_true(there[lane]):
                    found.append(None)
                    continue
                flat = rows[along[access.rows[0]]] if access.rows else rows[0]
                for dim in array.dims:
                    size = self.sizes.of(dim)
                    index = self._first_index(dim) + along[dim] if dim not in indices else _whole(indices[dim][lane])
                    end = _whole(limits[dim][lane]) if dim in limits else size
                    if dim in access.within and index >= end:
                        flat = None
                        break
                    if not 0 <= index < size:
                        raise Illegal(f"{array.name}: {dim} {index} of {size}")
                    flat = None if flat is None else flat * size + index
                found.append(flat)
        return found


def _check(array: Array, index: Index, at: int, extent: int) -> None:
    if not 0 <= at < extent:
        where = f"{index.axis or index.space} {at} of {extent}" if at >= 0 else f"no {index.space} here"
        raise Illegal(f"{array.name}: {where}")


def _whole(x: Element) -> int:
    if isinstance(x, Poison | Infinity):
        raise Illegal(f"{x} as an index")
    return int(x)


def _is_true(x: Element) -> bool:
    if isinstance(x, Poison):
        raise Illegal("poison decides which lanes there are")
    return bool(x)
