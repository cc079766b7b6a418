"""What functions that solve systems have beside others: how many steps they take, and what they rely on."""

from __future__ import annotations

from collections.abc import Iterator

from flagen.backends.signature import Parameter
from flagen.plan.chunk import ITERATIONS, ChunkPlan
from flagen.plan.model import Plan, StagedPlan

MAX_ITERATIONS = Parameter(
    "max_iterations", "int", str(ITERATIONS), True, "steps of conjugate gradients for every token."
)


def solved_states(plan: Plan) -> Iterator[str]:
    """The states that the forms by chunks of `plan` solve systems with."""
    match plan.chunk:
        case ChunkPlan(solved=solved) if solved is not None:
            yield solved.operator.state.name
        case StagedPlan(_, stages):
            for stage in stages:
                yield from solved_states(stage.plan)


def iterations(plan: Plan) -> tuple[Parameter, ...]:
    """The argument that says how many steps, where there are any."""
    return (MAX_ITERATIONS,) if any(solved_states(plan)) else ()


def solution_notes(plan: Plan) -> Iterator[str]:
    """What a caller has to know of solutions by steps, as paragraphs of a docstring."""
    states = tuple(dict.fromkeys(solved_states(plan)))
    if not states:
        return
    name, whose = plan.spec.name, " and ".join(states)
    yield (
        f"Systems of equations with {whose} are solved by `{MAX_ITERATIONS.name}` steps of conjugate gradients, whose "
        f"matrix is never formed. A step divides the error by about (r + 1) / (r - 1), r the root of the matrix's "
        f"condition number, and as many steps as channels are exact but for rounding: in float32, 16 do for keys at "
        f"random, 30 for strongly correlated ones. Gradients are those of the exact solution, by a system of the same "
        f"matrix: where steps are too few, they belong to another output than this one."
    )
    yield (
        f"An initial {whose} has to be symmetric and positive semidefinite, as a final one is: of any other the "
        f"results mean nothing, where those of `naive_recurrent_{name}` are right."
    )
