"""The signature every function of a package shares, and its docstring: argument order, shapes, units, defaults.

Printed once here, so that the PyTorch and the Triton forms of a variant cannot drift apart.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from flagen.backends.text import one_line, wrapped
from flagen.plan.free_names import free_name
from flagen.plan.neutral import log_weights
from flagen.spec.model import Dims, Input, Interval, Param, Spec
from flagen.spec.printer import to_source

_DOC_WIDTH = 112  # of a line in a function's docstring, under its indent

_STATE_DTYPE = "float32 (float64 where an input is)"
_CU_SEQLENS = "[{2} + 1] token offsets of packed sequences, int32 or int64; needs {0} = 1."


def leading_axes(spec: Spec) -> tuple[str, str, str]:
    """What batch, tokens and sequences are called in shapes: B, T and N, where no dim has that name."""
    named = (("B", "batch"), ("T", "tokens"), ("N", "sequences"))
    taken = {*spec.dims, *(spec.written.get(dim, dim) for dim in spec.dims)}
    batch, tokens, runs = (short if short not in taken else free_name(long, taken) for short, long in named)
    return batch, tokens, runs


@dataclass(frozen=True)
class Parameter:
    """One parameter of a generated function: how it is written in the signature, and its line of documentation."""

    name: str
    annotation: str
    default: str | None
    keyword: bool
    doc: str

    @property
    def declaration(self) -> str:
        return f"{self.name}: {self.annotation}" + ("" if self.default is None else f" = {self.default}")


def parameters(spec: Spec) -> tuple[Parameter, ...]:
    """Every parameter in signature order: inputs, tensor params, then keywords."""
    tensors = [p for p in spec.params if p.is_tensor]
    positional = [Parameter(i.name, "Tensor", None, False, input_doc(spec, i)) for i in spec.inputs]
    positional += [Parameter(p.name, "Tensor", None, False, param_doc(spec, p)) for p in tensors if p.default is None]
    optional = [
        Parameter(p.name, "Tensor | None", "None", True, param_doc(spec, p)) for p in tensors if p.default is not None
    ]
    scalars = [
        Parameter(p.name, "float", None, True, param_doc(spec, p))
        if p.default is None
        else Parameter(p.name, "float | None", "None", True, param_doc(spec, p))
        for p in spec.params
        if not p.is_tensor
    ]
    return (*positional, *optional, *scalars, *_steps(spec), *_carried(spec))


def _steps(spec: Spec) -> tuple[Parameter, ...]:
    if spec.steps is None:
        return ()
    default = None if spec.steps.default is None else str(spec.steps.default)
    return (Parameter(spec.steps.argument, "int", default, True, "micro-steps per token."),)


def _carried(spec: Spec) -> tuple[Parameter, ...]:
    states = f"{state_shapes(spec)}{states_note(spec)}{_size_note(spec, 'states')}; default {first_state(spec)}."
    return (
        Parameter("initial_state", f"{state_annotation(spec)} | None", "None", True, states),
        Parameter("output_final_state", "bool", "False", True, "also return the state after the last token."),
        Parameter("cu_seqlens", "Tensor | None", "None", True, _CU_SEQLENS.format(*leading_axes(spec))),
    )


def signature(spec: Spec, *extra: Parameter) -> tuple[str, ...]:
    """The lines between the parentheses of a generated `def`, `*` included; `extra` keywords go last."""
    every = (*parameters(spec), *extra)
    positional = [p.declaration for p in every if not p.keyword]
    # A required keyword may stand after an optional one: everything behind the star goes by name.
    return (*positional, "*", *(p.declaration for p in every if p.keyword))


def handed_on(spec: Spec, *extra: Parameter) -> Iterator[str]:
    """The arguments of a function, as it hands them to another one of the same signature."""
    for parameter in (*parameters(spec), *extra):
        yield f"{parameter.name}={parameter.name}" if parameter.keyword else parameter.name


def argument_docs(spec: Spec, *extra: Parameter) -> tuple[str, ...]:
    """`name: what it is` for every parameter, as the lines of a docstring's Args section."""
    return tuple(line for p in (*parameters(spec), *extra) for line in wrapped(f"{p.name}: {p.doc}", _DOC_WIDTH))


def input_shape(spec: Spec, decl: Input) -> str:
    """`[B, T, HV, K]`, the shape users pass; a per-step input has T * n rows."""
    batch, tokens, _ = leading_axes(spec)
    rows = tokens if decl.per == "token" or spec.steps is None else f"{tokens} * {spec.steps.argument}"
    return f"[{', '.join((batch, rows, decl.heads, *decl.dims))}]"


def param_shape(decl: Param) -> str:
    """`[HV, K]` for a tensor param."""
    return f"[{', '.join((*(('HV',) if decl.per_head else ()), *decl.dims))}]"


def output_shape(spec: Spec) -> str:
    return result_shape(spec, spec.output_dims)


def result_shape(spec: Spec, dims: Dims) -> str:
    """`[B, T, HV, K]`: what a function returns for every token."""
    return f"[{', '.join((*leading_axes(spec)[:2], 'HV', *dims))}]"


