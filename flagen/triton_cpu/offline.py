"""Compile a kernel for a GPU that isn't there, and read what came of it.

    report = inspect_kernel(kernel, {"q": "*bf16", "scale": "fp32", "T": "i32"}, {"BLOCK": 64}, "sm_90", num_warps=4)
    assert report.spill_bytes == 0 and "HGMMA" in report.matrix_instructions

Triton brings ptxas, nvdisasm and an AMD code generator with it, so that neither driver nor toolkit is needed. What is
reported is read from the compilation that made the binary: ptxas's own log, the disassembly, the AMD kernel descriptor.
It shows what the interpreter cannot: spills, a dot that fell back to a slower instruction, serialized wgmma, constructs
the compiler refuses. It needs a process without TRITON_INTERPRET.
"""

from __future__ import annotations

import contextlib
import io
import re
import subprocess
import tempfile
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction

from flagen.triton_cpu.border import require_compiler, triton


@dataclass(frozen=True)
class CompiledReport:
    """What one kernel became on one architecture."""

    kernel: str
    arch: str
    num_warps: int
    num_stages: int
    registers: int
    """Registers of a thread; VGPRs and AGPRs together on AMD."""
    spill_bytes: int
    """Bytes of a thread's spill stores and loads; on AMD, of its scratch memory. Low registers can hide spills."""
    shared_memory: int
    """Bytes of a program."""
    matrix_instructions: Mapping[str, int]
    """How often each kind is in the code: HMMA, HGMMA (wgmma), UTCHMMA (tcgen05); v_mfma_... on AMD."""
    wgmma_serialized: str | None
    """Why ptxas serialized the wgmma instructions; None if it did not."""
    assembly: str = field(repr=False)
    """SASS as nvdisasm prints it, with encodings and the lines that it comes from; or AMD's assembly."""


def inspect_kernel(
    fn: Any,
    signature: Mapping[str, str],
    constexprs: Mapping[str, Any],
    arch: str,
    num_warps: int = 4,
    num_stages: int = 2,
    *,
    divisible_by_16: Collection[str] | None = None,
    **options: Any,
) -> CompiledReport:
    """Compile a `@triton.jit` function, also one behind `autotune` or `heuristics`, for `arch` and report.

    `signature` gives the types of arguments as Triton writes them: "*bf16", "fp32", "i32". `constexprs` holds the
    others, optional pointers that are absent as None. `arch` is "sm_80", "sm_90", "sm_100", "gfx942" or a sibling.
    A launch tells the compiler which arguments are divisible by 16; here that is every pointer unless
    `divisible_by_16` names others. `options` are those of Triton's backend, such as `maxnreg`.
    """
    kernel = _compilable(fn)
    source = _source(kernel, signature, constexprs, divisible_by_16)
    # Triton's default today, and one it announces to change: said, it is the same in every release.
    options = {"enable_fp_fusion": True, **options, "num_warps": num_warps, "num_stages": num_stages}
    with _private_cache(), contextlib.redirect_stdout(io.StringIO()) as log:
        compiled = triton.compile(source, target=target_of(arch), options=options)
    read = _read_amd if "amdgcn" in compiled.asm else _read_nvidia
    return CompiledReport(
        kernel=kernel.__name__,
        arch=arch,
        num_warps=num_warps,
        num_stages=num_stages,
        shared_memory=compiled.metadata.shared,
        **read(compiled, log.getvalue()),
    )


def _compilable(fn: Any) -> Any:
    require_compiler()
    while not isinstance(fn, JITFunction):
        if not hasattr(fn, "fn"):
            raise TypeError(f"{fn!r} is not a @triton.jit function")
        fn = fn.fn
    return fn


def _source(
    kernel: Any, signature: Mapping[str, str], constexprs: Mapping[str, Any], divisible: Collection[str] | None
) -> Any:
    names: list[str] = kernel.arg_names
    if unknown := [name for name in (*signature, *constexprs, *(divisible or ())) if name not in names]:
        raise ValueError(f"{kernel.__name__} has no argument {', '.join(unknown)}; it takes {', '.join(names)}")
    if missing := [name for name in names if name not in signature and name not in constexprs]:
        raise ValueError(f"{kernel.__name__}: neither type nor value given for {', '.join(missing)}")
    if divisible is None:
        divisible = [name for name, type_ in signature.items() if type_.startswith("*")]
    return ASTSource(
        fn=kernel,
        signature={name: "constexpr" if name in constexprs else signature[name] for name in names},
        constexprs=dict(constexprs),
        attrs={(names.index(name),): [["tt.divisibility", 16]] for name in divisible},
    )


def target_of(arch: str) -> Any:
    """The architecture as Triton's compiler wants it."""
    if match := re.fullmatch(r"sm_(\d{2,3})", arch):
        return GPUTarget("cuda", int(match[1]), 32)
    if re.fullmatch(r"gfx\w{3,4}", arch):
        return GPUTarget("hip", arch, 64 if arch.startswith("gfx9") else 32)
    raise ValueError(f"unknown architecture {arch!r}; write it like sm_90 or gfx942")


@contextlib.contextmanager
def _private_cache() -> Iterator[None]:
    """A cache of the compilation's own, for one that is answered from a cache logs nothing."""
    knobs = triton.knobs
    with tempfile.TemporaryDirectory() as folder, knobs.cache.scope(), knobs.nvidia.scope():
        knobs.cache.dir = folder
        knobs.nvidia.dump_ptxas_log = True
        yield


def _read_nvidia(compiled: Any, log: str) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        cubin = Path(folder, "kernel.cubin")
        cubin.write_bytes(compiled.asm["cubin"])
        command = [triton.knobs.nvidia.nvdisasm.path, "-c", "-gi", "-hex", cubin]
        assembly = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    opcodes = re.findall(r"/\*[0-9a-f]{4,}\*/\s+(?:\{\s*)?(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9]*)", assembly)
    spills = re.findall(r"(\d+) bytes spill stores, (\d+) bytes spill loads", log)
    serialized = re.search(r"wgmma\.mma_async instructions are serialized due to (.*?)(?: (?:for|in) |\n)", log)
    return {
        "registers": int(_found(r"Used (\d+) registers", log)),
        "spill_bytes": sum(int(stores) + int(loads) for stores, loads in spills),
        "matrix_instructions": dict(sorted(Counter(op for op in opcodes if op.endswith("MMA")).items())),
        "wgmma_serialized": serialized[1] if serialized else None,
        "assembly": assembly,
    }


def _read_amd(compiled: Any, _log: str) -> dict[str, Any]:
    assembly = compiled.asm["amdgcn"]
    matrix = re.findall(r"^\s+(v_(?:mfma|smfmac|wmma|swmmac)_\w+)", assembly, re.MULTILINE)
    return {
        "registers": int(_found(r"\.vgpr_count:\s+(\d+)", assembly)),
        "spill_bytes": int(_found(r"\.private_segment_fixed_size:\s+(\d+)", assembly)),
        "matrix_instructions": dict(sorted(Counter(matrix).items())),
        "wgmma_serialized": None,
        "assembly": assembly,
    }


def _found(pattern: str, text: str) -> str:
    match = re.search(pattern, text)
    if match is None:
        raise RuntimeError(f"the compiler of Triton {triton.__version__} does not say what matches {pattern!r}")
    return match[1]
