"""The contexts of `chunk_prepare.py` and `chunk_kernels.py` where decays are of each key."""

from __future__ import annotations

from collections.abc import Mapping

from flagen.backends.triton_.chunk_printer import ChunkPrinter
from flagen.backends.triton_.device import OF_CHUNKS
from flagen.backends.triton_.kernel import Docs, function_context
from flagen.backends.triton_.key_describe import output_docs, prepare_docs, states_docs, walk_docs
from flagen.backends.triton_.launched import title_of
from flagen.kernel.ir import Program
from flagen.plan.key_kernel import KeyKernelPlan


def key_kernel_context(plan: KeyKernelPlan, program: Program, *, keeps: bool) -> Mapping[str, object]:
    """Every value `triton/key_kernels.py.j2` uses; the fused walk `keeps` what a backward takes from it."""
    docs = {"states": states_docs(plan), "output": output_docs(plan)}
    if not plan.right:
        docs = {"": walk_docs(plan, keeps=keeps), **docs}
    return {
        "name": plan.spec.name,
        "key": plan.key,
        "value": plan.value,
        "device": OF_CHUNKS,
        "kernels": [_function(program, name, said) for name, said in docs.items()],
        "decays": plan.log_decay is not None,
        "leaf": plan.log_decay is not None and not plan.leaf.is_one,
        "leaf_levels": _leaf_levels(plan),
        "whole_keys": plan.whole_keys,
        "right": plan.right,
        "reflects": plan.delta is not None and not plan.contracts,
        "delta": plan.delta is not None,
        "folded": plan.folded,
    }


def key_prepare_context(plan: KeyKernelPlan, program: Program) -> Mapping[str, object]:
    """Every value `triton/key_prepare.py.j2` uses."""
    kernel = _function(program, "prepare", prepare_docs(plan))
    return {"name": plan.spec.name, "device": OF_CHUNKS, "kernel": kernel}


def _function(program: Program, name: str, docs: Docs) -> Mapping[str, object]:
    return function_context(title_of(program, name), program.kernel(name), docs, ChunkPrinter)


def _leaf_levels(plan: KeyKernelPlan) -> str:
    """The levels that one product anchored at the middle stands for, as a Python expression."""
    levels = {dtype: rows.bit_length() - 1 for dtype, rows in plan.leaf.rows.items()}
    if len(set(levels.values())) == 1:
        return str(levels["float32"])
    listed = ", ".join(f"torch.{dtype}: {level}" for dtype, level in levels.items())
    return f"{{{listed}}}[dtype]"
