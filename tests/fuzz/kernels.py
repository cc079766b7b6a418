"""Rung 3 for any spec: its kernels in float32, against the recurrence in float64 on the same numbers."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from types import ModuleType
from unittest import mock

import torch
from torch import Tensor

from flagen.spec.model import Input, Param, Spec
from tests.fuzz.ladder import First, Problem, Shape
from tests.margins import beyond
from tests.numeric.problems import rms_ratio
from tests.numeric.rates import SAID, says_so

BOUND, OF_GRADIENTS = 1e-5, 1e-4
SENSITIVE = 0.1
"""A result that moves by more of its bound where every argument moves by float32's rounding is not one that float32
can have; nor is one of which the recurrence itself, run in float32, loses a third of the bound."""

ZERO, TINY = 1e-6, 1e-12
"""What float32 may give for a zero, and what float64 gives for one."""

LARGEST = 1e6
"""A recurrence that grows beyond it is not one for float32: what it computes on the way may not fit."""

SHAPES = (
    Shape(tokens=21, H=1, HV=2, first=20, second=12, chunk=16),
    Shape(lengths=(0, 18, 1, 0, 5, 0), tokens=24, H=2, HV=4, first=12, second=20, steps=3, initial=False, chunk=16),
    Shape(tokens=35, batch=2, H=1, HV=1, first=16, second=33, steps=1, chunk=64),
)


EQUAL = Shape(tokens=19, H=2, HV=2, first=20, second=24, chunk=16)
"""Blocks of one size along both dims of a state, where gradients along the wrong one still fit."""


def check(spec: Spec, package: ModuleType, first: First | None = None, shapes: Sequence[Shape] = SHAPES) -> set[str]:
    """Every kernel of `package` is the recurrence of `spec`, on all `shapes`, wherever float32 can tell; the names of
    the results of which it could."""
    told: set[str] = set()
    if not any(hasattr(package, f"{form}_{spec.name}") for form in ("chunk", "fused_recurrent")):
        return told
    for shape in shapes:
        problem = Rounded(spec, shape, first=first)
        expected = problem.reference(package)
        compare(shape, expected, problem.recurrent(package), allowed(spec, package, "fused_recurrent"))
        compare(shape, expected, problem.chunked(package), allowed(spec, package, "chunk"))
        told |= {name for name, x in expected.items() if x.numel()}
    return told


def bound(name: str) -> float:
    return OF_GRADIENTS if name.startswith("d ") else BOUND


def allowed(spec: Spec, package: ModuleType, kind: str) -> Callable[[str], float]:
    """The bounds of this form: gradients of params, among which are rates of decay, may lose what it says it does."""
    form = getattr(package, f"{kind}_{spec.name}", None)
    if form is None or not says_so(form):
        return bound
    params = {f"d {param.name}" for param in spec.params if param.is_tensor}
    return lambda name: SAID[kind] if name in params else bound(name)


def compare(
    shape: Shape,
    expected: Mapping[str, Tensor],
    found: Iterable[tuple[str, Mapping[str, Tensor]]],
    bound: Callable[[str], float] = bound,
) -> None:
    """Every tensor of `expected` that a kernel gives is met by the kernel's, within the bound of its name."""
    for what, got in found:
        for name, x in expected.items():
            if name not in got:
                continue
            ratio = rms_ratio(x, got[name], _floor(x, bound(name)))
            failure = beyond(f"{what}, {shape}: {name}", ratio, bound(name))
            assert not failure, failure


def _floor(expected: Tensor, bound: float) -> float:
    """What counts for the size of `expected`, if it is smaller: a zero may be the rounding of what adds up to it."""
    return ZERO / bound if (expected.abs() <= TINY).all() else TINY


class Rounded(Problem):
    """Arguments that are the same numbers in `dtype` and in float64; vectors are about as long as 1, so that what is
    written and erased stays in bounds."""

    def __init__(
        self, spec: Spec, shape: Shape, dtype: torch.dtype = torch.float32, first: First | None = None
    ) -> None:
        super().__init__(spec, shape, first)
        self.leaves = {name: x.to(dtype) for name, x in self.leaves.items()}

    def _random(self, decl: Input | Param, *leading: int) -> Tensor:
        x = super()._random(decl, *leading)
        bounded = decl.range.low > -torch.inf or decl.range.high < torch.inf
        return x if bounded or not decl.dims else x * x.shape[-1] ** -0.5

    def reference(self, package: ModuleType) -> Mapping[str, Tensor]:
        """What the recurrence is in float64, and its gradients, of that what float32 could have."""
        run = partial(self.results, partial(self.called, package))
        exact = {name: x.double() for name, x in self.leaves.items()}
        expected = run(exact)
        random = torch.Generator().manual_seed(1)
        rounding = torch.finfo(torch.float32).eps / 2
        moved = run(
            {
                name: x * (1 + rounding * torch.randn(x.shape, generator=random, dtype=torch.float64))
                for name, x in exact.items()
            }
        )
        if any(not self.is_meant(name, x) or (x[x.isfinite()].abs() > LARGEST).any() for name, x in expected.items()):
            return {}
        single = run(self.leaves)
        return {
            name: x
            for name, x in expected.items()
            if rms_ratio(x, moved[name]) <= SENSITIVE * bound(name)
            and rms_ratio(x, single[name], _floor(x, bound(name))) <= bound(name) / 3
        }

    def recurrent(self, package: ModuleType) -> Iterator[tuple[str, Mapping[str, Tensor]]]:
        """The results of the recurrent kernel, if the package has one."""
        if hasattr(package, f"fused_recurrent_{self.spec.name}"):
            run = partial(self.called, package, form="fused_recurrent")
            yield "fused_recurrent", run(self.leaves)
            yield "fused_recurrent, with gradients", self.results(run)

    def chunked(self, package: ModuleType) -> Iterator[tuple[str, Mapping[str, Tensor]]]:
        """The results of the chunk kernels, if the package has any, in both of their forms."""
        if not hasattr(package, f"chunk_{self.spec.name}"):
            return
        run = partial(self.called, package, form="chunk", chunk_size=self.shape.chunk)
        yield "chunk", run(self.leaves)
        yield "chunk, with gradients", self.results(run)
        if "save_states" in inspect.signature(getattr(package, f"chunk_{self.spec.name}")).parameters:
            yield "chunk, with its states saved", self.results(partial(run, save_states=True))
        launcher = sys.modules[f"{package.__name__}.chunk"]
        if hasattr(launcher, "launches"):
            with mock.patch.object(launcher.launches, "splits", lambda programs, device: True):
                yield "chunk, its outputs in a kernel of their own", run(self.leaves)
                yield "chunk, the same with gradients", self.results(run)
