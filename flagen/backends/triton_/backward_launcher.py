"""The context of `chunk_backward.py`: the function that launches the backward kernels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from flagen.backends.signature import Parameter, parameters
from flagen.backends.triton_.chunk_launcher import (
    Launch,
    chunk_launcher_context,
    launch_arguments,
    prepared_arrays,
    state_sizes,
)
from flagen.backends.triton_.kernel import tensor_names
from flagen.backends.triton_.launched import Launchable, Launched
from flagen.backends.triton_.operator import Operator
from flagen.kernel.forward_rows import kept
from flagen.kernel.ir import Program
from flagen.kernel.rows import RowPlan, steps_symbol
from flagen.kernel.scalar_rows import of_place
from flagen.plan.backward_levels import BLOCK, KEYS, SHARED
from flagen.plan.chunk_backward import ChunkBackwardPlan
from flagen.plan.chunk_kernel import Rider
from flagen.plan.free_names import final_of, free_name
from flagen.plan.key_backward import KeyBackwardPlan
from flagen.plan.schedule import declared_names
from flagen.plan.tiling import tiles_reverse
from flagen.spec.model import Param, Spec, State


def backward_launcher_context(
    plan: ChunkBackwardPlan, forward_program: Program, program: Program
) -> Mapping[str, object]:
    """Every value `triton/chunk_backward.py.j2` uses."""
    forward = plan.forward
    shared = chunk_launcher_context(forward, forward_program)
    own = own_names(plan)
    walks = "args.runs * args.HV * blocks"
    reverse_tiles = own["reverse_tiles"] if tiles_reverse(plan) else "walk_tiles"
    value = plan.rows.value
    reverse_blocks = f'-(-args.{value} // {reverse_tiles}["BLOCK_{value}"])' if tiles_reverse(plan) else "blocks"
    return {
        **{name: shared[name] for name in (*SHARED_CONTEXT, "tokens_of_chunk", "prepared", "scratch")},
        **backward_signature(forward),
        **gradients_of_call(plan),
        "own": own,
        "key": plan.rows.key,
        "tiles": ", ".join(
            [
                *([] if forward.prepare is None else ["prepare_tiles"]),
                "walk_tiles",
                *([own["reverse_tiles"]] if tiles_reverse(plan) else []),
                "tiles",
            ]
        ),
        **tiles_of_kernels(["walk", "_"] if forward.prepare is None else ["prepare", "walk"], tiles_reverse(plan)),
        "gradients_module": ".chunk_backward_gradients",
        "stored_states": stored_states(plan),
        "saved_states": _saved_states(plan),
        "walked": [own["states"], *_beside_states(plan, own)],
        "erases": forward.delta is not None,
        "several": "" if forward.mixed is None else f"{len(forward.mixed.states)}, ",
        "rows_shape": f"args.batch, {_rows(plan)}, args.HV, args.{plan.rows.value}",
        "along_keys": [gradient.name for gradient in plan.stored if gradient.level == KEYS],
        "along_values": [gradient.name for gradient in plan.stored if gradient.level == BLOCK],
        "states": _launch(plan, Launched(program, "kept_states"), walks, own),
        "reverse": _launch(
            plan, Launched(program, "reverse"), f"args.runs * args.HV * {reverse_blocks}", own, reverse_tiles
        ),
        "handed_on": [array.name for array in prepared_arrays(forward) if array.inside in kept(forward)],
        "gradients": _gradients_launch(plan, program, own),
        "rider": None if forward.rider is None else _rider(plan, forward.rider),
        "again": _launch(plan, Launched(forward_program, ""), walks, own),
        "output_dtype": shared["output_dtype"],
        "d_finals": _d_finals(plan, own),
        "quoted_initials": ", ".join(f'"{name}"' for name in Operator(forward.spec, "chunk", "").initials),
    }


def stored_states(plan: ChunkBackwardPlan) -> str:
    """How many states are stored of all sequences: where one is for two chunks, no two sequences share it."""
    return "chunks" if plan.every == 1 else "(chunks + args.runs) // 2"


def _saved_states(plan: ChunkBackwardPlan) -> str:
    """What the walk over states leaves, in words."""
    which = "every chunk" if plan.every == 1 else "every second chunk"
    erased = " and U" if plan.forward.delta is not None else ""
    beside = "" if plan.forward.rider is None else f", S and {plan.forward.rider.state.name},"
    return f"the states before {which}{erased}{beside}"


def _beside_states(plan: ChunkBackwardPlan, own: Mapping[str, str]) -> list[str]:
    """What it leaves beside the matrices."""
    if plan.forward.delta is not None:
        return [own["U"]]
    return [] if plan.forward.rider is None else [own["column_states"]]


def tiles_of_kernels(configured: Sequence[str], reverse: bool) -> Mapping[str, object]:
    """What the configuration of the forward call gives, and which of it the backward takes: with tiles of its own for
    the reverse walk, or with those of the walk."""
    chosen = [name for name in configured if name != "_"]
    return {
        "configured": configured,
        "chosen": [*chosen, "reverse"] if reverse else chosen,
        "tiles_reverse": reverse,
    }


def _rider(plan: ChunkBackwardPlan, rider: Rider) -> Mapping[str, str]:
    """What the function has of a vector state that rides along."""
    initials = dict(zip(_states(plan), Operator(plan.forward.spec, "chunk", "").initials, strict=True))
    initial = initials[rider.state.name]
    in_pairs = f".view_as({initial})" if rider.state.shape else ""
    return {"name": rider.state.name, "initial": initial, "in_pairs": in_pairs}


def _states(plan: ChunkBackwardPlan) -> list[str]:
    return [state.name for state in plan.forward.spec.states]


def _d_finals(plan: ChunkBackwardPlan, own: Mapping[str, str]) -> list[str]:
    """What the gradients of the final states are called, in the spec's order."""
    if plan.forward.mixed is not None:
        return [own[of_final(state)] for state in plan.forward.matrices]
    if plan.forward.rider is None:
        return [own["d_final_state"]]
    matrix = plan.forward.state.name
    return [own["d_matrix_final"] if name == matrix else own["d_column_final"] for name in _states(plan)]


