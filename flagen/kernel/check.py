"""What has to hold of every kernel before anybody prints or runs it: tiles fit where they are used."""

from __future__ import annotations

from collections.abc import Iterable

from flagen.diagnostics import InternalError
from flagen.kernel.ir import (
    Access,
    Add,
    Apply,
    Bind,
    Choose,
    Fill,
    If,
    Kernel,
    Let,
    Load,
    Loop,
    Scale,
    Statement,
    Store,
)
from flagen.plan.tiles import Dot, Edge, Scan, Shifted, StateTile, Sum, Tile, Value, operands
from flagen.spec.model import Dims


def check(kernel: Kernel) -> Kernel:
    """`kernel`, whose tiles have the dims that those who use them take them to have.

    Raises:
        InternalError: one has others: its axes would meet the wrong ones.
    """
    _Check(kernel.order).body(kernel.body)
    return kernel


class _Check:
    def __init__(self, order: Dims) -> None:
        self.order = order
        self.dims: dict[str, Dims] = {}
        """The dims of the tiles that have a name so far."""
        self.gone: set[str] = set()
        """The names that were given in a loop alone: behind it they are there no longer."""

    def body(self, body: Iterable[Statement]) -> None:
        for statement in body:
            self._statement(statement)

    def _statement(self, statement: Statement) -> None:
        match statement:
            case Load(target, source):
                self.dims[target] = self._of(source)
            case Fill(target, dims):
                self.dims[target] = self._sorted(dims)
            case Let(target, value):
                self._tile(value)
                self.dims[target] = value.dims
            case Add(target, value, dims):
                self._is_over(target, dims)
                self._fits(value, dims, target)
            case Choose(_, target, value):
                self._is_over(target, value.dims)
                self._tile(value)
            case Bind(targets, values):
                for value in values:
                    self._tile(value)
                for name in targets:
                    self.dims[name] = (
                        values[targets.index(name)].dims if len(values) == len(targets) else values[0].dims
                    )
            case Scale(target, value, dims):
                self._is_over(target, dims)
                self._fits(value, dims, target)
            case Apply(routine):
                outside = self.dims
                self.dims = {name: dims for name, dims in outside.items() if name in routine.carried}
                self.body(routine.body)
                self.dims = outside
            case Store(target, value):
                self._fits(value, self._of(target), target.array.name)
            case Loop(_, inner):
                before = dict(self.dims)
                self.body(inner)
                if self.dims != before:  # A turn takes what the one before has left.
                    self.body(inner)
                if not statement.whole:  # Else it is none.
                    self.gone |= self.dims.keys() - before.keys()
                    self.dims = {name: dims for name, dims in self.dims.items() if name in before}
            case If(_, then, otherwise):
                self.body((*then, *otherwise))

    def _of(self, access: Access) -> Dims:
        return self._sorted(access.dims)

    def _sorted(self, dims: Dims) -> Dims:
        return tuple(dim for dim in self.order if dim in dims)

    def _is_over(self, name: str, dims: Dims) -> None:
        if name in self.gone and name not in self.dims:
            raise InternalError(f"`{name}` is given in a loop alone, and is used behind it")
        if self.dims.get(name, self._sorted(dims)) != self._sorted(dims):
            raise InternalError(f"`{name}` is over {self.dims[name]}, and is used as if it were over {dims}")

    def _fits(self, value: Tile, dims: Dims, target: str) -> None:
        self._tile(value)
        if not set(value.dims) <= set(dims):
            raise InternalError(f"a tile over {value.dims} is added to or stored in `{target}`, which is over {dims}")

    def _has_rows(self, values: Iterable[Tile], first: Tile, axis: str, dims: Dims) -> None:
        """Rows along the first axis, and one like them."""
        if any(value.dims != dims for value in values) or dims != (axis, *first.dims):
            raise InternalError(f"rows along {axis} of {dims} of tiles that are over others, or not over all of them")

    def _is_product(self, left: Tile, right: Tile, dim: str, onto: Tile | None, dims: Dims) -> None:
        """Of two matrices, both rounded, or loaded as operands."""
        for side in (left, right):
            if len(side.dims) != 2 or dim not in side.dims:
                raise InternalError(f"a product along {dim} of a tile over {side.dims}")
        outer = tuple(d for side in (left, right) for d in side.dims if d != dim)
        if outer != dims or (onto is not None and onto.dims != dims):
            raise InternalError(f"a product over {outer} is taken for one over {dims}")

    def _tile(self, tile: Tile) -> None:
        match tile:
            case Value(name, _, dims) | StateTile(name, False, dims):
                self._is_over(name, dims)
            case StateTile(name, True, dims):
                self._is_over(f"{name}_prev", dims)
            case Sum(value, dim) if dim not in value.dims:
                raise InternalError(f"a sum over {dim} of a tile over {value.dims}")
            case Scan(combine, factor, _, first, axis, _, dims):
                if (factor is None) != (combine == "phase"):
                    raise InternalError(f"a {combine} scan {'without' if factor is None else 'with'} a factor")
                self._has_rows(operands(tile)[:-1], first, axis, dims)
            case Shifted(value, first, axis, _, dims):
                self._has_rows((value,), first, axis, dims)
            case Dot(left, right, dim, onto, dims):
                self._is_product(left, right, dim, onto, dims)
            case Edge(value, axis, _, dims) if value.dims != (axis, *dims):
                raise InternalError(f"a row along {axis} of a tile over {value.dims}, as if it were over {dims}")
        for operand in operands(tile):
            self._tile(operand)
