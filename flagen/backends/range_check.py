"""The check of declared ranges, which functions with kernels make where it is asked for."""

from __future__ import annotations

from dataclasses import dataclass

from flagen.backends.signature import Parameter, parameters
from flagen.backends.text import wrapped
from flagen.plan.free_names import free_name
from flagen.plan.reliance import has_range
from flagen.spec.model import Input, Param, Spec


@dataclass(frozen=True)
class RangeCheck:
    """What a public function has of it: lines of its signature, its Args section and its body, and what it raises."""

    signature: tuple[str, ...] = ()
    docs: tuple[str, ...] = ()
    body: tuple[str, ...] = ()
    raises: str = ""


NO_CHECK = RangeCheck()
RANGES = "ranges"
"""The value of a context that holds the check. A stage has none: its inputs are those of the whole, or made of them."""


def with_ranges(spec: Spec) -> tuple[Input | Param, ...]:
    declared: tuple[Input | Param, ...] = (*spec.inputs, *spec.params)
    return tuple(decl for decl in declared if has_range(decl))


def range_check(spec: Spec) -> RangeCheck:
    """The check of `spec`, if it declares a range. Its argument gives way to the spec's names."""
    declared = with_ranges(spec)
    if not declared:
        return NO_CHECK
    doc = (
        "raise where a value is outside its range (a NaN is not); default whether FLAGEN_CHECK_RANGES=1 is set. It "
        "waits for the device, and breaks the graph of torch.compile."
    )
    name = free_name("check_ranges", {p.name for p in parameters(spec)})
    parameter = Parameter(name, "bool | None", "None", True, doc)
    given = ", ".join((name, *(f"{decl.name}={decl.name}" for decl in declared)))
    return RangeCheck(
        (parameter.declaration,),
        wrapped(f"{parameter.name}: {parameter.doc}", 112),
        (f"CALL.check_ranges({given})",),
        f";\n            with `{name}`, a value outside its range",
    )
