"""What the contexts of all PyTorch files share: names, signature, documentation, the argument check."""

from __future__ import annotations

from collections.abc import Iterator

from flagen.backends.signature import (
    Parameter,
    argument_docs,
    output_doc,
    output_dtype,
    signature,
    state_annotation,
    state_doc,
)
from flagen.backends.text import cited, one_line
from flagen.spec.model import Repeat, Spec
from flagen.spec.printer import to_source


def common_context(spec: Spec, *extra: Parameter) -> dict[str, object]:
    """The context of a file that holds one function with the shared signature (and `extra` keywords)."""
    return {
        "name": spec.name,
        "title": one_line(spec.title or spec.name),
        "cited": cited(spec.paper),
        "equations": equations(spec),
        "signature": signature(spec, *extra),
        "argument_docs": argument_docs(spec, *extra),
        "output_doc": output_doc(spec),
        "state_doc": state_doc(spec),
        "state_annotation": state_annotation(spec),
        "output_dtype": output_dtype(spec),
        "check": check_call(spec),
    }


def equations(spec: Spec) -> list[str]:
    """The recurrence as the spec writes it, a statement a line."""
    lines = [f"{d.name} = {to_source(d.value)}" for d in spec.derived]
    for statement in spec.update:
        if isinstance(statement, Repeat):
            assert spec.steps is not None
            lines.append(f"for each of the {spec.steps.argument} micro-steps:")
            lines += [f"    {inner.target} = {to_source(inner.value)}" for inner in statement.body]
        else:
            lines.append(f"{statement.target} = {to_source(statement.value)}")
    return lines + [f"{statement.target} = {to_source(statement.value)}" for statement in spec.output]


def params_as_given(spec: Spec) -> Iterator[str]:
    """The params as they are handed on to another function."""
    yield from (param.name for param in spec.params if param.is_tensor and param.default is None)
    yield from (
        f"{param.name}={param.name}" for param in spec.params if not (param.is_tensor and param.default is None)
    )


def check_call(spec: Spec, **named: str) -> str:
    """The check of a call; `named` are keywords that it adds, or gives another value than their name."""
    tensors = [*(i.name for i in spec.inputs), *(p.name for p in spec.params if p.is_tensor)]
    steps = {"steps": spec.steps.argument} if spec.steps else {}
    keywords = {**steps, "initial_state": "initial_state", "cu_seqlens": "cu_seqlens", **named}
    return f"CALL.check({', '.join((*tensors, *(f'{name}={value}' for name, value in keywords.items())))})"
