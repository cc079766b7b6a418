"""The contexts of `chunk.py` and `chunk_backward.py` where states are elementwise scans."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

from flagen.backends.printed import product_of
from flagen.backends.range_check import RANGES, range_check
from flagen.backends.signature import Parameter, parameters, result_doc, result_like
from flagen.backends.torch_.common import check_call, common_context
from flagen.backends.triton_.chunk_launcher import PACKED
from flagen.backends.triton_.kernel import tensor_names
from flagen.backends.triton_.launcher import default_values
from flagen.backends.triton_.operator import Operator, result_of
from flagen.kernel.ir import Array, Kernel, Life, Program, Run
from flagen.kernel.recurrent import CU_SEQLENS
from flagen.plan.free_names import free_name
from flagen.plan.pieces import PieceKernelPlan
from flagen.plan.scan import Result, ScanPlan
from flagen.plan.scan_backward import ScanBackwardPlan
from flagen.plan.scan_kernel import SIZES, ScanKernelPlan
from flagen.plan.schedule import declared_names
from flagen.spec.model import Name, Spec
from flagen.spec.printer import to_source


@dataclass(frozen=True)
class ScanOperator(Operator):
    """An operator that returns the results of `plan`, the final states, and, if told, the states before each chunk."""

    plan: ScanPlan | None = None

    @cached_property
    def results(self) -> tuple[str, ...]:
        assert self.plan is not None
        return tuple(result.name for result in self.plan.results)

    @property
    def cotangents(self) -> tuple[str, ...]:
        return tuple(free_name(f"d{name}", self.taken) for name in (*self.results, *self.finals))

    @property
    def returned(self) -> list[str]:
        assert self.plan is not None
        return [_returned(self.spec, result) for result in self.plan.results]


def _returned(spec: Spec, result: Result) -> str:
    wide = result.name in spec.wide_outputs
    return result_of(result.dims, "args.dtype" if wide else f"{result_like(spec, result.dims)}.dtype")


def scan_operator(plan: ScanKernelPlan, back: Program) -> ScanOperator:
    """What torch knows `chunk_<name>` as; `back`: its backward, which says what it keeps."""
    spec = plan.spec
    kept = tuple(array.name for array in _arrays(back, "residual"))
    return ScanOperator(
        spec,
        "chunk",
        f"naive_chunk_{spec.name}",
        chunk_size=_size(plan),
        pairs=next(iter(spec.pairs), ""),
        kept=kept,
        backward=back.name,
        keywords=(f"{_kept_states(spec)}=({', '.join(kept)},)",) if kept else (),
        plan=plan.plan,
    )


def _kept_states(spec: Spec) -> str:
    """The argument by which the gradients get the states before each chunk."""
    return free_name("kept_states", set(declared_names(spec)))


def _arrays(program: Program, life: Life) -> tuple[Array, ...]:
    """The arrays of a program's kernel that come about in a way."""
    (kernel,) = program.kernels
    return tuple(array for array in kernel.arrays if array.life == life)


def _size(plan: ScanKernelPlan) -> Parameter:
    sizes = f"{', '.join(map(str, SIZES[:-1]))} or {SIZES[-1]}"
    of_mini_batches = ", or as many below that as divide a mini-batch" if isinstance(plan, PieceKernelPlan) else ""
    doc = (
        f"tokens that a program takes at once: {sizes}{of_mini_batches}; with a gradient wanted, a state is kept for "
        "each chunk of them."
    )
    return Parameter("chunk_size", "int", str(plan.size), True, doc)


def scan_launcher_context(
    plan: ScanKernelPlan, backward: ScanBackwardPlan, program: Program, back: Program
) -> Mapping[str, object]:
    """Every value `triton/scan_fused.py.j2` uses."""
    spec = plan.spec
    operator = scan_operator(plan, back)
    inherited = operator.context()
    common = common_context(spec, _size(plan))
    names = ("name", "title", "cited", "equations", "signature", "argument_docs", "state_doc", "state_annotation")
    values = (
        *("operator", "form", "backward", "initials", "declarations", "arguments", "given", "passed"),
        *("schema", "returned", "kept", "handed_on", "check", "most_pairs"),
    )
    initials = dict(zip((state.name for state in spec.states), operator.initials, strict=True))
    (kernel,) = program.kernels
    pointers = _pointers(kernel, {"argument": lambda array: _if_given(initials[array.of])})
    return {
        **{name: common[name] for name in names},
        **{name: inherited[name] for name in values},
        RANGES: range_check(spec),
        "keep": operator.keep,
        "results": [_result(plan.plan, result) for result in plan.plan.results],
        "sizes": SIZES,
        "sizes_of_kept": [_axes("HV", *array.dims) for array in _arrays(back, "residual")],
        "tensors": tensor_names(spec),
        "defaults": list(default_values(spec)),
        "config_arguments": _axes(*(dim for dim in kernel.dims if dim not in spec.pairs)),
        "split": kernel.block_of,
        "walks": kernel.run == "sequence",
        "programs": _programs(kernel),
        "about": _about(plan),
        "matrices": _matrices(plan),
        "measured": list(_measured(plan)),
        "room": _room_of_chunks(plan),
        "launch": [*pointers, "*outputs", *_numbers(kernel, {size: f"{size}={x}" for size, x in _MEASURED.items()})],
    }


