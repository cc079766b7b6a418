"""Which elements of arrays the tiles of programs are.

An address is a tensor that is found once, and an offset, which is what loops change.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from flagen.counting.standing import NOWHERE, Standing
from flagen.diagnostics import InternalError
from flagen.kernel.ir import Access, Space
from flagen.plan.rows import ROW
from flagen.spec.model import Dims

Expressions = tuple[Mapping[str, Tensor], Mapping[str, Tensor], Tensor | None]
"""Of an access, over all of its tile: the indices of dims, where dims end, and which lanes there are beside that."""

NO_EXPRESSIONS: Expressions = ({}, {}, None)


@dataclass(frozen=True)
class Layout:
    """How far apart elements of an access are: in each space where the program stands, in those of which it has rows
    along an axis, and along each dim; `offset`, from numbers; and how many elements a row has."""

    spaces: tuple[tuple[Space, int], ...]
    rows: tuple[tuple[Space, str, int], ...]
    dims: tuple[tuple[str, int], ...]
    offset: int
    size: int
    over: Dims


@dataclass(frozen=True)
class Found:
    """Elements by the lanes of a tile: their indices, and which lanes lie beyond an end, if any do."""

    index: Tensor
    hidden: Tensor | None


@dataclass
class Located(Standing):
    """The programs of a launch that take the same way through a kernel, and what of memory their tiles are."""

    _layouts: dict[int, Layout] = field(default_factory=dict)
    _found: dict[tuple[object, ...], Found] = field(default_factory=dict)

    def coordinate(self, of: str) -> Tensor:
        match of:
            case "block":
                return self.block
            case "chunk of sequence":
                return self.within + self.moved
            case "chunks of sequence":
                return self.chunks_of_sequence
        raise InternalError(f"programs have no {of}")

    def elements(self, access: Access, expressions: Expressions) -> tuple[Found, int]:
        """The elements of an access: what stays of their addresses, and how far it is from there."""
        layout = self.layout(access)
        offset = self._offset(layout, expressions[0])
        if access.tiles or offset < 0:
            return self._find(access, layout, expressions, offset), 0
        rests = [rest for rest in map(self.rest, access.within) if not isinstance(rest, Tensor)]
        key = (id(access), self.launch.kernel.run == "chunk" and self.moved, *rests)
        if key not in self._found:
            self._found[key] = self._find(access, layout, expressions, 0)
        return self._found[key], offset

    def layout(self, access: Access) -> Layout:
        if id(access) not in self._layouts:
            self._layouts[id(access)] = self._laid_out(access)
        return self._layouts[id(access)]

    def _laid_out(self, access: Access) -> Layout:
        sizes, dims = self.launch.sizes, access.array.dims
        size = math.prod(map(sizes.of, dims))
        extents = sizes.extents(access.array, self.launch.kernel.block_of)
        strides = [math.prod(extents[place + 1 :]) * size for place in range(len(extents))]
        at = list(zip(access.at, strides, strict=True))
        return Layout(
            tuple((index.space, stride) for index, stride in at if index.axis is None and index.number is None),
            tuple((index.space, index.axis, stride) for index, stride in at if index.axis is not None),
            tuple((dim, math.prod(map(sizes.of, dims[place + 1 :]))) for place, dim in enumerate(dims)),
            sum(index.number * stride for index, stride in at if index.number is not None),
            size,
            tuple(dim for dim in self.launch.kernel.order if dim in access.dims),
        )

    def _offset(self, layout: Layout, placed: Mapping[str, Tensor]) -> int:
        """What of an address is the same for all programs, and changes from turn to turn."""
        offset = layout.offset + sum([self.place(space)[1] * stride for space, stride in layout.spaces])
        offset += sum([self.first_row(space)[1] * stride for space, _, stride in layout.rows])
        return offset + sum([self.turns.get(dim, 0) * stride for dim, stride in layout.dims if dim not in placed])

    def _find(self, access: Access, layout: Layout, expressions: Expressions, offset: int) -> Found:
        (placed, ends, where), over, blocks = expressions, layout.over, self.launch.sizes.blocks
        index = NOWHERE.reshape(1, *[1] * len(over)) + offset
        for space, stride in layout.spaces:
            index = index + along(self.place(space)[0] * stride, None, over)
        for space, axis, stride in layout.rows:
            lanes = torch.arange(blocks[axis]) - access.ago
            lanes = lanes // self.steps if (space, axis) == ("token", ROW) else lanes
            index = index + along(self.first_row(space)[0][:, None] + lanes, axis, over) * stride
        for dim, stride in layout.dims:
            lanes = self.first_index(dim)[0][:, None] + self.lanes(dim) if dim not in placed else placed[dim]
            index = index + (lanes if dim in placed else along(lanes, dim, over)) * stride
        hidden = None if where is None else ~where
        for dim in access.within:
            if access.ago and dim in access.rows:
                beyond = ~along(self.in_sequence("token", access.ago), dim, over)
            else:
                beyond = self._beyond(dim, over, placed, ends)
            if beyond.any():
                hidden = beyond if hidden is None else hidden | beyond
        if hidden is None:
            return Found(index, None)
        index, hidden = torch.broadcast_tensors(index, hidden)  # type: ignore[no-untyped-call]
        return Found(index.masked_fill(hidden, 0), hidden)

    def _beyond(self, dim: str, over: Dims, placed: Mapping[str, Tensor], ends: Mapping[str, Tensor]) -> Tensor:
        """The lanes that lie beyond the end of a dim."""
        if dim not in placed and dim not in ends:
            return ~along(self.inside(dim), dim, over)
        indices = placed[dim] if dim in placed else along(self.indices(dim), dim, over)
        beyond = indices >= ends.get(dim, self.launch.sizes.of(dim))
        return beyond | ~along(self.inside(dim), dim, over) if dim in self.launch.sizes.pairs else beyond


def along(lanes: Tensor, axis: str | None, over: Dims) -> Tensor:
    """A number of each program, or of each lane along an axis, among tiles over `over`."""
    return lanes.reshape(len(lanes), *[lanes.shape[1] if dim == axis else 1 for dim in over])
