"""The context of `chunk.py`: the public function that launches the chunk kernels."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from flagen.backends.signature import Parameter
from flagen.backends.torch_.common import common_context
from flagen.backends.triton_.kernel import tensor_names
from flagen.backends.triton_.launched import Launchable, Launched
from flagen.backends.triton_.launcher import default_values
from flagen.backends.triton_.operator import Operator
from flagen.kernel.forward_rows import scratch
from flagen.kernel.ir import Array, Program
from flagen.kernel.key_rows import prepared
from flagen.kernel.key_walks import walked
from flagen.kernel.mixes import arrays_of
from flagen.kernel.rows import RowPlan, is_input, steps_symbol
from flagen.plan.chunk_families import SIZES, sizes_in_words
from flagen.plan.free_names import final_of, free_name, initial_of
from flagen.plan.kernel_names import kernel_name
from flagen.plan.key_kernel import KeyKernelPlan
from flagen.plan.rows import TOKEN, WRITTEN
from flagen.plan.schedule import declared_names
from flagen.plan.tiling import sizes_of
from flagen.spec.model import Spec, State

SAVE_STATES = Parameter(
    "save_states",
    "bool",
    "False",
    True,
    "keep the states for the gradient; by default they are computed again, and less is kept than the inputs take.",
)
START = "None if initial_state is None else initial_state.contiguous()"
PACKED = "None if cu_seqlens is None else cu_seqlens.contiguous()"


@dataclass(frozen=True)
class Launch:
    """One kernel: its grid, and its arguments but the tiles, which are in the dict `tiles`."""

    kernel: str
    grid: str
    arguments: Sequence[str]
    tiles: str


@dataclass(frozen=True)
class Scratch:
    """An array that one kernel leaves for another, of `shape` for each chunk and head; `inside` is its name there."""

    name: str
    inside: str
    shape: Sequence[str]
    dtype: str


@dataclass(frozen=True)
class Kept:
    """An array of `shape` that a call keeps for its gradient, in the mode `kept_in` of `operators.py` and those after
    it; `walked`: it is there for nothing else, and only where it is kept."""

    name: str
    inside: str
    shape: str
    dtype: str
    kept_in: Literal["PREPARED", "STATES"]
    walked: bool = False


@dataclass(frozen=True)
class Backward:
    """The backward of a call.

    kept: what the call keeps for it, in the order in which it is taken.
    keywords: what it takes beside what was passed to the call.
    takes_output: whether it takes the output of the call, too.
    keeping: launches in place of the others where states are kept, and the modules of their kernels: those others may
        have folded into one another what a gradient needs apart.
    """

    kept: tuple[Kept, ...]
    keywords: tuple[str, ...]
    keeping: tuple[tuple[str, Launch], ...] = ()
    takes_output: bool = False

    @property
    def walk_keeps(self) -> bool:
        """Whether it is the walk of every call that keeps states, where they are kept."""
        return not self.keeping and any(array.walked for array in self.kept)


def chunk_launcher_context(plan: RowPlan, program: Program, backward: Backward | None = None) -> Mapping[str, object]:
    """Every value `triton/chunk.py.j2` uses; `program`: the kernels of a call."""
    spec, kernels = plan.spec, kernels_of(plan, program)
    steps, products = _steps(plan), products_of(plan, _operands(plan))
    kept = backward.kept if backward else ()
    walked = kept if backward and backward.walk_keeps else ()
    prepares, fused, split = _prepared(plan, kernels), _fused(plan, kernels, walked), _split(plan, kernels, walked)
    launched = list(dict.fromkeys(launch.tiles for launch in (*prepares, *fused, *split)))
    # The tiles of the walk.
    arguments = ", ".join(("args.device", "dot_precision", *_config_arguments(plan, steps)))
    tiles = f"_tiles({arguments})[{launched.index('walk_tiles')}]"
    most = 16 if steps else None
    function = function_context(
        spec,
        plan.size,
        steps,
        most_steps=most,
        pairs=plan.key if plan.key in spec.pairs else "",
        backward=backward,
        tiles=tiles,
        products=products,
        rows_of_form=f'keywords["{steps}"]' if steps else "",
    )
    return {
        **call_context(plan),
        **function,
        **docs_of_kernels(spec, function, steps),
        "steps": steps,
        "tokens_of_chunk": f'walk_tiles["CHUNK"] // {steps}' if steps else 'walk_tiles["CHUNK"]',
        "expansion": None,
        "launcher": "_launch",
        **_of_launch(spec, keeps=bool(function["keep"])),
        "launched": function["declarations"],
        "first": tensor_names(spec)[0],
        "last_states": [(final_of(spec, state), state_sizes(state)) for state in spec.states],
        "keeping": backward.keeping if backward else (),
        "walked": [array.name for array in kept if array.walked],
        "kernels": [launch.kernel for launch in (*fused, *split)],
        "tiles": _unpacked(launch.tiles for launch in (*prepares, *fused, *split)),
        "output_dim": _output_dim(plan),
        "prepared": prepares,
        "scratch": [x for x in _between(plan, kernels) if x.name not in {each.name for each in kept}],
        "fused": fused,
        "split": split,
        "left_behind": [x for x in left_behind(plan, kernels) if x.name not in {each.name for each in kept}],
    }


def _of_launch(spec: Spec, *, keeps: bool) -> Mapping[str, str]:
    """What launching the kernels gives, as an annotation and in words."""
    count = len(spec.states)
    annotation = "Tensor | None, ..." if keeps else f"Tensor{', Tensor | None' * count}"
    states = "states if they are" if count > 1 else "state if it is"
    kept = ", and what is kept for the gradient" if keeps else ""
    return {"launch_returns": annotation, "launch_results": f"the output, the final {states} wanted{kept}"}


def docs_of_kernels(spec: Spec, function: Mapping[str, object], steps: str | None) -> Mapping[str, str]:
    """What the docstring of `function`, by its context, says of the kernels, and what it calls the states."""
    pairs, states = function["most_pairs"], "states" if len(spec.states) > 1 else "state"
    backward = function["backward"]
    gradients = f"Gradients have kernels, too: those of `{backward}`." if backward else "The kernels go forward only."
    instead = [] if backward else ["where a gradient is wanted (grad mode is on and an argument requires one),"]
    instead.append("for float64, and for tensors that are not on a GPU, unless Triton's interpreter is on")
    further = ["; also for more than 16 micro-steps"] if steps else []
    further += [f"; also for more than {pairs[1]} pairs of keys"] if isinstance(pairs, tuple) else []
    return {
        "of_states": states,
        "about": "Matrix products run in the inputs' own dtype (float32 where they differ, and tf32 for float16, whose "
        f"range states exceed), sums and the {states} in float32. {gradients} `naive_chunk_{function['name']}` runs in "
        f"their place {' '.join(instead)} (TRITON_INTERPRET=1){''.join(further)}.",
    }


def call_context(plan: RowPlan) -> Mapping[str, object]:
    """What the functions of a call and of its gradients have in common."""
    spec, operands = plan.spec, _operands(plan)
    function = function_context(spec, plan.size, _steps(plan))
    return {
        **{name: function[name] for name in ("name", "title", "cited", "equations", "check")},
        "defaults": list(default_values(spec)),
        "output_shape": ", ".join(f"args.{x}" for x in ("batch", "tokens", "HV", *spec.output_dims)),
        "vectors": operands,
        "products": products_of(plan, operands),
        "others": [name for name in tensor_names(spec) if name not in operands],
        "config_arguments": _config_arguments(plan, _steps(plan)),
        "config_lines": list(_config_lines(plan)),
        "value": plan.value,
    }


def _steps(plan: RowPlan) -> str | None:
    """The argument that says how many rows a token has; None where it has one."""
    return plan.spec.steps.argument if steps_symbol(plan) and plan.spec.steps else None


def products_of(plan: RowPlan, operands: Sequence[str]) -> str:
    """The call that says the dtype of the operands of matrix products, and their precision."""
    large = ['narrow="bf16x3"'] if plan.delta is not None and not plan.contracts else []
    return f"products_of({', '.join((*operands, *large))})"


def chunk_tuning_context(plan: RowPlan, backward: Backward | None) -> Mapping[str, object]:
    """Every value `triton/chunk_tuning.py.j2` uses; `backward` is that of the call, where it has kernels."""
    return {
        "name": plan.spec.name,
        "key": plan.key,
        "backward": backward is not None,
        "value": plan.value,
        "of_kernels": ("chunk_size", *(("save_states",) if backward is not None and backward.kept else ())),
    }


def chunk_kept_context(plan: RowPlan, program: Program, backward: Backward) -> Mapping[str, object]:
    """Every value `triton/chunk_residuals.py.j2` uses."""
    shared = chunk_launcher_context(plan, program, backward)
    return {
        **{key: shared[key] for key in ("name", "steps", "tokens_of_chunk", "keep", "kept", "walked")},
        "kept_arrays": backward.kept,
        "in_every_mode": [array.name for array in backward.kept if array.walked and array.kept_in == "PREPARED"],
    }


def _unpacked(names: Iterable[str]) -> str:
    """The targets of an assignment that takes a tuple apart."""
    different = list(dict.fromkeys(names))
    return ", ".join(different) if len(different) > 1 else f"({different[0]},)"


def function_context(
    spec: Spec,
    size: int,
    rows: str | None,
    most_steps: int | None = None,
    pairs: str = "",
    backward: Backward | None = None,
    tiles: str = "",
    products: str = "",
    rows_of_form: str = "",
) -> dict[str, object]:
    """What the public function and its operator are made of; a token has `rows` rows, or one. `most_steps`: for how
    many micro-steps there are kernels; `pairs`: the dim of pairs, if the keys are such; `tiles`: those of the walk;
    `products`: what says the dtype and precision of the products; `rows_of_form`: the number of rows where a call's
    keywords are."""
    chunk_size = Parameter("chunk_size", "int", str(size), True, _size_doc(rows))
    operator = Operator(
        spec,
        "chunk",
        f"naive_chunk_{spec.name}",
        chunk_size=chunk_size,
        rows_of_form=rows_of_form,
        most_steps=most_steps,
        pairs=pairs,
        sizes_of_kept=("cu_seqlens", *([rows] if rows else []), tiles),
        products=products,
        kept=tuple(array.name for array in backward.kept) if backward else (),
        backward=f"chunk_backward_{spec.name}" if backward else "",
        keywords=tuple(x for x in backward.keywords if x != "chunk_size=chunk_size") if backward else (),
        takes_output=backward is not None and backward.takes_output,
    )
    modes = [SAVE_STATES] if backward and backward.kept else []
    context = {**common_context(spec, chunk_size, *modes), **operator.context(), "sizes": SIZES}
    del context["finals"]  # The states have their names.
    return context


def state_sizes(state: State) -> str:
    """The shape of a state of every sequence and head."""
    return ", ".join(f"args.{x}" for x in ("runs", "HV", *state.declared))


def _operands(plan: RowPlan) -> list[str]:
    """The inputs whose dtype the products take: those that are operands as they are, or that the output is like.

    Where decays have keys, too, not every vector is one.
    """
    inputs = [decl for decl in plan.spec.inputs if not decl.wide] or plan.spec.inputs
    if not isinstance(plan, KeyKernelPlan):
        return [decl.name for decl in inputs if decl.dims]
    plain = {tile.name for tile in plan.vectors if is_input(tile)}
    like = next((decl.name for decl in inputs if decl.dims == plan.spec.output_dims), inputs[0].name)
    return [decl.name for decl in inputs if decl.name in plain | {like}]


def _size_doc(rows: str | None) -> str:
    counted = "tokens per chunk" if rows is None else f"rows per chunk, {rows} of each token"
    return f"the most {counted}: {sizes_in_words()}; `launch_config` tells where fewer are used."


# -------------------------------------------------------------------------------------------------------------- tiles


def _config_arguments(plan: RowPlan, steps: str | None) -> list[str]:
    return [*(f"args.{dim}" for dim in sizes_of(plan)), *([steps] if steps else []), "chunk_size", "dtype"]


def _config_lines(plan: RowPlan) -> list[str]:
    """How many terms in bfloat16 a log decay takes to be exact enough for the products."""
    if not isinstance(plan, KeyKernelPlan) or plan.log_decay is None:
        return []
    terms = "3 if dtype == torch.float32 else 2"
    if plan.decay_input is not None:
        terms = f"1 if {plan.decay_input}.dtype == torch.bfloat16 else {terms}"
    target = 'prepare_tiles["TERMS"] = output_tiles["TERMS"]' if plan.right else 'prepare_tiles["TERMS"]'
    return [f"{target} = {terms}"]


def array_like(plan: RowPlan, name: str, shape: Sequence[str], dtype: str) -> Scratch:
    """An array whose name gives way to the spec's."""
    return Scratch(free_name(name, set(declared_names(plan.spec))), name, shape, dtype)


