"""The axes of a kernel's tiles: their index and mask names, and the addresses of what lies in memory over them."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field

from flagen.backends.printed import Printed, expression, product, product_of, total_of
from flagen.backends.text import tuple_of
from flagen.diagnostics import InternalError
from flagen.plan.free_names import free_name
from flagen.plan.rows import BETWEEN, MEMBER, ROW, TOKEN, WRITTEN
from flagen.spec.model import Dims


@dataclass(frozen=True)
class Axes:
    """`order` is the order of a tile's axes; every dim has an index vector and a mask vector in the kernel. Where
    tokens have several rows, `order` has both axes."""

    order: Dims
    _taken: Collection[str] = frozenset()
    pairs: Mapping[str, Dims] = field(default_factory=dict)
    """The dims that are pairs of two others."""

    def lines(self, dim: str, start: str = "", *, index: bool = True, mask: bool = True) -> Iterator[str]:
        """The indices of a program's lanes along a dim, the first of which is `start`, and which lie within it."""
        lanes = f"{start}tl.arange(0, {self.lanes(dim)})"
        if dim not in self.pairs:
            if index:
                yield f"{self.index(dim)} = {lanes}"
            if mask:
                yield f"{self.mask(dim)} = {self.index(dim)} < {dim}"
            return
        first, second = self.pairs[dim]
        lanes = f"({lanes})" if start else lanes
        one, other = (f"{lanes} {op} {self.lanes(second)}" for op in ("//", "%"))
        if index:
            yield f"{self.index(dim)} = {one} * {second} + {other}"
        if mask:
            yield f"{self.mask(dim)} = ({one} < {first}) & ({other} < {second})"

    def index(self, dim: str) -> str:
        """The indices of a program's lanes along `dim`."""
        if dim in (BETWEEN, WRITTEN):
            dim = ROW if ROW in self.order else TOKEN
        return "members" if dim == MEMBER else free_name(f"{dim}_index", self._taken)

    def mask(self, dim: str) -> str:
        """Which of them lie within the dim."""
        return free_name(f"{dim}_mask", self._taken)

    def mask_ago(self, ago: int) -> str:
        """Which tokens have one in their sequence that many tokens before them."""
        when = f"_{ago}_ago" if ago > 0 else f"_in_{-ago}" if ago else ""
        return free_name(f"{TOKEN}_mask{when}", self._taken)

    def lanes(self, dim: str) -> str:
        """How many lanes a tile has along `dim`."""
        match dim:
            case "token":
                return "BLOCK_TOKENS" if ROW in self.order else "CHUNK"
            case "row":
                return "CHUNK"
        return {BETWEEN: "CHUNK", WRITTEN: "CHUNK", MEMBER: "MEMBERS"}.get(dim, f"BLOCK_{dim}")

    def size(self, dim: str) -> str:
        """How much room there is along `dim` in memory."""
        return self.lanes(dim) if dim in (TOKEN, ROW, BETWEEN, WRITTEN, MEMBER) else dim

    def shape(self, dims: Dims) -> str:
        """The shape of a tile."""
        return tuple_of(map(self.lanes, self.sorted(dims)))

    def sorted(self, dims: Dims) -> Dims:
        """`dims` in the order that a tile over them has."""
        return tuple(dim for dim in self.order if dim in dims)

    def spread(self, text: str, dims: Dims, over: Dims) -> str:
        """The tile `text` over `dims` as a factor of tiles over `over`; `text` must bind like a name."""
        if dims == over or not dims:
            return text
        if dims == tuple(dim for dim in over if dim in dims):
            return f"{text}[{', '.join(':' if dim in dims else 'None' for dim in over)}]"
        raise InternalError(f"a tile over {dims} cannot be spread over {over}")

    def address(self, row: str, dims: Dims, rows: Dims = ()) -> str:
        """The offsets of a tile in memory whose rows are contiguous over `dims`, in this order; `row` counts rows, of
        which the tile has those along the axes `rows`.

        The tile's axes are in the kernel's order, whatever the order in memory.
        """
        if not dims:
            return row
        over = self.sorted((*rows, *dims))
        counted = Printed(self.spread(f"({row})", rows, over)) if rows else expression(row)
        offsets = []
        for place, dim in enumerate(dims):
            index = self.spread(self.index(dim), (dim,), over)
            offsets.append(product_of(index, *map(self.size, dims[place + 1 :])))
        start = [product(counted, product(*(Printed(self.size(dim)) for dim in dims))).text] if row else []
        return total_of(*start, *offsets)

    def within(self, dims: Dims, ago: int = 0) -> str:
        """The mask of a tile over `dims`, whose rows are those of tokens that many tokens ago; empty for a scalar,
        which has no lane to mask."""
        over = self.sorted(dims)
        masks = ((dim, self.mask_ago(ago) if ago and dim == TOKEN else self.mask(dim)) for dim in over)
        return " & ".join(self.spread(mask, (dim,), over) for dim, mask in masks)
