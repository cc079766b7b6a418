"""The contexts of `module.py` and of the package's `__init__.py`."""

from __future__ import annotations

import math
from collections.abc import Iterable

from flagen.backends.protocol import Rendering
from flagen.backends.signature import (
    first_state,
    input_doc,
    output_doc,
    param_doc,
    parameters,
    state_annotation,
    state_shapes,
)
from flagen.backends.text import cited, one_line, tuple_of
from flagen.backends.torch_.printer import Code, Printer
from flagen.diagnostics import InternalError
from flagen.plan.free_names import free_name
from flagen.plan.model import LevelPlan, Plan, RankPlan, SolvedPlan, StagedPlan
from flagen.plan.scan_kernel import ScanKernelPlan
from flagen.plan.unavailable import Unavailable
from flagen.spec.model import Expr, Following, Interval, Name, Param, Spec, sizes_in, walk


def package_file(plan: Plan) -> Rendering:
    """`__init__.py` of a package."""
    spec = plan.spec
    forms = [("naive_recurrent", f"naive_recurrent_{spec.name}")]
    if not isinstance(plan.chunk, Unavailable):
        forms.append(("naive_chunk", f"naive_chunk_{spec.name}"))
    if not isinstance(plan.chunk_kernel, Unavailable):
        forms.append(("chunk", f"chunk_{spec.name}"))
        # Stages, columns and rows have tiles of their own, and scans too few to choose from.
        if not isinstance(plan.chunk_kernel, StagedPlan | LevelPlan | RankPlan | SolvedPlan | ScanKernelPlan):
            forms.append(("chunk_tuning", f"tune_chunk_{spec.name}"))
    if not isinstance(plan.fused, Unavailable):
        forms.append(("fused_recurrent", f"fused_recurrent_{spec.name}"))
    if spec.layer is not None:
        return _package(plan, [*forms, ("layer", spec.layer.class_name)])
    return _package(plan, [*forms, ("module", spec.class_name)])


def layer_package_file(plan: Plan) -> Rendering:
    """`__init__.py` of a package that is a layer and nothing else."""
    assert plan.spec.layer is not None, "there is a layer"
    return _package(plan, [("layer", plan.spec.layer.class_name)])


def stage_package_file(plan: Plan) -> Rendering:
    """`__init__.py` of a stage's package, which has the forms by chunks alone."""
    name = plan.spec.name
    forms = [("naive_chunk", f"naive_chunk_{name}")]
    if not isinstance(plan.chunk_kernel, Unavailable):
        forms.append(("chunk", f"chunk_{name}"))
        if not isinstance(plan.chunk_kernel, RankPlan | SolvedPlan | ScanKernelPlan):
            forms.append(("chunk_tuning", f"tune_chunk_{name}"))
    return _package(plan, forms)


def _package(plan: Plan, forms: list[tuple[str, str]]) -> Rendering:
    spec = plan.spec
    return Rendering(
        "__init__.py",
        "torch/package.py.j2",
        {
            "title": one_line(spec.title or spec.name),
            "cited": cited(spec.paper),
            "description": one_line(spec.description),
            "imports": forms,
            "exported": sorted(name for _, name in forms),
        },
    )


