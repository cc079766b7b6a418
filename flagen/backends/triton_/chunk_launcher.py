"""The context of `chunk_fused.py`: the public function that launches the chunk kernels."""

from __future__ import annotations

from collections.abc import Mapping

from flagen.backends.signature import Parameter, parameters
from flagen.backends.torch_.common import common_context
from flagen.backends.triton_.chunk_kernel import pointers, scalars, scratch, steps_symbol
from flagen.backends.triton_.kernel import tensor_names
from flagen.backends.triton_.launcher import default_values, launch_parameters
from flagen.plan.chunk_kernel import SIZES, ChunkKernelPlan, Part


def chunk_launcher_context(plan: ChunkKernelPlan) -> Mapping[str, object]:
    """Every value `triton/chunk_fused.py.j2` uses."""
    spec = plan.spec
    steps = spec.steps.argument if steps_symbol(plan) and spec.steps else None
    size = Parameter("chunk_size", "int", str(plan.size), True, _size_doc(plan, steps))
    (state,) = spec.states
    launched = launch_parameters(spec, ["initial_state"], size)
    return {
        **common_context(spec, size),
        "value": plan.value,
        "steps": steps,
        "sizes": SIZES,
        "tensors": tensor_names(spec),
        "forwarded": [p.name if not p.keyword else f"{p.name}={p.name}" for p in parameters(spec)],
        "launch_parameters": [f"{p.name}: {p.annotation}" for p in launched],
        "launch_arguments": [p.name for p in launched],
        "defaults": list(default_values(spec)),
        "state": state.name,
        "output_shape": f"args.batch, args.tokens, args.HV, args.{plan.value}",
        "state_shape": f"args.runs, args.HV, args.{plan.key}, args.{plan.value}",
        "vectors": [decl.name for decl in spec.inputs if decl.dims],
        "others": [decl.name for decl in spec.inputs if not decl.dims] + [p.name for p in spec.params if p.is_tensor],
        "config_arguments": [f"args.{plan.key}", f"args.{plan.value}", *([steps] if steps else [])],
        "prepare": plan.prepare is not None,
        "scratch": [{"name": name, **_array(plan, name)} for name in scratch(plan)],
        "prepare_arguments": list(_prepare_arguments(plan)),
        "walk_arguments": list(_walk_arguments(plan)),
        "precision": "tf32" if plan.contracts or plan.delta is None else "bf16x3",
        "precision_note": _precision_note(plan),
    }


def _size_doc(plan: ChunkKernelPlan, steps: str | None) -> str:
    *most, last = map(str, SIZES)
    rows = "tokens per chunk" if steps is None else f"rows per chunk, {steps} of each token"
    return f"the most {rows}: {', '.join(most)} or {last}; `launch_config` tells where fewer are used."


def _precision_note(plan: ChunkKernelPlan) -> str:
    if plan.delta is None:
        return "Products of 16-bit operands are exact."
    if plan.contracts:
        return "For 16-bit inputs the inverse has small entries: tf32 does."
    return "The inverse of 16-bit inputs may have large entries."


def _array(plan: ChunkKernelPlan, name: str) -> dict[str, object]:
    rows = 'config["CHUNK"]'
    tokens = rows if steps_symbol(plan) is None else 'config["BLOCK_TOKENS"]'
    shapes = {"scores": [tokens, rows], "write_scores": [tokens, rows], "from_start": [rows], "to_end": [rows]}
    single = name in ("from_start", "to_end")
    return {"shape": shapes.get(name, [rows, rows]), "dtype": "torch.float32" if single else "dtype"}


def _prepare_arguments(plan: ChunkKernelPlan) -> tuple[str, ...]:
    if plan.prepare is None:
        return ()
    parts = plan.prepare
    tiles = ("CHUNK", *(["BLOCK_TOKENS"] if steps_symbol(plan) else []), f"BLOCK_{plan.key}")
    return (
        *(name for name in pointers(plan, *parts)),
        "None if cu_seqlens is None else cu_seqlens.contiguous()",
        "chunk_sequence",
        "first_chunk",
        *scratch(plan),
        *(f"float({name})" for name in scalars(plan, *parts)),
        "args.tokens",
        *_sizes(plan, parts[0]),
        *(f'{name}=config["{name}"]' for name in tiles),
        "PRECISION=precision",
    )


def _walk_arguments(plan: ChunkKernelPlan) -> tuple[str, ...]:
    part, (state,) = plan.walk, plan.spec.states
    return (
        *(name for name in pointers(plan, part)),
        "None if initial_state is None else initial_state.contiguous()",
        "None if cu_seqlens is None else cu_seqlens.contiguous()",
        *([] if plan.prepare is None else ["first_chunk", *scratch(plan)]),
        "o",
        f"{state.name}_final",
        *(f"float({name})" for name in scalars(plan, part)),
        "args.tokens",
        *_sizes(plan, part),
    )


def _sizes(plan: ChunkKernelPlan, part: Part) -> tuple[str, ...]:
    symbol = steps_symbol(plan)
    steps = [] if symbol is None or plan.spec.steps is None else [f"{symbol}={plan.spec.steps.argument}"]
    values = [plan.value] if part is plan.walk else []
    return (*steps, *(f"{name}=args.{name}" for name in ("H", "HV", plan.key, *values)))
