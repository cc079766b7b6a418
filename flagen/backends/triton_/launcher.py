"""The context of `fused_recurrent.py`: the public function that launches the kernel."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from flagen.backends.signature import parameters
from flagen.backends.text import tuple_of
from flagen.backends.torch_.common import common_context
from flagen.backends.torch_.scope import Scope
from flagen.backends.triton_.kernel import tensor_names
from flagen.plan.fused import FusedPlan
from flagen.spec.model import Spec


def launcher_context(plan: FusedPlan) -> Mapping[str, object]:
    """Every value `triton/fused_recurrent.py.j2` uses."""
    spec, split = plan.spec, plan.split
    blocks = [] if split is None else [f'-(-args.{split.dim} // config["BLOCK_{split.dim}"])']
    partial = split is not None and split.partial
    output = ["args.batch", "args.tokens", "args.HV", *(f"args.{dim}" for dim in spec.output_dims)]
    finals = [f"{state.name}_final" for state in spec.states]
    return {
        **common_context(spec),
        "tensors": tensor_names(spec),
        "forwarded": [p.name if not p.keyword else f"{p.name}={p.name}" for p in parameters(spec)],
        "defaults": list(_defaults(spec)),
        "config_arguments": [f"args.{dim}" for dim in plan.order],
        "blocks": blocks,
        "programs": " * ".join(("args.runs", "args.HV", *(["blocks"] if blocks else []))),
        "partial": partial,
        "output_shape": ", ".join([*output[:3], "blocks", *output[3:]] if partial else output),
        "states": [
            {"name": state.name, "shape": ", ".join(("args.runs", "args.HV", *(f"args.{dim}" for dim in state.dims)))}
            for state in spec.states
        ],
        "initials": ["initial_state"] if len(finals) == 1 else [f"{state.name}_initial" for state in spec.states],
        "finals": finals[0] if len(finals) == 1 else tuple_of(finals),
        "scalars": [param.name for param in spec.params if not param.is_tensor],
        "compile_time": [*_steps(spec), *_heads(plan), *(f"{dim}=args.{dim}" for dim in plan.order)],
    }


def _steps(spec: Spec) -> list[str]:
    return [] if spec.steps is None else [f"{spec.steps.symbol}={spec.steps.argument}"]


def _heads(plan: FusedPlan) -> list[str]:
    return ["H=args.H", "HV=args.HV"] if plan.needs_key_heads else ["HV=args.HV"]


def _defaults(spec: Spec) -> Iterator[tuple[str, str]]:
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
