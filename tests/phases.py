"""Angles in turns as tests compare them: 0.0 and 1.0 are one angle, and rounding may leave a state at either."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from flagen.spec.model import Call, Expr, Name, Repeat, Spec


def phases(spec: Spec) -> frozenset[str]:
    """The states of which whole turns are dropped: what a token assigns to them last is a fraction."""
    values: dict[str, Expr] = {}
    for statement in spec.update:
        for assign in statement.body if isinstance(statement, Repeat) else (statement,):
            value = assign.value
            values[assign.target] = values.get(value.name, value) if isinstance(value, Name) else value
    fractions = {name for name, value in values.items() if isinstance(value, Call) and value.function == "fraction"}
    return frozenset(state.name for state in spec.states if state.name in fractions)


def compared(spec: Spec, states: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """The states of `spec`, in order, with points of the unit circle, [..., 2], for phases."""
    found = phases(spec)
    pairs = zip(spec.states, states, strict=True)
    return tuple(on_circle(x) if state.name in found else x for state, x in pairs)


def on_circle(x: Tensor) -> Tensor:
    """The point at an angle of `x` turns."""
    angle = 2 * math.pi * x.double()
    return torch.stack([angle.cos(), angle.sin()], dim=-1).to(x.dtype)