def prepared_arrays(plan: RowPlan) -> list[Scratch]:
    """What the prepared chunks are kept in."""
    if isinstance(plan, KeyKernelPlan):
        return [_of_data(plan, array, "dtype" if array.own_dtype else "torch.float32") for array in prepared(plan)]
    rows = 'walk_tiles["CHUNK"]'
    tokens = 'walk_tiles["BLOCK_TOKENS"]' if steps_symbol(plan) else rows
    single = ("from_start", "to_end")
    shapes = {"scores": [tokens, rows], "write_scores": [tokens, rows], "from_start": [rows], "to_end": [rows]}
    numbers = {array.name: array for array in arrays_of(plan)}
    return [
        _of_data(plan, numbers[name], "dtype" if numbers[name].own_dtype else "torch.float32")
        if name in numbers
        else array_like(plan, name, shapes.get(name, [rows, rows]), "torch.float32" if name in single else "dtype")
        for name in scratch(plan)
    ]


def _between(plan: RowPlan, kernels: Kernels) -> list[Scratch]:
    """What is prepared that one of these kernels knows of."""
    named = {name for kernel in kernels if kernel is not None for name in kernel.parameters()}
    return [array for array in prepared_arrays(plan) if f"{array.inside}_ptr" in named]


def _of_data(plan: RowPlan, array: Array, dtype: str) -> Scratch:
    """An array of each chunk and head, as kernels have it."""
    rows = 'walk_tiles["CHUNK"]'
    several = [str(array.loops)] if "loop" in array.spaces else []
    dims = [rows if dim in (TOKEN, WRITTEN) else f"args.{dim}" for dim in array.dims]
    return array_like(plan, array.name, [*several, *dims], dtype)


