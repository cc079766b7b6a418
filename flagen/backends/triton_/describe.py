"""What the docstring of the fused recurrent kernel says beside its equations: ownership and traffic."""

from __future__ import annotations

from collections.abc import Sequence

from flagen.backends.printed import product_of, total_of
from flagen.backends.text import listed
from flagen.plan.fused import FusedPlan
from flagen.spec.model import Dims, Repeat, Rotate, Spec, walk


def turns(spec: Spec) -> bool:
    """Whether there is a rotation, for which a program needs all of a vector."""
    bodies = (statement.body if isinstance(statement, Repeat) else (statement,) for statement in spec.update)
    assigns = (*(assign for body in bodies for assign in body), *spec.output)
    values = (*(derived.value for derived in spec.derived), *(assign.value for assign in assigns))
    return any(isinstance(node, Rotate) for value in values for node in walk(value))


def ownership(plan: FusedPlan) -> str:
    """Which part of the work one program has, and why it can have it."""
    spec, split = plan.spec, plan.split
    if split is None:
        crossed = listed(dim for dim in plan.order if any(dim in state.dims for state in spec.states))
        what = "sums or rotations" if turns(spec) else "sums"
        reason = f": there are {what} over {crossed}, so no part of it can go on alone" if crossed else ""
        return f"A program owns {listed(state.name for state in spec.states)} of one head of one sequence{reason}."
    cut = listed(state.name for state in spec.states if split.dim in state.dims)
    whole = listed(state.name for state in spec.states if split.dim not in state.dims)
    aside = f" Beside it, each computes the whole of {whole}." if whole else ""
    block = f"A program owns BLOCK_{split.dim} indices of {split.dim} of {cut}, of one head of one sequence.{aside}"
    if split.partial:
        return (
            f"{block} Only the output sums over {split.dim}: a program writes its own share of that sum, and the shares"
            " are added up after the launch."
        )
    return f"{block} Nothing sums over {split.dim}, so programs need nothing of one another."


def traffic(plan: FusedPlan) -> str:
    """What the kernel moves between memory and registers."""
    spec, split = plan.spec, plan.split
    once = count([decl.dims for decl in spec.inputs if decl.per == "token"])
    each = count([decl.dims for decl in spec.inputs if decl.per == "step"])
    symbol = "" if spec.steps is None else spec.steps.symbol
    read = total_of(*filter(None, (once, each and f"{symbol}*({each})")))
    output = _size(spec.output_dims)
    written = f"4*{output} bytes written by each block" if split and split.partial else f"{output} written"
    state = total_of(*(f"4*{_size(state.dims)}" for state in spec.states))
    return (
        f"Memory, for each token of a head: {read} elements read (rows that heads or blocks share, from the cache),"
        f" {written}. For each sequence of a head: {state} bytes of state read, as many written."
    )


def count(rows: Sequence[Dims]) -> str:
    """How many elements rows over these dims have together: `2*K + V + 1`."""
    counts: dict[str, int] = {}
    for dims in rows:
        counts[_size(dims)] = counts.get(_size(dims), 0) + 1
    ones = counts.pop("1", 0)
    terms = [size if count == 1 else f"{count}*{size}" for size, count in counts.items()]
    return total_of(*terms, *([str(ones)] if ones else []))


def _size(dims: Dims) -> str:
    return product_of(*dims).replace(" ", "")
