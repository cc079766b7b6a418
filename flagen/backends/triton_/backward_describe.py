"""What the docstrings of the backward kernels say: equations, ownership and traffic."""

from __future__ import annotations

from collections.abc import Mapping

from flagen.plan.chunk_backward import ChunkBackwardPlan


def states_docs(plan: ChunkBackwardPlan) -> Mapping[str, object]:
    """The docstring of the walk that stores the states."""
    rows = plan.rows
    end, to_end = _ends(plan)
    state, equations = [end], []
    if rows.delta is not None:
        right = [*(["z"] if rows.delta.z is not None else []), *(["N v"] if rows.crowded else [])]
        start = "e^G " if rows.row_decay is not None else ""
        equations.append(f"U = (I - L)^-1 ({' + '.join((*right, f'{start}(y S)'))})")
        state.append(f"({to_end}w)^T U")
    if rows.write_key is not None:
        state.append(f"({to_end}k)^T v")
    equations.append(f"S = {' + '.join(state)}")
    text = (
        f"The rows are those of the forward kernels. A program owns BLOCK_{rows.value} indices of {rows.value} of the"
        f" state; the states are stored in the dtype of the inputs, as [{rows.value}, {rows.key}]."
    )
    return {"equations": equations, "text": text}


def reverse_docs(plan: ChunkBackwardPlan) -> Mapping[str, object]:
    """The docstring of the walk that stores the gradients of the states."""
    rows = plan.rows
    end, to_end = _ends(plan)
    start = "e^G " if rows.row_decay is not None else ""
    state, equations = [f"{end.replace('S', 'dS')}", f"({start}q)^T dread"], []
    if rows.delta is not None:
        equations += [f"dU = A^T dread + {to_end}w dS", "dR = (I - L)^-T dU"]
        state.append(f"({start}y)^T dR")
    equations.append(f"dS = {' + '.join(state)}")
    text = (
        "dread is the gradient of what the output calls read. A program owns"
        f" BLOCK_{rows.value} indices of {rows.value}; the gradients are stored in the dtype of the inputs, as"
        f" [{rows.value}, {rows.key}]."
    )
    return {"equations": equations, "text": text}


def gradients_docs(plan: ChunkBackwardPlan) -> Mapping[str, object]:
    """The docstring of the kernel that has a program for every chunk."""
    rows = plan.rows
    _, to_end = _ends(plan)
    start = "e^G " if rows.row_decay is not None else ""
    equations, reads = [], [f"{start}dread S^T"]
    if rows.delta is not None:
        equations += ["dU = A^T dread + " + f"{to_end}w dS", "dR = (I - L)^-T dU", "dA = dread U^T", "dL = dR U^T"]
        reads.append("dA w")
        equations += [f"dy = {start}dR S^T + dL w", f"dw = {to_end}U dS^T + dA^T q + dL^T y", "dz = dR"]
    if rows.write_key is not None:
        scores = "dA" if rows.delta is None else "dB"
        reads.append(f"{scores} k")
        value = [f"{to_end}k dS", f"{scores[1:]}^T dread"]
        key = [f"{to_end}v dS^T", f"{scores}^T q"]
        equations.append(f"{scores} = dread v^T")
        if rows.crowded:
            equations.append("dN = dR v^T")
            value.append("N^T dR")
            key.append("dN^T y")
            equations[equations.index(next(line for line in equations if line.startswith("dy")))] += " + dN k"
        equations += [f"dv = {' + '.join(value)}", f"dk = {' + '.join(key)}"]
    equations.insert(0, f"dq = {' + '.join(reads)}")
    decays = ""
    if plan.decays:
        decays = (
            " The gradient of a sum of log decays is what the rows that grow with it, q and y, have in common with"
            " their gradients, less what those have that shrink with it, w and k; summed from a token to the chunk's"
            " end, with the state's share, it is that of the token's log decay."
        )
    text = (
        f"dS is the gradient of the state after the chunk; dA, dL and their like take the decays and masks of A and L."
        f"{decays} Value heads of a key head follow one another, each in blocks of BLOCK_{rows.value} indices of"
        f" {rows.value}. A gradient whose pointer is None is not stored."
    )
    return {"equations": equations, "text": text}


def _ends(plan: ChunkBackwardPlan) -> tuple[str, str]:
    return ("e^G_end S", "e^(G_end - G) ") if plan.rows.row_decay is not None else ("S", "")
