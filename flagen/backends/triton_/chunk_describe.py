"""What the docstrings of the chunk kernels say: equations, ownership and traffic."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping

from flagen.backends.triton_.describe import count
from flagen.plan.chunk_kernel import ChunkKernelPlan
from flagen.plan.row_planner import Part, RowLoad
from flagen.plan.rows import ROW
from flagen.spec.model import Expr
from flagen.spec.printer import to_source


def walk_docs(plan: ChunkKernelPlan) -> Mapping[str, object]:
    """The docstring of the kernel that carries the state."""
    end, to_end = ("e^G_end S", "e^(G_end - G) ") if plan.row_decay is not None else ("S", "")
    start = "e^G " if plan.row_decay is not None else ""
    equations = list(_front_end(plan, ("q", "w", "y", "z", "k", "v", *(["g"] if plan.delta is None else []))))
    read, state = [f"{start}(q S)"], [end]
    if plan.delta is None:
        equations.append(f"A_ij = {_score('q', 'k', plan)}, j <= i")
        read.append("A v")
        state.append(f"({to_end}k)^T v")
    else:
        right = [*(["z"] if plan.delta.z is not None else []), *(["N v"] if plan.write_key is not None else [])]
        equations += [f"R = {' + '.join((*right, f'{start}(y S)'))}", "U = (I - L)^-1 R"]
        read.append("A U")
        state.append(f"({to_end}w)^T U")
        if plan.write_key is not None:
            read.append("B v")
            state.append(f"({to_end}k)^T v")
    equations += [
        f"read = {' + '.join(read)}",
        f"o = {_output(plan)}",
        f"S = {' + '.join(state)}",
    ]
    return {"equations": equations, "text": f"{_sums(plan)}{_walk_text(plan)}"}


def prepare_docs(plan: ChunkKernelPlan) -> Mapping[str, object]:
    """The docstring of the kernel that prepares all chunks; empty where there is none."""
    if plan.prepare is None:
        return {"equations": [], "text": ""}
    seen = "j in a token up to i" if plan.row_axis == ROW else "j <= i"
    equations = [*_front_end(plan, ("q", "w", "y", "k", "g")), f"L_ij = {_score('y', 'w', plan)}, j < i"]
    equations.append(f"A_ij = {_score('q', 'w', plan)}, {seen}")
    if plan.write_key is not None:
        equations.append(f"N_ij = {_score('y', 'k', plan)}, j < i")
        equations.append(f"B_ij = {_score('q', 'k', plan)}, {seen}")
    matrices = "(I - L)^-1 and A" if plan.write_key is None else "(I - L)^-1, A, N and B"
    factors = ", and for each row e^G and e^(G_end - G) in float32" if plan.row_decay is not None else ""
    text = (
        f"{_sums(plan)}A program owns one chunk of one head. Each token of a head reads"
        f" {_read(plan, *plan.prepare)} elements; a chunk writes {matrices}, of CHUNK columns, in the"
        f" dtype of the inputs{factors}. The inverse is stored without its diagonal of ones."
    )
    return {"equations": equations, "text": text}


def _walk_text(plan: ChunkKernelPlan) -> str:
    value = plan.value
    prepared = "" if plan.prepare is None else "; each chunk reads what was prepared for it"
    return (
        f"A program owns BLOCK_{value} indices of {value} of the state of one head of one sequence, transposed:"
        f" [{value}, {plan.key}], so that matrix products have the state's rows as theirs. Nothing sums over {value}."
        f" Each token of a head reads {_read(plan, plan.walk)} elements and writes {value}{prepared}; each sequence"
        f" reads and writes {plan.key}*{value} elements of state, in float32."
    )


def _sums(plan: ChunkKernelPlan) -> str:
    if plan.row_decay is None:
        return ""
    return "G is the sum of g from the chunk's start up to a row, G_end to the chunk's end. "


def _output(plan: ChunkKernelPlan) -> str:
    """The output expression, in which `read` is S^T q."""
    return re.sub(rf"\b{plan.read}\b", "read", to_source(plan.chunk.normal_form.output))


def _score(reader: str, writer: str, plan: ChunkKernelPlan) -> str:
    decay = " e^(G_i - G_j)" if plan.row_decay is not None else ""
    return f"{reader}_i . {writer}_j{decay}"


def _read(plan: ChunkKernelPlan, *parts: Part) -> str:
    """How many elements a token has of what a kernel loads."""
    symbol = "" if plan.spec.steps is None else plan.spec.steps.symbol
    loads = {action.source.name: action.source for part in parts for action in part.rows if isinstance(action, RowLoad)}
    once = count([decl.dims for decl in loads.values() if decl.per == "token"])
    each = count([decl.dims for decl in loads.values() if decl.per == "step"])
    return " + ".join(filter(None, (once, each and f"{symbol}*({each})")))


def _front_end(plan: ChunkKernelPlan, wanted: Collection[str]) -> Iterator[str]:
    """What those rows of the normal form are that a kernel uses, where that is not their own name."""
    nf = plan.chunk.normal_form
    (block,), (step,) = nf.blocks, nf.steps
    rows: dict[str, Expr | None] = {"q": nf.reads[0].q}
    for delta in step.deltas:
        rows |= {"w": delta.w, "y": delta.y, "z": delta.z}
    for write in step.writes:
        rows |= {"k": write.k, "v": write.v}
    log = block.lead or step.decay
    if log is not None:
        rows["g"] = log.log
    for name, expr in rows.items():
        if name in wanted and expr is not None and to_source(expr) != name:
            yield f"{name} = {to_source(expr)}"
