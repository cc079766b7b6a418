"""Bytes and flops of a launch, by a walk through its kernel: all programs that take the same way at once."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

from flagen.counting.indices import COUNTED, Indices, names_of_indices
from flagen.counting.launches import count_before, launch_of, programs_of
from flagen.counting.launching import NotCountedError
from flagen.counting.located import Found, Located
from flagen.counting.products import flops_of
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
)
from flagen.kernel.rows import ITERATIONS
from flagen.plan.tiles import Tile
from flagen.triton_cpu.meter import Traffic
from flagen.triton_cpu.shapes import has_numbers


def traffic(kernel: Kernel, count: int, values: Mapping[str, Any]) -> Traffic:
    """What a launch of `count` programs of a kernel does, whose parameters have these `values`.

    Raises:
        NotCountedError: what it loads or stores hangs on numbers.
    """
    names = names_of_indices(kernel.body)
    tally = _Tally()
    with torch.no_grad(), _disable_current_modes():
        if count:
            launch = launch_of(kernel, count, values)
            before = count_before(launch)
            if before is not None and not has_numbers(before):
                raise NotCountedError("what was before so many sequences decides where their chunks begin")
            for programs in programs_of(launch, count, Located):
                walk = _Walk(programs, tally, names)
                walk.stand()
                walk.run(kernel.body)
        return Traffic(1, count, tally.distinct("read"), tally.distinct("written"), tally.requested, tally.flops)


@dataclass
class _Tally:
    """What a launch has done so far. Elements that were touched are marked, for each array and size of an element."""

    requested: int = 0
    flops: int = 0
    touched: dict[tuple[str, int, int], Tensor] = field(default_factory=dict)

    def touch(self, kind: str, array: Tensor, elements: Tensor, times: int) -> None:
        """Elements of an array, by their places in it, which so many programs ask for each."""
        size, storage = array.element_size(), array.untyped_storage()
        key = kind, size, storage.data_ptr()
        if key not in self.touched:
            self.touched[key] = torch.zeros(storage.nbytes() // size, dtype=torch.bool)
        self.touched[key][elements + array.storage_offset()] = True
        self.requested += elements.numel() * times * size

    def distinct(self, kind: str) -> int:
        """Bytes of them, each counted once."""
        marked = ((size, int(marks.sum())) for (each, size, _), marks in self.touched.items() if each == kind)
        return sum(size * count for size, count in marked)


class _Walk:
    """Takes the programs that go the same way through a kernel."""

    def __init__(self, programs: Located, tally: _Tally, names: frozenset[str]) -> None:
        self._programs, self._tally, self._names = programs, tally, names
        self._values: dict[str, Tensor] = {}
        self._indices = Indices(programs, self._values)
        self._elements: dict[int, tuple[Found, Tensor, int]] = {}
        self._flops: dict[int, int] = {}
        self._count = len(programs.block)

    def stand(self) -> None:
        """Load where sequences and what they are cut into begin."""
        programs, launch = self._programs, self._programs.launch
        sequence = programs.at["sequence"][0]
        for array in launch.kernel.arrays:
            given = launch.arrays.get(array.name)
            if array.life != "begin" or given is None:
                continue
            # A program finds its sequence by its own number, and where anything begins by its sequence's.
            (space,) = array.spaces
            number = sequence if space in ("border", "sequence") else programs.at[space][0]
            self._tally.touch("read", given, number, 1)
            if array.name == "cu_seqlens":
                self._tally.touch("read", given, number + 1, 1)

    def run(self, body: Iterable[Statement]) -> None:
        for statement in body:
            self._statement(statement)

    def _statement(self, statement: Statement) -> None:
        match statement:
            case Load():
                self._loaded(statement)
            case Let(target, value):
                if target in self._names:
                    self._values[target] = self._indices.evaluated(value)
                self._compute(statement, value)
            case Bind(_, values):
                self._compute(statement, *values)
            case Add(_, value) | Scale(_, value) | Choose(_, _, value):
                self._compute(statement, value)
            case Store(target, value):
                self._compute(statement, value)
                self._touch("written", target)
            case Loop(over, body):
                for turn in self._turns(statement):
                    if over in COUNTED:
                        self._values[over] = torch.tensor([turn])
                    self.run(body)
            case If(conditions, then, otherwise):
                self.run(then if all(map(self._holds, conditions)) else otherwise)
            case Apply(routine):
                self.run(routine.body)
            case Fill() | Row() | Operands() | Barrier() | Note():
                pass
            case _:
                raise NotCountedError(f"a statement {type(statement).__name__}")

    # --------------------------------------------------------------------------------------------------- where it goes

    def _turns(self, loop: Loop) -> Iterable[int]:
        programs, reverse = self._programs, loop.reverse
        turns: Mapping[str, Callable[[], Iterable[int]]] = {
            "segment": lambda: programs.segments(reverse=reverse),
            "chunk": lambda: (programs.aligned_chunks if loop.aligned else programs.chunks)(reverse=reverse),
            "token": lambda: programs.tokens(reverse=reverse, but_last=loop.but_last),
            "micro_step": lambda: programs.micro_steps(reverse=reverse),
            "earlier": programs.earlier,
            "later": programs.later,
            "member": programs.members,
            "block": lambda: programs.blocks(loop.dim),
            "level": lambda: programs.levels(loop.first, reverse=reverse),
            "below": lambda: range(int(self._values["level"])),
            "iteration": lambda: range(int(programs.launch.numbers[ITERATIONS])),
        }
        if loop.over not in turns:
            raise NotCountedError(f"a loop over {loop.over}")
        return programs.if_wanted(loop.wanted, turns[loop.over]()) if loop.wanted else turns[loop.over]()

    def _holds(self, condition: Condition) -> bool:
        programs = self._programs
        match condition:
            case Given(array, given):
                return programs.is_given(array.name) == given
            case FirstBlock():
                return programs.is_first_block
            case LastToken():
                return programs.is_last_token
            case HasStart():
                return programs.way.start
            case HasEnd():
                return programs.way.end
            case Alone(dim):
                return programs.is_alone(dim)

    # --------------------------------------------------------------------------------------------------- what it does

    def _compute(self, statement: Statement, *values: Tile) -> None:
        if id(statement) not in self._flops:
            self._flops[id(statement)] = sum(flops_of(value, self._programs) for value in values)
        self._tally.flops += self._flops[id(statement)] * self._count

    def _loaded(self, load: Load) -> None:
        if not load.shares:
            self._touch("read", load.source)
            return
        access = load.source.of_first_share
        size, shares = self._programs.layout(access).size, int(self._programs.launch.numbers["shares"])
        elements, offset, times = self._found(access)
        row, lane = (elements + offset) // size, (elements + offset) % size
        for share in range(shares):
            self._mark("read", access, (row * shares + share) * size + lane, times)

    def _touch(self, kind: str, access: Access) -> None:
        elements, offset, times = self._found(access)
        self._mark(kind, access, elements + offset, times)

    def _mark(self, kind: str, access: Access, elements: Tensor, times: int) -> None:
        name = access.array.name
        if not self._programs.is_given(name):
            raise NotCountedError(f"{name} is not given")
        self._tally.touch(kind, self._programs.launch.arrays[name], elements, times)

    def _found(self, access: Access) -> tuple[Tensor, int, int]:
        """The elements of an access, how far they are from where they were found, and of how many programs each is."""
        found, offset = self._programs.elements(access, self._indices.of(access))
        if id(found) in self._elements:
            return self._elements[id(found)][1], offset, self._elements[id(found)][2]
        index = found.index if found.hidden is None else found.index[~found.hidden]
        each = index.reshape(-1), self._count // len(found.index)
        if not access.tiles:
            self._elements[id(found)] = (found, *each)
        return each[0], offset, each[1]
