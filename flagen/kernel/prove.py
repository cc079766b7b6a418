"""Kernels against the recurrence, in exact arithmetic: every program of a launch, at sizes of a few elements."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING

from gmpy2 import mpq

from flagen.algebra.exact import Dual, Tensor
from flagen.diagnostics import InternalError
from flagen.kernel.call import At, Call, Results
from flagen.kernel.elementary import Elementary
from flagen.kernel.elements import Element, Poison, add
from flagen.kernel.evaluate import Launch, Memory
from flagen.kernel.ir import Array, Program, Space
from flagen.kernel.precise import Precise, precision
from flagen.kernel.registers import Data, Illegal
from flagen.kernel.settings import CHUNKS, SETTINGS, Setting
from flagen.spec.model import Spec

if TYPE_CHECKING:
    from flagen.kernel import Programs

_ATTEMPTS = 5


def prove(spec: Spec, programs: Programs, *, seed: int = 0) -> tuple[str, ...]:
    """Prove that kernels give what the recurrence does, and its exact derivatives; a line for each.

    Raises:
        InternalError: they do not, with the setting and the array that differs.
    """
    lines: list[str] = []
    if programs.fused_recurrent is not None and programs.fused_recurrent_backward is not None:
        lines += _prove_fused_recurrent(spec, programs.fused_recurrent, programs.fused_recurrent_backward, seed)
    for each in (programs, *programs.stages):
        if each.chunk is not None and each.chunk_backward is not None:
            prove_chunk(each.spec, each.chunk, each.chunk_backward, seed=seed)
            lines += _lines_of_chunk(each.chunk, each.chunk_backward)
    return tuple(lines)


def _prove_fused_recurrent(spec: Spec, forward: Program, backward: Program, seed: int) -> Iterator[str]:
    prove_program(spec, forward, seed=seed)
    prove_program(spec, backward, seed=seed)
    launches = _launches(SETTINGS)
    names = ", ".join(kernel.name for kernel in backward.kernels)
    yield f"kernel of fused_recurrent = recurrence: {launches}"
    yield f"kernels of its backward ({names}) = exact derivatives of the recurrence: the same launches"


def _lines_of_chunk(forward: Program, backward: Program) -> Iterator[str]:
    yield f"kernel of {forward.name} = recurrence: {_launches(CHUNKS)}"
    yield f"kernel of {backward.name} = exact derivatives of the recurrence: the same launches"


def _launches(settings: Sequence[Setting]) -> str:
    return f"every program of {len(settings)} launches: {', '.join(setting.title for setting in settings)}"


def prove_program(spec: Spec, program: Program, *, seed: int = 0) -> None:
    """Prove the kernels of one operator: results, or gradients.

    Raises:
        InternalError: they are not the recurrence's.
    """
    results = any(array.life == "result" for kernel in program.kernels for array in kernel.arrays)
    for setting in SETTINGS:
        _at_a_point(spec, program, setting, seed, _prove_results if results else _prove_gradients)


def prove_chunk(spec: Spec, forward: Program, backward: Program, *, seed: int = 0) -> None:
    """Prove the kernels of an operator that goes chunk by chunk: results and gradients.

    Raises:
        InternalError: they are not the recurrence's.
    """
    for setting in CHUNKS:
        _at_a_point(spec, forward, setting, seed, partial(_prove_both, backward=backward))


def _prove_both(call: Call, forward: Program, backward: Program) -> None:
    """The backward gets what the forward leaves for it, which a call without gradients does not ask for."""
    results = call.results(differentiate=True)
    if not call.setting.everything:
        _prove_results(call, forward, results)
    memory = _prove_results(call, forward, results, keeps=True)
    left = (array for kernel in forward.kernels for array in kernel.arrays if array.life == "residual")
    _prove_gradients(call, backward, results, {array.of: memory.arrays[array.name] for array in left})


class _Differs(Exception):
    """A kernel does not give what the recurrence gives."""


Place = tuple[tuple[Space, int], ...]
"""Where a row stands."""
_Comparison = Callable[[Call, Program], object]


def _at_a_point(spec: Spec, program: Program, setting: Setting, seed: int, compare: _Comparison) -> None:
    """Compare at a random point where nothing is divided by zero, if there is one: exactly; and where that differs,
    with the true functions of the language in place of those of which nothing but the slopes is known."""
    block_of = program.kernels[0].block_of
    for attempt in range(_ATTEMPTS):
        point = f"{spec.name} {setting} {seed + attempt}"

        def call(functions: type[Elementary], point: str = point) -> Call:
            return Call(spec, setting, setting.sizes(spec, block_of), random.Random(point), functions)

        try:
            try:
                compare(call(Elementary), program)
            except _Differs:
                with precision():
                    compare(call(Precise), program)
        except ZeroDivisionError:
            continue
        except (_Differs, Illegal) as difference:
            where = f"{setting}, seed {seed + attempt}"
            raise InternalError(f"{program.name}: {difference} ({where}); nothing was written") from None
        return
    # The spec divides by zero whatever its inputs are: by a read of a zero state, say.
    if setting.initial:
        raise InternalError(f"{spec.name}: no random point without a zero denominator found ({setting})")


# ------------------------------------------------------------------------------------------------------------- forward


def _prove_results(call: Call, program: Program, results: Results | None = None, *, keeps: bool = False) -> Memory:
    """Run a forward, which `keeps` what a backward takes, or does not; `results`: those of the recurrence."""
    expected = results or call.results(differentiate=False)
    (kernel,) = program.kernels
    memory = _memory(call, program, keeps=keeps)
    _run(program, memory)
    for array in kernel.arrays:
        if array.life != "result" or array.name not in memory.arrays:
            continue
        for at, row in _totals(call, array, memory.arrays[array.name], kernel.block_of).items():
            wanted = _result(expected, array, dict(at))
            for index, x in row.items():
                if isinstance(x, Poison):
                    raise _Differs(f"{array.name} is not all written, or no number")
                if not call.functions.same(x, wanted.at(array.dims, index).value):
                    raise _Differs(f"{array.name} is not the recurrence's")
    return memory


def _totals(
    call: Call, array: Array, data: Data, block_of: str | None
) -> Mapping[Place, dict[tuple[int, ...], Element]]:
    """The rows of a result; shares of blocks added up."""
    found: dict[Place, dict[tuple[int, ...], Element]] = {}
    for place, at in enumerate(call.rows(array, block_of)):
        key: Place = tuple((space, coordinate) for space, coordinate in at.items() if space != "block")
        row = call.row_of(array, data, place)
        if key not in found:
            found[key] = row
            continue
        for index, x in row.items():
            found[key][index] = add(found[key][index], x)
    return found


def _result(results: Results, array: Array, at: At) -> Tensor:
    if "token" in at:
        return results.named[at["token"], at["head"]][array.of]
    return results.finals[array.of, at["sequence"], at["head"]]


# ------------------------------------------------------------------------------------------------------------ backward


def _prove_gradients(
    call: Call, program: Program, results: Results | None = None, residuals: Mapping[str, Data] | None = None
) -> None:
    """Along a random direction of each argument, the derivative of <cotangents, results>; `residuals`: what the forward
    has left, by what it is of."""
    memory = _memory(call, program, residuals)
    _run(program, memory)
    expected = _derivatives(call, program, memory, results or call.results(differentiate=True))
    gradients = {array.of: array for kernel in program.kernels for array in kernel.arrays if array.life == "gradient"}
    for name, array in gradients.items():
        if array.name not in memory.arrays:
            continue
        found = call.along(array, memory.arrays[array.name], program.kernels[-1].block_of)
        if isinstance(found, Poison):
            raise _Differs(f"the gradient of {name} is not all written, or no number")
        if not call.functions.same(found, expected[call.directions.index(name)]):
            raise _Differs(f"the gradient of {name} is not the recurrence's derivative")


def _derivatives(call: Call, program: Program, memory: Memory, results: Results) -> list[mpq]:
    """The derivatives of the results along the direction of each argument, times their cotangents."""
    total = Dual(mpq(0))
    cotangents = {array for kernel in program.kernels for array in kernel.arrays if array.life == "cotangent"}
    for array in sorted(cotangents, key=lambda array: array.name):
        if array.name not in memory.arrays:
            continue
        for place, at in enumerate(call.rows(array, None)):
            result = _result(results, array, at)
            for index, weight in call.row_of(array, memory.arrays[array.name], place).items():
                total = total + Dual(weight) * result.at(array.dims, index)
    return list(total.tangents) or [mpq(0)] * len(call.directions)


# -------------------------------------------------------------------------------------------------------------- memory


def _run(program: Program, memory: Memory) -> None:
    for kernel in program.kernels:
        try:
            Launch(kernel, memory).run()
        except Illegal as wrong:
            raise Illegal(f"{kernel.name or 'the kernel'}: {wrong}") from None


def _memory(
    call: Call, program: Program, residuals: Mapping[str, Data] | None = None, *, keeps: bool = False
) -> Memory:
    """Arguments, cotangents and residuals, and room for what kernels write; some of what a call may leave out is not
    there, but for what a forward `keeps` for a backward."""
    setting = call.setting
    memory = Memory(call.sizes, {}, call.numbers, call.functions)
    arrays = {array.name: (array, kernel.block_of) for kernel in program.kernels for array in kernel.arrays}
    asked = set(call.directions if setting.everything else call.directions[setting.asked_from :: 2])
    for array, block_of in arrays.values():
        of_state = call.of_state(array)
        match array.life:
            case "begin":
                if array.spaces == ("border",) and setting.packed:
                    memory.arrays[array.name] = []
            case "argument":
                if not of_state or setting.initial:
                    memory.arrays[array.name] = call.argument(array)
            case "cotangent":
                if not of_state or setting.final:
                    room = memory.allocate(array, block_of)
                    room[:] = [call.functions.rational() for _ in room]
            case "gradient":
                if setting.initial if of_state else array.of in asked:
                    memory.allocate(array, block_of)
            case "result":
                if not of_state or setting.final:
                    memory.allocate(array, block_of)
            case "scratch":
                memory.allocate(array, block_of)
            case "residual":
                if residuals is not None:
                    memory.arrays[array.name] = residuals[array.of]
                elif keeps:
                    memory.allocate(array, block_of)
    return memory