# ------------------------------------------------------------------------------------------------------------ launches


def left_of_keys(plan: KeyKernelPlan) -> list[Scratch]:
    """What it leaves where decays are of each key."""
    return [_of_data(plan, array, "dtype") for array in walked(plan)]


def left_behind(plan: RowPlan, kernels: Kernels) -> list[Scratch]:
    """What the walk of the split form leaves for the outputs."""
    if isinstance(plan, KeyKernelPlan):
        return left_of_keys(plan)
    several = [] if plan.mixed is None else [str(len(plan.mixed.states))]
    states = array_like(plan, "states", [*several, f"args.{plan.value}", f"args.{plan.key}"], "dtype")
    names = {name for kernel in kernels if kernel is not None for name in kernel.parameters()}
    others = {
        "U": ([f"args.{plan.value}", 'walk_tiles["CHUNK"]'], "dtype"),
        "column_states": ([f"args.{plan.key}"], "torch.float32"),
    }
    return [states, *(array_like(plan, name, *others[name]) for name in others if f"{name}_ptr" in names)]


def _launch(
    plan: RowPlan,
    kernels: Kernels,
    kernel: Launchable,
    grid: str,
    tiles: str,
    others: Mapping[str, str] | None = None,
) -> Launch:
    """The launch of one of the `kernels`, whose parameters say what it is handed; of `others`, what it does not leave
    itself."""
    left = {f"{array.inside}_ptr": array.name for array in left_behind(plan, kernels)}
    return Launch(kernel.kernel, grid, launch_arguments(plan, kernel, {**(others or {}), **left}), tiles)


