"""What the docstrings of the kernels of elementwise scans say beside their equations: ownership and traffic."""

from __future__ import annotations

from collections.abc import Sequence

from flagen.backends.text import listed
from flagen.backends.triton_.describe import count, turns
from flagen.plan.pieces import PieceBackwardPlan, PieceKernelPlan
from flagen.plan.scan_backward import ScanBackwardPlan
from flagen.plan.scan_kernel import ScanKernelPlan
from flagen.spec.model import Input, Param, State
from flagen.spec.printer import to_source


def ownership(plan: ScanKernelPlan) -> str:
    """Which part of the work one program has, and why it can have it."""
    if plan.is_window:
        owned = f"BLOCK_{plan.split} indices of {plan.split}" if plan.split else "all"
        return (
            f"A program owns {owned} of CHUNK tokens. No state is anything of what it was: the one before a token is"
            " made of other tokens, whose rows are loaded again, from the cache; so are those behind for a gradient."
        )
    states = listed(state.name for state in plan.spec.states)
    if plan.split is None:
        what = "sums or rotations run" if turns(plan.spec) else "something sums"
        return f"A program owns {states} of one head of one sequence, for {what} over each of their dims."
    cut = listed(state.name for state in plan.spec.states if plan.split in state.dims)
    whole = listed(state.name for state in plan.spec.states if plan.split not in state.dims)
    what = f"of {cut}, of one head of one sequence" if cut else "of one head of one sequence"
    aside = f" Beside it, each computes the whole of {whole}." if whole else ""
    return f"A program owns BLOCK_{plan.split} indices of {plan.split} {what}; nothing sums over {plan.split}.{aside}"


def traffic(plan: ScanKernelPlan, kept: Sequence[State]) -> str:
    """What the forward moves between memory and registers."""
    read = count([decl.dims for decl in plan.spec.inputs if decl.name in plan.sources])
    written = count([result.dims for result in plan.plan.results])
    states = count([state.dims for state in plan.spec.states])
    text = (
        f"Memory, for each token of a head: {read} elements read (rows that heads or blocks share, from the cache),"
        f" {written} written. For each sequence of a head: {states} elements of state read, as many written"
    )
    if not kept:
        return f"{text}."
    return f"{text}; with a gradient wanted, {count([state.dims for state in kept])} for each chunk."


def traffic_back(plan: ScanBackwardPlan) -> str:
    """What the backward moves."""
    forward = plan.forward
    read = count([decl.dims for decl in plan.spec.inputs] + [result.dims for result in forward.plan.results])
    written = count([give.source.dims for give in plan.gives if isinstance(give.source, Input)])
    text = f"Memory, for each token of a head: {read} elements read, {written or 'none'} written"
    shares = [give.source.name for give in plan.gives if plan.is_shared(give.source.dims)]
    if shares:
        text += f"; of the gradients of {listed(shares)} each block writes a share of its own"
    params = [give.source.name for give in plan.gives if isinstance(give.source, Param)]
    if params:
        of = "program" if forward.is_window else "sequence"
        text += f". Those of {listed(params)} are added up over the tokens of a {of} first"
    return f"{text}."


def reverse_lines(plan: ScanBackwardPlan) -> list[str]:
    """The reverse scans, as equations."""
    lines = [
        "m_t = p_t + s_t (d_t + m_(t+1)), the gradient of a state before token t: d_t reaches the state after it from",
        "    results and later states, p_t the state before it likewise. What the update reads gets d_t + m_(t+1).",
    ]
    scans = {scan.state.name: scan for scan in plan.forward.plan.form.scans}
    return lines + [f"{back.state.name}: s = {to_source(scans[back.state.name].slope)}" for back in plan.backs]


def of_pieces(plan: PieceKernelPlan) -> str:
    """What a chunk of a mini-batch is, and what it knows when it begins."""
    still = listed(plan.form.opened)
    stand = "stands" if len(plan.form.opened) == 1 else "stand"
    return (
        "A chunk has LENGTH tokens of one mini-batch, or what is left of them where a sequence begins or ends in it. "
        f"In it {still} {stand} still, as the first token has made them. What tokens read of a matrix is a product of "
        "tiles: with the matrix before the chunk, and with what its tokens have written, each times its numbers, which "
        "are scanned."
    )


def transposed(plan: PieceBackwardPlan) -> str:
    """How the gradients come about."""
    return (
        "The forward has kept the states before each chunk. From these a chunk is evaluated again, and then its "
        "statements are transposed, the last one first."
    )
