"""Rungs 1 and 2 for any spec: generated code against the interpreter, the chunk form against the recurrence."""

from __future__ import annotations

import inspect
import math
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from types import ModuleType

import torch
from torch import Tensor

from flagen.spec.model import Input, Interval, Param, Spec
from flagen.spec.sizes import fitting
from tests.fuzz.interpreter import Arguments, Scope, interpret
from tests.phases import compared

BOUND = 1e-9


@dataclass(frozen=True)
class Shape:
    """A call's sizes. `lengths` packs that many runs into a batch of one."""

    tokens: int = 5
    batch: int = 1
    H: int = 1
    HV: int = 2
    steps: int = 2
    first: int = 3
    second: int = 2
    lengths: tuple[int, ...] | None = None
    initial: bool = True
    chunk: int = 3

    @property
    def runs(self) -> int:
        return self.batch if self.lengths is None else len(self.lengths)


SHAPES = (
    Shape(),
    Shape(tokens=7, batch=2, H=2, HV=4, chunk=2, steps=3, initial=False),
    Shape(lengths=(0, 4, 1, 0, 2, 0), tokens=7, H=1, HV=2, first=2, second=3),
    Shape(tokens=3, HV=1, chunk=8, steps=1),
    Shape(tokens=0, chunk=1),
)


First = Mapping[str, Callable[[Tensor], Tensor]]
"""For some states, from standard normal numbers to those that the state may start from."""


def check(spec: Spec, package: ModuleType, first: First | None = None, shapes: Sequence[Shape] = SHAPES) -> int:
    """Every form of `package` is the recurrence of `spec`, on all `shapes`: values and gradients. On how many there was
    something to compare, for the recurrence was finite."""
    compared = 0
    for shape in shapes:
        problem = Problem(spec, shape, first)
        expected = problem.results(problem.interpreted)
        if not all(problem.is_meant(name, x) for name, x in expected.items()):
            continue
        compared += 1
        compare(f"naive_recurrent, {shape}", expected, problem.results(partial(problem.called, package)))
        if hasattr(package, f"naive_chunk_{spec.name}"):
            chunked = partial(problem.called, package, form="naive_chunk", chunk_size=shape.chunk)
            compare(f"naive_chunk, {shape}", expected, problem.results(chunked))
        compare(f"the module, {shape}", expected, problem.results(partial(problem.through_module, package)))
    return compared


def compare(what: str, expected: Mapping[str, Tensor], got: Mapping[str, Tensor]) -> None:
    """Every tensor within BOUND of the largest element there is; what is infinite is the same infinity."""
    sizes = (x[x.isfinite()].abs() for x in expected.values())
    scale = max([1.0, *(x.max().item() for x in sizes if x.numel())])
    for name, x in expected.items():
        assert got[name].shape == x.shape, f"{what}: {name} is {tuple(got[name].shape)}, expected {tuple(x.shape)}"
        assert got[name].dtype == x.dtype, f"{what}: {name} is {got[name].dtype}, expected {x.dtype}"
        off = (got[name] - x).masked_fill((got[name] == x) & x.isinf(), 0)
        error = off.abs().max().item() / scale if x.numel() else 0.0
        assert error <= BOUND, f"{what}: {name} is off by {error:.1e}"


