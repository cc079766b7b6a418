"""The context of `arguments.py`: the one argument check of a package."""

from __future__ import annotations

import math

from flagen.backends.protocol import Rendering
from flagen.backends.range_check import with_ranges
from flagen.backends.signature import leading_axes, state_annotation
from flagen.backends.stages import HERE, SHARED
from flagen.backends.text import tuple_of
from flagen.plan.model import Plan
from flagen.spec.model import Spec


def arguments_file(plan: Plan) -> Rendering:
    """`arguments.py` of a package."""
    spec = plan.spec
    params = [p for p in spec.params if p.is_tensor]
    batch, tokens, runs = leading_axes(spec)
    checks = []
    for decl in spec.inputs:
        rows = tokens if decl.per == "token" else _step_rows(spec, tokens)
        axes = tuple_of(repr(axis) for axis in (batch, rows, decl.heads, *decl.dims))
        steps = "" if decl.per == "token" or spec.steps is None else f", steps={spec.steps.argument}"
        checks.append(f'_fit(sizes, "{decl.name}", {decl.name}, {axes}{steps})')
    return Rendering(
        "arguments.py",
        "torch/arguments.py.j2",
        {
            "name": spec.name,
            SHARED: HERE,
            "inputs": [i.name for i in spec.inputs],
            "params": [
                {
                    "name": p.name,
                    "axes": tuple_of(repr(axis) for axis in ((("HV",) if p.per_head else ()) + p.dims)),
                    "optional": p.default is not None,
                }
                for p in params
            ],
            "declared_ranges": _ranges(spec),
            "steps": spec.steps.argument if spec.steps else None,
            "first": spec.inputs[0].name,
            "checks": checks,
            "first_value_input": next((i.name for i in spec.inputs if i.heads == "HV"), ""),
            "heads_are_grouped": spec.has_value_heads and any(i.heads == "H" for i in spec.inputs),
            "value_heads": "HV" if spec.has_value_heads else "H",
            "batch_axis": batch,
            "tokens_axis": tokens,
            "runs_axis": runs,
            "dims": spec.dims,
            "state_annotation": state_annotation(spec),
            "states": [
                {
                    "name": state.name,
                    "axes": tuple_of(repr(axis) for axis in (runs, "HV", *state.dims)),
                    "shape": ", ".join(("runs", "self.HV", *(f"self.{dim}" for dim in state.dims))),
                    "init": _number(state.init),
                }
                for state in spec.states
            ],
        },
    )


def _ranges(spec: Spec) -> str:
    """The ranges of what has one, as a dict display; nothing where nothing has."""
    bounds = (f'"{d.name}": ({_number(d.range.low)}, {_number(d.range.high)})' for d in with_ranges(spec))
    return f"{{{', '.join(bounds)}}}" if with_ranges(spec) else ""


def _step_rows(spec: Spec, tokens: str) -> str:
    return tokens if spec.steps is None else f"{tokens} * {spec.steps.argument}"


def _number(value: float) -> str:
    if math.isinf(value):
        return "math.inf" if value > 0 else "-math.inf"
    return repr(value)
