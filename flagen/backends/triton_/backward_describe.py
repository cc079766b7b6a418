"""What the docstrings of the backward kernels say: equations, ownership and traffic."""

from __future__ import annotations

from flagen.backends.triton_.chunk_describe import erased, erased_from, next_states, numbers_of
from flagen.backends.triton_.kernel import Docs
from flagen.plan.chunk_backward import ChunkBackwardPlan
from flagen.plan.chunk_kernel import ChunkKernelPlan, Rider
from flagen.plan.show import show


def states_docs(plan: ChunkBackwardPlan) -> Docs:
    """The docstring of the walk that stores the states."""
    rows = plan.rows
    end, to_end = _ends(plan)
    state, equations = [end], []
    if rows.delta is not None:
        right = [*(["z"] if rows.delta.z is not None else []), *(["N v"] if rows.crowded else [])]
        equations.append(f"U = (I - L)^-1 ({' + '.join((*right, erased(rows)))})")
        state.append(f"({to_end}w)^T U")
    if rows.write_key is not None:
        state.append(f"({to_end}k)^T v")
    equations.append(f"S = {' + '.join(state)}" if rows.mixed is None else next_states(rows))
    text = (
        f"The rows are those of the forward kernels. {_numbers(rows)}A program owns BLOCK_{rows.value} indices of"
        f" {rows.value} of the {'state' if rows.mixed is None else 'states'}; the states are stored in the dtype of the"
        f" inputs, as [{rows.value}, {rows.key}]."
    )
    if rows.rider is not None:
        z = rows.rider.state.name
        equations.append(f"{z} = {end.replace('S', z)} + ({to_end}k)^T {_ones(rows.rider)}")
        text += f" Every program has all of {z}; the first block stores it, in float32."
    title = f"Walk the chunks of one sequence of one value head and store the state before {_which(plan)}, transposed."
    if rows.mixed is not None:
        title = title.replace("the state", "the states")
    return Docs(title, equations, (text,))


def reverse_docs(plan: ChunkBackwardPlan) -> Docs:
    """The docstring of the walk that stores the gradients of the states."""
    rows = plan.rows
    end, to_end = _ends(plan)
    start = "e^G " if rows.row_decay is not None else ""
    state, equations = [f"{end.replace('S', 'dS')}", f"({start}q)^T dread"], []
    if rows.delta is not None:
        equations += [f"dU = A^T dread + {to_end}w dS", "dR = (I - L)^-T dU"]
        state.append(f"({erased_from(rows)}y)^T dR")
    equations.append(f"dS = {' + '.join(state)}")
    text = (
        "dread is the gradient of what the output calls read. A program owns"
        f" BLOCK_{rows.value} indices of {rows.value}; the gradients are stored in the dtype of the inputs, as"
        f" [{rows.value}, {rows.key}]."
    )
    if rows.rider is not None:
        z = rows.rider.state.name
        equations.append(f"d{z} = {end.replace('S', f'd{z}')} + ({start}q)^T dcolumn")
        text += (
            f" dcolumn is the gradient of what is read of {z}: a sum over {rows.value}, in which the output takes the"
            f" place of what was read of S. Each block has a share of it and of d{z}, stored in float32."
        )
    title = (
        "Walk the chunks of one sequence of one value head backward and store the gradient dS of the state after"
        f" {_which(plan)}, transposed."
    )
    if rows.mixed is not None:
        title = title.replace("gradient dS of the state after", "gradients dX of the states after")
    return Docs(title, equations, (text,))


def _which(plan: ChunkBackwardPlan) -> str:
    """The chunks that there is a state for."""
    return "each" if plan.every == 1 else "every second one"


def _ones(rider: Rider) -> str:
    """What the column of the vector state that rides along is."""
    return "1" if rider.scale is None else "c"


