"""The context of `arguments.py`: the table by which a package checks its arguments."""

from __future__ import annotations

import math

from flagen.backends.protocol import Rendering
from flagen.backends.range_check import with_ranges
from flagen.backends.signature import leading_axes
from flagen.backends.text import tuple_of
from flagen.plan.model import Plan
from flagen.spec import to_source
from flagen.spec.model import Following, Input, Spec, sizes_in
from flagen.spec.renaming import expression_renamed
from flagen.spec.sizes import as_fraction


def arguments_file(plan: Plan) -> Rendering:
    """`arguments.py` of a package."""
    spec, flat = plan.spec, plan.derivation.spec
    params = [p for p in spec.params if p.is_tensor]
    batch, tokens, runs = leading_axes(spec)
    return Rendering(
        "arguments.py",
        "torch/arguments.py.j2",
        {
            "name": spec.name,
            "dims": tuple(dict.fromkeys((*spec.dims, *flat.dims))),
            "inputs": [(i.name, _axes(batch, _rows(spec, i, tokens), i.heads, *i.dims)) for i in spec.inputs],
            "params": [{"name": p.name, "axes": _axes(*(("HV",) if p.per_head else ()), *p.dims)} for p in params],
            "optional": [p.name for p in params if p.default is not None],
            "states": [
                {"name": state.name, "axes": _axes(runs, "HV", *state.declared), "init": _number(state.init)}
                for state in spec.states
            ],
            "steps": spec.steps.argument if spec.steps else None,
            "declared_ranges": _ranges(spec),
            "following": [_size(spec, entry) for entry in flat.following],
            "written": {dim: spec.written[dim] for dim in spec.dims if dim in spec.written},
        },
    )


def _size(spec: Spec, entry: Following) -> dict[str, str]:
    """The rule by which a size follows from others."""
    of = sizes_in(entry.value)
    over, under = (to_source(part) for part in as_fraction(entry.value))
    return {
        "dim": entry.name,
        "formula": to_source(expression_renamed(entry.value, spec.written)),
        "of": tuple_of(map(repr, of)),
        "quotient": f"lambda{' ' * bool(of)}{', '.join(of)}: ({over}, {under})",
    }


def _axes(*names: str) -> str:
    return tuple_of(map(repr, names))


def _ranges(spec: Spec) -> str:
    """The ranges of what has one, as a dict display; nothing where nothing has."""
    bounds = (f'"{d.name}": ({_number(d.range.low)}, {_number(d.range.high)})' for d in with_ranges(spec))
    return f"{{{', '.join(bounds)}}}" if with_ranges(spec) else ""


def _rows(spec: Spec, decl: Input, tokens: str) -> str:
    """What the second axis of an input is called."""
    return tokens if decl.per == "token" or spec.steps is None else f"{tokens} * {spec.steps.argument}"


def _number(value: float) -> str:
    if math.isinf(value):
        return "math.inf" if value > 0 else "-math.inf"
    return repr(value)
