"""What a printed kernel is given: programs, their tiles in memory, and what it asks of them.

An address is a tensor that is found once, and an offset, which is what loops change.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from flagen.diagnostics import InternalError
from flagen.kernel.ir import Access, Space
from flagen.plan.rows import ROW
from flagen.spec.model import Dims
from tests.vectorized.standing import NOWHERE, Standing

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
class Programs(Standing):
    """The programs of a launch that take the same way through a kernel."""

    _layouts: dict[int, Layout] = field(default_factory=dict)
    _found: dict[tuple[object, ...], Found] = field(default_factory=dict)

    # ---------------------------------------------------------------------------------------------------------- values

    def tensor(self, x: float | Tensor) -> Tensor:
        if isinstance(x, Tensor):
            return x
        return torch.tensor([x], dtype=torch.int64 if isinstance(x, int) else self.launch.dtype)

    def real(self, x: Tensor) -> Tensor:
        return x if x.is_floating_point() else x.to(self.launch.dtype)

    def number(self, name: str) -> Tensor:
        return self.tensor(float(self.launch.numbers[name]))

    @property
    def head(self) -> Tensor:
        base, offset = self.place("head")
        return (base + offset).to(self.launch.dtype)

    def coordinate(self, of: str) -> Tensor:
        match of:
            case "block":
                return self.block
            case "chunk of sequence":
                return self.within + self.moved
            case "chunks of sequence":
                return self.chunks_of_sequence
        raise InternalError(f"programs have no {of}")

    def expanded(self, x: Tensor, dims: Dims) -> Tensor:
        """A tile over all lanes of `dims`."""
        shape = tuple([self.launch.sizes.blocks[dim] for dim in dims])
        x = x.reshape(len(x), *[1] * len(dims)) if x.dim() == 1 else x
        return x if x.shape[1:] == shape else x.expand(len(x), *shape)

    def filled(self, dims: Dims, number: float, *, ends: bool) -> Tensor:
        tile = self.expanded(self.tensor(float(number)), dims)
        for dim in dims if ends else ():
            tile = torch.where(_along(self.inside(dim), dim, dims), tile, 0.0)
        return tile

    def once(self, x: Tensor) -> Tensor:
        return x if self.is_first_block else torch.zeros_like(x)

    def round_to(self, name: str) -> None:
        self.size["dtype"] = self.launch.arrays[name].dtype

    def rounded(self, x: Tensor) -> Tensor:
        """An operand, in the dtype that operands have, if that has 16 bits."""
        dtype = self.size["dtype"]
        assert isinstance(dtype, torch.dtype)
        return x if dtype.itemsize > 2 else x.to(dtype).to(self.launch.dtype)

    # ---------------------------------------------------------------------------------------------------------- memory

    def load(self, access: Access, name: str, fill: float, expressions: Expressions = NO_EXPRESSIONS) -> Tensor:
        found, offset = self._elements(access, expressions)
        memory = self._from(name, offset)
        if not len(memory) and found.hidden is not None and found.hidden.all():
            return torch.full(found.index.shape, fill, dtype=self.launch.dtype)
        return self._with_fill(memory[found.index], found, fill)

    def load_shares(self, access: Access, name: str, fill: float, expressions: Expressions = NO_EXPRESSIONS) -> Tensor:
        """The sum of what each block of the kernel that stored it has left."""
        found, offset = self._elements(access, expressions)
        size, shares = self._layout(access).size, int(self.launch.numbers["shares"])
        row, lane = (found.index + offset) // size, (found.index + offset) % size
        loaded = [self._from(name, 0)[(row * shares + share) * size + lane] for share in range(shares)]
        return self._with_fill(torch.stack(loaded).to(self.launch.dtype).sum(0), found, fill)

    def _with_fill(self, loaded: Tensor, found: Found, fill: float) -> Tensor:
        loaded = loaded.to(self.launch.dtype)
        return loaded if found.hidden is None else loaded.masked_fill(found.hidden, fill)

    def store(self, access: Access, name: str, value: Tensor, expressions: Expressions = NO_EXPRESSIONS) -> None:
        found, offset = self._elements(access, expressions)
        memory = self._from(name, offset)
        value = value.to(memory.dtype).expand_as(found.index)
        if found.hidden is None:
            memory[found.index] = value
        else:
            there = ~found.hidden
            memory[found.index[there]] = value[there]

    def _from(self, name: str, offset: int) -> Tensor:
        if name not in self.launch.arrays:
            raise InternalError(f"{name} is not given")
        return self.launch.arrays[name].view(-1)[offset:]

    def _elements(self, access: Access, expressions: Expressions) -> tuple[Found, int]:
        """The elements of an access: what stays of their addresses, and how far it is from there."""
        layout = self._layout(access)
        offset = self._offset(layout, expressions[0])
        if access.tiles or offset < 0:
            return self._find(access, layout, expressions, offset), 0
        rests = [rest for rest in map(self.rest, access.within) if not isinstance(rest, Tensor)]
        key = (id(access), self.launch.kernel.run == "chunk" and self.moved, *rests)
        if key not in self._found:
            self._found[key] = self._find(access, layout, expressions, 0)
        return self._found[key], offset

    def _layout(self, access: Access) -> Layout:
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
            index = index + _along(self.place(space)[0] * stride, None, over)
        for space, axis, stride in layout.rows:
            lanes = torch.arange(blocks[axis]) - access.ago
            lanes = lanes // self.steps if (space, axis) == ("token", ROW) else lanes
            index = index + _along(self.first_row(space)[0][:, None] + lanes, axis, over) * stride
        for dim, stride in layout.dims:
            lanes = self.first_index(dim)[0][:, None] + self.lanes(dim) if dim not in placed else placed[dim]
            index = index + (lanes if dim in placed else _along(lanes, dim, over)) * stride
        hidden = None if where is None else ~where
        for dim in access.within:
            if access.ago and dim in access.rows:
                beyond = ~_along(self.in_sequence("token", access.ago), dim, over)
            else:
                beyond = self._beyond(dim, over, placed, ends)
            if beyond.any():
                hidden = beyond if hidden is None else hidden | beyond
        if hidden is None:
            return Found(index, None)
        index, hidden = torch.broadcast_tensors(index, hidden)
        return Found(index.masked_fill(hidden, 0), hidden)

    def _beyond(self, dim: str, over: Dims, placed: Mapping[str, Tensor], ends: Mapping[str, Tensor]) -> Tensor:
        """The lanes that lie beyond the end of a dim."""
        if dim not in placed and dim not in ends:
            return ~_along(self.inside(dim), dim, over)
        indices = placed[dim] if dim in placed else _along(self.indices(dim), dim, over)
        beyond = indices >= ends.get(dim, self.launch.sizes.of(dim))
        return beyond | ~_along(self.inside(dim), dim, over) if dim in self.launch.sizes.pairs else beyond


def _along(lanes: Tensor, axis: str | None, over: Dims) -> Tensor:
    """A number of each program, or of each lane along an axis, among tiles over `over`."""
    return lanes.reshape(len(lanes), *[lanes.shape[1] if dim == axis else 1 for dim in over])
