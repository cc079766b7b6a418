"""What a call of the chunk kernels leaves for the backward of that call: arrays that its gradient would have to compute
again. In the first mode those that are small against the inputs, in the second the states as well."""

from __future__ import annotations

from collections.abc import Sequence

from flagen.backends.triton_.backward_launcher import own_names
from flagen.backends.triton_.backward_walks import kept
from flagen.backends.triton_.chunk_launcher import Backward, Kept, prepared_arrays
from flagen.backends.triton_.kernel import tensor_names
from flagen.backends.triton_.names import free_name
from flagen.backends.triton_.rows import steps_symbol
from flagen.plan.chunk_backward import ChunkBackwardPlan
from flagen.plan.schedule import declared_names
from flagen.spec.model import Spec


def backward_of(plan: ChunkBackwardPlan) -> Backward:
    """The backward of a call of the chunk kernels: what it takes from them, and how it is called."""
    arrays = _handed_on(plan)
    return Backward(arrays, _call(plan.forward.spec, own_names(plan), arrays))


def _handed_on(plan: ChunkBackwardPlan) -> tuple[Kept, ...]:
    """Matrices and decays of the chunks, then every second state and U, in the order in which the backward takes them."""
    rows, spec = plan.forward, plan.forward.spec
    taken = set(declared_names(spec))
    prepared = [
        Kept(array.name, array.inside, f"chunks, args.HV, {', '.join(array.shape)}", array.dtype, "PREPARED")
        for array in prepared_arrays(rows)
        if array.inside in kept(rows)
    ]
    runs = "args.runs" if plan.every == 2 else f"args.runs * {plan.every - 1}"
    states = f"(chunks + {runs}) // {plan.every}, args.HV, args.{rows.value}, args.{rows.key}"
    walked = [Kept(free_name("kept_states", taken), "states", states, "dtype", "STATES")]
    if rows.delta is not None:
        tokens = f"args.tokens * {spec.steps.argument}" if spec.steps and steps_symbol(rows) else "args.tokens"
        updates = f"args.batch, {tokens}, args.HV, args.{rows.value}"
        walked.append(Kept(free_name("kept_U", taken), "U", updates, "dtype", "STATES"))
    return (*prepared, *walked)


def _call(spec: Spec, own: dict[str, str], arrays: Sequence[Kept]) -> str:
    """The call in the operator's backward, with the names that there are there."""
    keep, (state,) = free_name("keep", set(declared_names(spec))), spec.states
    given = [*tensor_names(spec)]
    return ""
