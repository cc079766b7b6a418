"""What a printed kernel is given: programs, their tiles in memory, and what it asks of them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from flagen.counting.located import NO_EXPRESSIONS, Expressions, Found, Located, along
from flagen.diagnostics import InternalError
from flagen.kernel.ir import Access
from flagen.spec.model import Dims


@dataclass
class Programs(Located):
    """The programs of a launch that take the same way through a kernel."""

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

    def expanded(self, x: Tensor, dims: Dims) -> Tensor:
        """A tile over all lanes of `dims`."""
        shape = tuple([self.launch.sizes.blocks[dim] for dim in dims])
        x = x.reshape(len(x), *[1] * len(dims)) if x.dim() == 1 else x
        return x if x.shape[1:] == shape else x.expand(len(x), *shape)

    def filled(self, dims: Dims, number: float, *, ends: bool) -> Tensor:
        tile = self.expanded(self.tensor(float(number)), dims)
        for dim in dims if ends else ():
            tile = torch.where(along(self.inside(dim), dim, dims), tile, 0.0)
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
        found, offset = self.elements(access, expressions)
        memory = self._from(name, offset)
        if not len(memory) and found.hidden is not None and found.hidden.all():
            return torch.full(found.index.shape, fill, dtype=self.launch.dtype)
        return self._with_fill(memory[found.index], found, fill)

    def load_shares(self, access: Access, name: str, fill: float, expressions: Expressions = NO_EXPRESSIONS) -> Tensor:
        """The sum of what each block of the kernel that stored it has left."""
        found, offset = self.elements(access, expressions)
        size, shares = self.layout(access).size, int(self.launch.numbers["shares"])
        row, lane = (found.index + offset) // size, (found.index + offset) % size
        loaded = [self._from(name, 0)[(row * shares + share) * size + lane] for share in range(shares)]
        return self._with_fill(torch.stack(loaded).to(self.launch.dtype).sum(0), found, fill)

    def _with_fill(self, loaded: Tensor, found: Found, fill: float) -> Tensor:
        loaded = loaded.to(self.launch.dtype)
        return loaded if found.hidden is None else loaded.masked_fill(found.hidden, fill)

    def store(self, access: Access, name: str, value: Tensor, expressions: Expressions = NO_EXPRESSIONS) -> None:
        found, offset = self.elements(access, expressions)
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
