"""A kernel as a Python function of the programs that take the same way through it, and its routines beside it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cache

import torch
from torch.nn import functional

from flagen.diagnostics import InternalError
from flagen.kernel.ir import (
    Access,
    Add,
    Alone,
    Apply,
    Barrier,
    Bind,
    Choose,
    Condition,
    Fill,
    FirstBlock,
    Given,
    HasEnd,
    HasStart,
    If,
    Kernel,
    LastToken,
    Let,
    Load,
    Loop,
    Note,
    Operands,
    Row,
    Scale,
    Statement,
    Store,
    routines_in,
)
from flagen.kernel.rows import ITERATIONS
from flagen.plan.tiles import Call, Tile
from flagen.spec.model import Dims
from tests.vectorized import device
from tests.vectorized.programs import Programs
from tests.vectorized.tiles import full, literal, over, printed, register, tensor

INDENT = "    "


@dataclass(frozen=True)
class Printed:
    """A kernel, its source, and the function that this is."""

    kernel: Kernel
    source: str
    run: Callable[[Programs], None]


@cache
def print_kernel(kernel: Kernel) -> Printed:
    """`kernel` as PyTorch.

    Raises:
        InternalError: a statement, a tile or a function that the printer does not know.
    """
    printer = _Printer(kernel)
    source = "\n".join(printer.lines()) + "\n"
    names: dict[str, object] = {"torch": torch, "functional": functional, "device": device, "at": printer.accesses}
    exec(compile(source, f"<{kernel.name or 'kernel'} in PyTorch>", "exec"), names)
    run = names["kernel"]
    assert callable(run)
    return Printed(kernel, source, run)


class _Printer:
    """Prints one kernel."""

    def __init__(self, kernel: Kernel) -> None:
        self.kernel = kernel
        self.accesses: list[Access] = []
        """What is loaded and stored, by its number."""

    def lines(self) -> Iterator[str]:
        numbers = [f"{register(name)} = here.number({name!r})" for name in self.kernel.numbers]
        for routine in routines_in(self.kernel.body):
            carried = ", ".join(map(register, routine.carried))
            yield f"def {routine.name}(here, {carried}):"
            yield from _inside(numbers)
            yield from _inside(self._body(routine.body))
            yield f"{INDENT}return {carried},"
            yield ""
        yield "def kernel(here):"
        yield from _inside(numbers)
        yield from _inside(self._body(self.kernel.body))

    def _body(self, body: Iterable[Statement]) -> Iterator[str]:
        lines = [line for statement in body for line in self._statement(statement)]
        yield from lines or ("pass",)

    def _statement(self, statement: Statement) -> Iterator[str]:
        match statement:
            case Load(target):
                yield f"{register(target)} = {self._loaded(statement)}"
            case Let(target, value):
                yield f"{register(target)} = {tensor(value, value.dims)}"
            case Bind(targets, values):
                yield f"{', '.join(map(register, targets))} = {_returned(values)}"
            case Add(target, value, dims, subtracts):
                yield self._changed(target, "-" if subtracts else "+", value, dims)
            case Scale(target, value, dims):
                yield self._changed(target, "*", value, dims)
            case Fill(target, dims, number, ends):
                yield f"{register(target)} = here.filled({self._sorted(dims)!r}, {literal(number or 0.0)}, ends={ends})"
            case Choose(condition, target, value):
                name = register(target)
                yield f"{name} = {name} if {_condition(condition)} else {printed(value)}"
            case Store(target, value):
                dims = self._sorted(target.dims)
                yield f"here.store({self._at(target)}, {tensor(value, dims)}{self._expressions(target)})"
            case Loop(_, body):
                yield f"for turn in {_turns(statement)}:"
                if statement.over in ("member", "level", "below"):
                    yield f"{INDENT}{register(statement.over)} = here.tensor(turn)"
                yield from _inside(self._body(body))
            case If(conditions, then, otherwise):
                yield f"if {' and '.join(map(_condition, conditions))}:"
                yield from _inside(self._body(then))
                if otherwise:
                    yield "else:"
                    yield from _inside(self._body(otherwise))
            case Apply(routine):
                carried = ", ".join(map(register, routine.carried))
                yield f"{carried}, = {routine.name}(here, {carried})"
            case Operands(array):
                yield f"here.round_to({array.name!r})"
            case Row() | Barrier() | Note():
                pass
            case _:
                raise InternalError(f"the PyTorch printer of kernels does not know {type(statement).__name__}")

    def _changed(self, target: str, op: str, value: Tile, dims: Dims) -> str:
        return f"{register(target)} = {register(target)} {op} {over(value, self._sorted(dims))}"

    def _loaded(self, load: Load) -> str:
        form = "load_shares" if load.shares else "load"
        source = load.source.of_first_share if load.shares else load.source
        loaded = f"here.{form}({self._at(source)}, {literal(load.fill)}{self._expressions(source)})"
        return f"here.once({loaded})" if load.once else loaded

    def _at(self, access: Access) -> str:
        """An access by its number, with the array's name to read."""
        self.accesses.append(access)
        return f"at[{len(self.accesses) - 1}], {access.array.name!r}"

    def _expressions(self, access: Access) -> str:
        """Those in an access, each over all of its tile's dims."""
        if not access.tiles:
            return ""
        dims = self._sorted(access.dims)
        places = ", ".join(f"{dim!r}: {tensor(tile, dims)}" for dim, tile in access.places)
        ends = ", ".join(f"{dim!r}: {tensor(tile, dims)}" for dim, tile in access.ends)
        where = "None" if access.where is None else full(access.where, dims)
        return f", ({{{places}}}, {{{ends}}}, {where})"

    def _sorted(self, dims: Dims) -> Dims:
        return tuple(dim for dim in self.kernel.order if dim in dims)


def _inside(lines: Iterable[str]) -> Iterator[str]:
    return (INDENT + line for line in lines)


def _returned(values: tuple[Tile, ...]) -> str:
    """What several names are given: all that a function returns, or a tile each."""
    match values:
        case (Call(),):
            return printed(values[0])
    return ", ".join(tensor(value, value.dims) for value in values)


def _turns(loop: Loop) -> str:
    asked = f"reverse={loop.reverse}"
    match loop.over:
        case "chunk" if loop.aligned:
            turns = f"here.aligned_chunks({asked})"
        case "segment" | "chunk" | "micro_step":
            turns = f"here.{loop.over}s({asked})"
        case "token":
            turns = f"here.tokens({asked}, but_last={loop.but_last})"
        case "earlier" | "later":
            turns = f"here.{loop.over}()"
        case "member":
            turns = "here.members()"
        case "block":
            turns = f"here.blocks({loop.dim!r})"
        case "level":
            turns = f"here.levels({loop.first!r}, {asked})"
        case "iteration":
            turns = f"range(int(here.number({ITERATIONS!r})))"
        case "below":
            turns = f"range(int({register('level')}))"
        case _:
            raise InternalError(f"the PyTorch printer of kernels does not know a loop over {loop.over}")
    return f"here.if_wanted({loop.wanted!r}, {turns})" if loop.wanted else turns


def _condition(condition: Condition) -> str:
    match condition:
        case Given(array, given):
            return f"{'' if given else 'not '}here.is_given({array.name!r})"
        case FirstBlock():
            return "here.is_first_block"
        case LastToken():
            return "here.is_last_token"
        case HasStart():
            return "here.way.start"
        case HasEnd():
            return "here.way.end"
        case Alone(dim):
            return f"here.is_alone({dim!r})"
    raise InternalError(f"the PyTorch printer of kernels does not know {type(condition).__name__}")
