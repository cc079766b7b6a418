"""The contexts of `chunk_prepare.py` and `chunk_kernels.py` where decays are of each key."""

from __future__ import annotations

from collections.abc import Mapping

from flagen.backends.triton_.chunk_printer import ChunkPrinter
from flagen.backends.triton_.device import OF_CHUNKS
from flagen.backends.triton_.kernel import Docs, function_context
from flagen.backends.triton_.key_describe import output_docs, prepare_docs, states_docs, walk_docs
from flagen.backends.triton_.launched import title_of
from flagen.backends.triton_.tiling_printer import tiling_context
from flagen.kernel.ir import Program
from flagen.plan.key_kernel import KeyKernelPlan
from flagen.plan.tiling import tiling


def key_kernel_context(plan: KeyKernelPlan, program: Program, *, keeps: bool) -> Mapping[str, object]:
    """Every value `triton/key_kernels.py.j2` uses; the fused walk `keeps` what a backward takes from it."""
    docs = {"states": states_docs(plan), "output": output_docs(plan)}
    if not plan.right:
        docs = {"": walk_docs(plan, keeps=keeps), **docs}
    return {
        "name": plan.spec.name,
        "device": OF_CHUNKS,
        "tiling": tiling_context(tiling(plan)),
        "kernels": [_function(program, name, said) for name, said in docs.items()],
    }


def key_prepare_context(plan: KeyKernelPlan, program: Program) -> Mapping[str, object]:
    """Every value `triton/key_prepare.py.j2` uses."""
    kernel = _function(program, "prepare", prepare_docs(plan))
    return {"name": plan.spec.name, "device": OF_CHUNKS, "kernel": kernel}


def _function(program: Program, name: str, docs: Docs) -> Mapping[str, object]:
    return function_context(title_of(program, name), program.kernel(name), docs, ChunkPrinter)
