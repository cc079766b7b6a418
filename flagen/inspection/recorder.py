"""What a launcher launches, told by running it with a recorder in the kernels' place.

    launches = record(lambda: fused_recurrent_gla(q, k, v, g), "sm_90")

The launcher runs on CPU tensors, in a process that compiles; what PyTorch computes beside kernels has shapes alone.
Nothing is launched: each kernel is kept with what the compiler wants to know of the arguments it was given. One behind
`triton.autotune` is kept once for each configuration.
A call that runs its backward too leaves the kernels of both.

A launcher that asks torch what GPU it runs on (`torch.cuda.is_available`, `get_device_capability`,
`get_device_properties`, `torch.version.hip`) is answered for the architecture.
"""

from __future__ import annotations

import ast
import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from triton.compiler.compiler import make_backend
from triton.runtime.jit import JITFunction

from flagen.inspection.devices import DEVICES
from flagen.inspection.source import imported_from, tree_of
from flagen.project import UsageError
from flagen.triton_cpu.border import Patch, autotuner, patched, require_compiler, stock
from flagen.triton_cpu.offline import target_of
from flagen.triton_cpu.shapes import NumberDecidesError, without_numbers

_INTERPRET = "TRITON_INTERPRET"
_TYPES = {
    torch.bool: "u1",
    torch.uint8: "u8",
    torch.int8: "i8",
    torch.int16: "i16",
    torch.int32: "i32",
    torch.int64: "i64",
    torch.float16: "fp16",
    torch.bfloat16: "bf16",
    torch.float32: "fp32",
    torch.float64: "fp64",
}
_LAUNCHING = ("grid", "warmup")


@dataclass(frozen=True)
class Launch:
    """A kernel and all that its compilation depends on: types of arguments, constants, which arguments are divisible
    by 16, and the options of Triton's backend that the launch sets."""

    kernel: Any
    signature: Mapping[str, str]
    constexprs: Mapping[str, Any]
    divisible_by_16: tuple[str, ...]
    options: Mapping[str, Any]
    grid: Any

    @property
    def name(self) -> str:
        return str(self.kernel.__name__)

    def key(self, arch: str) -> str:
        """A hash of all that is compiled. Wording does not count, nor what else is in the kernel's module."""
        more = arch, self.divisible_by_16, self.options
        told = json.dumps([self.name, self.signature, self.constexprs, *more], sort_keys=True, default=repr)
        code = _code(Path(self.kernel.fn.__code__.co_filename), self.kernel.fn.__name__)
        return hashlib.sha256((code + told).encode()).hexdigest()[:16]


def record(call: Callable[[], object], arch: str | None, processors: int | None = None) -> list[Launch]:
    """What `call` launches when it runs on `arch`, with so many processors if not its own, or without a GPU, as in the
    interpreter. The modules of its kernels have to be imported by now."""
    require_compiler()
    launches: list[Launch] = []

    def run(kernel: Any, /, *arguments: Any, **named: Any) -> None:
        launches.append(_launch(kernel, arguments, named))

    patches = [Patch(JITFunction, "run", run), Patch(stock(autotuner, "Autotuner"), "run", _run_every_configuration)]
    with patched(patches), pretending(arch, processors):
        try:
            with without_numbers():
                call()
        except NumberDecidesError:
            launches.clear()
            call()
    return launches


@contextmanager
def pretending(arch: str | None, processors: int | None = None) -> Iterator[None]:
    """Have launchers believe that they run on a GPU of an architecture, with so many processors if not its own, or
    without one; kernels get the CPU tensors that there are."""
    with patched(_answers(arch, processors)), _kernels_on_the_cpu():
        yield


def launch_options(launch: Launch, arch: str) -> dict[str, Any]:
    """The options of a launch, with those that it leaves to Triton's backend and that a compilation must be told."""
    backend = make_backend(target_of(arch)).parse_options({})
    return {"num_warps": backend.num_warps, "num_stages": backend.num_stages, **launch.options}


# --------------------------------------------------------------------------------------------------- types of arguments


