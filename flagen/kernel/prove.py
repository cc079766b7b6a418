"""Kernels against the recurrence, in exact arithmetic: every program of a launch, at sizes of a few elements."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from gmpy2 import mpq

from flagen.algebra.exact import Dual, Tensor
from flagen.diagnostics import InternalError
from flagen.kernel.call import At, Call, Results
from flagen.kernel.elementary import Elementary
from flagen.kernel.elements import Element, Infinity, Poison, add
from flagen.kernel.ir import Array, Kernel, Load, Program, Space, Store, statements_in
from flagen.kernel.memory import Memory
from flagen.kernel.passes import is_aligned
from flagen.kernel.precise import Precise, precision
from flagen.kernel.registers import Data
from flagen.kernel.settings import CHUNKS, MINI_BATCHES, ROWS, SETTINGS, Setting
from flagen.kernel.sizes import Illegal, Sizes
from flagen.plan.rows import ROW, TOKEN
from flagen.plan.schedule import OUTPUT
from flagen.spec.model import Name, Number, Spec, walk

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
        lines += _prove_fused_recurrent(
            spec if not programs.spec.pairs else programs.spec,
            programs.fused_recurrent,
            programs.fused_recurrent_backward,
            seed,
        )
    for each in programs.every:
        if each.chunk is None:
            continue
        prove_both = prove_rows if each.chunk.ways else prove_chunk
        compared = prove_both(each.rows or each.spec, each.chunk, each.chunk_backward, seed=seed)
        of_rows = "" if each.rows is None else " of its rows"
        lines.append(_told(f"{_kernels_of(each.chunk)} = recurrence{of_rows}", compared))
        if each.chunk_backward is not None:
            of_backward = f"{_kernels_of(each.chunk_backward)} = exact derivatives of the recurrence"
            lines.append(_told(of_backward, compared, compared))
    return tuple(lines)


def _kernels_of(program: Program) -> str:
    """What a program has, in words."""
    if len(program.kernels) == 1:
        return f"kernel of {program.name}"
    return f"kernels of {program.name} ({', '.join(kernel.name or 'walk' for kernel in program.kernels)})"


def _prove_fused_recurrent(spec: Spec, forward: Program, backward: Program, seed: int) -> Iterator[str]:
    names = ", ".join(kernel.name for kernel in backward.kernels)
    compared, with_gradients = _prove_recurrent(spec, forward, backward, seed)
    yield _told("kernel of fused_recurrent = recurrence", compared)
    of_backward = f"kernels of its backward ({names}) = exact derivatives of the recurrence"
    yield _told(of_backward, with_gradients, compared)


def _prove_recurrent(
    spec: Spec, forward: Program, backward: Program, seed: int
) -> tuple[tuple[Setting, ...], tuple[Setting, ...]]:
    """At which settings results and gradients were compared: in one call, if programs have blocks of the same dim."""
    if forward.kernels[0].block_of != backward.kernels[0].block_of:
        return prove_program(spec, forward, seed=seed), prove_program(spec, backward, seed=seed)

    def compare(call: Call, forward: Program) -> None:
        _prove_results(call, forward, (OUTPUT,))
        _prove_gradients(call, backward, (OUTPUT,))

    compared = tuple(setting for setting in SETTINGS if _at_a_point(spec, forward, setting, seed, compare))
    return compared, compared


def _told(what: str, compared: Sequence[Setting], before: Sequence[Setting] = ()) -> str:
    """What was compared, and at which settings, if these are not those of the line before."""
    if not compared:
        return f"not compared, for it divides by zero wherever it was tried: {what}"
    if compared == before:
        return f"{what}: the same launches"
    return f"{what}: every program of {len(compared)} launches: {', '.join(setting.title for setting in compared)}"


def prove_program(spec: Spec, program: Program, *, seed: int = 0) -> tuple[Setting, ...]:
    """Prove the kernels of one operator: results, or gradients. At which settings, for there may be some where the spec
    divides by zero whatever its inputs are: by a read of a zero state, say.

    Raises:
        InternalError: they are not the recurrence's.
    """
    results = any(array.life == "result" for kernel in program.kernels for array in kernel.arrays)
    compare = partial(_prove_results, named=(OUTPUT,)) if results else partial(_prove_gradients, named=(OUTPUT,))
    return tuple(setting for setting in SETTINGS if _at_a_point(spec, program, setting, seed, compare))


def prove_chunk(spec: Spec, forward: Program, backward: Program | None, *, seed: int = 0) -> tuple[Setting, ...]:
    """Prove the kernels of an operator that scans chunk by chunk: results and gradients.

    Raises:
        InternalError: they are not the recurrence's.
    """
    states = {state.name for state in spec.states}
    results = (array.of for kernel in forward.kernels for array in kernel.arrays if array.life == "result")
    named = tuple(dict.fromkeys((*_outputs(spec), *(of for of in results if of not in states))))
    compare = partial(_prove_both, backward=backward, named=named)
    return tuple(setting for setting in _of_chunks(spec, forward) if _at_a_point(spec, forward, setting, seed, compare))


def _of_chunks(spec: Spec, program: Program) -> tuple[Setting, ...]:
    """The settings for kernels that take all tokens of a chunk at once."""
    if not any(map(is_aligned, program.kernels)):
        return CHUNKS
    (every,) = {first.every for first in spec.firsts}
    return (
        tuple(s.of_mini_batches(int(every.value)) for s in MINI_BATCHES) if isinstance(every, Number) else MINI_BATCHES
    )


def prove_rows(spec: Spec, forward: Program, backward: Program | None, *, seed: int = 0) -> tuple[Setting, ...]:
    """Prove the kernels of an operator that multiplies rows of chunks, in each way that they run: results and
    gradients. A decay between rows is the exponential of a sum there, which made-up functions do not have.

    Raises:
        InternalError: they are not the recurrence's.
    """
    compare = partial(_prove_ways, backward=backward and _sharing(backward, forward), named=_outputs(spec))
    return tuple(setting for setting in ROWS if _at_a_point(spec, forward, setting, seed, compare))


def _prove_ways(call: Call, forward: Program, backward: Program | None, named: Sequence[str]) -> None:
    """Results of each way forward; then the gradients in each way back from what those leave behind, and from the
    results, which a backward may take as well. Where only some gradients are asked for, also forward without what a
    backward wants kept."""
    left: dict[str, Data] = {}
    made: Made = {}
    for way in _ways(forward):
        if not call.setting.everything:
            _prove_results(call, way, named, made=made)
        memory = _prove_results(call, way, named, keeps=True, made=made)
        lives = {array.name: array.life for kernel in way.kernels for array in kernel.arrays}
        left = {name: x for name, x in memory.arrays.items() if lives[name] in ("residual", "result")} | left
    if backward is not None:
        for way in _ways(backward):
            _prove_gradients(call, way, named, left, made)


def _sharing(program: Program, other: Program) -> Program:
    """A program that has those of its kernels from another one which are the same there."""
    same = {kernel.name: kernel for kernel in other.kernels}
    return replace(program, kernels=tuple(same[k.name] if same.get(k.name) == k else k for k in program.kernels))


def _ways(program: Program) -> list[Program]:
    """The kernels that are launched together."""
    return [Program(program.name, tuple(map(program.kernel, names))) for names in program.ways]


def _outputs(spec: Spec) -> tuple[str, ...]:
    """What there has to be of each token: the output, or what a stage makes for others. What another statement of the
    output reads may be a local of it."""
    read = {node.name for assign in spec.output for node in walk(assign.value) if isinstance(node, Name)}
    targets = tuple(assign.target for assign in spec.output)
    return (OUTPUT,) if OUTPUT in targets else tuple(name for name in targets if name not in read)


def _prove_both(call: Call, forward: Program, backward: Program | None, named: Sequence[str]) -> None:
    """The backward gets what the forward leaves for it, which a call without gradients does not ask for."""
    if not call.setting.everything:
        _prove_results(call, forward, named)
    memory = _prove_results(call, forward, named, keeps=True)
    assert backward is not None, "scans have no kernels without a backward"
    left = (array for kernel in forward.kernels for array in kernel.arrays if array.life == "residual")
    _prove_gradients(call, backward, named, {array.name: memory.arrays[array.name] for array in left})


class _Differs(Exception):
    """A kernel does not give what the recurrence gives."""


Place = tuple[tuple[Space, int], ...]
"""Where a row stands."""
_Comparison = Callable[[Call, Program], object]


def _at_a_point(spec: Spec, program: Program, setting: Setting, seed: int, compare: _Comparison) -> bool:
    """Compare at a random point where nothing is divided by zero, be it at larger sizes; false where there is none.
    Exactly; and where that differs, with the true functions of the language in place of made-up ones."""
    exact = not program.ways
    for sizes in (setting, setting.widened()):
        for attempt in range(_ATTEMPTS):
            point = f"{spec.name} {sizes} {seed + attempt}"

            def call(functions: type[Elementary], sizes: Setting = sizes, point: str = point) -> Call:
                return Call(spec, sizes, _sizes(spec, program, sizes), random.Random(point), functions)

            try:
                try:
                    if not exact:
                        raise _Differs
                    compare(call(Elementary), program)
                except _Differs:
                    with precision():
                        compare(call(Precise), program)
            except ZeroDivisionError:
                continue
            except (_Differs, Illegal) as difference:
                where = f"{sizes}, seed {seed + attempt}"
                raise InternalError(f"{program.name}: {difference} ({where}); nothing was written") from None
            return True
    return False


def _sizes(spec: Spec, program: Program, setting: Setting) -> Sizes:
    (first, *_) = program.kernels
    return (
        setting.row_sizes(spec, ROW if first.steps else TOKEN) if program.ways else setting.sizes(spec, first.block_of)
    )


# ------------------------------------------------------------------------------------------------------------- forward


def _prove_results(
    call: Call, program: Program, named: Sequence[str], *, keeps: bool = False, made: Made | None = None
) -> Memory:
    """Run a forward, which `keeps` what a backward takes, or does not. There have to be results that are `named`, and
    the states after each sequence, whatever the program says that it has."""
    memory = _memory(call, program, keeps=keeps)
    _run(call, program, memory, made)
    arrays = {a.of: (a, kernel.block_of) for kernel in program.kernels for a in kernel.arrays if a.life == "result"}
    for name in (*named, *_finals(call)):
        if name not in arrays:
            raise _Differs(f"{name} is nowhere put out")
        array, block_of = arrays[name]
        for at, row in _totals(call, array, memory.arrays[array.name], block_of).items():
            wanted = _result(call.results, array, dict(at))
            for index, x in row.items():
                if isinstance(x, Poison):
                    raise _Differs(f"{array.name} is not all written, or no number")
                if not call.functions.same(x, wanted.at(array.dims, index).value):
                    raise _Differs(f"{array.name} is not the recurrence's")
    return memory


def _finals(call: Call) -> tuple[str, ...]:
    """The states whose last values a call asks for."""
    return tuple(state.name for state in call.spec.states) if call.setting.final else ()


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
    call: Call,
    program: Program,
    named: Sequence[str],
    residuals: Mapping[str, Data] | None = None,
    made: Made | None = None,
) -> None:
    """Along random directions of the arguments, the derivative of <cotangents, results>: of those that are `named` and
    of the last states, whatever the program says that it takes and gives. `residuals`: what the forward has left, by
    name."""
    memory = _memory(call, program, residuals)
    _run(call, program, memory, made)
    arrays = {a.of: (a, kernel.block_of) for kernel in program.kernels for a in kernel.arrays if a.life == "gradient"}
    found: dict[str, Element] = {}
    for name in call.asked & arrays.keys():
        array, block_of = arrays[name]
        found[name] = call.along(array, memory.arrays[array.name], block_of)
        if not _is_number(found[name]):
            raise _Differs(f"the gradient of {name} is not all written, or no number")
    (wanted,) = _derivatives(call, named, call.results, 1)
    if not call.functions.same(sum(found.values(), mpq(0)), wanted):
        raise _Differs(_which_gradient(call, named, found))


def _which_gradient(call: Call, named: Sequence[str], found: Mapping[str, Element]) -> str:
    """Which gradient differs, where the sum of all does."""
    asked = [name for name in call.directions if name in call.asked]
    derivatives = _derivatives(call, named, call.results_of_each, len(asked))
    for name, wanted in zip(asked, derivatives, strict=True):
        if name not in found and wanted != 0:
            return f"the gradient of {name} is nowhere put out"
        if name in found and not call.functions.same(found[name], wanted):
            return f"the gradient of {name} is not the recurrence's derivative"
    return "the gradients are not the recurrence's derivatives"


def _derivatives(call: Call, named: Sequence[str], results: Results, count: int) -> list[mpq]:
    """The derivatives of the results along each of their tangents, times their cotangents."""
    total = Dual(mpq(0))
    for (token, head), tensors in results.named.items():
        for name in named:
            for index, x in tensors[name].data.items():
                total = total + Dual(call.weight(name, {"token": token, "head": head}, index)) * x
    for (name, sequence, head), tensor in results.finals.items():
        if name in _finals(call):
            for index, x in tensor.data.items():
                total = total + Dual(call.weight(name, {"sequence": sequence, "head": head}, index)) * x
    return list(total.tangents) or [mpq(0)] * count


# -------------------------------------------------------------------------------------------------------------- memory


Made = dict[tuple[object, ...], Data]
"""What the ways that ran before have made of each array, by its name and how it lies in memory."""


def _run(call: Call, program: Program, memory: Memory, made: Made | None = None) -> None:
    """Launch its kernels, one after the other; what they make of arrays joins what others have `made` of them."""
    for kernel in program.kernels:
        try:
            call.machine.launch(kernel, memory)
        except Illegal as wrong:
            raise Illegal(f"{kernel.name or 'the kernel'}: {wrong}") from None
        if made is not None:
            given = (array for array in _made_by(kernel) if array.name in memory.arrays)
            memory.arrays |= {array.name: _as_before(call, made, array, memory) for array in given}


def _as_before(call: Call, made: Made, array: Array, memory: Memory) -> Data:
    """What another way has made of an array, where it is the same: whoever takes it need not run again. What a forward
    leaves behind, and its results, are the same from each way that makes them, be it a way back."""
    found, same = memory.arrays[array.name], call.functions.same
    before = made.setdefault((array.name, array.spaces, array.dims, array.life), found)
    if before is found:
        return before
    pairs = zip(before, found, strict=False)
    if len(before) == len(found) and all(x is y or (_is_number(x, y) and same(x, y)) for x, y in pairs):
        return before
    if array.life in ("residual", "result"):
        raise _Differs(f"{array.name} is not what it is in another way to run")
    return found


def _is_number(*elements: Element) -> bool:
    return not any(isinstance(x, Poison | Infinity) for x in elements)


def _allocated(program: Program) -> Mapping[str, tuple[Array, str | None]]:
    """The arrays of a program, each with the dim of which the kernel that stores it has blocks."""
    arrays: dict[str, tuple[Array, str | None]] = {}
    for kernel in program.kernels:
        stored = {s.target.array.name for s in statements_in(kernel.body) if isinstance(s, Store)}
        for array in kernel.arrays:
            if array.name in stored or array.name not in arrays:
                arrays[array.name] = array, kernel.block_of
    return arrays


def _made_by(kernel: Kernel) -> Iterator[Array]:
    """The arrays that a kernel does not take from another one."""
    stored = {s.target.array for s in statements_in(kernel.body) if isinstance(s, Store)}
    loaded = {s.source.array for s in statements_in(kernel.body) if isinstance(s, Load)}
    yield from (array for array in kernel.arrays if array in stored or array not in loaded)


def _memory(
    call: Call, program: Program, residuals: Mapping[str, Data] | None = None, *, keeps: bool = False
) -> Memory:
    """Arguments, cotangents and residuals, and room for what kernels write; some of what a call may leave out is not
    there, but for what a forward `keeps` for a backward."""
    setting = call.setting
    memory = Memory(call.sizes, {}, call.asked)
    made = {array.name for kernel in program.kernels for array in _made_by(kernel)}
    arrays = _allocated(program)
    for array, block_of in arrays.values():
        of_state = call.of_state(array)
        match array.life:
            case "begin":
                if setting.packed:
                    memory.arrays[array.name] = call.nothing
            case "argument":
                if not of_state or setting.initial:
                    memory.arrays[array.name] = call.argument(array)
            case "cotangent":
                if not of_state or setting.final:
                    memory.arrays[array.name] = call.cotangent(array, block_of)
            case "gradient":
                if array.of in call.asked:
                    memory.allocate(array, block_of)
            case "result":
                if not of_state or setting.final:
                    memory.allocate(array, block_of)
            case "scratch":
                memory.allocate(array, block_of)
            case "residual":
                if residuals is not None and array.name not in made:
                    memory.arrays |= {array.name: residuals[array.name]} if array.name in residuals else {}
                elif keeps or residuals is not None or not array.optional:
                    memory.allocate(array, block_of)
    return memory