def launch_arguments(plan: RowPlan, kernel: Launchable, arrays: Mapping[str, str]) -> list[str]:
    """What `kernel` is handed for each parameter but the tiles; `arrays` are those that only its launcher knows."""
    spec = plan.spec
    known = {
        "T": "args.tokens",
        "cu_seqlens_ptr": PACKED,
        **dict(_first_states(spec)),
        **{f"{array.inside}_ptr": array.name for array in prepared_arrays(plan)},
        **arrays,
        **{f"{kernel_name(name)}_ptr": name for name in tensor_names(spec)},
        **{kernel_name(param.name): f"float({param.name})" for param in spec.params if not param.is_tensor},
    }
    sizes = {name: f"{name}=args.{name}" for name in ("H", "HV", *sizes_of(plan), plan.key)}
    if spec.steps is not None:
        sizes[spec.steps.symbol] = f"{spec.steps.symbol}={spec.steps.argument}"
    arguments = []
    for parameter in kernel.parameters():
        name, compiled, _ = parameter.partition(": tl.constexpr")
        if not compiled:
            arguments.append(known.get(name, name.removesuffix("_ptr")))
        elif name in sizes:
            arguments.append(sizes[name])
    return arguments


def _first_states(spec: Spec) -> Iterator[tuple[str, str]]:
    """The states that a call starts from, by the pointers that kernels have to them."""
    for state in spec.states:
        given = "initial_state" if len(spec.states) == 1 else initial_of(spec, state)
        yield f"{initial_of(spec, state)}_ptr", f"None if {given} is None else {given}.contiguous()"


