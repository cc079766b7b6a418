"""Whether a mistake in a file of kernels shows: its operators, interpreted, against naive_recurrent in float64.

The tensors of a call, and what its launchers allocate, lie between guards of NaN: what a kernel reads beyond an array
makes its results NaN, and what it writes there is seen. A mutant runs in a process of its own, which it may crash.
"""

from __future__ import annotations

import importlib
import importlib.util
import math
import os
import pickle
import resource
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from types import ModuleType
from unittest import mock

import numpy as np
import torch
from torch import Tensor
from triton.runtime.interpreter import InterpretedFunction

from flagen import pipeline
from flagen.plan import Unavailable
from tests.mutation.mutants import DIFFER, Mutant, mutants
from tests.numeric.problems import (
    Problem,
    Shape,
    cotangent,
    form,
    make,
    named_results,
    package,
    rms_ratio,
    spec_of,
    with_form,
)

BOUND, OF_GRADIENTS = 1e-5, 1e-4
SECONDS = 120
"""Of a processor, after which a mutant is taken to run forever."""

SHAPES = (
    # Several chunks, runs that are empty or end within one, heads in groups, sizes that pad.
    (Shape(lengths=(0, 18, 1), H=2, groups=2, K=20, V=12, M=9, n=3), True),
    # Several blocks of keys and of values, the last ones ragged, and nothing to start from.
    (Shape(T=19, B=2, groups=2, K=36, V=40, M=12, n=1), False),
)


MANY_CHANNELS = (Shape(T=3, K=150, V=1), True)
"""Several blocks of the channels of a scan."""


@dataclass(frozen=True)
class Run:
    """One way to call a variant's operators."""

    kind: str
    shape: Shape
    state: bool
    gradients: bool
    split: bool = False
    save_states: bool = False
    blocks: bool = False
    """Whether a program of the recurrent kernels has a small part of the state, as where states are large."""

    def __str__(self) -> str:
        ways = ("gradients", "split", "save_states", "blocks")
        return " ".join([self.kind, str(self.shape), *(way for way in ways if getattr(self, way))])


@dataclass(frozen=True)
class Expected:
    """What a run has to give, what it gives, and the functions of kernels that it runs, by module and name."""

    results: Mapping[str, Tensor]
    own: Mapping[str, Tensor]
    functions: frozenset[tuple[str, str]]


def runs_of(name: str) -> list[Run]:
    """The cheapest first, so that most mutants need no other."""
    found = []
    shapes = SHAPES if any(len(state.dims) > 1 for state in spec_of(name).states) else (*SHAPES, MANY_CHANNELS)
    for gradients in (False, True):
        for shape, state in shapes:
            for kind in ("fused_recurrent", "chunk"):
                if name in with_form(kind):
                    found.append(Run(kind, shape, state, gradients))
    launcher = importlib.import_module(f"generated.{name}.chunk")
    if split_of(name) is not None:
        found.append(Run("fused_recurrent", *SHAPES[1], gradients=True, blocks=True))
    for shape, state in SHAPES:
        if hasattr(launcher, "launches"):
            found.append(Run("chunk", shape, state, gradients=False, split=True))
            found.append(Run("chunk", shape, state, gradients=True, split=True))
        if "save_states" in form("chunk", name).__code__.co_varnames:
            found.append(Run("chunk", shape, state, gradients=True, save_states=True))
    return found


# -------------------------------------------------------------------------------------------------------------- a call

GUARD = 1 << 14
OUTSIDE = 3
"""What guards of integers hold."""

_empty = torch.empty


