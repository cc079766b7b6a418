"""What the kernels over the rows of a chunk have in common: their loads, their expressions, their operands."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Mapping
from typing import Generic, TypeGuard, TypeVar

from flagen.backends.printed import Printed, product
from flagen.backends.text import tuple_of
from flagen.backends.triton_.axes import Axes
from flagen.backends.triton_.kernel import tensor_names
from flagen.backends.triton_.printer import Printer
from flagen.plan.chunk_kernel import ChunkKernelPlan
from flagen.plan.free_names import free_name
from flagen.plan.kernel_names import kernel_name
from flagen.plan.key_kernel import KeyKernelPlan
from flagen.plan.row_planner import Part, RowLoad, RowSet
from flagen.plan.rows import ROW, TOKEN
from flagen.plan.schedule import Load, declared_names
from flagen.plan.tiles import Tile, Value
from flagen.spec.model import Derived, Dims, Input, Param

DOT = "input_precision=PRECISION"
ROLES = ("q", "w", "y", "k", "v")

RowPlan = ChunkKernelPlan | KeyKernelPlan
P = TypeVar("P", bound=RowPlan)


def steps_symbol(plan: RowPlan) -> str | None:
    """The name of the step count inside the kernels, where a token has several rows."""
    return plan.spec.steps.symbol if plan.row_axis == ROW and plan.spec.steps else None


def is_input(tile: Tile | None) -> TypeGuard[Value]:
    """Whether a tile is an input as it is: loaded in its own dtype, and so a matrix product's operand. What a spec
    derives has a name, too, but is evaluated in float32."""
    return isinstance(tile, Value) and tile.kind == "input"


def pointers(plan: RowPlan, *parts: Part) -> tuple[str, ...]:
    """The inputs and tensor params that a kernel loads, by their names there, in the order of the signature."""
    read = {
        action.source.name
        for part in parts
        for action in (*part.once, *part.rows)
        if isinstance(action, Load | RowLoad)
    }
    return tuple(kernel_name(name) for name in tensor_names(plan.spec) if name in read)


def scalars(plan: RowPlan, *parts: Part) -> tuple[str, ...]:
    """The numbers among the params that a kernel's expressions name."""
    named = {name for part in parts for name in part.numbers}
    return tuple(kernel_name(p.name) for p in plan.spec.params if not p.is_tensor and p.name in named)


def key_heads(*parts: Part) -> bool:
    """Whether a kernel loads something that value heads share."""
    loads = [action for part in parts for action in part.rows if isinstance(action, RowLoad)]
    return any(load.source.heads == "H" for load in loads)


def heads(*parts: Part) -> tuple[str, ...]:
    """The numbers of heads that a kernel needs to know."""
    return ("H", "HV") if key_heads(*parts) or any("H" in part.sizes for part in parts) else ("HV",)


def other_sizes(known: Collection[str], *parts: Part) -> list[str]:
    """The sizes that a kernel's expressions name beside those that it knows anyway."""
    return sorted({size for part in parts for size in part.sizes} - {*known, "H", "HV"})


class RowPrinter(Printer):
    """Prints tiles over rows; `names` are what their values are called there."""

    def __init__(self, axes: Axes, names: Mapping[str, str]) -> None:
        super().__init__(axes)
        self.names = names

    def _print(self, tile: Tile) -> Printed:
        if isinstance(tile, Value):
            return Printed(self.names.get(tile.name, tile.name))
        return super()._print(tile)


