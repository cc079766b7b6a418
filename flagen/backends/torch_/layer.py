"""The context of `layer.py`: the module around the operators, as a person would write it."""

from __future__ import annotations

from flagen.backends.protocol import Rendering
from flagen.backends.text import cited, one_line
from flagen.backends.torch_.layer_constructor import Constructor
from flagen.backends.torch_.layer_docs import annotation, argument, argument_doc, class_doc, input_doc
from flagen.backends.torch_.layer_forward import Forward
from flagen.backends.torch_.layer_names import BASE, LayerNames
from flagen.backends.torch_.layer_printer import MODULES, literal
from flagen.backends.torch_.layer_starts import Starts
from flagen.plan.layer import LayerPlan, Operator
from flagen.spec.layer.model import may_be_none
from flagen.spec.model import Spec


def layer_file(plan: LayerPlan, spec: Spec) -> Rendering:
    """`layer.py` of a package."""
    return Rendering("layer.py", "torch/layer.py.j2", _context(plan, spec))


def _context(plan: LayerPlan, spec: Spec) -> dict[str, object]:
    layer, names = plan.layer, LayerNames(plan.layer)
    forward, starts = Forward(plan, spec, names), Starts(plan, names)
    # The constructor comes last: it keeps what the other methods read.
    statements, resets = list(forward.lines()), list(starts.resets())
    missing, placing, leaving = list(forward.missing()), list(forward.placing()), list(forward.leaving())
    construction = Constructor(plan, names).lines(starts.unmarked)
    body = "\n".join((*statements, *resets, *construction))
    cached = list(forward.cached.values())
    return {
        "title": one_line(spec.title or spec.name),
        "cited": cited(spec.paper),
        "around": "this package" if spec.recurrence_of is None else f"`{spec.recurrence_of.name}`",
        "class_name": layer.class_name,
        "doc": list(class_doc(layer, spec)),
        "base": ", ".join(f"{name}={name}" for name in BASE if name in {config.name for config in layer.config}),
        "config": [argument(config, config.name in may_be_none(layer)) for config in layer.config],
        "config_docs": [line for config in layer.config for line in argument_doc(config)],
        "kwargs": layer.kwargs,
        "checked": bool(layer.require) or any(c.one_of for c in layer.config) or "integer(" in body or "check_" in body,
        "operators": [_operator(operator, forward.constants[operator.name]) for operator in plan.operators],
        "imports": _imports(f"\n{body}"),
        "construction": construction,
        "resets": resets,
        "inputs": [
            (i.name, annotation(i.default, optional=i.default is None), literal(i.default)) for i in layer.inputs
        ],
        "input_docs": [line for i in layer.inputs for line in input_doc(i)],
        "keywords": "".join(f', "{i.name}"' for i in layer.inputs),
        "multiply": layer.mask == "multiply",
        "missing": missing,
        "placing": placing,
        "packs": [i.name for i in layer.inputs if i.per == "token"],
        "outputs": layer.outputs,
        "forward": statements,
        "past": forward.past,
        "keep": forward.keep,
        "cached": cached,
        "nothing": ", ".join("None" for _ in cached),
        "leaving": leaving,
    }


def _operator(operator: Operator, constant: str) -> dict[str, object]:
    package = f"..{operator.spec.name}." if operator.elsewhere else "."
    return {
        "constant": constant,
        "imports": [(f"{package}{form}", f"{form}_{operator.spec.name}") for form in operator.forms],
        "forms": [(form, f"{form}_{operator.spec.name}") for form in operator.forms],
    }


def _imports(text: str) -> list[tuple[str, list[str]]]:
    """What code imports from the files that all packages share, file by file."""
    files = {
        **MODULES,
        "shared.functional": ("activate", "check_activation", "l2norm", "lerp"),
        "shared.initialize": (
            *("check_sizes", "check_sizes_or_none", "integer", "inverse_softplus", "log_uniform"),
            *("no_weight_decay", "normal", "positions", "uniform"),
        ),
        "shared.shift": ("shift",),
    }
    found = ((file, [name for name in names if _calls(text, name)]) for file, names in files.items())
    return [(file, names) for file, names in found if names]


def _calls(text: str, name: str) -> bool:
    """Whether code calls a function by its name alone."""
    return any(f"{before}{name}(" in text for before in (" ", "(", "-", "\n"))