class Guards:
    """Arrays with guards on both sides, and whether something wrote there."""

    def __init__(self) -> None:
        self.whole: list[tuple[Tensor, int]] = []

    def around(self, size: Sequence[int], dtype: torch.dtype) -> Tensor:
        count = 1
        for length in size:
            count *= length
        floating = dtype.is_floating_point
        fill = float("nan") if floating else OUTSIDE if dtype != torch.bool else True
        whole = _empty(count + 2 * GUARD, dtype=dtype).fill_(fill)
        self.whole.append((whole, count))
        strides, stride = [], 1
        for length in reversed(size):
            strides.append(stride)
            stride *= max(length, 1)
        return _empty(0, dtype=dtype).set_(whole.untyped_storage(), GUARD, tuple(size), tuple(reversed(strides)))

    def copy(self, x: Tensor) -> Tensor:
        return self.around(x.shape, x.dtype).copy_(x)

    def intact(self) -> bool:
        for whole, count in self.whole:
            outside = torch.cat([whole[:GUARD], whole[GUARD + count :]])
            untouched = outside.isnan() if whole.dtype.is_floating_point else outside == OUTSIDE
            if whole.dtype != torch.bool and not untouched.all():
                return False
        return True

    @contextmanager
    def allocating(self) -> Iterator[None]:
        """What torch is asked to allocate meanwhile has guards."""

        def sized(*size: object, dtype: torch.dtype | None = None, **_: object) -> Tensor:
            shape = size[0] if len(size) == 1 and isinstance(size[0], Sequence) else size
            return self.around(tuple(int(x) for x in shape), dtype or torch.float32)

        def like(x: Tensor, *, dtype: torch.dtype | None = None, **_: object) -> Tensor:
            return self.around(x.shape, dtype or x.dtype)

        def zeros(*size: object, **keywords: object) -> Tensor:
            return sized(*size, **keywords).zero_()

        with ExitStack() as stack:
            for owner, name, new in (
                (torch, "empty", sized),
                (torch, "zeros", zeros),
                (torch, "empty_like", like),
                (torch, "zeros_like", lambda x, **keywords: like(x, **keywords).zero_()),
                (
                    torch.Tensor,
                    "new_empty",
                    lambda self, *size, dtype=None, **_: sized(*size, dtype=dtype or self.dtype),
                ),
                (
                    torch.Tensor,
                    "new_zeros",
                    lambda self, *size, dtype=None, **_: zeros(*size, dtype=dtype or self.dtype),
                ),
            ):
                stack.enter_context(mock.patch.object(owner, name, new))
            yield


def problem_of(name: str, run: Run) -> Problem:
    """Log decays that may be anything are strong now and then, and reset the state once."""
    problem = make(name, run.shape, state=run.state).to(torch.float32)
    for decl in spec_of(name).inputs:
        if decl.range.low == -math.inf and decl.range.high <= 0:
            x = problem.tensors[decl.name]
            x[:, 3::7] = -20
            x[:, 5:6] = -math.inf
    return problem


def results_of(name: str, run: Run, *, reference: bool = False) -> tuple[dict[str, Tensor], bool]:
    """What the run gives, and whether it kept to its arrays. The gradients are those under random cotangents."""
    problem, guards = problem_of(name, run), Guards()
    kind = "naive_recurrent" if reference else run.kind
    keywords: dict[str, object] = {}
    if reference:
        problem = problem.to(torch.float64)
    else:
        problem = problem.map(lambda _, x: guards.copy(x))
        if run.kind == "chunk":
            keywords["chunk_size"] = 16
        if run.save_states:
            keywords["save_states"] = True
    problem = problem.map(lambda _, x: x.requires_grad_(run.gradients))
    with ExitStack() as stack:
        if not reference:
            stack.enter_context(guards.allocating())
            # Segments of a few tokens, so that there are several.
            for module in of_package(name):
                if hasattr(module, "SEGMENT"):
                    stack.enter_context(mock.patch.object(module, "SEGMENT", 8))
            if run.blocks:
                for module in of_package(name):
                    if hasattr(module, "launch_config") and module.__name__.endswith(RECURRENT):
                        small = partial(small_blocks, module.launch_config, split_of(name))
                        stack.enter_context(mock.patch.object(module, "launch_config", small))
            if run.split:
                launches = importlib.import_module("generated.shared.launches")
                stack.enter_context(mock.patch.object(launches, "splits", lambda programs, device: True))
        found = named_results(name, *problem.call(form(kind, name), **keywords))
        results = {key: x.detach() for key, x in found.items()}
        if run.gradients:
            leaves = problem.leaves
            given = [cotangent(key, x).to(x.dtype) for key, x in found.items()]
            given = given if reference else [guards.copy(x) for x in given]
            of = torch.autograd.grad(
                list(found.values()), list(leaves.values()), given, allow_unused=True, materialize_grads=True
            )
            results |= {f"d {key}": x for key, x in zip(leaves, of, strict=True)}
    return results, guards.intact()


