"""Kernels against the recurrence, in exact arithmetic: every program of a launch, at sizes of a few elements.

The settings are small, and each is there for some things: sizes that all differ, blocks that pad and blocks that end
within a dim, packed sequences with an empty one and one that ends within a segment, value heads in groups, micro-steps,
with and without a state before and after.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from gmpy2 import mpq

from flagen.algebra.exact import Dual, Tensor, scalar
from flagen.algebra.recurrence import Setting as Recurrence
from flagen.algebra.recurrence import Token
from flagen.diagnostics import InternalError
from flagen.kernel.elementary import Elementary, number
from flagen.kernel.elements import Poison
from flagen.kernel.evaluate import Launch, Memory
from flagen.kernel.ir import Array, Kernel, Program
from flagen.kernel.recurrent import array_of
from flagen.kernel.registers import Data, Illegal, Sizes
from flagen.spec.model import Dims, Spec

_ATTEMPTS = 5


@dataclass(frozen=True)
class Setting:
    """What a launch is given: lengths of sequences, packed or as a batch, heads, how large dims are and what holds
    them, micro-steps, and whether there are states before the first token, and are wanted after the last."""

    lengths: tuple[int, ...]
    packed: bool
    H: int
    HV: int
    steps: int
    initial: bool
    final: bool
    whole: tuple[int, ...]
    """Sizes of the dims that a program has all of."""
    cut: tuple[int, int]
    """The size of the dim that blocks are cut from, and of a block."""
    segment: int = 2

    def sizes(self, spec: Spec, block_of: str | None) -> Sizes:
        dims, blocks = {}, {}
        for place, dim in enumerate(dim for dim in spec.dims if dim != block_of):
            dims[dim] = self.whole[place % len(self.whole)]
            blocks[dim] = 1 << (dims[dim] - 1).bit_length()
        if block_of is not None:
            dims[block_of], blocks[block_of] = self.cut
        steps = {} if spec.steps is None else {spec.steps.symbol: self.steps}
        H = self.HV if not spec.has_value_heads else self.H
        return Sizes(self.lengths, H, self.HV, dims, blocks, steps, self.segment)

    def __str__(self) -> str:
        kind = "packed" if self.packed else "batch"
        states = f"{'with' if self.initial else 'without'} initial state, {'with' if self.final else 'without'} final"
        return f"{kind} of lengths {', '.join(map(str, self.lengths))}, {self.H} and {self.HV} heads, {states}"


SETTINGS = (
    Setting((2, 0, 3), True, H=2, HV=4, steps=2, initial=True, final=True, whole=(3, 2), cut=(3, 2)),
    Setting((3, 3), False, H=1, HV=2, steps=3, initial=False, final=True, whole=(2, 3), cut=(1, 1)),
    Setting((5,), False, H=1, HV=1, steps=1, initial=True, final=False, whole=(2, 1), cut=(3, 4)),
)


def prove(spec: Spec, program: Program, *, seed: int = 0) -> str:
    """Prove that the kernels of `fused_recurrent_<name>` give what the recurrence does, and say so in a line.

    Raises:
        InternalError: they do not, with the setting and the array that differs.
    """
    for setting in SETTINGS:
        _prove_setting(spec, program, setting, seed)
    return f"{program.name}_kernel = recurrence: every program of {len(SETTINGS)} launches, in exact arithmetic"


class _Differs(Exception):
    """A kernel does not give what the recurrence gives."""


def _prove_setting(spec: Spec, program: Program, setting: Setting, seed: int) -> None:
    for attempt in range(_ATTEMPTS):
        numbers = random.Random(f"{spec.name} {setting} {seed + attempt}")
        try:
            _Comparison(spec, program.kernels[0], setting, numbers).run()
        except ZeroDivisionError:  # An unlucky point: something is divided by zero there.
            continue
        except (_Differs, Illegal) as difference:
            where = f"{setting}, seed {seed + attempt}"
            raise InternalError(f"{program.name}: {difference} ({where}); nothing was written") from None
        return
    # The spec divides by zero whatever its inputs are: by a read of a zero state, say.
    if setting.initial:
        raise InternalError(f"{spec.name}: no random point without a zero denominator found ({setting})")


class _Comparison:
    """One launch, and the recurrence on the same numbers."""

    def __init__(self, spec: Spec, kernel: Kernel, setting: Setting, numbers: random.Random) -> None:
        self.spec, self.kernel, self.setting = spec, kernel, setting
        self.sizes = setting.sizes(spec, kernel.block_of)
        self.functions = Elementary(numbers)
        self.memory = Memory(self.sizes, {}, self._numbers(), self.functions)
        self.initial = dict(zip((s.name for s in spec.states), self._of_states("initial"), strict=True))
        self.final = dict(zip((s.name for s in spec.states), self._of_states("final"), strict=True))

    def run(self) -> None:
        for array in self.kernel.arrays:
            self._provide(array)
        expected = self._recurrence()
        Launch(self.kernel, self.memory).run()
        for name, data in expected.items():
            found = self.memory.arrays[name]
            if name == "o":
                found = self._added_up(found, len(data))
            for x, y in zip(found, data, strict=True):
                if isinstance(x, Poison):
                    raise _Differs(f"not all of {name} is written, or it is no number")
                if x != y:
                    raise _Differs(f"{name} is not the recurrence's")

    # ------------------------------------------------------------------------------------------------------------ data

    def _numbers(self) -> Mapping[str, mpq]:
        params = (param for param in self.spec.params if not param.is_tensor)
        return {param.name: self.functions.rational(param.range.low, param.range.high) for param in params}

    def _of_states(self, which: str) -> Iterator[Array]:
        """The arrays of states before or after the sequences, in the order of the spec's states."""
        states = [array for array in self.kernel.arrays if array.spaces == ("sequence", "head")]
        count = len(self.spec.states)
        return iter(states[:count] if which == "initial" else states[count:])

    def _provide(self, array: Array) -> None:
        """Random numbers for what a launch is given, and room for what it writes."""
        if array.spaces == ("border",):
            if self.setting.packed:
                self.memory.arrays[array.name] = [mpq(border) for border in self.sizes.borders]
            return
        ranges = {decl.name: decl.range for decl in self.spec.inputs}
        ranges |= {param.name: param.range for param in self.spec.params}
        if array.name in ranges:
            within = ranges[array.name]
            room = self.memory.allocate(array, self.kernel.block_of)
            room[:] = [self.functions.rational(within.low, within.high) for _ in room]
        elif array in self.initial.values():
            if self.setting.initial:
                room = self.memory.allocate(array, self.kernel.block_of)
                room[:] = [self.functions.rational() for _ in room]
        elif array not in self.final.values() or self.setting.final:
            self.memory.allocate(array, self.kernel.block_of)

    def _added_up(self, found: Data, count: int) -> Data:
        """The output, from the shares of blocks if those are what there is."""
        blocks = len(found) // count
        if blocks < 2:
            return found
        inner = math.prod(self.sizes.dims[dim] for dim in self.spec.output_dims)
        rows = [found[at : at + inner] for at in range(0, len(found), inner)]
        sums: Data = []
        for at in range(0, len(rows), blocks):
            for lane in zip(*rows[at : at + blocks], strict=True):
                if any(isinstance(x, Poison) for x in lane):
                    raise _Differs("not all shares of o are written")
                sums.append(sum((x for x in lane if not isinstance(x, Poison)), mpq(0)))
        return sums

    # ------------------------------------------------------------------------------------------------------ recurrence

    def _recurrence(self) -> Mapping[str, Data]:
        outputs: dict[tuple[int, int], Tensor] = {}
        finals: dict[str, list[Tensor]] = {array.name: [] for array in self.final.values()}
        borders = self.sizes.borders
        for sequence in range(len(self.sizes.lengths)):
            for head in range(self.sizes.HV):
                setting = self._of_head(head)
                states = {state.name: self._before(state.name, sequence, head) for state in self.spec.states}
                for place in range(borders[sequence], borders[sequence + 1]):
                    output, states = setting.step(self._token(setting, place, head), states)
                    outputs[place, head] = output
                for state in self.spec.states:
                    finals[self.final[state.name].name].append(states[state.name])
        expected = {"o": _flat([outputs[key] for key in sorted(outputs)], self.spec.output_dims)}
        if self.setting.final:
            for state in self.spec.states:
                name = self.final[state.name].name
                expected[name] = _flat(finals[name], state.dims)
        return expected

    def _of_head(self, head: int) -> Recurrence:
        constants = {"H": self.sizes.H, "HV": self.sizes.HV, "head": head, **self.sizes.steps}
        names = {name: scalar(Dual(mpq(value))) for name, value in constants.items()}
        names |= {name: scalar(Dual(value)) for name, value in self.memory.numbers.items()}
        for param in self.spec.params:
            if param.is_tensor:
                names[param.name] = self._row(array_of(param), {"head": head})
        return Recurrence(self.spec, self.sizes.dims, names, self.functions)

    def _token(self, setting: Recurrence, token: int, head: int) -> Token:
        at = {"token": token, "head": head, "key_head": head // (self.sizes.HV // self.sizes.H)}
        whole = {i.name: self._row(array_of(i), at) for i in self.spec.inputs if i.per == "token"}
        steps = [
            {i.name: self._row(array_of(i), {**at, "micro_step": step}) for i in self.spec.inputs if i.per == "step"}
            for step in range(next(iter(self.sizes.steps.values()), 0))
        ]
        return setting.token(whole, steps)

    def _before(self, name: str, sequence: int, head: int) -> Tensor:
        """A state before the first token."""
        array = self.initial[name]
        if self.setting.initial:
            return self._row(array, {"sequence": sequence, "head": head})
        (state,) = (state for state in self.spec.states if state.name == name)
        start = Dual(number(state.init))
        return Tensor(state.dims, dict.fromkeys(_indices(state.dims, self.sizes.dims), start))

    def _row(self, array: Array, at: Mapping[str, int]) -> Tensor:
        """A row of an array that a launch is given."""
        row = 0
        for space, extent in zip(array.spaces, self.memory.extents(array, self.kernel.block_of), strict=True):
            row = row * extent + at[space]
        size = math.prod(self.sizes.dims[dim] for dim in array.dims)
        elements = self.memory.arrays[array.name][row * size : (row + 1) * size]
        indices = _indices(array.dims, self.sizes.dims)
        return Tensor(array.dims, {index: Dual(x) for index, x in zip(indices, elements, strict=True)})


def _indices(dims: Dims, sizes: Mapping[str, int]) -> list[tuple[int, ...]]:
    points: list[tuple[int, ...]] = [()]
    for dim in dims:
        points = [(*point, at) for point in points for at in range(sizes[dim])]
    return points


def _flat(rows: Sequence[Tensor], dims: Dims) -> Data:
    """Rows over `dims` as they lie in memory."""
    found: Data = []
    for row in rows:
        order = sorted(row.data) if row.dims == dims else None
        found += [row.data[index].value for index in order] if order is not None else _reordered(row, dims)
    return found


def _reordered(row: Tensor, dims: Dims) -> Data:
    swapped = sorted(row.data, key=lambda index: [index[row.dims.index(dim)] for dim in dims])
    return [row.data[index].value for index in swapped]