def of_final(state: State) -> str:
    """The gradient of one of several states at the end of a sequence."""
    return f"d_{state.name}_final"


def of_initial(state: State) -> str:
    """The same at its start."""
    return f"d_{state.name}_initial"


COLUMNS = ("column", "column_states", "column_gradients", "column_state_gradients")
"""What there is of a vector state that rides along."""

SHARED_CONTEXT = """
    name title cited equations check value defaults output_shape vectors products others
    config_arguments
    """.split()
"""What is as for the forward call."""


def backward_signature(forward: RowPlan) -> Mapping[str, object]:
    """What the function takes beside the gradients of what the forward call returned."""
    initials = Operator(forward.spec, "chunk", "").initials
    given = [p for p in parameters(forward.spec) if p.name != "output_final_state"]
    every = (*given, Parameter("chunk_size", "int", str(forward.size), True, "as in the forward call."))
    return {
        "signature": [
            *(p.declaration for p in every if not p.keyword),
            "*",
            *(p.declaration for p in every if p.keyword),
        ],
        "tensors": tensor_names(forward.spec),
        "initials": initials,
        "state_shape": state_sizes(forward.state),
    }


@dataclass(frozen=True)
class OfCall:
    """The gradients of a call as the function for them writes them.

    named: what each is called, by its input or param; partial: for how many heads a kernel adds up that of a param;
    repeated: inputs that are repeated for each value head of a key head, whose gradients are added up again.
    """

    spec: Spec
    named: Mapping[str, str]
    partial: Mapping[str, str]
    repeated: Sequence[str] = ()

    def context(self) -> Mapping[str, object]:
        """What kernels write to, and what is returned for each tensor."""
        inputs = [decl.name for decl in self.spec.inputs if decl.name in self.named]
        params = [param for param in self.spec.params if param.is_tensor and param.name in self.named]
        return {
            "of_rows": [(self.named[name], name, self._dtype(name)) for name in inputs],
            "of_sums": [(self.named[param.name], param.name, self._shape(param)) for param in params],
            "returned_gradients": [self._returned(name) for name in tensor_names(self.spec)],
            "repeated": self.repeated,
        }

    def _dtype(self, name: str) -> str:
        own = f"{name}.dtype"
        return f"torch.float32 if args.HV != args.H else {own}" if name in self.repeated else own

    def _shape(self, param: Param) -> str:
        """Of partial sums, one for each chunk and head."""
        own = f"{param.name}.shape[1:]" if param.per_head else f"{param.name}.shape"
        return f"chunks, {self.partial[param.name]}, *{own}"

    def _returned(self, name: str) -> str:
        if name not in self.named:
            return f'torch.zeros_like({name}) if "{name}" in wanted else None'
        gradient = self.named[name]
        if name in self.repeated:
            return f'launches.of_key_heads({gradient}, given["{name}"])'
        param = next((param for param in self.spec.params if param.name == name), None)
        if param is None:
            return gradient
        over = "0" if param.per_head else "(0, 1)"
        return f"None if {gradient} is None else {gradient}.sum({over}).to({name}.dtype)"


