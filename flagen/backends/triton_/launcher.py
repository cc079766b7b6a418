"""The context of `fused_recurrent.py`: the public function that launches the kernel."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from flagen.backends.printed import product_of
from flagen.backends.text import tuple_of
from flagen.backends.torch_.common import common_context
from flagen.backends.torch_.scope import Scope
from flagen.backends.triton_.kernel import tensor_names
from flagen.backends.triton_.operator import Operator
from flagen.kernel.ir import Program
from flagen.plan.fused import FusedPlan
from flagen.spec.model import Spec


def launcher_context(plan: FusedPlan, program: Program, backward_keeps: str) -> Mapping[str, object]:
    """Every value `triton/fused_recurrent.py.j2` uses; `backward_keeps` says what the kernels of its gradients keep."""
    spec, split = plan.spec, plan.split
    (kernel,) = program.kernels
    blocks = [] if split is None else [f'-(-args.{split.dim} // config["BLOCK_{split.dim}"])']
    partial = split is not None and split.partial
    output = ["args.batch", "args.tokens", "args.HV", *(f"args.{dim}" for dim in spec.output_dims)]
    backward = f"fused_recurrent_backward_{spec.name}"
    operator = Operator(spec, "fused_recurrent", f"naive_recurrent_{spec.name}", backward=backward)
    return {
        **common_context(spec),
        **operator.context(),
        "backward_keeps": backward_keeps,
        "sizes_of_states": [
            (final, ", ".join(f"args.{size}" for size in ("runs", "HV", *state.declared)))
            for final, state in zip(operator.finals, spec.states, strict=True)
        ],
        "tensors": tensor_names(spec),
        "defaults": list(default_values(spec)),
        "config_arguments": [f"args.{dim}" for dim in plan.order if dim not in spec.pairs],
        "blocks": blocks,
        "programs": product_of("args.runs", "args.HV", *(["blocks"] if blocks else [])),
        "partial": partial,
        "output_shape": ", ".join([*output[:3], "blocks", *output[3:]] if partial else output),
        "scalars": [param.name for param in spec.params if not param.is_tensor],
        "compile_time": [_compile_time(spec, name) for name in kernel.sizes],
    }


def _compile_time(spec: Spec, size: str) -> str:
    """The argument of the call that a size of the kernel comes from."""
    return spec.steps.argument if spec.steps is not None and size == spec.steps.symbol else f"args.{size}"


def default_values(spec: Spec) -> Iterator[tuple[str, str]]:
    """(param, what it is when not given) for every param that has a default."""
    printer = Scope(spec).printer()
    for param in spec.params:
        if param.default is None:
            continue
        value = printer.print(param.default).text
        if param.is_tensor:
            shape = tuple_of(f"args.{axis}" for axis in (*(("HV",) if param.per_head else ()), *param.dims))
            value = f"torch.full({shape}, {value}, dtype=torch.float32, device=args.device)"
        yield param.name, value