RECURRENT = (".fused_recurrent_kernels", ".fused_recurrent_backward_kernels")
"""The files of the recurrent kernels."""


@cache
def split_of(name: str) -> str | None:
    """The dim of which a program of the recurrent kernels owns a block."""
    spec = spec_of(name)
    plan = pipeline.make_plan(spec, pipeline.derive(spec)).fused
    return None if isinstance(plan, Unavailable) or plan.split is None else plan.split.dim


def small_blocks(planned: Callable[..., object], dim: str, *sizes: int, **named: int) -> object:
    """What a launcher asks for its blocks, with blocks of `dim` so small that there are several."""
    found = planned(*sizes, **named)
    cut = [{**tiles, f"BLOCK_{dim}": 8} for tiles in (found if isinstance(found, tuple) else (found,))]
    return tuple(cut) if isinstance(found, tuple) else cut[0]


def of_package(name: str) -> list[ModuleType]:
    return [module for key, module in sys.modules.items() if key.startswith(f"generated.{name}.")]


def failure(expected: Mapping[str, Tensor], got: Mapping[str, Tensor]) -> str | None:
    """The first result that is not within its bound."""
    for key, x in expected.items():
        bound = OF_GRADIENTS if key.startswith("d ") else BOUND
        # Not `ratio > bound`: a NaN has to fail.
        if not rms_ratio(x, got[key], 1e-6 if key.startswith("d ") else 1e-12) <= bound:
            return key
    return None


NEUTRAL = "neutral"
"""What the mistake changes has other values, and every result the same bits: on random numbers, the proof that what it
changes reaches nothing that is stored."""
SILENT = "silent"
"""No run gives another value to what the mistake changes: they ask too little."""
WEAK = "weak"
"""Results differ, and within their bounds."""
UNREACHED = "unreached"
"""No run gets there."""
UNTOLD = (NEUTRAL, SILENT, WEAK, UNREACHED)


def differ(seen: list[bool], one: object, other: object) -> object:
    """`one`; notes in `seen` if `other` is something else."""
    values = [np.asarray(x.handle.data if hasattr(x, "handle") else x) for x in (one, other)]
    same = values[0].shape == values[1].shape and np.array_equal(*values, equal_nan=values[0].dtype.kind == "f")
    if not same:
        seen.append(True)
    return one


# ----------------------------------------------------------------------------------------------------------- processes


def apart(work: Callable[[], object]) -> object:
    """What `work` returns in a process of its own; a string that says how the process ended, where it did not return.

    Autograd does not survive a fork: this process must never have differentiated anything."""
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        os.close(reading)
        resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        with os.fdopen(writing, "wb") as pipe:
            pickle.dump(work(), pipe)
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        said = pipe.read()
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        return f"ended by signal {os.WTERMSIG(status)}"
    return pickle.loads(said) if said else "ended without a word"