def of_call(plan: ChunkBackwardPlan | KeyBackwardPlan) -> OfCall:
    """What gradients there are, and in what shape a kernel leaves them."""
    params = {param.name for param in plan.rows.spec.params}
    return OfCall(
        plan.rows.spec,
        {gradient.name: gradient.called for gradient in plan.stored},
        {
            gradient.name: "args.H" if gradient.level in (SHARED, KEYS) else "args.HV"
            for gradient in plan.stored
            if gradient.name in params
        },
    )


def states_of_call(plan: ChunkBackwardPlan | KeyBackwardPlan) -> Mapping[str, Any]:
    """What is done for the states of a call, and with its sizes."""
    spec, own = plan.rows.spec, own_names(plan)
    matrices = {state.name: own["d_initial_state"] for state in (plan.rows.state,)}
    if isinstance(plan, ChunkBackwardPlan) and plan.rows.mixed is not None:
        matrices = {state.name: own[of_initial(state)] for state in plan.rows.matrices}
    initials = dict(zip((state.name for state in spec.states), Operator(spec, "chunk", "").initials, strict=True))
    return {
        "tiled": "key, second_key, value" if plan.rows.key in spec.pairs else "key, value",
        "d_initials": [matrices.get(state.name, own["d_column_initial"]) for state in spec.states],
        "matrix_initials": [(gradient, initials[name]) for name, gradient in matrices.items()],
    }


def gradients_of_call(plan: ChunkBackwardPlan | KeyBackwardPlan) -> Mapping[str, Any]:
    """All of it, where inputs are as they were given."""
    context = {**of_call(plan).context(), **states_of_call(plan)}
    del context["repeated"]
    return context


def own_names(plan: ChunkBackwardPlan | KeyBackwardPlan) -> Mapping[str, str]:
    """What the function calls what is its own."""
    wanted = "do d_final_state d_initial_state prepared saved states state_gradients U R_gradient reverse_tiles".split()
    wanted += [*COLUMNS, "d_matrix_final", "d_column_final", "d_column_initial"]
    wanted += [of(state) for of in (of_final, of_initial) for state in plan.rows.spec.states]
    taken = {*declared_names(plan.rows.spec), *(gradient.called for gradient in plan.stored)}
    return {name: free_name(name, taken) for name in wanted}


def _launch(
    plan: ChunkBackwardPlan, kernel: Launchable, grid: str, own: Mapping[str, str], tiles: str = "walk_tiles"
) -> Launch:
    rides = plan.forward.rider is not None
    final, column = own["d_matrix_final" if rides else "d_final_state"], own["d_column_final"]
    arrays = {
        **{f"{name}_ptr": own[name] for name in ("do", "states", "state_gradients", "U", "R_gradient", *COLUMNS)},
        **{f"{gradient.called}_ptr": gradient.called for gradient in plan.stored},
        "final_gradient_ptr": f"None if {final} is None else {final}.contiguous()",
        "initial_gradient_ptr": own["d_initial_state"],
        **_of_states(plan, own),
        "column_final_gradient_ptr": f"None if {column} is None else {column}.contiguous()",
        "column_initial_gradient_ptr": own["d_column_initial"],
        "shares": "blocks",
        **{f"{final_of(plan.forward.spec, state)}_ptr": "None" for state in plan.forward.spec.states},
    }
    return Launch(kernel.kernel, grid, launch_arguments(plan.forward, kernel, arrays), tiles)


def _of_states(plan: ChunkBackwardPlan, own: Mapping[str, str]) -> Mapping[str, str]:
    """What walks have of the gradients of several states."""
    states = () if plan.forward.mixed is None else plan.forward.mixed.states
    found = {}
    for place, state in enumerate(states):
        final = own[of_final(state)]
        found[f"{of_place('final_gradient', place)}_ptr"] = f"None if {final} is None else {final}.contiguous()"
        found[f"{of_place('initial_gradient', place)}_ptr"] = own[of_initial(state)]
    return found


def _gradients_launch(plan: ChunkBackwardPlan, program: Program, own: Mapping[str, str]) -> Launch:
    """The last kernel has the rows of the walks, and tiles of its own."""
    launch = _launch(plan, Launched(program, "gradients"), "chunks * args.H", own)
    tiles = ("CHUNK", *(["BLOCK_TOKENS"] if steps_symbol(plan.rows) else []))
    rows = [f'{name}=walk_tiles["{name}"]' for name in tiles]
    if "LEVELS" in program.kernel("gradients").sizes:
        rows.append('LEVELS=prepare_tiles["LEVELS"]')
    return Launch(launch.kernel, launch.grid, [*launch.arguments, *rows], "")


def _rows(plan: ChunkBackwardPlan) -> str:
    """How many rows a batch entry has."""
    steps = plan.rows.spec.steps
    return f"args.tokens * {steps.argument}" if steps and steps_symbol(plan.rows) else "args.tokens"