class Problem:
    """Random arguments for a spec, and the ways to run it on them."""

    def __init__(self, spec: Spec, shape: Shape, first: First | None = None) -> None:
        self.spec, self.shape, self.first = spec, shape, first or {}
        self.random = torch.Generator().manual_seed(zlib.crc32(f"{spec.sha256} {shape}".encode()))
        heads = {"H": shape.H, "HV": shape.HV if spec.has_value_heads else shape.H}
        if all(i.heads == "HV" for i in spec.inputs):
            heads["H"] = shape.HV
        wanted = {dim: (shape.first, shape.second)[place % 2] for place, dim in enumerate(spec.dims)}
        self.sizes = fitting(spec, wanted | heads)
        self.leaves = dict(self._arguments())
        self.numbers = {
            p.name: self._within(p.range, torch.rand((), generator=self.random).double()).item()
            for p in spec.params
            if not p.is_tensor and p.default is None
        }
        ends = [sum(shape.lengths[:run]) for run in range(shape.runs + 1)] if shape.lengths is not None else None
        self.cu_seqlens = None if ends is None else torch.tensor(ends)

    # ------------------------------------------------------------------------------------------------------- arguments

    def _arguments(self) -> Iterator[tuple[str, Tensor]]:
        """Inputs and tensor params in signature order, then first states."""
        shape = self.shape
        for decl in self.spec.inputs:
            rows = shape.tokens * (shape.steps if decl.per == "step" else 1)
            yield decl.name, self._random(decl, shape.batch, rows, self.sizes[decl.heads])
        tensors = [p for p in self.spec.params if p.is_tensor]
        for param in sorted(tensors, key=lambda p: p.default is not None):
            yield param.name, self._random(param, *((self.sizes["HV"],) if param.per_head else ()))
        if shape.initial:
            for state in self.spec.states:
                size = (shape.runs, self.sizes["HV"], *(self.sizes[dim] for dim in state.dims))
                x = torch.randn(size, generator=self.random, dtype=torch.float64)
                yield f"first {state.name}", self.first.get(state.name, lambda x: x)(x)

    def _random(self, decl: Input | Param, *leading: int) -> Tensor:
        size = (*leading, *(self.sizes[dim] for dim in decl.dims))
        return self._within(decl.range, torch.randn(size, generator=self.random, dtype=torch.float64))

    @staticmethod
    def _within(interval: Interval, x: Tensor) -> Tensor:
        low, high = interval.low, interval.high
        if math.isinf(low) and math.isinf(high):
            return x
        if math.isinf(low):
            return high - x.abs()
        if math.isinf(high):
            return low + x.abs()
        return low + (high - low) * torch.sigmoid(x)

    # ------------------------------------------------------------------------------------------------------------- runs

    def is_meant(self, name: str, x: Tensor) -> bool:
        """Whether a result of the recurrence is one to compare with: finite, but for a state that no token reached and
        that starts at an infinity."""
        starts = {f"final {state.name}": state.init for state in self.spec.states}
        return bool((x.isfinite() | (x.isinf() & (x == starts.get(name, 0.0)))).all())

    def results(
        self, run: Callable[[Mapping[str, Tensor]], dict[str, Tensor]], arguments: Mapping[str, Tensor] | None = None
    ) -> dict[str, Tensor]:
        """What `run` returns for these arguments, and each argument's gradient under fixed random cotangents."""
        leaves = {name: x.clone().requires_grad_() for name, x in (arguments or self.leaves).items()}
        values = run(leaves)
        random = torch.Generator().manual_seed(0)
        loss = sum((x * torch.randn(x.shape, generator=random, dtype=torch.float64)).sum() for x in values.values())
        # What depends on no argument has no graph.
        loss = loss + 0 * sum(x.sum() for x in leaves.values())
        gradients = torch.autograd.grad(loss, list(leaves.values()))
        found = {name: x.detach() for name, x in values.items()}
        return {**found, **{f"d {name}": x for name, x in zip(leaves, gradients, strict=True)}}

    def interpreted(self, leaves: Mapping[str, Tensor]) -> dict[str, Tensor]:
        spec, shape = self.spec, self.shape
        size = (shape.runs, self.sizes["HV"])
        states = {
            state.name: leaves[f"first {state.name}"]
            if shape.initial
            else torch.full((*size, *(self.sizes[dim] for dim in state.dims)), state.init, dtype=torch.float64)
            for state in spec.states
        }
        numbers = {**self.numbers, **{p.name: self._default(p) for p in spec.params if not p.is_tensor and p.default}}
        params = {p.name: leaves[p.name] for p in spec.params if p.is_tensor}
        inputs = {i.name: leaves[i.name] for i in spec.inputs}
        args = Arguments(inputs, params, numbers, self.sizes, shape.steps, states)
        o, final = interpret(spec, args, self.cu_seqlens)
        return self.named(o, tuple(final[state.name] for state in spec.states))

    def _default(self, param: Param) -> float:
        """The default of `param`, an expression over sizes."""
        sizes = {name: torch.full((1, 1), float(size), dtype=torch.float64) for name, size in self.sizes.items()}
        assert param.default is not None
        return Scope(sizes, {}, {}, (1, 1)).evaluate(param.default).item()

    def through_module(self, package: ModuleType, leaves: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """As `called`, by the module, its params in the place of the functions' arguments."""
        spec, module_class = self.spec, getattr(package, self.spec.class_name)
        steps = {} if spec.steps is None else {spec.steps.argument: self.shape.steps}
        known = {**self.sizes, **self.numbers, **steps}
        wanted = inspect.signature(module_class).parameters
        module = module_class(**{name: value for name, value in known.items() if name in wanted})
        params = {p.name: leaves[p.name] for p in spec.params if p.is_tensor}
        inputs = tuple(leaves[i.name] for i in spec.inputs)
        return self.named(*torch.func.functional_call(module, params, inputs, self.carried(leaves)))

    def called(
        self, package: ModuleType, leaves: Mapping[str, Tensor], *, form: str = "naive_recurrent", **more: object
    ) -> dict[str, Tensor]:
        """What a function of the package returns: inputs by position, then what has a default by its name."""
        spec = self.spec
        optional = {p.name for p in spec.params if p.is_tensor and p.default is not None}
        positional = [x for name, x in leaves.items() if name not in optional and not name.startswith("first ")]
        named: dict[str, object] = {name: x for name, x in leaves.items() if name in optional}
        if spec.steps is not None:
            named[spec.steps.argument] = self.shape.steps
        function = getattr(package, f"{form}_{spec.name}")
        return self.named(*function(*positional, **named, **self.numbers, **self.carried(leaves), **more))

    def carried(self, leaves: Mapping[str, Tensor]) -> dict[str, object]:
        """The arguments that every form of every package takes."""
        states = tuple(leaves[f"first {state.name}"] for state in self.spec.states if self.shape.initial)
        initial = states if len(states) > 1 else states[0] if states else None
        return {"initial_state": initial, "output_final_state": True, "cu_seqlens": self.cu_seqlens}

    def named(self, o: Tensor, final: Tensor | tuple[Tensor, ...] | None) -> dict[str, Tensor]:
        """What a call returned, by name, as it is compared."""
        assert final is not None, "the final state was asked for"
        finals = compared(self.spec, final if isinstance(final, tuple) else (final,))
        return {"o": o, **{f"final {state.name}": x for state, x in zip(self.spec.states, finals, strict=True)}}
