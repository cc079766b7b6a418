"""The contexts of `chunk_fused.py` and `chunk_backward.py` where states are elementwise scans."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from flagen.backends.printed import product_of
from flagen.backends.range_check import RANGES, range_check
from flagen.backends.signature import Parameter, parameters, result_doc, result_like
from flagen.backends.torch_.common import check_call, common_context
from flagen.backends.triton_.kernel import tensor_names
from flagen.backends.triton_.launcher import default_values
from flagen.backends.triton_.operator import Operator, result_of
from flagen.backends.triton_.scan_kernel import compile_time_sizes
from flagen.plan.free_names import free_name
from flagen.plan.scan import Result, ScanPlan
from flagen.plan.scan_backward import Give, ScanBackwardPlan
from flagen.plan.scan_kernel import SIZES, ScanKernelPlan
from flagen.spec.model import Input, Param, Spec, State


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


def scan_operator(plan: ScanKernelPlan, backward: ScanBackwardPlan) -> ScanOperator:
    """What torch knows `chunk_<name>` as."""
    spec = plan.spec
    taken = plan.taken | backward.taken
    return ScanOperator(
        spec,
        "chunk",
        f"naive_chunk_{spec.name}",
        chunk_size=_size(plan),
        kept=tuple(kept_name(state, taken) for state in backward.kept),
        backward=f"chunk_backward_{spec.name}",
        keywords=(f"kept_states=({', '.join(kept_name(s, taken) for s in backward.kept)},)",) if backward.kept else (),
        plan=plan.plan,
    )


def kept_name(state: State, taken: frozenset[str]) -> str:
    return free_name(f"{state.name}_kept", taken)


def _size(plan: ScanKernelPlan) -> Parameter:
    sizes = f"{', '.join(map(str, SIZES[:-1]))} or {SIZES[-1]}"
    doc = (
        f"tokens that a program takes at once: {sizes}; with a gradient wanted, a state is kept for each chunk of them."
    )
    return Parameter("chunk_size", "int", str(plan.size), True, doc)


def scan_launcher_context(plan: ScanKernelPlan, backward: ScanBackwardPlan) -> Mapping[str, object]:
    """Every value `triton/scan_fused.py.j2` uses."""
    spec = plan.spec
    operator = scan_operator(plan, backward)
    inherited = operator.context()
    common = common_context(spec, _size(plan))
    names = ("name", "title", "paper", "equations", "signature", "argument_docs", "state_doc", "state_annotation")
    values = (
        *("operator", "form", "backward", "initials", "declarations", "arguments", "given", "passed"),
        *("schema", "returned", "kept", "handed_on", "check"),
    )
    kept = [(kept_name(state, plan.taken | backward.taken), _axes("HV", *state.dims)) for state in backward.kept]
    return {
        **{name: common[name] for name in names},
        **{name: inherited[name] for name in values},
        RANGES: range_check(spec),
        "keep": operator.keep,
        "results": [_result(plan.plan, result) for result in plan.plan.results],
        "sizes": SIZES,
        "sizes_of_kept": kept,
        "tensors": tensor_names(spec),
        "defaults": list(default_values(spec)),
        "config_arguments": _axes(*plan.order[1:]),
        "split": plan.split,
        "scalars": [param.name for param in spec.params if not param.is_tensor],
        "compile_time": [f"args.{size}" for size in compile_time_sizes(plan)],
    }


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


def scan_backward_launcher_context(plan: ScanBackwardPlan) -> Mapping[str, object]:
    """Every value `triton/scan_backward.py.j2` uses."""
    forward, spec = plan.forward, plan.spec
    operator = scan_operator(forward, plan)
    common = common_context(spec, _size(forward))
    given = [p for p in (*parameters(spec), _size(forward)) if p.name != "output_final_state"]
    results = {result.name: result for result in forward.plan.results}
    cotangents = dict(zip((*results, *operator.finals), operator.cotangents, strict=True))
    finals = dict(zip((state.name for state in spec.states), operator.finals, strict=True))
    initials = dict(zip((state.name for state in spec.states), operator.initials, strict=True))
    backs = [back.state for back in plan.backs]
    totals = {give.source.name: give for give in plan.gives}
    return {
        **{name: common[name] for name in ("name", "title", "paper", "equations")},
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
        "final_gradients": [cotangents[finals[state.name]] for state in spec.states],
        "config_arguments": _axes(*forward.order[1:]),
        "split": forward.split,
        "kept": [kept_name(state, plan.taken) for state in plan.kept],
        "inputs": [_room(plan, give) for give in plan.gives if isinstance(give.source, Input)],
        "params": [_param_room(plan, give) for give in plan.gives if isinstance(give.source, Param)],
        "states": [_state_room(plan, state, initials[state.name]) for state in backs],
        "totals": {
            name: _total(totals[name])
            if name in totals
            else f'torch.zeros_like({name}) if "{name}" in wanted else None'
            for name in tensor_names(spec)
        },
        "state_totals": [_state_total(plan, state, initials[state.name]) for state in spec.states],
        "launch": _launch(plan, cotangents, finals),
        "programs": product_of("args.runs", "args.HV", *(["blocks"] if forward.split else [])),
    }


def _gradient_of_start(plan: ScanBackwardPlan, state: State) -> str:
    return free_name(f"d{state.name}_initial", plan.taken)


def _room(plan: ScanBackwardPlan, give: Give) -> tuple[str, str, str]:
    """An input's gradient: what it is called, the input, and how many shares of it there are beside a token's."""
    blocks = ["blocks"] if plan.is_shared(give.source.dims) else []
    return give.total, give.source.name, ", ".join(("args.HV", *blocks))


def _param_room(plan: ScanBackwardPlan, give: Give) -> tuple[str, str, str]:
    blocks = "blocks" if plan.is_shared(give.source.dims) else "1"
    sizes = [f"args.{dim}" for dim in give.source.dims]
    return give.total, give.source.name, ", ".join(("args.runs", "args.HV", blocks, *sizes))


def _state_room(plan: ScanBackwardPlan, state: State, initial: str) -> tuple[str, str, str]:
    blocks = "blocks" if plan.is_shared(state.dims) else "1"
    sizes = [f"args.{dim}" for dim in state.dims]
    return _gradient_of_start(plan, state), initial, ", ".join(("args.runs", "args.HV", blocks, *sizes))


def _total(give: Give) -> str:
    """The gradient of an argument, from its shares."""
    source, called = give.source, give.total
    if isinstance(source, Input):
        return f"launches.total({called}, {source.name})"
    dims = "(0, 2)" if source.per_head else "(0, 1, 2)"
    return f"None if {called} is None else {called}.sum({dims}).to({source.name}.dtype)"


def _zeros(name: str) -> str:
    """The gradient of an argument that nothing depends on."""
    return f'torch.zeros_like({name}) if "{name}" in wanted else None'


def _state_total(plan: ScanBackwardPlan, state: State, initial: str) -> str:
    called = _gradient_of_start(plan, state)
    return f"None if {called} is None else {called}.sum(2).to({initial}.dtype)"


def _launch(plan: ScanBackwardPlan, cotangents: Mapping[str, str], finals: Mapping[str, str]) -> list[str]:
    """The kernel's arguments but its blocks, in the order of `BackwardWriter.parameters`."""
    spec, forward = plan.spec, plan.forward
    states = [back.state for back in plan.backs]
    final_gradients = [cotangents[finals[state.name]] for state in states]
    return [
        *(f"{name}.contiguous()" for name in tensor_names(spec)),
        "None if cu_seqlens is None else cu_seqlens.contiguous()",
        *(cotangents[result.name] for result in forward.plan.results),
        *(f"None if {name} is None else {name}.contiguous()" for name in final_gradients),
        *(kept_name(state, plan.taken) for state in plan.kept),
        *(give.total for give in plan.gives),
        *(_gradient_of_start(plan, state) for state in states),
        *(f"float({param.name})" for param in spec.params if not param.is_tensor),
        "args.tokens",
        *(f"args.{size}" for size in compile_time_sizes(forward)),
        "chunk_size",
    ]
