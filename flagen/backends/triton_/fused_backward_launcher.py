"""The context of `fused_recurrent_backward.py`: the function that launches the recurrent backward's kernels."""

from __future__ import annotations

from collections.abc import Mapping

from flagen.backends.printed import product_of
from flagen.backends.signature import parameters
from flagen.backends.torch_.common import check_call, common_context
from flagen.backends.triton_.chunk_launcher import PACKED, START, Launch
from flagen.backends.triton_.fused_backward import title_of
from flagen.backends.triton_.kernel import tensor_names
from flagen.backends.triton_.launcher import default_values
from flagen.kernel.ir import Kernel, Program
from flagen.kernel.recurrent import CU_SEQLENS
from flagen.kernel.segments import StateArrays
from flagen.plan.backward_actions import Gradient, Vector
from flagen.plan.fused_backward import FusedBackwardPlan
from flagen.spec.model import Input, Param


def fused_backward_launcher_context(plan: FusedBackwardPlan, program: Program) -> Mapping[str, object]:
    """Every value `triton/fused_recurrent_backward.py.j2` uses."""
    spec, arrays = plan.forward.spec, StateArrays(plan)
    given = [p for p in parameters(spec) if p.name != "output_final_state"]
    (state,) = spec.states
    common = common_context(spec)
    return {
        **{name: common[name] for name in ("name", "cited", "equations", "output_dtype")},
        "check": check_call(spec, shapes_only="torch.compiler.is_compiling()"),
        "signature": [*(p.declaration for p in given if not p.keyword), "*"]
        + [p.declaration for p in given if p.keyword],
        "tensors": tensor_names(spec),
        "defaults": list(default_values(spec)),
        "segment": plan.segment,
        "own": {own: getattr(arrays, own).name for own in OWN},
        "do": plan.output_gradient.name,
        "output_shape": ", ".join(f"args.{x}" for x in ("batch", "tokens", "HV", *spec.output_dims)),
        "state_sizes": ", ".join(f"args.{dim}" for dim in state.declared),
        "config_arguments": ", ".join(f"args.{dim}" for dim in spec.axes if dim not in spec.pairs),
        "value": plan.value,
        "blocked": not plan.whole_values,
        "vectors": [(vector.name, _room(plan, vector)) for vector in plan.vectors],
        "inputs": [
            (g.called, g.source.name, ", ".join(_heads(plan, g))) for g in plan.given if isinstance(g.source, Input)
        ],
        "params": [(g.called, g.source.name, _param_room(plan, g)) for g in plan.given if isinstance(g.source, Param)],
        "totals": {gradient.source.name: _total(gradient) for gradient in plan.given},
        "reverse_takes_reads": _reverse_takes_reads(plan, program),
        "launches": {kernel.name: _launch(plan, program, kernel) for kernel in program.kernels},
    }


OWN = ("states", "state_gradients", "final_gradient", "initial_gradient")
"""The arrays of states that the launcher makes or is given."""


def _reverse_takes_reads(plan: FusedBackwardPlan, program: Program) -> bool:
    """Whether the walk back takes something that the walk forward leaves: what the output is no linear function of."""
    left = {vector.name for vector in plan.vectors} & {array.name for array in program.kernel("states").arrays}
    return not left.isdisjoint(array.name for array in program.kernel("reverse").arrays)


def _blocks(plan: FusedBackwardPlan, shared: bool) -> list[str]:
    return ["shares"] if shared and not plan.whole_values else []


def _room(plan: FusedBackwardPlan, vector: Vector) -> str:
    """The shape of a vector in memory."""
    spec, sizes = plan.forward.spec, [f"args.{dim}" for dim in vector.dims]
    tokens = "args.tokens" if spec.steps is None or vector.per != "step" else f"args.tokens * {spec.steps.argument}"
    runs = ["segments"] if vector.per == "segment" else ["args.batch", tokens]
    return ", ".join((*runs, "args.HV", *_blocks(plan, vector.shared), *sizes))


def _heads(plan: FusedBackwardPlan, gradient: Gradient) -> list[str]:
    """How many shares of the gradient of an input there are: one for each value head, and for each block."""
    return ["args.HV", *_blocks(plan, gradient.shared)]


def _param_room(plan: FusedBackwardPlan, gradient: Gradient) -> str:
    blocks = _blocks(plan, gradient.shared) or ["1"]
    return ", ".join(("segments", "args.HV", *blocks, *(f"args.{dim}" for dim in gradient.source.dims)))


def _total(gradient: Gradient) -> str:
    """The gradient of an argument, from its shares."""
    source, called = gradient.source, gradient.called
    if isinstance(source, Input):
        return f"launches.total({called}, {source.name})"
    dims = "(0, 2)" if source.per_head else "(0, 1, 2)"
    return f"None if {called} is None else {called}.sum({dims}).to({source.name}.dtype)"


def _launch(plan: FusedBackwardPlan, program: Program, kernel: Kernel) -> Launch:
    """The launch of a kernel."""
    spec, arrays = plan.forward.spec, StateArrays(plan)
    tensors, final = tensor_names(spec), arrays.final_gradient.name
    named = {
        CU_SEQLENS.name: PACKED,
        arrays.initial.name: START,
        final: f"None if {final} is None else {final}.contiguous()",
    }
    pointers = [f"{x.name}.contiguous()" if x.name in tensors else named.get(x.name, x.name) for x in kernel.arrays]
    numbers = [f"float({number})" for number in kernel.numbers]
    steps = {} if spec.steps is None else {spec.steps.symbol: spec.steps.argument}
    sizes = ["SEGMENT" if size == "SEGMENT" else steps.get(size, f"args.{size}") for size in kernel.sizes]
    walks = kernel.run == "sequence"
    runs, blocks = ("args.runs", "blocks") if walks else ("segments", "shares")
    grid = product_of(runs, "args.HV", *([] if plan.whole_values else [blocks]))
    tiles = "walk" if walks else "inside"
    return Launch(title_of(program, kernel), grid, [*pointers, *numbers, "args.tokens", *sizes], tiles)