def output_like(spec: Spec) -> str:
    """The input whose dtype the output takes."""
    return result_like(spec, spec.output_dims)


def result_like(spec: Spec, dims: Dims) -> str:
    """The input whose dtype a result over `dims` takes: the first that carries these dims, else the first."""
    return next((i.name for i in spec.inputs if set(dims) <= set(i.dims)), spec.inputs[0].name)


def output_dtype(spec: Spec) -> str:
    """The output's dtype, as a function writes it."""
    return "args.dtype" if "o" in spec.wide_outputs else f"{output_like(spec)}.dtype"


def output_doc(spec: Spec) -> str:
    """The output's shape and dtype."""
    return result_doc(spec, "o", spec.output_dims)


def result_doc(spec: Spec, name: str, dims: Dims) -> str:
    """The shape and the dtype of a result."""
    dtype = _STATE_DTYPE if name in spec.wide_outputs else f"{result_like(spec, dims)}'s dtype"
    return f"{result_shape(spec, dims)} in {dtype}"


def state_doc(spec: Spec) -> str:
    """The shape and the dtype of the states."""
    return f"{state_shapes(spec)} in {_STATE_DTYPE}"


def state_annotation(spec: Spec) -> str:
    if len(spec.states) == 1:
        return "Tensor"
    return f"tuple[{', '.join('Tensor' for _ in spec.states)}]"


def state_shapes(spec: Spec) -> str:
    """`[N, HV, K, V]`, or a tuple of such shapes in declared order."""
    shapes = [f"[{', '.join((leading_axes(spec)[2], 'HV', *state.declared))}]" for state in spec.states]
    return shapes[0] if len(shapes) == 1 else f"({', '.join(shapes)})"


def states_note(spec: Spec) -> str:
    """What those states are that no one declared: `; the last 2 are what prev(k) and prev(v) are at the next token`."""
    meanings = [state.meaning for state in spec.states if state.meaning]
    if not meanings:
        return ""
    if len(spec.states) == 1:
        return f": what {meanings[0]} is at the next token"
    which = "the last one is" if len(meanings) == 1 else f"the last {len(meanings)} are"
    named = " and ".join(part for part in (", ".join(meanings[:-1]), meanings[-1]) if part)
    return f"; {which} what {named} {'is' if len(meanings) == 1 else 'are'} at the next token"


def first_state(spec: Spec) -> str:
    """What a sequence starts from."""
    inits = {state.init for state in spec.states}
    return "zero" if inits == {0.0} else ", ".join(f"{state.init:g}" for state in spec.states)


def input_doc(spec: Spec, decl: Input) -> str:
    head_note = "; HV is a multiple of H" if decl.heads == "HV" and _first_value_input(spec) == decl.name else ""
    text = one_line(decl.description).rstrip(".,;:")
    what = f"{text + ', ' if text else ''}{input_shape(spec, decl)}{range_note(decl.range)}{head_note}"
    return f"{what}{_size_note(spec, decl.name)}{_padding_note(spec, decl)}."


def _padding_note(spec: Spec, decl: Input) -> str:
    """What padding has to be, where a zero is not it."""
    weight = log_weights(spec).get(decl.name)
    if weight is None:
        return ""
    leaves = "leaves all states as they are" if weight.neutral else f"adds nothing to {' and '.join(weight.states)}"
    return (
        "; a log weight, so that 0 counts as exp(0) = 1: padding has a number far below the others, such as -1e4, "
        f"which with zeros elsewhere {leaves}"
    )


def param_doc(spec: Spec, decl: Param) -> str:
    text = one_line(decl.description).rstrip(".,;:")
    shape = param_shape(decl) if decl.is_tensor else "a number"
    default = "" if decl.default is None else f"; default {to_source(decl.default)}"
    return f"{text + ', ' if text else ''}{shape}{range_note(decl.range)}{_size_note(spec, decl.name)}{default}."


def _size_note(spec: Spec, name: str) -> str:
    """What the sizes are that follow from others, with the first argument that has them; `states` for the last."""
    carriers = [(decl.name, decl.dims) for decl in spec.inputs]
    carriers += [(decl.name, decl.dims) for decl in spec.params]
    carriers += [("states", decl.declared) for decl in spec.states]
    first: dict[str, str] = {}
    for carrier, dims in carriers:
        first |= {dim: carrier for dim in dims if dim not in first}
    own = [f"{entry.name} is {to_source(entry.value)}" for entry in spec.following if first.get(entry.name) == name]
    return "".join(f"; {note}" for note in own)


def _first_value_input(spec: Spec) -> str | None:
    return next((i.name for i in spec.inputs if i.heads == "HV"), None)


def range_note(interval: Interval) -> str:
    """`, in [0, 1]`, as it follows a shape; nothing where any value is fine."""
    low, high = interval.low, interval.high
    if math.isinf(low) and math.isinf(high):
        return ""
    if math.isinf(low):
        return f", at most {high:g}"
    if math.isinf(high):
        return f", at least {low:g}"
    return f", in [{low:g}, {high:g}]"
