"""The context of `fused_recurrent_backward.py` where statements are transposed: what launches the kernels."""

from __future__ import annotations

from collections.abc import Mapping

from flagen.backends.printed import product_of
from flagen.backends.signature import parameters
from flagen.backends.torch_.common import check_call, common_context
from flagen.backends.triton_.chunk_launcher import PACKED, Launch
from flagen.backends.triton_.fused_backward import title_of
from flagen.backends.triton_.kernel import tensor_names
from flagen.backends.triton_.launcher import default_values
from flagen.kernel.ir import Kernel, Program
from flagen.kernel.recurrent import CU_SEQLENS
from flagen.kernel.reverse import StateArrays
from flagen.plan.backward_actions import Gradient
from flagen.plan.reverse_mode import Carried, ReversePlan
from flagen.spec.model import Input, Param


def reverse_launcher_context(plan: ReversePlan, program: Program) -> Mapping[str, object]:
    """Every value `triton/reverse.py.j2` uses."""
    spec, split = plan.forward.spec, plan.forward.split
    given = [p for p in parameters(spec) if p.name != "output_final_state"]
    common = common_context(spec)
    return {
        **{name: common[name] for name in ("name", "cited", "equations", "output_dtype")},
        "check": check_call(spec, shapes_only="torch.compiler.is_compiling()"),
        "signature": [*(p.declaration for p in given if not p.keyword), "*"]
        + [p.declaration for p in given if p.keyword],
        "tensors": tensor_names(spec),
        "defaults": list(default_values(spec)),
        "do": plan.output_gradient.name,
        "output_shape": ", ".join(f"args.{x}" for x in ("batch", "tokens", "HV", *spec.output_dims)),
        "config_arguments": ", ".join(
            f"args.{dim}" for dim in plan.forward.order if dim not in plan.forward.spec.pairs
        ),
        "split": None if split is None else split.dim,
        "states": [_state(plan, carried) for carried in plan.carried],
        "inputs": [(g.called, g.source.name, ", ".join(_heads(g))) for g in plan.given if isinstance(g.source, Input)],
        "params": [(g.called, g.source.name, _param_room(g)) for g in plan.given if isinstance(g.source, Param)],
        "totals": {gradient.source.name: _total(gradient) for gradient in plan.given},
        "launches": {kernel.name: _launch(plan, program, kernel) for kernel in program.kernels},
    }


def _state(plan: ReversePlan, carried: Carried) -> Mapping[str, object]:
    """The arrays of a state, and how large they are."""
    spec, state = plan.forward.spec, carried.state
    arrays = StateArrays(plan, carried)
    sizes = [f"args.{dim}" for dim in state.declared]
    own = ["args.runs", "args.HV", *(["shares"] if carried.shared else [])]
    steps = [] if spec.steps is None else [*([str(plan.loops)] if plan.loops > 1 else []), spec.steps.argument]
    return {
        "arrays": {role: array.name for role, array in vars(arrays).items()},
        "given": arrays.initial.name if len(spec.states) > 1 else "initial_state",
        "sizes": ", ".join(["args.HV", *sizes]),
        "shared": carried.shared,
        "room_of_tokens": ", ".join((*own, "tokens", *sizes)),
        "room_of_steps": ", ".join((*own, *steps, *sizes)) if state.name in plan.stored_by_step else None,
        "room_of_gradient": ", ".join((*own, *sizes)),
    }


def _heads(gradient: Gradient) -> list[str]:
    """How many shares of the gradient of an input there are: for value heads, loops that read it, and blocks."""
    loops = [str(gradient.loops)] if gradient.loops > 1 else []
    return ["args.HV", *loops, *(["shares"] if gradient.shared else [])]


def _param_room(gradient: Gradient) -> str:
    shares = "shares" if gradient.shared else "1"
    return ", ".join(("args.runs", "args.HV", shares, *(f"args.{dim}" for dim in gradient.source.dims)))


def _total(gradient: Gradient) -> str:
    """The gradient of an argument, from its shares."""
    source, called = gradient.source, gradient.called
    if isinstance(source, Input):
        return f"launches.total({called}, {source.name})"
    dims = "(0, 2)" if source.per_head else "(0, 1, 2)"
    return f"None if {called} is None else {called}.sum({dims}).to({source.name}.dtype)"


def _launch(plan: ReversePlan, program: Program, kernel: Kernel) -> Launch:
    """The launch of a kernel."""
    spec = plan.forward.spec
    tensors = tensor_names(spec)
    named = {CU_SEQLENS.name: PACKED}
    for carried in plan.carried:
        arrays = StateArrays(plan, carried)
        initial, final = arrays.initial.name, arrays.final_gradient.name
        given = initial if len(spec.states) > 1 else "initial_state"
        named[initial] = f"None if {given} is None else {given}.contiguous()"
        named[final] = f"None if {final} is None else {final}.contiguous()"
    pointers = [f"{x.name}.contiguous()" if x.name in tensors else named.get(x.name, x.name) for x in kernel.arrays]
    numbers = [f"float({number})" for number in kernel.numbers]
    steps = {} if spec.steps is None else {spec.steps.symbol: spec.steps.argument}
    sizes = [steps.get(size, f"args.{size}") for size in kernel.sizes]
    walks = kernel.name == "states"
    grid = product_of("args.runs", "args.HV", *([] if kernel.block_of is None else ["blocks" if walks else "shares"]))
    arguments = [*pointers, *numbers, "args.tokens", "tokens", *sizes]
    return Launch(title_of(program, kernel), grid, arguments, "walk" if walks else "inside")