def _launch(kernel: Any, arguments: tuple[Any, ...], named: Mapping[str, Any]) -> Launch:
    given = {**dict(zip(kernel.arg_names, arguments, strict=False)), **named}
    signature: dict[str, str] = {}
    constexprs: dict[str, Any] = {}
    divisible: list[str] = []
    for param in kernel.params:
        value = given.get(param.name, param.default)
        special = not param.do_not_specialize
        if param.is_constexpr or value is None or (special and type(value) is int and value == 1):
            constexprs[param.name] = value
            continue
        signature[param.name] = param.annotation_type or _type_of(value, f"{kernel.__name__}: {param.name}")
        if special and not param.do_not_specialize_on_alignment and _is_divisible(value):
            divisible.append(param.name)
    options = {name: value for name, value in named.items() if name not in (*kernel.arg_names, *_LAUNCHING)}
    return Launch(kernel, signature, constexprs, tuple(divisible), options, named.get("grid"))


def _type_of(value: Any, what: str) -> str:
    """The type that Triton gives an argument."""
    if isinstance(value, torch.Tensor):
        return f"*{_TYPES[value.dtype]}"
    if isinstance(value, bool):
        return "u1"
    if isinstance(value, int):
        return "i32" if -(2**31) <= value < 2**31 else "i64" if value < 2**63 else "u64"
    if isinstance(value, float):
        return "fp32"
    raise UsageError(f"{what} is launched with a {type(value).__qualname__}, which cannot be inspected")


def _is_divisible(value: Any) -> bool:
    if isinstance(value, torch.Tensor):
        return value.data_ptr() % 16 == 0
    return type(value) is int and value % 16 == 0


@cache
def _code(file: Path, kernel: str) -> str:
    """The kernel and all that it reaches in its module and those that this imports from, without comments and
    docstrings."""
    texts: set[tuple[str, str]] = set()
    waiting, seen = [(file, kernel)], set()
    while waiting:
        where, name = place = waiting.pop()
        definition = _definitions(where).get(name)
        if place in seen or definition is None:
            continue
        seen.add(place)
        if isinstance(definition, ast.stmt):
            texts.add((name, ast.unparse(definition)))
            waiting += [(where, node.id) for node in ast.walk(definition) if isinstance(node, ast.Name)]
        else:
            waiting.append(definition)
    return "\n".join(text for _, text in sorted(texts))


@cache
def _definitions(file: Path) -> Mapping[str, ast.stmt | tuple[Path, str]]:
    """What defines each name of a module, or the file that it is imported from, and its name there."""
    found: dict[str, ast.stmt | tuple[Path, str]] = {}
    for node in tree_of(file).body:
        match node:
            case ast.FunctionDef(name=name) | ast.ClassDef(name=name):
                found[name] = node
            case ast.Assign() | ast.AnnAssign():
                targets = (x for x in ast.walk(node) if isinstance(x, ast.Name) and isinstance(x.ctx, ast.Store))
                found |= {target.id: node for target in targets}
    for imports, path in imported_from(file):
        if path.is_file():
            found |= {x.asname or x.name: (path, x.name) for x in imports.names}
    return found


# ------------------------------------------------------------------------------------------------ the launcher's world


def _run_every_configuration(tuner: Any, /, *arguments: Any, **named: Any) -> None:
    """`Autotuner.run` for each configuration instead of the fastest."""
    tuner.nargs = dict(zip(tuner.arg_names, arguments, strict=False))
    for configuration in tuner.prune_configs(named):
        tuner.fn.run(*arguments, **named, **configuration.all_kwargs())


def _answers(arch: str | None, processors: int | None) -> list[Patch]:
    """torch's answers about the GPU of a launch."""
    if arch is None:
        return [Patch(torch.version, "hip", None), Patch(torch.cuda, "is_available", lambda: False)]
    device = DEVICES[arch]
    major, minor = device.capability
    properties = SimpleNamespace(
        major=major,
        minor=minor,
        multi_processor_count=processors or device.processors,
        shared_memory_per_block_optin=device.shared_memory,
        warp_size=device.warp,
    )
    answers: dict[str, object] = {
        "is_available": True,
        "get_device_capability": device.capability,
        "get_device_properties": properties,
    }
    hip = Patch(torch.version, "hip", "6.4" if arch.startswith("gfx") else None)
    return [hip, *(Patch(torch.cuda, name, lambda *_, answer=answer: answer) for name, answer in answers.items())]


@contextmanager
def _kernels_on_the_cpu() -> Iterator[None]:
    """A launcher takes the kernel on CPU tensors where it believes that the interpreter is on. Triton has read the
    variable already, when the kernels were decorated."""
    before = os.environ.get(_INTERPRET)
    os.environ[_INTERPRET] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[_INTERPRET]
        else:
            os.environ[_INTERPRET] = before
