"""What the docstrings of the recurrent backward's kernels say: rows, equations and ownership."""

from __future__ import annotations

from flagen.algebra.normal_form import NormalForm
from flagen.backends.triton_.kernel import Docs
from flagen.plan.fused_backward import FusedBackwardPlan
from flagen.spec.printer import to_source


def row_lines(plan: FusedBackwardPlan) -> list[str]:
    """What the rows of a token are, in the names of the spec."""
    nf = plan.normal_form
    lines = [f"g = {to_source(decay.log)}" for decay in nf.decays]
    for row in (row for step in nf.steps for row in step.deltas):
        lines += [f"w = {to_source(row.w)}", f"y = {to_source(row.y)}"]
        lines += [] if row.z is None else [f"z = {to_source(row.z)}"]
    for write in (row for step in nf.steps for row in step.writes):
        lines += [f"k = {to_source(write.k)}", f"v = {to_source(write.v)}"]
    lines += [f"q = {to_source(read.q)}" for read in nf.reads]
    return list(dict.fromkeys(lines))


def docs(plan: FusedBackwardPlan, name: str) -> Docs:
    """Equations and text of the kernel `name`."""
    equations = {"states": _states, "reverse": _reverse, "reads": _reads, "gradients": _gradients}[name]
    text = _TEXT[name].format(value=plan.value)
    if plan.reads.ends and name in _DECAYS:
        text += _DECAYS[name]
    return Docs(_TITLE[name], equations(plan.normal_form), (text,))


def _states(nf: NormalForm) -> list[str]:
    lines, state = [], ["e^g S" if nf.decays else "S"]
    if nf.has_delta:
        lines.append("u = z + S^T y" if any(row.z for step in nf.steps for row in step.deltas) else "u = S^T y")
        state.append("w u^T")
    if nf.has_write:
        state.append("k v^T")
    return [*lines, f"S = {' + '.join(state)}"]


def _reverse(nf: NormalForm) -> list[str]:
    lines = [f"dS = dS + {'dread q^T' if _is_right(nf) else 'q dread^T'}"]
    if nf.has_delta:
        lines += ["du = dS^T w", "dS = dS + y du^T"]
    return [*lines, *(["dS = e^g dS"] if nf.decays else [])]


def _reads(nf: NormalForm) -> list[str]:
    return ["dq = S^T dread" if _is_right(nf) else "dq = S dread", *(["dy = S du"] if nf.has_delta else [])]


def _gradients(nf: NormalForm) -> list[str]:
    erasing = ["dw = dS u", "dz = du"] if nf.has_delta else []
    return [*erasing, *(["dk = dS v", "dv = dS^T k"] if nf.has_write else [])]


def _is_right(nf: NormalForm) -> bool:
    return any(read.side == "right" for read in nf.reads)


_TITLE = {
    "states": "Walk one sequence of one value head with the state.",
    "reverse": "Walk one sequence of one value head from its last token to its first with the gradient of the state.",
    "reads": "Walk one segment of one value head with the state: the gradients of what reads it.",
    "gradients": "Walk one segment of one value head backward: the gradients of what is written, then of arguments.",
}

_TEXT = {
    "states": (
        "A program owns BLOCK_{value} indices of {value} of the state of one head of one sequence, and stores the state"
        " before each segment of its tokens."
    ),
    "reverse": (
        "dS is the gradient of the state, dread that of what the output reads. A program owns BLOCK_{value} indices of"
        " {value} of one head of one sequence, and stores dS after each segment of its tokens."
    ),
    "reads": (
        "A program has BLOCK_{value} indices of {value} of one segment of one head. Of what is a sum over {value}, it"
        " leaves the share of its block."
    ),
    "gradients": (
        "A program has BLOCK_{value} indices of {value} of one segment of one head. A gradient that is a sum over"
        " {value}, over value heads or over tokens gets a share from each program; one whose pointer is None is not"
        " stored."
    ),
}

_DECAYS = {
    "reads": (
        " For the gradient of g it stores inner products: of the rows that read with their gradients, these from the"
        " state just after the decay, and of the state after a segment's last decay with dS."
    ),
    "gradients": (
        " The gradient of g adds up the inner products of all later rows that read with their gradients, less those of"
        " the rows that write, dS standing just before the next decay. Pairs of rows with no decay between them are in"
        " neither sum: they would cancel but for their rounding."
    ),
}