def _prepared(plan: RowPlan, kernels: Kernels) -> list[Launch]:
    prepare, *_ = kernels
    return [] if prepare is None else [_launch(plan, kernels, prepare, "chunks * args.HV", "prepare_tiles")]


def _output_dim(plan: RowPlan) -> str | None:
    """The dim that programs of the output kernel cut, where it has tiles of its own."""
    if isinstance(plan, KeyKernelPlan):
        return plan.key if plan.right else None
    return plan.value if plan.prepare is None else None


def _fused(plan: RowPlan, kernels: Kernels, kept: Sequence[Kept]) -> list[Launch]:
    """One walk that puts out what is read."""
    _, walk, *_ = kernels
    if walk is None:
        return []
    arguments = launch_arguments(plan, walk, _walked(kept))
    return [Launch(walk.kernel, "args.runs * args.HV * blocks", arguments, "walk_tiles")]


def _split(plan: RowPlan, kernels: Kernels, kept: Sequence[Kept]) -> list[Launch]:
    """A walk that leaves states, then the outputs of all chunks."""
    *_, states, output = kernels
    blocks, tiles = ("output_blocks", "output_tiles") if _output_dim(plan) else ("blocks", "walk_tiles")
    return [
        _launch(plan, kernels, states, "args.runs * args.HV * blocks", "walk_tiles"),
        _launch(plan, kernels, output, f"chunks * args.HV * {blocks}", tiles, _walked(kept)),
    ]


def _walked(kept: Sequence[Kept]) -> Mapping[str, str]:
    """What only the walk writes."""
    return {f"{array.inside}_ptr": array.name for array in kept if array.walked}


Kernels = tuple[Launchable | None, Launchable | None, Launchable, Launchable]
"""What prepares the chunks, if anything; the fused walk, if there is one; the two kernels of the split form."""


def kernels_of(plan: RowPlan, program: Program) -> Kernels:
    """The kernels of a call."""
    prepare, fused, states, output = (Launched(program, name) for name in ("prepare", "", "states", "output"))
    without_walk = isinstance(plan, KeyKernelPlan) and plan.right
    return None if plan.prepare is None else prepare, None if without_walk else fused, states, output
