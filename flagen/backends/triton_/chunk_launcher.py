"""The context of `chunk_fused.py`: the public function that launches the chunk kernels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from flagen.backends.signature import Parameter, parameters
from flagen.backends.torch_.common import common_context
from flagen.backends.triton_.chunk_kernel import scratch
from flagen.backends.triton_.kernel import tensor_names
from flagen.backends.triton_.key_kernel import arrays
from flagen.backends.triton_.launcher import default_values, launch_parameters
from flagen.backends.triton_.rows import RowPlan, heads, pointers, scalars, steps_symbol
from flagen.plan.chunk_families import SIZES
from flagen.plan.key_kernel import KeyKernelPlan
from flagen.plan.row_planner import Part
from flagen.plan.tiles import Value

PACKED = "None if cu_seqlens is None else cu_seqlens.contiguous()"
START = "None if initial_state is None else initial_state.contiguous()"


@dataclass(frozen=True)
class Launch:
    """One kernel: its grid, its arguments but the tiles, which are in the dict `tiles`, and what is computed first."""

    kernel: str
    grid: str
    arguments: Sequence[str]
    tiles: str
    before: Sequence[str] = field(default=())


@dataclass(frozen=True)
class Scratch:
    """An array that one kernel leaves for another, of `shape` for each chunk and head."""

    name: str
    shape: Sequence[str]
    dtype: str


def chunk_launcher_context(plan: RowPlan) -> Mapping[str, object]:
    """Every value `triton/chunk_fused.py.j2` uses."""
    spec = plan.spec
    steps = spec.steps.argument if steps_symbol(plan) and spec.steps else None
    size = Parameter("chunk_size", "int", str(plan.size), True, _size_doc(steps))
    (state,) = spec.states
    launched = launch_parameters(spec, ["initial_state"], size)
    launches = list(_launches(plan))
    operands = _operands(plan)
    return {
        **common_context(spec, size),
        "steps": steps,
        "sizes": SIZES,
        "tensors": tensor_names(spec),
        "forwarded": [p.name if not p.keyword else f"{p.name}={p.name}" for p in parameters(spec)],
        "launch_parameters": [f"{p.name}: {p.annotation}" for p in launched],
        "launch_arguments": [p.name for p in launched],
        "defaults": list(default_values(spec)),
        "state": state.name,
        "output_shape": ", ".join(f"args.{x}" for x in ("batch", "tokens", "HV", *spec.output_dims)),
        "state_shape": ", ".join(f"args.{x}" for x in ("runs", "HV", *state.dims)),
        "vectors": operands,
        "others": [name for name in tensor_names(spec) if name not in operands],
        "kernels": [*(launch.kernel for launch in launches), "launch_config"],
        "tiles": ", ".join(launch.tiles for launch in launches),
        "config_arguments": _config_arguments(plan, steps),
        "config_lines": list(_config_lines(plan)),
        "prepare": len(launches) > 1,
        "scratch": list(_scratch(plan)),
        "launches": launches,
        "precision": "tf32" if plan.contracts or plan.delta is None else "bf16x3",
        "precision_note": _precision_note(plan),
    }


def _operands(plan: RowPlan) -> list[str]:
    """The inputs whose dtype the products take: those that are operands as they are, or that the output is like.

    Where decays have keys, too, not every vector is one.
    """
    inputs = plan.spec.inputs
    if not isinstance(plan, KeyKernelPlan):
        return [decl.name for decl in inputs if decl.dims]
    plain = {tile.name for tile in plan.vectors if isinstance(tile, Value)}
    like = next((decl.name for decl in inputs if decl.dims == plan.spec.output_dims), inputs[0].name)
    return [decl.name for decl in inputs if decl.name in plain | {like}]


def _size_doc(steps: str | None) -> str:
    *most, last = map(str, SIZES)
    rows = "tokens per chunk" if steps is None else f"rows per chunk, {steps} of each token"
    return f"the most {rows}: {', '.join(most)} or {last}; `launch_config` tells where fewer are used."


def _precision_note(plan: RowPlan) -> str:
    if plan.delta is None:
        return "Products of 16-bit operands are exact."
    if plan.contracts:
        return "For 16-bit inputs the inverse has small entries: tf32 does."
    return "The inverse of 16-bit inputs may have large entries."


# -------------------------------------------------------------------------------------------------------------- tiles


def _config_arguments(plan: RowPlan, steps: str | None) -> list[str]:
    sizes = [f"args.{plan.key}", f"args.{plan.value}", *([steps] if steps else []), "chunk_size"]
    return [*sizes, "dtype" if isinstance(plan, KeyKernelPlan) else "dtype == torch.float32"]


def _config_lines(plan: RowPlan) -> list[str]:
    """How many terms in bfloat16 a log decay takes to be exact enough for the products."""
    if not isinstance(plan, KeyKernelPlan) or plan.log_decay is None:
        return []
    if plan.decay_input is None:
        return ['prepare["TERMS"] = 3 if dtype == torch.float32 else 2']
    exact = f"{plan.decay_input}.dtype == torch.bfloat16"
    return [f'prepare["TERMS"] = 1 if {exact} else 3 if dtype == torch.float32 else 2']


def _scratch(plan: RowPlan) -> list[Scratch]:
    if isinstance(plan, KeyKernelPlan):
        return [
            Scratch(
                array.name,
                [f'walk["{dim}"]' if dim == "CHUNK" else f"args.{dim}" for dim in array.dims],
                "torch.float32" if array.single else "dtype",
            )
            for array in arrays(plan)
        ]
    rows = 'walk["CHUNK"]'
    tokens = rows if steps_symbol(plan) is None else 'walk["BLOCK_TOKENS"]'
    shapes = {"scores": [tokens, rows], "write_scores": [tokens, rows], "from_start": [rows], "to_end": [rows]}
    return [
        Scratch(name, shapes.get(name, [rows, rows]), "torch.float32" if name in ("from_start", "to_end") else "dtype")
        for name in scratch(plan)
    ]


# ------------------------------------------------------------------------------------------------------------ launches


def _launches(plan: RowPlan) -> list[Launch]:
    """The kernels in the order they run."""
    name, (state,) = f"chunk_{plan.spec.name}", plan.spec.states
    prepared = [array.name for array in _scratch(plan)]
    prepare = _prepare_parts(plan)
    first = (
        Launch(
            f"{name}_prepare_kernel",
            "chunks * args.HV",
            (
                *pointers(plan, *prepare),
                PACKED,
                "chunk_sequence",
                "first_chunk",
                *prepared,
                *(f"float({scalar})" for scalar in scalars(plan, *prepare)),
                "args.tokens",
                *_sizes(plan, *prepare),
            ),
            "prepare",
        )
        if prepare
        else None
    )
    walk = Launch(
        f"{name}_kernel",
        "args.runs * args.HV * blocks",
        (
            *pointers(plan, plan.walk),
            START,
            PACKED,
            *(["first_chunk", *prepared] if prepare else []),
            "o",
            f"{state.name}_final",
            *(f"float({scalar})" for scalar in scalars(plan, plan.walk)),
            "args.tokens",
            *_sizes(plan, plan.walk),
        ),
        "walk",
        (f'blocks = -(-args.{plan.value} // walk["BLOCK_{plan.value}"])',),
    )
    return [walk] if first is None else [first, walk]


def _prepare_parts(plan: RowPlan) -> tuple[Part, ...]:
    if isinstance(plan, KeyKernelPlan):
        return (plan.prepare.part,)
    return plan.prepare or ()


def _sizes(plan: RowPlan, *parts: Part) -> tuple[str, ...]:
    symbol = steps_symbol(plan)
    steps = [] if symbol is None or plan.spec.steps is None else [f"{symbol}={plan.spec.steps.argument}"]
    values = [plan.value] if plan.walk in parts else []
    return (*steps, *(f"{name}=args.{name}" for name in (*heads(*parts), plan.key, *values)))
