"""A call of an operator on random rational numbers, and what the recurrence makes of them, derivatives included."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from gmpy2 import mpq

from flagen.algebra.exact import ZERO, Dual, Scope, Tensor, evaluate, is_constant, scalar
from flagen.algebra.logarithm import log_of
from flagen.algebra.recurrence import Setting as Recurrence
from flagen.algebra.recurrence import Token
from flagen.kernel.elementary import Elementary, number
from flagen.kernel.elements import Element, add, multiply
from flagen.kernel.ir import Array, Space
from flagen.kernel.machine import Machine
from flagen.kernel.recurrent import array_of
from flagen.kernel.registers import Data
from flagen.kernel.settings import Setting
from flagen.kernel.sizes import Sizes
from flagen.spec.model import (
    Binary,
    Dims,
    Expr,
    Input,
    Interval,
    Name,
    Number,
    Param,
    Repeat,
    Solution,
    Spec,
    State,
    StateRead,
    walk,
)
from flagen.spec.ranges import interval_of

At = Mapping[Space, int]


@dataclass(frozen=True)
class Results:
    """What the recurrence makes of a call: all that the spec names, for each token and head, and each state after each
    sequence and head."""

    named: Mapping[tuple[int, int], Mapping[str, Tensor]]
    finals: Mapping[tuple[str, int, int], Tensor]


class Call:
    """The arguments of a call, and the direction along which each of them is differentiated.

    Elements go by what they belong to and where they stand, whatever array a kernel takes them from.
    """

    def __init__(
        self,
        spec: Spec,
        setting: Setting,
        sizes: Sizes,
        random_numbers: random.Random,
        functions: type[Elementary] = Elementary,
    ) -> None:
        self.spec, self.setting, self.sizes = spec, setting, sizes
        self.functions = functions(random_numbers, bases=_bases(spec))
        self.functions.constants = _constants(spec, self.functions)
        params = [param for param in spec.params if not param.is_tensor]
        self.numbers = {param.name: self._number(param.range) for param in params}
        self._mini_batches()
        self.declared: dict[str, Input | Param | State] = {decl.name: decl for decl in spec.inputs}
        self.declared |= {param.name: param for param in spec.params if param.is_tensor}
        self.declared |= {state.name: state for state in spec.states}
        self.directions = tuple(self.declared)
        self._rows = {name: rows_of(decl) for name, decl in self.declared.items()}
        self._values: dict[tuple[object, ...], tuple[mpq, mpq]] = {}
        self._weights: dict[tuple[object, ...], mpq] = {}
        self._vectors: dict[tuple[str, int, int], dict[tuple[int, ...], mpq]] = {}
        matrices = (node.matrix for node in expressions(spec) if isinstance(node, Solution))
        self.solved = {matrix.name for matrix in matrices if isinstance(matrix, StateRead)}
        self.machine = Machine(sizes, self.functions, self.numbers)
        self.nothing: Data = []
        self._arrays: dict[Array, Data] = {}

    def _mini_batches(self) -> None:
        """Where mini-batches matter, they have as many tokens as the setting says, and begin where it says."""
        self.left: dict[str, tuple[int, ...]] = {}
        for first in self.spec.firsts if self.setting.mini_batch else ():
            self.left[first.source] = self.setting.left
            if isinstance(first.every, Name):
                self.numbers[first.every.name] = mpq(self.setting.mini_batch)

    def element(self, name: str, at: At, index: tuple[int, ...]) -> tuple[mpq, mpq]:
        """An element of an argument, and that of its direction; `index` is over the dims of its declaration."""
        key = (name, *[at[space] for space in self._rows[name]], *index)
        if key not in self._values:
            self._values[key] = (self._value(name, at, index), self.functions.rational())
        return self._values[key]

    def _value(self, name: str, at: At, index: tuple[int, ...]) -> mpq:
        """An element of an argument, at random unless something is known of it."""
        if name in self.left:
            return self._counted(self.left[name], at["sequence"])
        return self._of_squares(name, at, index) if name in self.solved else self._random(self.declared[name])

    def _of_squares(self, name: str, at: At, index: tuple[int, ...]) -> mpq:
        """An element of a matrix that systems are solved with: it is a sum of squares of vectors."""
        rows, columns = index
        size = self.sizes.dims[self.declared[name].dims[0]]
        vectors = self._vectors.setdefault((name, at["sequence"], at["head"]), {})
        for place in itertools.product(range(size), repeat=2):
            if place not in vectors:
                vectors[place] = self.functions.rational()
        return sum((vectors[rows, square] * vectors[columns, square] for square in range(size)), mpq(0))

    def _counted(self, left: tuple[int, ...], sequence: int) -> mpq:
        """How many tokens there were before a sequence, all but so many of those of two mini-batches."""
        return mpq(2 * self.setting.mini_batch - left[sequence % len(left)])

    def weight(self, of: str, at: At, index: tuple[int, ...]) -> mpq:
        """An element of the gradient that comes in for a result: the output, or a state after its sequence."""
        key = ("gradient of", of, at["token"] if "token" in at else at["sequence"], at["head"], *index)
        if key not in self._weights:
            self._weights[key] = self.functions.rational()
        return self._weights[key]

    def _random(self, decl: Input | Param | State) -> mpq:
        if isinstance(decl, State):
            return self.functions.rational()
        return self.functions.rational(decl.range.low, decl.range.high)

    def _number(self, within: Interval) -> mpq:
        """A number that no element of a tensor is, nor any sum of a few: a clamp has two derivatives at its bounds."""
        part = mpq(self.functions.random.randint(1, 40), 41)
        low = number(within.low) if math.isfinite(within.low) else None
        high = number(within.high) if math.isfinite(within.high) else None
        if low is not None and high is not None:
            return low + (high - low) * part
        if low is not None or high is not None:
            return low + 3 * part if low is not None else high - 3 * part
        return 3 * part * self.functions.random.choice((-1, 1))

    def points(self, dims: Dims) -> Iterator[tuple[int, ...]]:
        return itertools.product(*(range(self.sizes.dims[dim]) for dim in dims))

    # ------------------------------------------------------------------------------------------------------ recurrence

    @cached_property
    def asked(self) -> frozenset[str]:
        """The arguments whose gradients are asked for: states only where they are given."""
        setting, states = self.setting, {state.name for state in self.spec.states}
        wanted = self.directions if setting.everything else self.directions[setting.asked_from :: 2]
        return frozenset(states if setting.initial else ()).union(wanted) - (frozenset() if setting.initial else states)

    @cached_property
    def results(self) -> Results:
        """What the recurrence makes of it, with one tangent: along the directions of all arguments whose gradients are
        asked for."""
        return self._results_along((self.asked,))

    @cached_property
    def results_of_each(self) -> Results:
        """The same with a tangent for each of these arguments, in the order of `directions`."""
        return self._results_along([{name} for name in self.directions if name in self.asked])

    def _results_along(self, along: Sequence[Collection[str]]) -> Results:
        """The same with a tangent for each group of arguments."""
        named: dict[tuple[int, int], Mapping[str, Tensor]] = {}
        finals: dict[tuple[str, int, int], Tensor] = {}
        for sequence, start in enumerate(self.sizes.borders[:-1]):
            for head in range(self.sizes.HV):
                at: dict[Space, int] = {"sequence": sequence, "head": head}
                at["key_head"] = head // (self.sizes.HV // self.sizes.H)
                setting = self._of_head(at, along)
                states = {state.name: self._before(state, at, along) for state in self.spec.states}
                for token in range(start, start + self.sizes.lengths[sequence]):
                    given = self._token(setting, {**at, "token": token}, along)
                    named[token, head], states = setting.run(given, states)
                for name, state in states.items():
                    finals[name, sequence, head] = state
        return Results(named, finals)

    def _of_head(self, at: At, along: Sequence[Collection[str]]) -> Recurrence:
        constants = {"H": self.sizes.H, "HV": self.sizes.HV, "head": at["head"], **self.sizes.steps}
        names = {name: scalar(Dual(mpq(value))) for name, value in constants.items()}
        names |= {name: scalar(Dual(value)) for name, value in self.numbers.items()}
        for param in self.spec.params:
            if param.is_tensor:
                names[param.name] = self._tensor(param, at, along)
        return Recurrence(self.spec, self.sizes.dims, names, self.functions)

    def _token(self, setting: Recurrence, at: At, along: Sequence[Collection[str]]) -> Token:
        whole = {i.name: self._tensor(i, at, along) for i in self.spec.inputs if i.per == "token"}
        steps = [
            {i.name: self._tensor(i, {**at, "micro_step": step}, along) for i in self.spec.inputs if i.per == "step"}
            for step in range(next(iter(self.sizes.steps.values()), 0))
        ]
        return setting.token(whole, steps)

    def _before(self, state: State, at: At, along: Sequence[Collection[str]]) -> Tensor:
        """A state before the first token."""
        if self.setting.initial:
            return self._tensor(state, at, along)
        start = Dual(number(state.init))
        return Tensor(state.dims, dict.fromkeys(self.points(state.dims), start))

    def _tensor(self, decl: Input | Param | State, at: At, along: Sequence[Collection[str]]) -> Tensor:
        moves = [decl.name in group for group in along]

        def element(index: tuple[int, ...]) -> Dual:
            value, direction = self.element(decl.name, at, index)
            return Dual(value, tuple([direction if one else ZERO.value for one in moves]) if any(moves) else ())

        return Tensor(decl.dims, {index: element(index) for index in self.points(decl.dims)})

    # ---------------------------------------------------------------------------------------------------------- arrays

    def rows(self, array: Array, block_of: str | None) -> Iterator[dict[Space, int]]:
        """Where each row of an array stands, as they lie in memory."""
        for point in itertools.product(*map(range, self.sizes.extents(array, block_of))):
            at = dict(zip(array.spaces, point, strict=True))
            if "row" in at:
                at["token"], at["micro_step"] = divmod(at["row"], next(iter(self.sizes.steps.values())))
            if "key_head" in at and self.sizes.H == self.sizes.HV:
                at.setdefault("head", at["key_head"])
            if "head" in at:
                at.setdefault("key_head", at["head"] // (self.sizes.HV // self.sizes.H))
            yield at

    def argument(self, array: Array) -> Data:
        """The elements of an array that a call is given."""
        if array not in self._arrays:
            rows = self.rows(array, None)
            self._arrays[array] = [self.element(array.of, at, i)[0] for at in rows for i in self.points(array.dims)]
        return self._arrays[array]

    def cotangent(self, array: Array, block_of: str | None) -> Data:
        """The elements of the gradient that comes in for a result."""
        if array not in self._arrays:
            rows = self.rows(array, block_of)
            self._arrays[array] = [self.weight(array.of, at, index) for at in rows for index in self.points(array.dims)]
        return self._arrays[array]

    def row_of(self, array: Array, data: Data, number: int) -> dict[tuple[int, ...], Element]:
        """The elements of a row."""
        size = math.prod(self.sizes.dims[dim] for dim in array.dims)
        return dict(zip(self.points(array.dims), data[number * size : (number + 1) * size], strict=True))

    def of_state(self, array: Array) -> bool:
        return any(state.name == array.of for state in self.spec.states)

    def along(self, array: Array, data: Data, block_of: str | None) -> Element:
        """The gradient of an argument, in shares, times the direction of that argument."""
        found: Element = mpq(0)
        for place, at in enumerate(self.rows(array, block_of)):
            for index, x in self.row_of(array, data, place).items():
                found = add(found, multiply(x, self.element(array.of, at, index)[1]))
        return found


def _bases(spec: Spec) -> tuple[mpq, ...]:
    """The positive constants of which a spec has powers, but for 2: exponentials of its logarithm are not taken."""
    powers = (expr.left for expr in expressions(spec) if isinstance(expr, Binary) and expr.op == "**")
    return _with_logarithms(powers)


def _constants(spec: Spec, functions: Elementary) -> Mapping[mpq, mpq]:
    """All of its positive constants, but for 1 and 2, with the logarithms that kernels have for them. A function of
    constants is one number, in a constant as in its logarithm."""
    found: dict[mpq, mpq] = {}
    nothing = Scope({}, {}, {}, functions)
    for expr in expressions(spec):
        if is_constant(expr) and interval_of(expr, {}).low > 0:
            value, log = (evaluate(part, nothing).data[()].value for part in (expr, log_of(expr, {}, {})))
            found.setdefault(value, log)
    return {value: log for value, log in found.items() if value not in (1, 2)}


def _with_logarithms(found: Iterable[Expr]) -> tuple[mpq, ...]:
    """Those that are constants whose logarithm is a number like any."""
    values = (expr.value for expr in found if isinstance(expr, Number))
    return tuple(dict.fromkeys(number(value) for value in values if value > 0 and value not in (1, 2)))


def expressions(spec: Spec) -> Iterator[Expr]:
    """Every expression of a spec, and every part of one."""
    bodies = [statement.body if isinstance(statement, Repeat) else (statement,) for statement in spec.update]
    assigns = [assign for body in bodies for assign in body]
    values = [*(derived.value for derived in spec.derived), *(a.value for a in (*assigns, *spec.output))]
    return itertools.chain.from_iterable(map(walk, values))


def rows_of(decl: Input | Param | State) -> tuple[Space, ...]:
    """The spaces of a declaration's rows."""
    return ("sequence", "head") if isinstance(decl, State) else array_of(decl).spaces