_MEASURED = {"CHUNK": "chunk_size", "LENGTH": "length", "PRECISION": "precision", "TURNED": "turned_dots"}
"""What a launch has for the sizes that are not those of tensors."""


def _measured(plan: ScanKernelPlan) -> Iterator[str]:
    """What a launch has to find out besides."""
    if isinstance(plan, PieceKernelPlan):
        yield f"length = tokens_at_once({_every(plan)}, chunk_size)"
        yield f"_, precision = products_of({', '.join(decl.name for decl in plan.spec.inputs if decl.dims)})"
        yield "turned_dots = capability() < 9"


def _every(plan: PieceKernelPlan) -> str:
    """How many tokens a mini-batch has, once params have their defaults."""
    return plan.every.name if isinstance(plan.every, Name) else to_source(plan.every)


def _matrices(plan: ScanKernelPlan) -> tuple[str, ...]:
    """The dims of matrices that a program has all of."""
    if not isinstance(plan, PieceKernelPlan):
        return ()
    return tuple(dict.fromkeys(dim for carried in plan.carried for dim in carried.state.dims))


def _about(plan: ScanKernelPlan) -> str:
    """How it computes."""
    backward = f"`chunk_backward_{plan.spec.name}`"
    if not isinstance(plan, PieceKernelPlan):
        return f"The kernel computes in float32, and so does that of its gradients, {backward}."
    return (
        f"The kernel computes in float32, and so does that of its gradients, {backward}; matrix products of 16-bit "
        "inputs run in tf32. A NaN reaches all tokens of its chunk, the earlier ones too, for what a token must not "
        "see is multiplied by zero: padding has to be finite. Matrices of up to 128 by 128 have kernels, and 64 by 64 "
        "before compute capability 9."
    )


def _room_of_chunks(plan: ScanKernelPlan) -> Mapping[str, str]:
    """For how many chunks there has to be room, and why."""
    if not isinstance(plan, PieceKernelPlan):
        why = "Sequences may end anywhere: each has a row for every chunk that it fills, and one more."
        return {"why": why, "chunks": "args.batch * args.tokens // chunk_size + args.runs"}
    every, defaults = _every(plan), dict(default_values(plan.spec))
    given = f"{defaults[every]} if {every} is None else {every}" if every in defaults else every
    why = "Sequences may begin and end anywhere: each has a row for every chunk that it fills, and two more."
    return {"why": why, "chunks": f"args.batch * args.tokens // tokens_at_once({given}, chunk_size) + 2 * args.runs"}


def _result(plan: ScanPlan, result: Result) -> Mapping[str, str]:
    """A result: its name, its sizes, its dtype and how it is documented."""
    spec, name = plan.spec, result.name
    return {
        "name": name,
        "sizes": _axes("batch", "tokens", "HV", *result.dims),
        "dtype": "args.dtype" if name in spec.wide_outputs else f"{result_like(spec, result.dims)}.dtype",
        "doc": result_doc(spec, name, result.dims),
    }


def _axes(*names: str) -> str:
    return ", ".join(f"args.{name}" for name in names)


# ------------------------------------------------------------------------------------------------------------ launches


def _pointers(kernel: Kernel, named: Mapping[Life, Callable[[Array], str]]) -> list[str]:
    """What a launch passes for the arrays of a kernel: tensors of the call, and what `named` says of others."""
    passed = []
    for array in kernel.arrays:
        if array.life == "begin":
            passed.append(PACKED if array == CU_SEQLENS else array.name)
        elif array.life == "argument" and not array.optional:
            passed.append(f"{array.name}.contiguous()")
        elif array.life in named:
            passed.append(named[array.life](array))
    return passed