def module_file(plan: Plan) -> Rendering:
    """`module.py` of a package."""
    spec = plan.spec
    tensors = [p for p in spec.params if p.is_tensor]
    scalars = [p for p in spec.params if not p.is_tensor]
    needed = dict.fromkeys(size for p in tensors for size in _sizes(p))
    following = _following(spec, needed)
    computed = {entry.name for entry in following}
    sources = (size for entry in following for size in sizes_in(entry.value))
    sizes = [size for size in dict.fromkeys((*needed, *sources)) if size not in computed]

    def known(size: str) -> str:
        return f"self.{size}" if size in computed else size

    documented = {p.name: p for p in parameters(spec)}
    settings = [(p.name, "float" if p.default is None else "float | None", p.default is None) for p in scalars]
    keywords = (*(name for name, _, _ in settings), *_step_argument(spec))
    return Rendering(
        "module.py",
        "torch/module.py.j2",
        {
            "name": spec.name,
            "class_name": spec.class_name,
            "title": one_line(spec.title or spec.name),
            "description": one_line(spec.description),
            "inputs": [(i.name, input_doc(spec, i)) for i in spec.inputs],
            "sizes": [
                {"name": size, "doc": "value heads" if size == "HV" else f"size of dim {size}"} for size in sizes
            ],
            "computed": [
                {"name": entry.name, "of": ", ".join(f"{size}={known(size)}" for size in sizes_in(entry.value))}
                for entry in following
            ],
            "params": [
                {
                    "name": p.name,
                    "shape": tuple_of(map(known, (("HV",) if p.per_head else ()) + p.dims)),
                    "doc": param_doc(spec, p),
                    "initial": _initial(p),
                }
                for p in tensors
            ],
            "settings": [
                {
                    "name": name,
                    "declaration": f"{name}: {annotation}{'' if required else ' = None'}",
                    "doc": documented[name].doc,
                }
                for name, annotation, required in settings
            ],
            "steps": _steps(spec),
            "carry_state": free_name("carry_state", {i.name for i in spec.inputs}),
            "keywords": tuple_of(map(repr, keywords)) if keywords else "",
            "arguments": tuple_of(map(repr, (*sizes, *keywords, "carry_state"))),
            "state_annotation": state_annotation(spec),
            "state_shapes": state_shapes(spec),
            "first_state": first_state(spec),
            "output_doc": output_doc(spec),
            "form": _form(plan),
            "has_chunk": not isinstance(plan.chunk, Unavailable),
            "has_chunk_kernel": not isinstance(plan.chunk_kernel, Unavailable),
            "has_fused": not isinstance(plan.fused, Unavailable),
        },
    )


def _steps(spec: Spec) -> dict[str, str] | None:
    """The step count as an argument of the constructor."""
    if spec.steps is None:
        return None
    argument, default = spec.steps.argument, spec.steps.default
    return {"argument": argument, "declaration": f"{argument}: int{'' if default is None else f' = {default}'}"}


def _form(plan: Plan) -> str:
    """The operator that a call runs: that by chunks, where there is one and the call is long."""
    spec = plan.spec
    by_token = f"{'naive_recurrent' if isinstance(plan.fused, Unavailable) else 'fused_recurrent'}_{spec.name}"
    if isinstance(plan.chunk, Unavailable):
        return by_token
    by_chunks = f"{'naive_chunk' if isinstance(plan.chunk_kernel, Unavailable) else 'chunk'}_{spec.name}"
    first = spec.inputs[0]
    rows = f", self.{spec.steps.argument}" if first.per == "step" and spec.steps is not None else ""
    return f"{by_chunks} if self._is_long({first.name}{rows}) else {by_token}"


def _step_argument(spec: Spec) -> tuple[str, ...]:
    return () if spec.steps is None else (spec.steps.argument,)


def _sizes(param: Param) -> tuple[str, ...]:
    """The sizes a param's shape and default need."""
    names = () if param.default is None else tuple(n.name for n in walk(param.default) if isinstance(n, Name))
    return (*(("HV",) if param.per_head else ()), *param.dims, *names)


def _following(spec: Spec, sizes: Iterable[str]) -> list[Following]:
    """Those of `sizes` that follow from others, and what they follow from that does so too."""
    found, pending = set[str](), set(sizes)
    for entry in reversed(spec.following):
        if entry.name in pending:
            found.add(entry.name)
            pending |= {*sizes_in(entry.value)}
    return [entry for entry in spec.following if entry.name in found]


def _initial(param: Param) -> str:
    """How a param starts: its default, or at random inside its declared range."""
    if param.default is not None:
        return f"nn.init.constant_(self.{param.name}, {Printer(_number_name).print(param.default).text})"
    low, high = _unit_interval(param.range)
    if low is None or high is None:
        return f"nn.init.normal_(self.{param.name}, std=0.02)"
    return f"nn.init.uniform_(self.{param.name}, {low:g}, {high:g})"


def _number_name(expr: Expr) -> Code:
    """Names in a param's default are sizes."""
    if not isinstance(expr, Name):
        raise InternalError("a param's default reads a state")
    return Code(f"self.{expr.name}", (), "number")


def _unit_interval(interval: Interval) -> tuple[float | None, float | None]:
    """Where inside a range to start: all of it where it is finite, within 1 of its finite end, or anywhere."""
    low, high = interval.low, interval.high
    if math.isinf(low) and math.isinf(high):
        return None, None
    if math.isinf(low):
        return high - 1, high
    return low, (low + 1 if math.isinf(high) else high)
