"""What `flagen.inspection.work` starts: reads one task as JSON, prints its rows as JSON.

The only modules of the package that import torch and Triton are this one and those that it imports. Which of compiler
and interpreter a process has is decided by its environment, before it starts.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import pkgutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, redirect_stdout
from dataclasses import asdict, astuple
from functools import partial
from itertools import product
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

import torch
import triton

from flagen.counting import NotCountedError, counted
from flagen.counting.known import remember_spec
from flagen.inspection.calls import (
    SAVING,
    Workload,
    arguments,
    differentiate,
    memory_modes,
    require_gradients,
    settle,
    sizes,
)
from flagen.inspection.devices import ARCHS
from flagen.inspection.model import Compiled, Direction, Figures, Launched, Metered, MeteredGradients, Shape, Size
from flagen.inspection.work import METERED, OPERATORS
from flagen.plan.cost import bytes_moved, state_bytes
from flagen.project import UsageError
from flagen.spec import load_spec
from flagen.spec.model import Spec
from flagen.triton_cpu import UnsupportedTritonError
from flagen.triton_cpu.meter import Report, kept_for_gradients, metered

Given = Mapping[str, Any]
"""Arguments of a call, by name."""

Meter = Callable[[], AbstractContextManager[Report]]
Found = TypeVar("Found")

_METERED_TOKENS = {"fused_recurrent": 16, "chunk": 128}
"""Enough for what is done once a call to be told from what is done for every token or chunk."""


def perform(task: Mapping[str, Any]) -> list[tuple[object, dict[str, Any]]]:
    """This process's share of a task's rows, each with its place among all of them: what rows are sorted by."""
    number, count = task["share"]
    packages = task["packages"]
    match task["what"]:
        case "record":
            mine = list(enumerate(packages))[number::count]
            rows = [(place, launched) for place, package in mine for launched, _ in _recorded(package, task)]
            return [((place, number), asdict(launched)) for number, (place, launched) in enumerate(rows)]
        case "compile":
            recorded = [each for package in packages for each in _recorded(package, task)]
            wanted = [(launched, launch) for launched, launch in recorded if launched.key not in task["but"]]
            share = list(enumerate(wanted))[number::count]
            return [(place, asdict(_compiled(launched, launch))) for place, (launched, launch) in share]
        case "count" | "time":
            mine = list(enumerate(product(packages, OPERATORS)))[number::count]
            return [((place, i), row) for place, call in mine for i, row in enumerate(_predicted(*call, task))]
        case "meter" | "meter gradients" as what:
            meter = _metered if what == "meter" else _metered_with_gradients
            calls = list(enumerate((package, operator) for operator in OPERATORS for package in packages))
            return [(place, asdict(row)) for place, call in calls[number::count] for row in meter(*call)]
    raise AssertionError(task["what"])


# ------------------------------------------------------------------------------------------------------------- packages


def _load(package: Mapping[str, str]) -> tuple[Spec, ModuleType]:
    """The spec and the package, every module of it imported; it may lie anywhere, and is called what it likes."""
    spec, folder = load_spec(Path(package["spec"])), Path(package["folder"])
    around = f"generated_{hashlib.sha256(str(folder.parent).encode()).hexdigest()[:16]}"
    if around not in sys.modules:
        # What packages share is beside them.
        sys.modules[around] = ModuleType(around)
        sys.modules[around].__path__ = [str(folder.parent)]
    name = f"{around}.{folder.name}"
    if name not in sys.modules:
        module = importlib.import_module(name)
        for part in pkgutil.walk_packages(module.__path__, f"{name}."):
            importlib.import_module(part.name)
    return spec, sys.modules[name]


# ------------------------------------------------------------------------------------------------------------ launches


def _recorded(package: Mapping[str, str], task: Mapping[str, Any]) -> Iterator[tuple[Launched, Any]]:
    """Every kernel that a package launches, each once, at every size on every architecture.

    The calls do all that an operator can do: sequences are packed, states go in and come out, keys are shared by heads.
    Where gradients have kernels, calls with their backward follow, one for each way to keep memory for it. One workload
    has many sequences, and at the first size one has a single one, where a launcher might see reason for different
    kernels: whether these are fit to ship does not hang on the size, or their tiles are those of the others.
    """
    from flagen.inspection.recorder import record

    spec, module = _load(package)
    seen = set()
    for operator in OPERATORS:
        function = getattr(module, f"{operator}_{spec.name}", None)
        if function is None:
            continue
        ways = _ways(spec, function)
        first, *others = (Size(*pair) for pair in task["sizes"])
        for size, arch in product((first, *others), task["archs"]):
            _forget_tiles(module)
            asked = task["backward"] is None or [arch, list(size)] in task["backward"]
            for runs, (call, said) in product((64, 1) if size == first else (64,), ways if asked else ways[:1]):
                workload = Workload(size, 64, runs, H=2, groups=2, packed=True, initial_state=True, final_state=True)
                for launch in record(partial(call, {**arguments(spec, workload), **said}), arch):
                    key = launch.key(arch)
                    if key not in seen:
                        seen.add(key)
                        config = _config(launch, sizes(spec, workload), said)
                        yield Launched(spec.name, operator, launch.name, str(size), config, arch, key), launch


def _ways(spec: Spec, operator: Callable[..., Any]) -> list[tuple[Callable[[Given], object], Mapping[str, bool]]]:
    """How to call an operator, each way with what it is told: forward; and where that has kernels, with its backward.

    Without them its gradients are those of a PyTorch form, which runs, and is tried on a single token.
    """
    from flagen.inspection.recorder import record

    ways: list[tuple[Callable[[Given], object], Mapping[str, bool]]] = [(lambda given: operator(**given), {})]
    # With the state after it: a token's output need not depend on all that its update reads.
    smallest = arguments(spec, Workload(Size(16, 16), tokens=1, final_state=True))
    backward: list[Callable[[], None]] = []
    record(lambda: backward.append(differentiate(operator, smallest)), ARCHS[0])
    if record(backward[0], ARCHS[0]):
        ways += [(lambda given: differentiate(operator, given)(), said) for said in memory_modes(operator)]
    return ways


def _forget_tiles(module: ModuleType) -> None:
    """Launchers remember the tiles of a device, and what passes for every architecture here is one device."""
    for name, part in list(sys.modules.items()):
        if name.startswith(f"{module.__name__}.") and hasattr(part, "TILES"):
            part.TILES.clear()


def _config(launch: Any, sizes: Mapping[str, int], said: Mapping[str, bool]) -> str:
    """The choices of a launch: its constants, but for sizes and pointers that are absent, its options, and what the
    operator was told."""
    chosen = {name: x for name, x in launch.constexprs.items() if name not in sizes and x is not None}
    return " ".join(f"{name}={value}" for name, value in {**chosen, **launch.options, **said}.items())


def _compiled(launched: Launched, launch: Any) -> Compiled:
    from flagen.inspection.recorder import launch_options
    from flagen.triton_cpu.offline import inspect_kernel

    report = inspect_kernel(
        launch.kernel,
        launch.signature,
        launch.constexprs,
        launched.arch,
        divisible_by_16=launch.divisible_by_16,
        **launch_options(launch, launched.arch),
    )
    return Compiled(
        **asdict(launched),
        registers=report.registers,
        spill_bytes=report.spill_bytes,
        shared_memory=report.shared_memory,
        matrix_instructions=dict(report.matrix_instructions),
        wgmma_serialized=report.wgmma_serialized,
    )


# ------------------------------------------------------------------------------------------------------------ metering


def _metered(package: Mapping[str, str], operator: str) -> Iterator[Metered]:
    spec, module = _load(package)
    function = getattr(module, f"{operator}_{spec.name}", None)
    if function is None:
        return
    tokens = _METERED_TOKENS[operator]

    def call(final_state: bool, meter: Meter) -> Report:
        given = arguments(spec, Workload(METERED, tokens, final_state=final_state))
        settle(spec, given)
        with torch.no_grad(), meter() as report:
            function(**given)
        return report

    without, with_state = (_counted(spec, partial(call, final_state)) for final_state in (False, True))
    if not without.kernels:
        return
    minimum, of_state = _least(spec)
    yield Metered(
        spec.name,
        operator,
        tokens,
        heads=1,
        kernels=_figures(without.kernels),
        operators=_figures(without.operators),
        minimum=minimum * tokens,
        final_state_bytes=with_state.total.moved - without.total.moved,
        final_state_minimum=of_state,
    )


def _metered_with_gradients(package: Mapping[str, str], operator: str) -> Iterator[MeteredGradients]:
    spec, module = _load(package)
    function = getattr(module, f"{operator}_{spec.name}", None)
    if function is None:
        return
    for said in memory_modes(function):
        row = _counted(spec, partial(_both_ways, spec, function, operator, said))
        if row is None:
            return
        yield row


def _both_ways(
    spec: Spec, function: Callable[..., Any], operator: str, said: Mapping[str, bool], meter: Meter
) -> MeteredGradients | None:
    """A call and its backward, if that has kernels."""
    tokens = _METERED_TOKENS[operator]
    given = arguments(spec, Workload(METERED, tokens))
    settle(spec, given)
    wanted = require_gradients(given)
    with meter() as forward, kept_for_gradients() as kept:
        o = function(**given, **said)[0]
    if not o.requires_grad:
        return None
    cotangent = torch.ones_like(o)
    with meter() as backward:
        torch.autograd.grad(o, wanted, cotangent, allow_unused=True)
    if not backward.kernels:
        return None
    output = o.numel() * o.element_size()
    return MeteredGradients(
        spec.name,
        operator,
        save_states=said.get(SAVING, False),
        tokens=tokens,
        heads=1,
        forward=Direction(_figures(forward.kernels), _figures(forward.operators)),
        backward=Direction(_figures(backward.kernels), _figures(backward.operators)),
        kept=kept.bytes,
        # Inputs are read twice and their gradients written; the output is written, and its gradient read.
        minimum=3 * _least(spec)[0] * tokens - output,
    )


def _counted(spec: Spec, measure: Callable[[Meter], Found]) -> Found:
    """What is measured of calls, counted from the kernels as data; what cannot be is counted in the interpreter."""
    remember_spec(spec)
    try:
        return measure(counted)
    except NotCountedError:
        return measure(metered)


def _predicted(package: Mapping[str, str], operator: str, task: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """What is counted of an operator, by a process that interprets; or its times, by one that compiles."""
    from flagen.inspection.timing import counted, timed

    spec, module = _load(package)
    function = getattr(module, f"{operator}_{spec.name}", None)
    if function is None:
        return
    shape = Shape(*task["shape"])
    if task["what"] == "count":
        yield from counted(spec, function, operator, shape)
    else:
        yield from map(asdict, timed(spec, function, operator, shape, task["counts"]))


def _least(spec: Spec) -> tuple[int, int]:
    """The bytes that no operator can go below: of a token, and of the final state."""
    named = sizes(spec, Workload(METERED, 1))
    steps = named[spec.steps.symbol] if spec.steps else 1
    return bytes_moved(spec, named, steps), state_bytes(spec, named)


def _figures(counted: Mapping[str, Any]) -> dict[str, Figures]:
    return {name: Figures(*astuple(traffic)) for name, traffic in counted.items()}


def main(arguments: Sequence[str]) -> None:
    (task,) = arguments
    # What libraries print must not get between the rows.
    with redirect_stdout(sys.stderr):
        try:
            answer: dict[str, Any] = {"rows": perform(json.loads(task))}
        except (UsageError, UnsupportedTritonError) as error:
            answer = {"error": str(error)}
    print(json.dumps({"triton": triton.__version__, **answer}))


if __name__ == "__main__":
    main(sys.argv[1:])
