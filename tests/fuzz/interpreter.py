"""What a spec means: its expression trees evaluated one node at a time, token by token, in float64.

Written against the language's description alone, as the other side of a comparison with generated code. Every value is
a tensor [batch, value heads, *dims] with its axes in the order of the expression's dims.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor
from torch.nn import functional

from flagen.spec.model import (
    Assign,
    Binary,
    Call,
    Contract,
    Dims,
    Expr,
    Index,
    Name,
    Negate,
    Number,
    Outer,
    Over,
    Reduce,
    Repeat,
    Rotate,
    RowMap,
    Solution,
    Spec,
    StateRead,
    Transpose,
)

_FUNCTIONS = {
    "exp": torch.exp,
    "log": torch.log,
    "log1p": torch.log1p,
    "expm1": torch.expm1,
    "sqrt": torch.sqrt,
    "rsqrt": torch.rsqrt,
    "abs": torch.abs,
    "sign": torch.sign,
    "sigmoid": torch.sigmoid,
    "logsigmoid": functional.logsigmoid,
    "softplus": functional.softplus,
    "tanh": torch.tanh,
    "silu": functional.silu,
    "relu": torch.relu,
    "minimum": torch.minimum,
    "maximum": torch.maximum,
    "logaddexp": torch.logaddexp,
    "clamp": lambda x, low, high: torch.minimum(torch.maximum(x, low), high),
    "cos": torch.cos,
    "sin": torch.sin,
    "floor": torch.floor,
    "fraction": lambda x: x - torch.floor(x),
}

_OPERATORS = {
    "+": torch.add,
    "-": torch.sub,
    "*": torch.mul,
    "/": torch.div,
    "**": torch.pow,
}


@dataclass(frozen=True)
class Arguments:
    """A call's arguments: per-token inputs [B, T, heads, *dims], per-step ones [B, T * n, heads, *dims], tensor params,
    numbers, and the state before the first token, [runs, HV, *dims] each."""

    inputs: Mapping[str, Tensor]
    params: Mapping[str, Tensor]
    numbers: Mapping[str, float]
    sizes: Mapping[str, int]
    steps: int
    states: Mapping[str, Tensor]


@dataclass
class Scope:
    """What names mean at one moment, for the heads of one batch."""

    names: dict[str, Tensor]
    states: dict[str, Tensor]
    previous: dict[str, Tensor]
    lead: tuple[int, int]

    def evaluate(self, expr: Expr) -> Tensor:
        """The value of `expr`, [batch, heads, *expr.dims]."""
        match expr:
            case Number(value):
                return torch.full(self.lead, float(value), dtype=torch.float64)
            case Name(name):
                return self.names[name]
            case StateRead(name, previous):
                return self.previous[name] if previous else self.states[name]
            case Negate(value):
                return -self.evaluate(value)
            case Binary(op, left, right):
                return _OPERATORS[op](self.spread(left, expr.dims), self.spread(right, expr.dims))
            case Contract(left, right):
                return self.contract(left, right)
            case Transpose(value):
                axes = range(len(expr.dims))
                return self.evaluate(value).permute(0, 1, *(2 + axis for axis in reversed(axes)))
            case Outer(left, right):
                one, other = self.evaluate(left), self.evaluate(right)
                return (
                    one[(..., *[None] * len(right.dims))] * other[(slice(None), slice(None), *[None] * len(left.dims))]
                )
            case Call(function, args):
                return _FUNCTIONS[function](*(self.spread(arg, expr.dims) for arg in args))
            case Reduce(function, value, dim):
                return self.reduce(function, value, dim)
            case Rotate(value, angle, half):
                return _rotated(self.evaluate(value), self.evaluate(angle), half)
            case Over(value):
                return self.evaluate(value)
            case Index(dim):
                places = torch.arange(int(self.names[dim].max()), dtype=torch.float64)
                return places.expand(*self.lead, len(places))
            case Solution(matrix, right, shift):
                system = self.evaluate(matrix)
                if shift is not None:
                    system = system + torch.diag_embed(self.spread(shift, right.dims).expand(system.shape[:-1]))
                return torch.linalg.inv(system).matmul(self.spread(right, right.dims)[..., None])[..., 0]
            case RowMap("softmax", value):
                return torch.softmax(self.evaluate(value), dim=-1)
            case RowMap("l2norm", value):
                x = self.evaluate(value)
                return x * torch.rsqrt((x * x).sum(-1, keepdim=True) + 1e-6)
        raise AssertionError(f"no meaning for {expr}")

    def spread(self, expr: Expr, dims: Dims) -> Tensor:
        """The value of `expr` with an axis for each of `dims`: its own in the same order, and perhaps more."""
        x = self.evaluate(expr)
        for place, dim in enumerate(dims):
            if dim not in expr.dims:
                x = x.unsqueeze(2 + place)
        return x

    def contract(self, left: Expr, right: Expr) -> Tensor:
        before, after = len(left.dims) - 1, len(right.dims) - 1
        one = self.evaluate(left)[(..., *[None] * after)]
        other = self.evaluate(right)[(slice(None), slice(None), *[None] * before)]
        return (one * other).sum(2 + before)

    def reduce(self, function: str, value: Expr, dim: str | None) -> Tensor:
        axes = [2 + place for place, d in enumerate(value.dims) if dim is None or d == dim]
        x = self.evaluate(value)
        if function == "norm":
            return torch.linalg.vector_norm(x, dim=axes)
        return x.sum(axes) if function == "sum" else x.mean(axes)


def _rotated(x: Tensor, angle: Tensor, half: bool) -> Tensor:
    """Pairs of channels as complex numbers, turned by their angles, those that have none by nothing."""
    count = x.shape[-1] // 2
    paired, alone = x[..., : 2 * count], x[..., 2 * count :]
    paired = paired.unflatten(-1, (2, count)).transpose(-2, -1) if half else paired.unflatten(-1, (count, 2))
    phi = functional.pad(angle, (0, count - angle.shape[-1]))
    # Not by a view of pairs as one number: a gradient that begins at an odd place in memory has no such view.
    turned = torch.complex(paired[..., 0], paired[..., 1]) * torch.polar(torch.ones_like(phi), phi)
    pairs = torch.stack([turned.real, turned.imag], dim=-1)
    return torch.cat([(pairs.transpose(-2, -1) if half else pairs).flatten(-2), alone], dim=-1)


def interpret(spec: Spec, args: Arguments, cu_seqlens: Tensor | None) -> tuple[Tensor, dict[str, Tensor]]:
    """`o` [B, T, HV, *dims] and each state after the last token of every run."""
    whole = slice(None)
    if cu_seqlens is None:
        o, states = _run(spec, args, whole, whole)
        return o, states
    ends = cu_seqlens.tolist()
    runs = [_run(spec, args, slice(a, b), slice(run, run + 1)) for run, (a, b) in enumerate(pairwise(ends))]
    states = {state.name: torch.cat([final[state.name] for _, final in runs]) for state in spec.states}
    return torch.cat([o for o, _ in runs], dim=1), states


def _run(spec: Spec, args: Arguments, tokens: slice, rows: slice) -> tuple[Tensor, dict[str, Tensor]]:
    """The tokens of one run (or of a whole batch) from its own first state."""
    states = {name: state[rows] for name, state in args.states.items()}
    lead = next(iter(states.values())).shape[:2]
    constants = dict(_constants(spec, args, lead))
    by_token = {i.name: _by_token(args, i.name, i.per, tokens) for i in spec.inputs}
    count = next(iter(by_token.values())).shape[1]
    outputs = []
    for t in range(count):
        scope = Scope(dict(constants), states, dict(states), lead)
        steps = [{} for _ in range(args.steps)]
        for i in spec.inputs:
            if i.per == "token":
                scope.names[i.name] = by_token[i.name][:, t]
            else:
                for j, step in enumerate(steps):
                    step[i.name] = by_token[i.name][:, t, j]
        o, states = _token(spec, scope, steps)
        outputs.append(o)
    empty = torch.zeros(lead[0], 0, lead[1], *(args.sizes[dim] for dim in spec.output_dims), dtype=torch.float64)
    return torch.stack(outputs, dim=1) if outputs else empty, states


def _constants(spec: Spec, args: Arguments, lead: tuple[int, int]) -> Iterator[tuple[str, Tensor]]:
    numbers = {**args.sizes, **args.numbers}
    if spec.steps is not None:
        numbers[spec.steps.symbol] = args.steps
    yield from ((name, torch.full(lead, float(value), dtype=torch.float64)) for name, value in numbers.items())
    yield "head", torch.arange(lead[1], dtype=torch.float64).expand(lead)
    for param in spec.params:
        if param.name in args.params:
            given = args.params[param.name]
            by_head = given if param.per_head else given.expand(lead[1], *given.shape)
            yield param.name, by_head.expand(lead[0], *by_head.shape)


def _by_token(args: Arguments, name: str, per: str, tokens: slice) -> Tensor:
    x = args.inputs[name]
    if per == "step":
        x = x.unflatten(1, (x.shape[1] // args.steps, args.steps))
    heads = 2 if per == "token" else 3
    return x.repeat_interleave(args.sizes["HV"] // x.shape[heads], dim=heads)[:, tokens]


def _token(spec: Spec, scope: Scope, steps: list[dict[str, Tensor]]) -> tuple[Tensor, dict[str, Tensor]]:
    for derived in spec.derived:
        if derived.per == "token":
            scope.names[derived.name] = scope.evaluate(derived.value)
        else:
            for step in steps:
                step[derived.name] = Scope({**scope.names, **step}, {}, {}, scope.lead).evaluate(derived.value)
    for statement in spec.update:
        if isinstance(statement, Repeat):
            for step in steps:
                inner = Scope({**scope.names, **step}, scope.states, scope.previous, scope.lead)
                for assign in statement.body:
                    _assign(assign, inner)
                scope.states = inner.states
        else:
            _assign(statement, scope)
    for assign in spec.output:
        _assign(assign, scope)
    return scope.names["o"], scope.states


def _assign(statement: Assign, scope: Scope) -> None:
    value = scope.evaluate(statement.value)
    if statement.to_state:
        scope.states = {**scope.states, statement.target: value}
    else:
        scope.names[statement.target] = value