class Bench:
    """A variant, what each of its runs gives, and mutants of its kernels to try."""

    def __init__(self, name: str) -> None:
        self.name, self.root = name, Path(package(name).__path__[0])
        for kind in ("chunk", "fused_recurrent"):
            form(kind, name)
        shared = self.root.parent / "shared" / "device"
        paths = (*self.root.rglob("*.py"), *shared.glob("*.py"))
        self.files = sorted(path for path in paths if "triton.jit" in path.read_text(encoding="utf-8"))
        for path in self.files:
            importlib.import_module(self.module_of(path))
        self.runs = runs_of(name)
        # What torch imports on the way, it does not import in each process anew. Nothing is differentiated here.
        results_of(name, self.runs[0])
        self.expected: dict[Run, Expected] = {}
        for run in self.runs:
            found = apart(lambda run=run: expect(name, run))
            assert isinstance(found, Expected), f"{name}, {run}: {found}"
            self.expected[run] = found

    def module_of(self, path: Path) -> str:
        return ".".join(["generated", *path.relative_to(self.root.parent).with_suffix("").parts])

    def mutants(self, path: Path) -> list[Mutant]:
        """Those of a file; of what packages share, those in what this one calls."""
        found = list(mutants(path.read_text(encoding="utf-8")))
        return found if path.is_relative_to(self.root) else [mutant for mutant in found if self.reach(path, mutant)]

    def reach(self, path: Path, mutant: Mutant) -> list[Run]:
        """The runs that run the function with the mistake."""
        place = (self.module_of(path), mutant.function)
        return [run for run in self.runs if place in self.expected[run].functions]

    def tried(self, path: Path, mutant: Mutant) -> str:
        """What told that there is a mistake, or one of `UNTOLD`."""
        runs = self.reach(path, mutant)
        if not runs:
            return UNREACHED
        said = str(apart(lambda: self._tried(path, mutant, runs)))
        if said == NEUTRAL and mutant.probe is not None and not apart(lambda: self._probed(path, mutant, runs)):
            return SILENT
        return said

    def _tried(self, path: Path, mutant: Mutant, runs: Sequence[Run]) -> str:
        said = NEUTRAL
        with tempfile.TemporaryDirectory() as directory:
            self._put_in_place(self.module_of(path), Path(directory, path.name), mutant.make())
            for run in runs:
                try:
                    results, intact = results_of(self.name, run)
                except Exception as error:
                    return f"raises {type(error).__name__}"
                wrong = failure(self.expected[run].results, results)
                if wrong is not None or not intact:
                    return wrong or "writes elsewhere"
                if any(not torch.equal(x, results[key]) for key, x in self.expected[run].own.items()):
                    said = WEAK
        return said

    def _probed(self, path: Path, mutant: Mutant, runs: Sequence[Run]) -> bool:
        """Whether what the mutant changes has another value in any of the runs."""
        assert mutant.probe is not None
        seen: list[bool] = []
        with tempfile.TemporaryDirectory() as directory:
            text = mutant.probe()
            self._put_in_place(self.module_of(path), Path(directory, path.name), text, partial(differ, seen))
            for run in runs:
                results_of(self.name, run)
                if seen:
                    return True
        return False

    def _put_in_place(self, module: str, path: Path, text: str, probe: Callable[..., object] | None = None) -> None:
        """The functions of the module as they are in `text`, wherever they are called."""
        path.write_text(text, encoding="utf-8")
        spec = importlib.util.spec_from_file_location(f"{module}_mutant", path)
        assert spec is not None and spec.loader is not None
        mutated = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(mutated)
        right = sys.modules[module]
        InterpretedFunction.rewritten_fn.clear()
        setattr(mutated, DIFFER, probe)
        for key, function in vars(mutated).items():
            original = vars(right).get(key)
            if isinstance(function, InterpretedFunction) and function.fn.__module__ == mutated.__name__:
                callers = (f"generated.{self.name}.", "generated.shared.")
                for name, other in list(sys.modules.items()):
                    if name.startswith(callers) and vars(other).get(key) is original:
                        setattr(other, key, function)


def expect(name: str, run: Run) -> Expected:
    """What a run has to give, and what it runs; the kernels as they are do give that."""
    functions: set[tuple[str, str]] = set()
    rewrite = InterpretedFunction.rewrite

    def noted(self: InterpretedFunction) -> object:
        functions.add((self.fn.__module__, self.fn.__name__))
        return rewrite(self)

    with mock.patch.object(InterpretedFunction, "rewrite", noted):
        results, intact = results_of(name, run)
    expected, _ = results_of(name, run, reference=True)
    wrong = failure(expected, results)
    assert wrong is None and intact, f"{name}, {run}: {wrong or 'writes elsewhere'}"
    return Expected(
        *({key: x.clone() for key, x in each.items()} for each in (expected, results)), frozenset(functions)
    )