def gradients_docs(plan: ChunkBackwardPlan) -> Docs:
    """The docstring of the kernel that has a program for every chunk."""
    rows = plan.rows
    _, to_end = _ends(plan)
    start = "e^G " if rows.row_decay is not None else ""
    if rows.mixed is not None:
        return _gradients_of_several(plan)
    equations, reads = [], [f"{start}dread S^T"]
    if rows.rider is not None:
        reads.append(f"{start}dcolumn {rows.rider.state.name}^T")
    if rows.delta is not None:
        equations += ["dU = A^T dread + " + f"{to_end}w dS", "dR = (I - L)^-T dU", "dA = dread U^T", "dL = dR U^T"]
        reads.append("dA w")
        equations += [f"dy = {erased_from(rows)}dR S^T + dL w", f"dw = {to_end}U dS^T + dA^T q + dL^T y", "dz = dR"]
    if rows.write_key is not None:
        scores = "dA" if rows.delta is None else "dB"
        reads.append(f"{scores} k")
        value = [f"{to_end}k dS", f"{scores[1:]}^T dread"]
        key = [f"{to_end}v dS^T", f"{scores}^T q"]
        if rows.rider is not None:
            key.insert(1, f"{to_end}{_ones(rows.rider)} d{rows.rider.state.name}^T")
        column = "" if rows.rider is None else f" + dcolumn {_ones(rows.rider)}^T"
        equations.append(f"{scores} = dread v^T{column}")
        if rows.crowded:
            equations.append("dN = dR v^T")
            value.append("N^T dR")
            key.append("dN^T y")
            equations[equations.index(next(line for line in equations if line.startswith("dy")))] += " + dN k"
        equations += [f"dv = {' + '.join(value)}", f"dk = {' + '.join(key)}"]
    if plan.rider is not None and plan.rider.varied:
        equations.append(f"dc = {to_end}k d{_state_of(plan)} + A^T dcolumn")
    equations.insert(0, f"dq = {' + '.join(reads)}")
    decays = ""
    if plan.decays:
        decays = (
            " The gradient of a token's log decay is what all that it decays has in common with its gradient: each pair"
            " of a row that reads after it and one written before it, what later rows read of the state, what earlier"
            f" ones leave of it, and what it keeps itself. No other pair is in it.{_moment_of_erasures(plan)}"
        )
    text = (
        f"dS is the gradient of the state after the chunk; dA, dL and their like take the decays and masks of A and L."
        f"{decays}{_column(plan)} Value heads of a key head follow one another, each in blocks of BLOCK_{rows.value}"
        f" indices of {rows.value}. A gradient whose pointer is None is not stored."
    )
    return Docs("Evaluate the adjoint of one chunk, for the value heads of one key head.", equations, (text,))


def _gradients_of_several(plan: ChunkBackwardPlan) -> Docs:
    """The same of several states."""
    rows = plan.rows
    reads, values = ["sum_p q_start_p (dread X_p^T)"], ["sum_p k_end_p (k dX_p)", "B^T dread"]
    erased, keys = ["sum_p y_start_p (dR X_p^T)", "dL w"], ["sum_p k_end_p (v dX_p^T)", "dB^T q"]
    equations = []
    if rows.delta is not None:
        equations += ["dA = dread U^T", "dL = dR U^T", "dw = sum_p w_end_p (U dX_p^T) + dA^T q + dL^T y", "dz = dR"]
        reads.append("dA w")
    if rows.write_key is not None:
        equations.append("dB = dread v^T")
        reads.append("dB k")
        if rows.crowded:
            equations.append("dN = dR v^T")
            erased.append("dN k")
            values.append("N^T dR")
            keys.append("dN^T y")
        equations += [f"dv = {' + '.join(values)}", f"dk = {' + '.join(keys)}"]
    equations = [f"dq = {' + '.join(reads)}", *equations]
    if rows.delta is not None:
        equations.append(f"dy = {' + '.join(erased)}")
    numbers = ""
    if plan.numbers:
        numbers = (
            " The gradients of weights are what is read of the values times what is read of the keys; from them, and"
            " those of the numbers at the chunk's start and end, those of a token's numbers follow level by level, down"
            " to single tokens: what went up is found again at each."
        )
    text = (
        f"{_numbers(rows)}dX is the gradient of the states after the chunk; dA, dL and their like take the weights and"
        f" masks of A and L.{numbers} Value heads of a key head follow one another, each in blocks of"
        f" BLOCK_{rows.value} indices of {rows.value}. A gradient whose pointer is None is not stored."
    )
    return Docs("Evaluate the adjoint of one chunk, for the value heads of one key head.", equations, (text,))


def _numbers(rows: ChunkKernelPlan) -> str:
    return "" if rows.mixed is None else numbers_of(rows.mixed)


def _moment_of_erasures(plan: ChunkBackwardPlan) -> str:
    return " The last decay that y has is that of the row before." if plan.rows.erases_before else ""


def _state_of(plan: ChunkBackwardPlan) -> str:
    return "" if plan.rows.rider is None else plan.rows.rider.state.name


def _column(plan: ChunkBackwardPlan) -> str:
    """What the equations call what there is of a vector state that rides along."""
    if plan.rows.rider is None:
        return ""
    c = "" if plan.rows.rider.scale is None else f", whose column of the values is c = {show(plan.rows.rider.scale)}"
    return (
        f" dcolumn is the gradient of what is read of {_state_of(plan)}{c}: blocks of the walk have left shares of it."
    )


def _ends(plan: ChunkBackwardPlan) -> tuple[str, str]:
    return ("e^G_end S", "e^(G_end - G) ") if plan.rows.row_decay is not None else ("S", "")
