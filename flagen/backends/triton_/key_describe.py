"""What the docstrings of kernels say whose decay is a vector over the keys: equations, ownership and traffic."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping

from flagen.backends.triton_.describe import count
from flagen.plan.key_kernel import KeyKernelPlan
from flagen.plan.row_planner import Part, RowLoad
from flagen.plan.show import show
from flagen.spec.model import Expr
from flagen.spec.printer import to_source


def prepare_docs(plan: KeyKernelPlan) -> Mapping[str, object]:
    """The docstring of the kernel that prepares all chunks."""
    equations = list(_front_end(plan, ("q", "w", "y", "k", "g")))
    own = "j <= i" if plan.reads_itself else "j < i"
    read, erase = _offset(plan, after=plan.read_after), _offset(plan, after=plan.erase_after)
    erasing, writing = plan.delta is not None, plan.write_key is not None
    if erasing:
        equations += [f"L_ij = {_score('y', 'w', erase)}, j < i", f"A_ij = {_score('q', 'w', read)}, {own}"]
    if erasing and writing:
        equations.append(f"N_ij = {_score('y', 'k', erase)}, j < i")
    if writing:
        equations.append(f"{'B' if erasing else 'A'}_ij = {_score('q', 'k', read)}, {own}")
    equations += _rows(plan, read, erase)
    equations += [f"{number.target} = {show(number.value)}" for number in plan.numbers]
    text = (
        f"{_sums(plan)}A program owns one chunk of one head and passes over the keys twice: for the products of rows,"
        f" then for the rows. Each token of a head reads {_read(plan, plan.prepare.part)} elements; a chunk writes what"
        f" the walk needs of these, in the dtype of the products.{_inverse(plan)}{_pairs(plan)}"
    )
    return {"equations": equations, "text": text}


def walk_docs(plan: KeyKernelPlan) -> Mapping[str, object]:
    """The docstring of the kernel that carries the state."""
    erasing, writing = plan.delta is not None, plan.write_key is not None
    kept = "S" if plan.log_decay is None else "whole S"
    equations = list(_front_end(plan, ("z", "v")))
    read, state = ["q_from_start S"], [kept]
    if plan.folded:
        equations.append("U = y_from_start S")
        read.append("A v")
        state += ["w_to_end^T U", "k_to_end^T v"]
    elif erasing:
        assert plan.delta is not None
        right = [*(["z"] if plan.delta.z is not None else []), *(["N v"] if writing else []), "y_from_start S"]
        equations += [f"R = {' + '.join(right)}", "U = (I - L)^-1 R"]
        read += ["A U", *(["B v"] if writing else [])]
        state += ["w_to_end^T U", *(["k_to_end^T v"] if writing else [])]
    else:
        read.append("A v")
        state.append("k_to_end^T v")
    output = re.sub(rf"\b{plan.read}\b", "read", show(plan.output))
    equations += [f"read = {' + '.join(read)}", f"o = {output}", f"S = {' + '.join(state)}"]
    text = (
        f"A program owns BLOCK_{plan.value} indices of {plan.value} of the state of one head of one sequence,"
        f" transposed: [{plan.value}, {plan.key}], so that matrix products have the state's rows as theirs."
        f" Nothing sums over {plan.value}. {_walk_traffic(plan)} each sequence reads and writes"
        f" {plan.key}*{plan.value} elements of state, in float32."
    )
    return {"equations": equations, "text": text}


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
        yield f"q_from_start = q{start['q']}"
        yield from (f"{x}_to_end = {x}{to_end}" for x in ("w", "k") if x in plan.rows)
    if decays:
        yield "whole = e^G_end"


def _offset(plan: KeyKernelPlan, *, after: bool) -> str:
    return "G" if after or plan.log_decay is None else "G'"


def _score(reader: str, writer: str, offset: str) -> str:
    return f"{reader}_i . (w_j)".replace("(w_j)", f"{writer}_j e^({offset}_i - G_j)")


def _sums(plan: KeyKernelPlan) -> str:
    if plan.log_decay is None:
        return ""
    before = " G' lacks the row's own." if not (plan.read_after and (plan.erase_after or not plan.delta)) else ""
    return f"G is the sum of g from the chunk's start up to a row, G_end to the chunk's end.{before} "


def _inverse(plan: KeyKernelPlan) -> str:
    if plan.delta is None or plan.folded:
        return ""
    return " The inverse is stored without its diagonal of ones."


def _pairs(plan: KeyKernelPlan) -> str:
    if plan.log_decay is None:
        return ""
    halved = "Pairs of rows are taken by halving, so that no factor of a decay exceeds 1 (`halve`)"
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
