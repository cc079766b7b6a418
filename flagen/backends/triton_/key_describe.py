"""What the docstrings of kernels say whose decay is a vector over the keys: equations, ownership and traffic."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import replace

from flagen.backends.torch_.common import equations
from flagen.backends.triton_.chunk_describe import IS, OUTPUT, STATES, WALK, owned
from flagen.backends.triton_.describe import count
from flagen.backends.triton_.kernel import Docs
from flagen.plan.key_kernel import KeyKernelPlan
from flagen.plan.row_planner import Part, RowLoad
from flagen.plan.show import show, values_renamed
from flagen.spec.model import Expr
from flagen.spec.printer import to_source

PREPARE = "Prepare every chunk for the walk: what of it does not depend on the state."
SCALE = "Scale the rows of every chunk by their decays since its start, or to its end."


def prepare_docs(plan: KeyKernelPlan) -> Docs:
    """The docstring of the kernel that prepares all chunks."""
    equations = list(_front_end(plan, ("w", "y", "k", "g") if plan.right else ("q", "w", "y", "k", "g")))
    own = "j <= i" if plan.reads_itself else "j < i"
    read, erase = _offset(plan, after=plan.read_after), _offset(plan, after=plan.erase_after)
    erasing, writing = plan.delta is not None, plan.write_key is not None
    if erasing:
        equations.append(f"L_ij = {_score('y', 'w', erase)}, j < i")
    if erasing and not plan.right:
        equations.append(f"A_ij = {_score('q', 'w', read)}, {own}")
    if erasing and writing:
        equations.append(f"N_ij = {_score('y', 'k', erase)}, j < i")
    if writing and not plan.right:
        equations.append(f"{'B' if erasing else 'A'}_ij = {_score('q', 'k', read)}, {own}")
    equations += _rows(plan, read, erase)
    equations += [f"{number.target} = {show(number.value)}" for number in plan.numbers]
    text = (
        f"{_sums(plan)}A program owns one chunk of one head and passes over the keys {_passes(plan)}."
        f" Each token of a head reads {_read(plan, plan.prepare.part)} elements; a chunk writes what the walk needs"
        f" of these, in the dtype of the products.{_inverse(plan)}{_pairs(plan)}"
    )
    return Docs(PREPARE, equations, (text,))


def scale_docs(plan: KeyKernelPlan) -> Docs:
    """The docstring of the kernel that scales the rows of all chunks, where their matrices are known."""
    read, erase = _offset(plan, after=plan.read_after), _offset(plan, after=plan.erase_after)
    equations = [*_front_end(plan, ("q", "w", "y", "k", "g")), *_rows(plan, read, erase)]
    equations += [f"{number.target} = {show(number.value)}" for number in plan.numbers]
    text = f"{_sums(plan)}A program owns one chunk of one head."
    return Docs(SCALE, equations, (text,))


def walk_docs(plan: KeyKernelPlan, *, keeps: bool) -> Docs:
    """The docstring of the kernel that carries the state and puts out what it reads, and `keeps` what a backward takes
    where that is wanted."""
    lines = [*_front_end(plan, ("z", "v")), *_solving(plan), *_reading(plan), _next_state(plan)]
    text = (
        f"{owned(plan)} {_walk_traffic(plan)} each sequence reads and writes {plan.key}*{plan.value} elements of state,"
        f" in float32."
    )
    if keeps:
        text += f" Given arrays for them, it stores {_left(plan)} for the gradient, too."
    return Docs(WALK, equations(plan.spec), (text,), leads_on=IS, further=lines)


def states_docs(plan: KeyKernelPlan) -> Docs:
    """The docstring of the kernel that carries the state and leaves it behind for every chunk."""
    lines = [*_front_end(plan, ("z", "v")), *_solving(plan), _next_state(plan)]
    text = f"{owned(plan)} Before each chunk it writes {_left(plan)}, in the dtype of the products."
    if plan.right:
        return Docs(STATES, equations(plan.spec), (text,), leads_on=IS, further=lines)
    return Docs(STATES, lines, (text,))


def turned_docs(plan: KeyKernelPlan) -> Docs:
    """The docstring of the kernel that walks with the state, of which the backward of a right read reads from the left
    and keeps the rest."""
    docs = walk_docs(plan, keeps=False)
    (text,) = docs.texts
    return replace(docs, texts=(f"{text} Before each chunk it writes {_left(plan)}, in the dtype of the products.",))


def output_docs(plan: KeyKernelPlan) -> Docs:
    """The docstring of the kernel that puts out what is read, from the states before each chunk."""
    if not plan.right:
        lines = [*_front_end(plan, ("v",)), *_reading(plan)]
        text = f"A program owns BLOCK_{plan.value} indices of {plan.value} of one chunk of one head."
        return Docs(OUTPUT, lines, (text,))
    decays, own = plan.log_decay is not None, "j <= i" if plan.reads_itself else "j < i"
    offset = _offset(plan, after=plan.read_after)
    terms = [f"e^{offset}_i (S q_i)" if decays else "S q_i"]
    between = f" e^({offset}_i - G_j)" if decays else ""
    terms += [f"sum over {own} of (q_i . u_j) w_j{between}"] if plan.delta is not None else []
    terms += [f"sum over {own} of (q_i . v_j) k_j{between}"] if plan.write_key is not None else []
    lines = [*_front_end(plan, ("q", "w", "k", "v", "g")), f"read_i = {' + '.join(terms)}", f"o = {_output(plan)}"]
    text = (
        f"{_sums(plan)}A program owns BLOCK_{plan.key} indices of {plan.key} of one chunk of one head and passes over"
        f" the values once. It reads {_left(plan)}.{_pairs(plan)}"
    )
    return Docs(OUTPUT, lines, (text,))


def _solving(plan: KeyKernelPlan) -> list[str]:
    if plan.delta is None:
        return []
    if plan.folded:
        return ["U = y_from_start S"]
    right = [*(["z"] if plan.delta.z is not None else []), *(["N v"] if plan.write_key is not None else [])]
    return [f"R = {' + '.join((*right, 'y_from_start S'))}", "U = (I - L)^-1 R"]


def _reading(plan: KeyKernelPlan) -> list[str]:
    read = ["q_from_start S"]
    if plan.delta is None or plan.folded:
        read.append("A v")
    else:
        read += ["A U", *(["B v"] if plan.write_key is not None else [])]
    return [f"read = {' + '.join(read)}", f"o = {_output(plan)}"]


def _next_state(plan: KeyKernelPlan) -> str:
    terms = ["S" if plan.log_decay is None else "whole S", *(["w_to_end^T U"] if plan.delta is not None else [])]
    return f"S = {' + '.join((*terms, *(['k_to_end^T v'] if plan.write_key is not None else [])))}"


def _output(plan: KeyKernelPlan) -> str:
    return show(values_renamed(plan.output, {plan.read: "read"}))


def _left(plan: KeyKernelPlan) -> str:
    return "S" if plan.delta is None or plan.folded else "S and U"


def _rows(plan: KeyKernelPlan, read: str, erase: str) -> Iterator[str]:
    """The rows that the walk gets."""
    decays = plan.log_decay is not None
    to_end = " e^(G_end - G)" if decays else ""
    start = {"q": f" e^{read}" if decays else "", "y": f" e^{erase}" if decays else ""}
    if plan.folded:
        yield from ("P = (I - L)^-1 N", "A = B + A P")
        yield f"y_from_start = (I - L)^-1 (y{start['y']})"
        yield f"q_from_start = q{start['q']} + A y_from_start, with A as it was"
        yield f"w_to_end = w{to_end}"
        yield f"k_to_end = k{to_end} + P^T w_to_end"
    else:
        if plan.delta is not None:
            yield f"y_from_start = y{start['y']}"
        if not plan.right:
            yield f"q_from_start = q{start['q']}"
        yield from (f"{x}_to_end = {x}{to_end}" for x in ("w", "k") if x in plan.rows)
    if decays:
        yield "whole = e^G_end"


def _offset(plan: KeyKernelPlan, *, after: bool) -> str:
    return "G" if after or plan.log_decay is None else "G'"


def _score(reader: str, writer: str, offset: str) -> str:
    return f"{reader}_i . {writer}_j e^({offset}_i - G_j)"


def _sums(plan: KeyKernelPlan) -> str:
    if plan.log_decay is None:
        return ""
    moments = [plan.read_after, *([plan.erase_after] if plan.delta is not None else [])]
    before = "" if all(moments) else " G' lacks the row's own."
    return f"G is the sum of g from the chunk's start up to a row, G_end to the chunk's end.{before} "


def _passes(plan: KeyKernelPlan) -> str:
    if plan.delta is not None and plan.write_key is not None and not plan.right:
        return "three times: for the products of rows that erase, of rows that read, then for the rows"
    return "twice: for the products of rows, then for the rows"


def _inverse(plan: KeyKernelPlan) -> str:
    if plan.delta is None or plan.folded:
        return ""
    return " The inverse is stored without its diagonal of ones."


def _pairs(plan: KeyKernelPlan) -> str:
    if plan.log_decay is None:
        return ""
    halved = "Pairs of rows are taken by halving, so that no factor of a decay exceeds 1 (`decay_to_cut`)"
    if plan.leaf.is_one:
        return f" {halved}."
    return f" {halved}; blocks of LEAF rows, whose factors the declared range of g keeps finite, in one product."


def _walk_traffic(plan: KeyKernelPlan) -> str:
    read = _read(plan, plan.walk)
    reads = f" reads {read} elements and" if read else ""
    return f"Each token of a head{reads} writes {plan.value}; each chunk reads what was prepared for it;"


def _read(plan: KeyKernelPlan, part: Part) -> str:
    """How many elements a token has of what a kernel loads."""
    return count([action.source.dims for action in part.rows if isinstance(action, RowLoad)])


def _front_end(plan: KeyKernelPlan, wanted: Collection[str]) -> Iterator[str]:
    """What those rows of the normal form are that a kernel uses, where that is not their own name."""
    nf = plan.chunk.normal_form
    (step,) = nf.steps
    rows: dict[str, Expr | None] = {"q": nf.reads[0].q}
    for delta in step.deltas:
        rows |= {"w": delta.w, "y": delta.y, "z": delta.z}
    for write in step.writes:
        rows |= {"k": write.k, "v": write.v}
    if step.decay is not None:
        rows["g"] = step.decay.log
    for name, expr in rows.items():
        if name in wanted and expr is not None and to_source(expr) != name:
            yield f"{name} = {to_source(expr)}"


REVERSE = (
    "Walk the chunks of one sequence of one value head backward with the gradient dS of the state in registers, and\n"
    "    leave behind that of the state after each of them."
)
GRADIENTS = "Evaluate the adjoint of one chunk, for the value heads of one key head."


def reverse_docs(plan: KeyKernelPlan) -> Docs:
    """The docstring of the walk that stores the gradients of the states."""
    state = ["dS" if plan.log_decay is None else "whole dS", "q_from_start^T dread"]
    equations = []
    if plan.delta is not None:
        equations += ["dU = A^T dread + w_to_end dS", "dR = (I - L)^-T dU"]
        state.append("y_from_start^T dR")
    equations.append(f"dS = {' + '.join(state)}")
    left = "dS" if plan.delta is None else "dS and dR"
    text = (
        f"dread is the gradient of what the output calls read. A program owns BLOCK_{plan.value} indices of"
        f" {plan.value} of the state of one head of one sequence, transposed, as the walk over states does. For each"
        f" chunk it writes {left}, in the dtype of the products."
    )
    return Docs(REVERSE, equations, (text,))


def gradients_docs(plan: KeyKernelPlan, *, decays: bool) -> Docs:
    """The docstring of the kernel that has a program for every chunk."""
    read, erase = _offset(plan, after=plan.read_after), _offset(plan, after=plan.erase_after)
    decaying = plan.log_decay is not None
    start, erased = (f" e^{read}", f" e^{erase}") if decaying else ("", "")
    to_end = " e^(G_end - G)" if decaying else ""
    reads, equations = [f"dread S^T{start}"], []
    if plan.delta is not None:
        equations += ["dA = dread U^T", "dL = dR U^T"]
        reads.append("dA.w")
        erases, writes = [f"dR S^T{erased}", "dL.w"], [f"U dS^T{to_end}", "dA^T.q", "dL^T.y"]
    if plan.write_key is not None:
        scores = "dA" if plan.delta is None else "dB"
        reads.append(f"{scores}.k")
        equations.append(f"{scores} = dread v^T")
        value, key = [f"k_to_end dS + {scores[1:]}^T dread"], [f"v dS^T{to_end}", f"{scores}^T.q"]
        if plan.delta is not None:
            equations.append("dN = dR v^T")
            value.append("N^T dR")
            erases.append("dN.k")
            key.append("dN^T.y")
        equations += [f"dv = {' + '.join(value)}", f"dk = {' + '.join(key)}"]
    if plan.delta is not None:
        equations += [f"dy = {' + '.join(erases)}", f"dw = {' + '.join(writes)}", "dz = dR"]
    equations.append(f"dq = {' + '.join(reads)}")
    text = (
        f"dS is the gradient of the state after the chunk, dR that of U's right side. {_sums(plan)}A product with a"
        f" matrix, dA.w, takes the factors of the decays between its rows and its columns.{_pairs(plan)}"
    )
    if decays:
        equations.append("dg_t = sum over i >= t of (q dq + y dy - w dw - k dk)_i, in the chunk, + e^G_end S dS")
    return Docs(GRADIENTS, equations, (text,))
