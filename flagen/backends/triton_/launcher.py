"""The context of `fused_recurrent.py`: the public function that launches the kernel."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from flagen.backends.signature import Parameter, parameters
from flagen.backends.text import tuple_of
from flagen.backends.torch_.common import common_context
from flagen.backends.torch_.scope import Scope
from flagen.backends.triton_.kernel import compile_time_sizes, tensor_names
from flagen.backends.triton_.names import final_name, initial_name
from flagen.plan.fused import FusedPlan
from flagen.spec.model import Spec


def launcher_context(plan: FusedPlan) -> Mapping[str, object]:
    """Every value `triton/fused_recurrent.py.j2` uses."""
    spec, split = plan.spec, plan.split
    blocks = [] if split is None else [f'-(-args.{split.dim} // config["BLOCK_{split.dim}"])']
    partial = split is not None and split.partial
    output = ["args.batch", "args.tokens", "args.HV", *(f"args.{dim}" for dim in spec.output_dims)]
    finals = [final_name(state.name, plan.names) for state in spec.states]
    initials = [initial_name(state.name, plan.names) for state in spec.states]
    initials = initials if len(initials) > 1 else ["initial_state"]
    launched = launch_parameters(spec, initials)
    return {
        **common_context(spec),
        "tensors": tensor_names(spec),
        "forwarded": [p.name if not p.keyword else f"{p.name}={p.name}" for p in parameters(spec)],
        "defaults": list(default_values(spec)),
        "config_arguments": [f"args.{dim}" for dim in plan.order],
        "blocks": blocks,
        "programs": " * ".join(("args.runs", "args.HV", *(["blocks"] if blocks else []))),
        "partial": partial,
        "output_shape": ", ".join([*output[:3], "blocks", *output[3:]] if partial else output),
        "final_states": [
            (final, ", ".join(("args.runs", "args.HV", *(f"args.{dim}" for dim in state.dims))))
            for final, state in zip(finals, spec.states, strict=True)
        ],
        "no_initials": tuple_of(["None"] * len(initials)),
        "initials": initials,
        "final_names": finals,
        "launch_parameters": [f"{p.name}: {p.annotation}" for p in launched],
        "launch_arguments": [p.name for p in launched],
        "scalars": [param.name for param in spec.params if not param.is_tensor],
        "compile_time": [_compile_time(spec, name) for name in compile_time_sizes(plan)],
    }


def launch_parameters(spec: Spec, initials: Sequence[str], *extra: Parameter) -> list[Parameter]:
    """What the launch is handed: the arguments of the public function, each state on its own under its name."""
    states = [Parameter(name, "Tensor | None", None, False, "") for name in initials]
    launched: list[Parameter] = []
    for parameter in (*parameters(spec), *extra):
        launched += states if parameter.name == "initial_state" else [parameter]
    return launched


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
