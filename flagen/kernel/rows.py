"""What the lowerings of kernels over the rows of a chunk have in common: loads, expressions, operands of products."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Generic, TypeGuard, TypeVar

from flagen.kernel.ir import Access, Array, Index, Let, Life, Load, Space, Statement, access
from flagen.kernel.recurrent import array_of
from flagen.plan.chunk_kernel import ChunkKernelPlan
from flagen.plan.free_names import free_name
from flagen.plan.kernel_names import kernel_name
from flagen.plan.key_kernel import KeyKernelPlan
from flagen.plan.row_planner import Part, RowLoad, RowSet
from flagen.plan.rows import BETWEEN, MEMBER, ROW, TOKEN, WRITTEN
from flagen.plan.schedule import Load as Loaded
from flagen.plan.schedule import Set, declared_names
from flagen.plan.tiles import (
    Along,
    Call,
    Compare,
    Comparison,
    Constant,
    Dot,
    Lane,
    Paired,
    Product,
    Rounded,
    Size,
    Tile,
    Value,
    Whole,
    Widened,
    rebuild,
)
from flagen.spec.model import Derived, Dims, Input, Param

ROLES = ("q", "w", "y", "k", "v")

CU_SEQLENS = Array("cu_seqlens", ("border",), life="begin", optional=True)
CHUNK_SEQUENCE = Array("chunk_sequence", ("counted_chunk",), life="begin", optional=True)
FIRST_CHUNK = Array("first_chunk", ("sequence",), life="begin", optional=True)
PACKING = (CU_SEQLENS, CHUNK_SEQUENCE, FIRST_CHUNK)
"""Where packed sequences and their chunks begin."""

ITERATIONS = "max_iterations"
"""What a launch calls the number of steps that systems are solved by."""

SCARCE = "Registers are scarce: nothing is moved out of the loop, to be held during it."
"""Why a loop computes again what does not change."""

RowPlan = ChunkKernelPlan | KeyKernelPlan
P = TypeVar("P", bound=RowPlan)


def is_input(tile: Tile | None) -> TypeGuard[Value]:
    """Whether a tile is an input as it is: loaded in its own dtype, and so a matrix product's operand. What a spec
    derives has a name, too, but is evaluated in float32."""
    return isinstance(tile, Value) and tile.kind == "input"


def steps_symbol(plan: RowPlan) -> str:
    """The name of the step count inside the kernels, where a token has several rows; empty where it has one."""
    return plan.spec.steps.symbol if plan.row_axis == ROW and plan.spec.steps else ""


def sides_of(tile: Tile) -> tuple[Tile, ...]:
    """The sides of rows over pairs, whatever their dims are called; of others themselves."""
    return (bare(tile.left), bare(tile.right)) if isinstance(tile, Paired) else (tile,)


def bare(tile: Tile) -> Tile:
    """A tile whatever its dims are called."""
    return bare(tile.value) if isinstance(tile, Along) else tile


def local(name: str, dims: Dims) -> Value:
    """A tile that a kernel has given a name."""
    return Value(name, "local", dims)


def times(first: Tile, *rest: Tile | None) -> Tile:
    """The product of these from left to right, over all that they lie over; None is no factor. Where none of them lies
    over all of that, they stand in the order of their axes."""
    factors = [first, *(factor for factor in rest if factor is not None)]
    if len(factors) == 1:
        return first
    by_width = sorted(factors, key=lambda tile: len(tile.dims), reverse=True)
    return Product(tuple(factors), tuple(dict.fromkeys(dim for tile in by_width for dim in tile.dims)))


def common(*factors: Tile | None) -> Tile | None:
    """The product of those factors that there are; None where there are none."""
    found = [factor for factor in factors if factor is not None]
    return times(*found) if found else None


class RowLowering(Generic[P]):
    """Lowers what the kernels of a plan have in common."""

    def __init__(self, plan: P, *parts: Part) -> None:
        self.plan: P = plan
        self.parts = parts
        self.names = frozenset(map(kernel_name, declared_names(plan.spec)))
        self.row = plan.row_axis
        self.grouped = self.row == ROW
        self.steps = steps_symbol(plan)
        self.order = self._order(plan.order)
        self.called = {axis: self._called(axis) for axis in ("", TOKEN, ROW)}

    def _order(self, order: Dims) -> Dims:
        """That of the plan, with the columns of scores behind the rows."""
        axes = [axis for axis in order if axis != ROW or self.grouped]
        last = axes.index(self.row)
        return (*axes[: last + 1], BETWEEN, WRITTEN, MEMBER, *axes[last + 1 :])

    def sorted(self, dims: Iterable[str]) -> Dims:
        found = set(dims)
        return tuple(axis for axis in self.order if axis in found)

    # ----------------------------------------------------------------------------------------------------------- names

    def name(self, name: str, axis: str = "") -> str:
        """What a name of the spec is called in the kernel; a token's value has one name for tokens, one for rows."""
        called = kernel_name(name)
        plan: RowPlan = self.plan
        declared: tuple[Input | Derived, ...] = (*plan.spec.inputs, *plan.spec.derived)
        per_step = {decl.name for decl in declared if decl.per == "step"}
        if axis != ROW or not self.grouped or name in per_step:
            return called
        return free_name(kernel_name(f"{called}_row"), self.names)

    def _called(self, axis: str) -> Mapping[str, str]:
        """What expressions along an axis call the values of a kernel."""
        names = {self.plan.read: "read", "log_decay": "log_decay"}
        if isinstance(self.plan, ChunkKernelPlan) and self.plan.rider is not None:
            names[self.plan.rider.read] = "column"
        names |= {param.name: kernel_name(param.name) for param in self.plan.spec.params if not param.is_tensor}
        for action in (action for part in self.parts for action in part.once):
            if isinstance(action, Loaded):
                names[action.source.name] = self.name(action.source.name)
            elif action.target != "log_decay":
                names[action.target] = self.name(action.target)
        for row in (row for part in self.parts for row in part.rows if row.axis == axis):
            name = row.target if isinstance(row, RowSet) else row.source.name
            names[name] = self.name(name, axis)
        return names

    def tile(self, tile: Tile, axis: str) -> Tile:
        """An expression of the plan as it stands in the kernel: float32, whatever the dtype values were loaded in."""
        if not isinstance(tile, Value):
            return rebuild(tile, lambda operand: self.tile(operand, axis))
        found = replace(tile, name=self.called[axis].get(tile.name, tile.name))
        return Widened(found, found.dims) if self._is_raw(tile.name, axis) else found

    def _is_raw(self, name: str, axis: str) -> bool:
        """Whether a name is that of an input that is loaded as it is."""
        loads = (row for part in self.parts for row in part.rows if isinstance(row, RowLoad) and row.axis == axis)
        return any(load.source.name == name and self.raw(load) for load in loads)

    def raw(self, load: RowLoad) -> bool:
        """Whether an input is loaded as it is: for the matrix products."""
        every = (side for tile in self.plan.vectors for side in sides_of(tile))
        vectors = [tile for tile in every if is_input(tile)]
        return any(tile.name == load.source.name and load.axis in tile.dims for tile in vectors)

    # ----------------------------------------------------------------------------------------------------------- loads

    def once(self, *parts: Part) -> Iterator[Statement]:
        """What of `parts` is the same for every chunk."""
        yield from self.fixed(action for part in parts for action in part.once)

    def fixed(self, actions: Iterable[Loaded | Set]) -> Iterator[Statement]:
        """Params, and what is evaluated from them."""
        for action in actions:
            if isinstance(action, Loaded):
                assert isinstance(action.source, Param)
                yield Load(self.name(action.source.name), access(self.array(action.source)))
            else:
                name = action.target if action.target == "log_decay" else self.name(action.target)
                yield Let(name, self.tile(action.value, ""))

    def loads(self, part: Part) -> Iterator[Statement]:
        """The inputs of a chunk's rows, then what is evaluated from them for each."""
        yield from self.of_rows(part.rows)

    def of_rows(self, actions: Iterable[RowLoad | RowSet]) -> Iterator[Statement]:
        """Inputs, and what is evaluated from them, for each row."""
        for action in actions:
            if isinstance(action, RowLoad):
                source = self.rows_of(self.array(action.source), action.axis)
                yield Load(self.name(action.source.name, action.axis), source, wide=not self.raw(action))
            else:
                yield Let(self.name(action.target, action.axis), self.tile(action.value, action.axis))

    def array(self, source: Input | Param) -> Array:
        """A tensor of the call."""
        array = array_of(source)
        spaces: tuple[Space, ...] = ("row", *array.spaces[2:]) if "micro_step" in array.spaces else array.spaces
        return replace(array, name=kernel_name(source.name), spaces=spaces)

    def rows_of(self, array: Array, axis: str) -> Access:
        """The rows of an array that the tokens, or rows, of a chunk have."""
        counted = ("token", "row")
        at = tuple(Index(space, axis=axis if space in counted else None) for space in array.spaces)
        return Access(array, at, self.sorted((axis, *array.dims)))

    def of_chunk(self, name: str, dims: Dims, life: Life = "scratch", *, within: Dims = ()) -> Access:
        """What there is of each chunk, over `dims`; those of the spec end, a chunk's rows are all there."""
        array = Array(name, ("counted_chunk", "head"), dims, life)
        ends = tuple(dim for dim in dims if dim in self.plan.spec.dims)
        return Access(array, tuple(map(Index, array.spaces)), self.sorted(within or ends))

    # -------------------------------------------------------------------------------------------------------- operands

    def operands(self, *roles: str) -> Iterator[Statement]:
        """Operands that are no plain inputs, evaluated in float32 and rounded to the dtype of the products."""
        done = set()
        for role in roles:
            tile, axis = self.plan.vector(role), self.axis_of(role)
            if tile is not None and not is_input(tile) and tile not in done:
                done.add(tile)
                value = self.tile(tile, axis)
                yield Let(self.operand(role).name, Rounded(value, value.dims))
                for side, called in self._sides(role):
                    if not is_input(bare(side)) and bare(side) not in done:
                        done.add(bare(side))
                        value = self.tile(bare(side), axis)
                        yield Let(called.name, Rounded(value, value.dims))

    def operand(self, role: str) -> Value:
        """The vectors of `role`; the same vectors have one name."""
        tile, axis = self.plan.vector(role), self.axis_of(role)
        assert tile is not None
        if is_input(tile):
            return local(self.name(tile.name, axis), tile.dims)
        first = next(other for other in ROLES if self.plan.vector(other) == tile)
        return local(f"{first}_row", tile.dims)

    def _sides(self, role: str) -> list[tuple[Tile, Value]]:
        """Both sides of rows over pairs, each with what it is called as an operand, whatever its dim is called."""
        tile, axis = self.plan.vector(role), self.axis_of(role)
        if not isinstance(tile, Paired):
            return []
        found = []
        for place, side in enumerate((tile.left, tile.right)):
            own = bare(side)
            if is_input(own):
                called = self.name(own.name, axis)
            else:
                called = f"{role}_{('first', 'second')[place] if own != bare(tile.left) else 'first'}"
            found.append((side, local(called, own.dims)))
        return found

    def products(self, name: str, reader: str, writer: str) -> Iterator[Statement]:
        """The product of each row of `reader` with each of `writer`, by a name. Of rows over pairs it is that of both
        sides' products."""
        columns = (self.axis_of(reader), WRITTEN)
        sides = list(zip(self._sides(reader), self._sides(writer), strict=False))
        if not sides:
            yield Let(name, self.dot(self.operand(reader), self.written(self.operand(writer)), self.plan.key))
            return
        dots = [
            self.dot(read, self.written(Along(written, (*written.dims[:-1], read.dims[-1]))), read.dims[-1])
            for (_, read), (_, written) in sides
        ]
        yield Let(name, dots[0])
        yield Let(name, times(local(name, columns), local(name, columns) if dots[1] == dots[0] else dots[1]))

    def axis_of(self, role: str) -> str:
        return TOKEN if role == "q" else self.row

    def scale(self, role: str) -> Tile | None:
        """What multiplies a whole row of `role`, one for each row; None where nothing does."""
        tile = self.plan.scale(role)
        return None if tile is None else self.tile(tile, self.axis_of(role))

    # ----------------------------------------------------------------------------------------------------- expressions

    def written(self, tile: Tile) -> Tile:
        """`tile`, whose rows are read as columns of scores."""
        return Along(tile, tuple(WRITTEN if dim == self.row else dim for dim in tile.dims))

    def dot(self, left: Tile, right: Tile, dim: str, onto: Tile | None = None) -> Tile:
        """The product of two operands, summed over `dim`."""
        (row,), (column,) = ([d for d in tile.dims if d != dim] for tile in (left, right))
        return Dot(left, right, dim, onto, (row, column))

    def lane(self, axis: str) -> Tile:
        return Lane(axis, (axis,))

    def compared(self, left: Tile, op: Comparison, right: Tile) -> Tile:
        return Compare(op, left, right, self.sorted((*left.dims, *right.dims)))


def call(function: str, *args: Tile, dims: Dims) -> Tile:
    """A function of `shared/device`."""
    return Call(function, args, dims)


PRECISION, CHUNK, DTYPE = Size("PRECISION"), Size("CHUNK"), Size("dtype")
ZERO = Constant(0.0)


def rounded(tile: Tile) -> Tile:
    """`tile` as an operand."""
    return Rounded(tile, tile.dims)


def whole(number: int) -> Tile:
    return Whole(number)