def _numbers(kernel: Kernel, measured: Mapping[str, str]) -> list[str]:
    """What a launch passes behind the arrays, but for blocks."""
    sizes = (measured.get(size, f"args.{size}") for size in kernel.sizes)
    return [*(f"float({number})" for number in kernel.numbers), "args.tokens", *sizes]


def _programs(kernel: Kernel) -> str:
    """How many programs are launched."""
    return product_of(_RUNS[kernel.run], "args.HV", *(["blocks"] if kernel.block_of else []))


_RUNS: Mapping[Run, str] = {"sequence": "args.runs", "stretch": "stretches"}
"""How many of them a launch has."""


def _if_given(name: str) -> str:
    return f"None if {name} is None else {name}.contiguous()"


# ------------------------------------------------------------------------------------------------------------ backward


def scan_backward_launcher_context(plan: ScanBackwardPlan, program: Program) -> Mapping[str, object]:
    """Every value `triton/scan_backward.py.j2` uses."""
    forward, spec = plan.forward, plan.spec
    operator = scan_operator(forward, program)
    common = common_context(spec, _size(forward))
    given = [p for p in (*parameters(spec), _size(forward)) if p.name != "output_final_state"]
    results = {result.name: result for result in forward.plan.results}
    states = [state.name for state in spec.states]
    cotangents = dict(zip((*results, *states), operator.cotangents, strict=True))
    initials = dict(zip(states, operator.initials, strict=True))
    (kernel,) = program.kernels
    gradients = {array.of: array for array in _arrays(program, "gradient")}
    tensors = [*tensor_names(spec), *states]
    return {
        **{name: common[name] for name in ("name", "title", "cited", "equations")},
        "check": check_call(spec, shapes_only="torch.compiler.is_compiling()"),
        "signature": [*(p.declaration for p in given if not p.keyword), "*"]
        + [p.declaration for p in given if p.keyword],
        "single_state": len(spec.states) == 1,
        "initials": tuple(initials.values()),
        "tensors": tensor_names(spec),
        "defaults": list(default_values(spec)),
        "results": [
            {**_result(forward.plan, result), "gradient": cotangents[name]} for name, result in results.items()
        ],
        "final_gradients": [cotangents[state] for state in states],
        "config_arguments": _axes(*(dim for dim in kernel.dims if dim not in spec.pairs)),
        "split": kernel.block_of,
        "kept": operator.kept,
        "kept_states": _kept_states(spec),
        "inputs": [(x.name, x.of, _heads(x)) for x in gradients.values() if "token" in x.spaces],
        "sums": [(x.name, initials.get(x.of, x.of), _room(x)) for x in gradients.values() if "token" not in x.spaces],
        "totals": [_total(spec, name, initials, gradients.get(name)) for name in tensors],
        "launch": [
            *_pointers(
                kernel,
                {
                    "argument": lambda x: _if_given(initials[x.of]),
                    "cotangent": lambda x: _if_given(cotangents[x.of]) if x.optional else cotangents[x.of],
                    "residual": lambda x: x.name,
                    "gradient": lambda x: x.name,
                },
            ),
            *_numbers(kernel, _MEASURED),
        ],
        "measured": list(_measured(forward)),
        "walks": kernel.run == "sequence",
        "programs": _programs(kernel),
    }


def _heads(array: Array) -> str:
    """How many shares of the gradient of an input there are beside a token's."""
    return ", ".join(("args.HV", *(["blocks"] if "block" in array.spaces else [])))


def _room(array: Array) -> str:
    """The shape of a gradient that is added up over sequences, or stretches of them, heads and blocks."""
    runs = "stretches" if "stretch" in array.spaces else "args.runs"
    return ", ".join((runs, "args.HV", "blocks" if "block" in array.spaces else "1", *map(_axes, array.dims)))


def _total(spec: Spec, name: str, initials: Mapping[str, str], array: Array | None) -> str:
    """The gradient of an argument, from its shares; or of one that nothing depends on."""
    argument = initials.get(name, name)
    if array is None:
        return f'torch.zeros_like({argument}) if "{argument}" in wanted else None'
    if "token" in array.spaces:
        return f"launches.total({array.name}, {argument})"
    per_head = {param.name for param in spec.params if param.per_head}
    dims = "2" if name in initials else "(0, 2)" if name in per_head else "(0, 1, 2)"
    return f"None if {array.name} is None else {array.name}.sum({dims}).to({argument}.dtype)"