class RowWriter(Generic[P]):
    """Writes what the kernels of a plan have in common: their loads, their expressions, their decays."""

    def __init__(self, plan: P, *parts: Part) -> None:
        self.plan: P = plan
        self.parts = parts
        self.names = frozenset(map(kernel_name, declared_names(plan.spec)))
        self.axes = Axes(plan.order, self.names)
        self.row = plan.row_axis
        self.grouped = self.row == ROW
        self.printers = {axis: RowPrinter(self.axes, self._names(axis)) for axis in ("", TOKEN, ROW)}

    def indices(self) -> list[str]:
        """The numbers of a chunk's tokens and rows within it."""
        if not self.grouped:
            return ["token_index = tl.arange(0, CHUNK)"]
        return ["token_index = tl.arange(0, BLOCK_TOKENS)", "row_index = tl.arange(0, CHUNK)"]

    def places(self) -> list[str]:
        """Their numbers in the batch, and which of them the sequence has."""
        if not self.grouped:
            return ["token = start + token_index", "token_mask = token < end_token"]
        symbol = steps_symbol(self.plan)
        return [
            "end = tl.minimum(end_token, start + TOKENS)",
            "token = start + token_index",
            "token_mask = token < end",
            f"row = start * {symbol} + row_index",
            f"row_mask = row < end * {symbol}",
        ]

    def name(self, name: str, axis: str = "") -> str:
        """What a name of the spec is called in the kernel; a token's value has one name for tokens, one for rows."""
        called = kernel_name(name)
        plan: RowPlan = self.plan
        declared: tuple[Input | Derived, ...] = (*plan.spec.inputs, *plan.spec.derived)
        per_step = {decl.name for decl in declared if decl.per == "step"}
        if axis != ROW or not self.grouped or name in per_step:
            return called
        return free_name(kernel_name(f"{called}_row"), self.names)

    def _names(self, axis: str) -> dict[str, str]:
        """What expressions call the values of a kernel: float32, whatever the dtype they were loaded in."""
        names = {self.plan.read: "read", "log_decay": "log_decay"}
        if isinstance(self.plan, ChunkKernelPlan) and self.plan.rider is not None:
            names[self.plan.rider.read] = "column"
        names |= {param.name: kernel_name(param.name) for param in self.plan.spec.params if not param.is_tensor}
        for action in (action for part in self.parts for action in part.once):
            if isinstance(action, Load):
                names[action.source.name] = self.name(action.source.name)
            elif action.target != "log_decay":
                names[action.target] = self.name(action.target)
        for row in (row for part in self.parts for row in part.rows):
            if row.axis != axis:
                continue
            if isinstance(row, RowSet):
                names[row.target] = self.name(row.target, axis)
            else:
                called = self.name(row.source.name, axis)
                names[row.source.name] = f"{called}.to(tl.float32)" if self._raw(row) else called
        return names

    def _raw(self, load: RowLoad) -> bool:
        """Whether an input is loaded as it is: for the matrix products."""
        vectors = [tile for tile in self.plan.vectors if is_input(tile)]
        return any(tile.name == load.source.name and load.axis in tile.dims for tile in vectors)

    # ----------------------------------------------------------------------------------------------------------- loads

    def once(self) -> list[str]:
        """What is the same for every chunk."""
        return self.once_of(*self.parts)

    def once_of(self, *parts: Part) -> list[str]:
        """What of `parts` is the same for every chunk."""
        lines = ["head = value_head.to(tl.float32)"] if any(part.reads_head for part in parts) else []
        for action in (action for part in parts for action in part.once):
            if isinstance(action, Load):
                lines.append(f"{self.name(action.source.name)} = {self._param(action.source)}")
            else:
                name = action.target if action.target == "log_decay" else self.name(action.target)
                lines.append(f"{name} = {self.printers[''].assigned(action.value)}")
        return lines

    def _param(self, source: Input | Param) -> str:
        assert isinstance(source, Param)
        address = self.axes.address(self._head_of(source) if source.per_head else "", source.dims)
        mask = f", mask={self.axes.within(source.dims)}, other=0.0" if source.dims else ""
        return f"tl.load({self.name(source.name)}_ptr + {address}{mask}).to(tl.float32)"

    def _head_of(self, param: Param) -> str:
        """The head that `param`, which has a value for each, is read for."""
        return "value_head"

    def loads(self, part: Part) -> list[str]:
        """The inputs of a chunk's rows, then what is evaluated from them for each."""
        lines = []
        for action in part.rows:
            if isinstance(action, RowLoad):
                lines.append(f"{self.name(action.source.name, action.axis)} = {self._load(action)}")
            else:
                value = self.printers[action.axis].assigned(action.value)
                lines.append(f"{self.name(action.target, action.axis)} = {value}")
        return lines

    def _load(self, load: RowLoad) -> str:
        decl, axis = load.source, load.axis
        heads, head = ("HV", "value_head") if decl.heads == "HV" else ("H", "key_head")
        place = "row // " + (steps_symbol(self.plan) or "") if axis == ROW and decl.per == "token" else axis
        offset, mask = self.tile(f"{place} * {heads} + {head}", axis, decl.dims)
        cast = "" if self._raw(load) else ".to(tl.float32)"
        return f"tl.load({self.name(decl.name)}_ptr + {offset}, mask={mask}, other=0.0){cast}"

    def tile(self, row: str, axis: str, dims: Dims) -> tuple[str, str]:
        """Offsets and mask of rows along `axis` whose elements are contiguous over `dims`; `row` numbers them."""
        if not dims:
            return row, self.axes.mask(axis)
        (dim,) = dims
        over = self.axes.sorted((axis, dim))
        rows = self.axes.spread(f"({row})", (axis,), over)
        columns = self.axes.spread(self.axes.index(dim), (dim,), over)
        return f"{rows} * {dim} + {columns}", self.axes.within((axis, dim))

    # ------------------------------------------------------------------------------------------------------ expressions

    def print(self, tile: Tile, axis: str) -> str:
        """`tile` where it stands alone."""
        return self.printers[axis](tile)

    def added(self, value: Tile, axis: str, dims: Dims, shape: Iterable[str] = ()) -> str:
        """`value`, evaluated along `axis`, as it is added to a tile over `dims`; with the `shape` of that, the whole of
        it."""
        over = self.axes.sorted(dims)
        text = self.printers[axis].over(value, over)
        sizes = tuple_of(shape) if value.dims != over else "()"
        return text if sizes == "()" else f"tl.broadcast_to({text}, {sizes})"

    def sum_term(self, tile: Tile) -> Printed:
        """`tile` as a term of a tile over values and rows."""
        printed, over = self.printers[self.row].printed(tile), (self.plan.value, self.row)
        if tile.dims in ((), over):
            return printed
        return Printed(self.axes.spread(printed.atom, tile.dims, over))

    def rows_by(self, text: str, factor: Printed | None, axis: str, over: Dims) -> Printed:
        """`text`, a name or a call that is a tile over `over`, times `factor`, numbers of rows along `axis`."""
        if factor is None:
            return Printed(text)
        return product(Printed(text), Printed(self.axes.spread(factor.atom, (axis,), over)))

    def operands(self, *roles: str) -> list[str]:
        """Operands that are no plain inputs, evaluated in float32 and rounded to the dtype of the products."""
        lines, done = [], set()
        for role in roles:
            tile, axis = self.plan.vector(role), self.axis_of(role)
            if tile is not None and not is_input(tile) and tile not in done:
                done.add(tile)
                lines.append(f"{self.operand(role)} = ({self.print(tile, axis)}).to(dtype)")
        return lines

    def operand(self, role: str) -> str:
        """What the vectors of `role` are called; the same vectors have one name."""
        tile, axis = self.plan.vector(role), self.axis_of(role)
        if is_input(tile):
            return self.name(tile.name, axis)
        first = next(other for other in ROLES if self.plan.vector(other) == tile)
        return f"{first}_row"

    def axis_of(self, role: str) -> str:
        return TOKEN if role == "q" else self.row

    def scale(self, role: str) -> Printed | None:
        """What multiplies a whole row of `role`, one for each row; None where nothing does."""
        tile = self.plan.scale(role)
        if tile is None:
            return None
        printed = self.printers[self.axis_of(role)].printed(tile)
        return printed if tile.dims else Printed(f"tl.full((1,), {printed.text}, tl.float32)")

    def factor(self, role: str, *, columns: bool = False) -> Printed | None:
        """What multiplies a whole row of `role`, spread over a tile whose rows, or `columns`, these are; None where
        nothing does."""
        tile = self.plan.scale(role)
        if tile is None:
            return None
        printed = self.printers[self.axis_of(role)].printed(tile)
        if not tile.dims:
            return printed
        return printed.of_columns() if columns else printed.of_rows()


class RowKernel(RowWriter[P], ABC):
    """A kernel over the rows of chunks, as launches know it."""

    @property
    @abstractmethod
    def kernel(self) -> str:
        """What the kernel is called."""

    @abstractmethod
    def parameters(self) -> list[str]:
        """The parameters of the kernel: pointers, numbers, what it is compiled for."""


class PrintedKernel(RowKernel[P]):
    """One that is all lines, with what a template needs around them."""

    @abstractmethod
    def context(self) -> Mapping[str, object]:
        """What a template needs to know of the kernel."""

    @abstractmethod
    def lines(self) -> list[str]:
        """What the kernel does, a statement a line."""
