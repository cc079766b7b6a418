"""Calls of a variant's operators, with arguments made up from its spec alone, and their backward."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from flagen.inspection.model import Size
from flagen.plan.cost import ROWS
from flagen.spec.model import Interval, Spec
from flagen.spec.sizes import fitting

SAVING = "save_states"
"""The argument with which an operator keeps states for its gradients, instead of computing them again."""


@dataclass(frozen=True)
class Workload:
    """How much a call is about: `runs` sequences of `tokens` each, one batch or packed into one."""

    size: Size
    tokens: int
    runs: int = 1
    H: int = 1
    groups: int = 1
    packed: bool = False
    initial_state: bool = False
    final_state: bool = False


BETWEEN = 64
"""The most that a dim in between has: slots, or the states of a channel."""

PAIRED = 16
"""The most that a dim has of which a state has all pairs with another one."""


def sizes(spec: Spec, workload: Workload) -> dict[str, int]:
    """The size of every dim, the numbers of heads, and the number of micro-steps."""
    few = dict.fromkeys(spec.row_dims, min(ROWS, *workload.size))
    # As many levels as tell the tokens of a sequence apart.
    few |= {} if spec.levels is None else {spec.levels.dim: workload.tokens.bit_length() + 1}
    between = {state.dims[1] for state in spec.states if len(state.dims) == 2} - {*spec.output_dims, *few}
    of_pairs = (state for state in spec.states if len(state.dims) > 2 and few.keys().isdisjoint(state.dims))
    paired = {dim for state in of_pairs for dim in state.dims} - set(spec.output_dims)
    ends = [dim for dim in spec.dims if dim not in between | paired | few.keys()]
    named = {**few, **{dim: min(BETWEEN, *workload.size) for dim in between}}
    named |= {dim: min(PAIRED, *workload.size) for dim in paired}
    named |= {dim: workload.size[place % 2 if not paired else 1] for place, dim in enumerate(ends)}
    grouped = spec.has_value_heads and any(decl.heads == "H" for decl in spec.inputs)
    named |= {"H": workload.H, "HV": workload.H * (workload.groups if grouped else 1)}
    named = fitting(spec, named)
    if spec.steps is not None:
        named[spec.steps.symbol] = spec.steps.default or 2
    return named


def arguments(spec: Spec, workload: Workload) -> dict[str, Any]:
    """Every argument by name: inputs and params in bf16 and states in float32, both with what memory holds.

    Only the shapes are meant to be looked at. `settle` gives the tensors values that a kernel can run on.
    """
    named = sizes(spec, workload)
    steps = named[spec.steps.symbol] if spec.steps else 1
    batch, tokens = (1, workload.runs * workload.tokens) if workload.packed else (workload.runs, workload.tokens)
    given: dict[str, Any] = {}
    for decl in spec.inputs:
        rows = tokens * (steps if decl.per == "step" else 1)
        given[decl.name] = _bf16(batch, rows, named[decl.heads], *(named[dim] for dim in decl.dims))
    for param in spec.params:
        if param.is_tensor:
            heads = (named["HV"],) if param.per_head else ()
            given[param.name] = _bf16(*heads, *(named[dim] for dim in param.dims))
        elif param.default is None:
            given[param.name] = within(param.range)
    if spec.steps is not None:
        given[spec.steps.argument] = steps
    if workload.initial_state:
        make = {state.name: torch.empty if state.dims else torch.zeros for state in spec.states}  # Counts are read.
        states = [
            make[state.name](workload.runs, named["HV"], *(named[dim] for dim in state.dims), dtype=torch.float32)
            for state in spec.states
        ]
        given["initial_state"] = states[0] if len(states) == 1 else tuple(states)
    if workload.packed:
        given["cu_seqlens"] = torch.arange(0, tokens + 1, workload.tokens)
    return given | {"output_final_state": workload.final_state}


def settle(spec: Spec, given: Mapping[str, Any]) -> None:
    """Fill the tensors among the inputs and params with a number of their range. What a kernel moves and computes does
    not depend on it."""
    ranges = {decl.name: decl.range for decl in spec.inputs} | {param.name: param.range for param in spec.params}
    for name, interval in ranges.items():
        if isinstance(given.get(name), Tensor):
            given[name].fill_(within(interval))


def memory_modes(operator: Callable[..., object]) -> Iterator[dict[str, bool]]:
    """What an operator can be told of the memory for its gradients: nothing, and `save_states` where it takes that."""
    yield {}
    if SAVING in inspect.signature(operator).parameters:
        yield {SAVING: True}


def require_gradients(given: Mapping[str, Any]) -> list[Tensor]:
    """Let every tensor of floating point among the arguments require a gradient; all of them, in order."""
    tensors = [leaf for leaf in tree_leaves(dict(given)) if isinstance(leaf, Tensor) and leaf.is_floating_point()]
    return [tensor.requires_grad_() for tensor in tensors]


def differentiate(operator: Callable[..., Any], given: Mapping[str, Any]) -> Callable[[], None]:
    """Call an operator whose arguments want gradients. What comes back is its backward: from gradients of all that the
    call returned, those of all arguments; nothing where it returned nothing to go back from."""
    wanted = require_gradients(given)
    leaves = [leaf for leaf in tree_leaves(operator(**given)) if isinstance(leaf, Tensor)]
    results = [leaf for leaf in leaves if leaf.requires_grad]

    def backward() -> None:
        if results:
            torch.autograd.grad(results, wanted, [torch.empty_like(x) for x in results], allow_unused=True)

    return backward


def within(interval: Interval) -> float:
    """The number of a range that is nearest to a half."""
    return min(max(0.5, interval.low), interval.high)


def _bf16(*shape: int) -> Tensor:
    return torch.empty(shape, dtype=torch.bfloat16)
