"""What the docstrings of the chunk kernels say: equations, ownership and traffic."""

from __future__ import annotations

from collections.abc import Collection, Iterator

from flagen.algebra.normal_form import Column
from flagen.backends.printed import total_of
from flagen.backends.torch_.common import equations
from flagen.backends.triton_.describe import count
from flagen.backends.triton_.kernel import Docs
from flagen.kernel.rows import RowPlan
from flagen.plan.chunk_kernel import ChunkKernelPlan, Rider
from flagen.plan.mixed import Mixed
from flagen.plan.row_planner import Part, RowLoad
from flagen.plan.rows import ROW
from flagen.spec.model import Expr
from flagen.spec.printer import to_source
from flagen.spec.renaming import expression_renamed

WALK = "Walk the chunks of one sequence of one value head with the state in registers."
STATES = "Walk the chunks of one sequence of one value head and leave behind the state before each of them."
PREPARE = "Prepare every chunk for the walk: what of it does not depend on the state."
IS = "is, for the rows of a chunk and the state S before it,"
ARE = "is, for the rows of a chunk and the states X before it,"
OUTPUT = "Put out what the tokens of all chunks read, from the state before each chunk."


def walk_docs(plan: ChunkKernelPlan, *, keeps: bool) -> Docs:
    """The docstring of the kernel that carries the state and puts out what it reads, and can leave what it `keeps`."""
    lines = [*_solving(plan, ("q", "w", "y", "z", "k", "v", *(["g"] if plan.delta is None else []))), *_reading(plan)]
    text = f"{_sums(plan)}{_walk_text(plan)}{_keeps(plan) if keeps else ''}"
    leads_on = IS if plan.mixed is None else ARE
    return Docs(
        _of_states(WALK, plan), equations(plan.spec), (text,), leads_on=leads_on, further=[*lines, *_next_state(plan)]
    )


def states_docs(plan: ChunkKernelPlan) -> Docs:
    """The docstring of the kernel that carries the state and leaves it behind for every chunk."""
    lines = _solving(plan, ("w", "y", "z", "k", "v", *(["g"] if plan.delta is None else [])))
    text = f"{_sums(plan)}{owned(plan)} Before each chunk it writes {_left(plan)}."
    return Docs(
        _of_states(STATES, plan), [*(line for line in lines if not line.startswith("A_")), *_next_state(plan)], (text,)
    )


def output_docs(plan: ChunkKernelPlan) -> Docs:
    """The docstring of the kernel that puts out what is read, from the states before each chunk."""
    wanted = ("q", *(("k", "v", "g") if plan.delta is None else ("v",)))
    scores = [line for line in _solving(plan, wanted) if not line.startswith(("R ", "U "))]
    kept = f"{_all_states(plan)} and U" if plan.delta is not None else _all_states(plan)
    owner = f"A program owns BLOCK_{plan.value} indices of {plan.value} of one chunk of one head"
    text = f"{_sums(plan, erases=False)}{owner}, and reads {kept} from before it."
    return Docs(_of_states(OUTPUT, plan), [*scores, *_reading(plan)], (text,))


def _keeps(plan: ChunkKernelPlan) -> str:
    """What a walk can leave for the gradient."""
    rider = plan.rider
    states = _states(plan)[0]
    what = f"{states} and U" if plan.delta is not None else states
    if rider is not None:
        what = f"S, {rider.state.name} and column"
    return f" Given arrays for them, it stores {what} for the gradient, too."


def _states(plan: ChunkKernelPlan) -> list[str]:
    """The states as the equations call them."""
    matrix = "S" if plan.mixed is None else "X"
    return [matrix] if plan.rider is None else [matrix, plan.rider.state.name]


def _all_states(plan: ChunkKernelPlan) -> str:
    return " and ".join(_states(plan))


def _of_states(text: str, plan: ChunkKernelPlan) -> str:
    """What a kernel does, where it has several states."""
    return text if plan.mixed is None else text.replace("the state", "the states")


def _left(plan: ChunkKernelPlan) -> str:
    """What a walk over states leaves behind."""
    if plan.rider is not None:
        return f"S, in the dtype of the products, and {plan.rider.state.name}, in float32"
    states, *_ = _states(plan)
    return f"{states if plan.delta is None else f'{states} and U'}, in the dtype of the products"


def _solving(plan: ChunkKernelPlan, wanted: Collection[str]) -> list[str]:
    """What does not need the state, then what it takes to know the rows that are written."""
    equations = list(_front_end(plan, wanted))
    if plan.prepare is None:
        return [*equations, f"A_ij = {_score('q', 'k', plan)}, {'j <= i' if plan.reads_itself else 'j < i'}"]
    if plan.delta is None:
        return equations
    right = [*(["z"] if plan.delta.z is not None else []), *(["N v"] if plan.write_key is not None else [])]
    return [*equations, f"R = {' + '.join((*right, erased(plan)))}", "U = (I - L)^-1 R"]


def erased(plan: ChunkKernelPlan) -> str:
    """What erasures read of the state before the chunk."""
    if plan.mixed is not None:
        return "sum_p y_start_p (y X_p)"
    return f"{erased_from(plan)}(y S)"


def _reading(plan: ChunkKernelPlan) -> list[str]:
    read = ["e^G (q S)" if plan.row_decay is not None else "(q S)"]
    if plan.mixed is not None:
        read = ["sum_p q_start_p (q X_p)"]
    if plan.delta is not None:
        read.append("A U")
    if plan.write_key is not None:
        read.append("A v" if plan.prepare is None else "B v")
    return [f"read = {' + '.join(read)}", *_column_read(plan), f"o = {_output(plan)}"]


def _column_read(plan: ChunkKernelPlan) -> Iterator[str]:
    """What is read of the vector state that rides along."""
    column = plan.chunk.normal_form.column
    if column is not None:
        start = "e^G " if plan.row_decay is not None else ""
        yield f"column = {start}(q {column.state.name}) + A {_ones(column)}"


def next_states(plan: ChunkKernelPlan) -> str:
    """Several states after the chunk."""
    terms = ["sum_r whole_p_r X_r", *(["(w_end_p w)^T U"] if plan.delta is not None else [])]
    terms += ["(k_end_p k)^T v"] if plan.write_key is not None else []
    return f"X_p = {' + '.join(terms)}"


def _next_state(plan: ChunkKernelPlan) -> list[str]:
    if plan.mixed is not None:
        return [next_states(plan)]
    end, to_end = ("e^G_end S", "e^(G_end - G) ") if plan.row_decay is not None else ("S", "")
    state = [end, *([f"({to_end}w)^T U"] if plan.delta is not None else [])]
    matrix = f"S = {' + '.join((*state, *([f'({to_end}k)^T v'] if plan.write_key is not None else [])))}"
    return [matrix, *_next_column_state(plan, end.removesuffix("S"), to_end)]


def _next_column_state(plan: ChunkKernelPlan, kept: str, to_end: str) -> Iterator[str]:
    """The vector state that rides along."""
    column = plan.chunk.normal_form.column
    if column is not None:
        yield f"{column.state.name} = {kept}{column.state.name} + ({to_end}k)^T {_ones(column)}"


def _ones(column: Column) -> str:
    """What the column is made of, in parentheses where it is no name."""
    text = "1" if column.scale is None else to_source(column.scale)
    return text if text.isalnum() else f"({text})"


def prepare_docs(plan: ChunkKernelPlan) -> Docs:
    """The docstring of the kernel that prepares all chunks."""
    assert plan.prepare is not None
    seen = "j in a token up to i" if plan.row_axis == ROW else "j <= i"
    lines = list(_front_end(plan, ("q", "w", "y", "k", "g")))
    matrices = "B"
    if plan.delta is not None:
        lines.append(f"L_ij = {_score('y', 'w', plan)}, j < i")
        lines.append(f"A_ij = {_score('q', 'w', plan)}, {seen}")
        matrices = "(I - L)^-1 and A" if plan.write_key is None else "(I - L)^-1, A, N and B"
    if plan.write_key is not None:
        lines += [f"N_ij = {_score('y', 'k', plan)}, j < i"] if plan.delta is not None else []
        lines.append(f"B_ij = {_score('q', 'k', plan)}, {seen}")
    factors = ", and for each row e^G and e^(G_end - G) in float32" if plan.row_decay is not None else ""
    if plan.mixed is not None:
        factors = ", and in float32 the numbers of X"
    text = (
        f"{_sums(plan)}A program owns one chunk of one head. Each token of a head reads"
        f" {_read(plan, *plan.prepare)} elements; a chunk writes {matrices}, of CHUNK columns, in the"
        f" dtype of the inputs{factors}.{_weighed(plan)}"
        f"{'' if plan.delta is None else ' The inverse is stored without its diagonal of ones.'}"
    )
    return Docs(PREPARE, lines, (text,))


def _weighed(plan: ChunkKernelPlan) -> str:
    """How the weights of several states come about."""
    if plan.mixed is None:
        return ""
    return (
        " Weights are what the numbers of a row that reads and of one before it have in common, with the mixes of the"
        " tokens between them: halves of the chunk, from single tokens up, are taken across one another. Given an array"
        " for them, they are stored for the gradient, in the dtype of the inputs."
    )


def _walk_text(plan: ChunkKernelPlan) -> str:
    value = plan.value
    prepared = "" if plan.prepare is None else "; each chunk reads what was prepared for it"
    state = "state" if plan.mixed is None else "each state"
    return (
        f"{owned(plan)} Each token of a head reads {_read(plan, plan.walk)} elements and writes {value}{prepared}; each"
        f" sequence reads and writes {plan.key}*{value} elements of {state}, in float32."
        f"{'' if plan.rider is None else _rides(plan.rider)}"
    )


def _rides(rider: Rider) -> str:
    """Who has the vector state that rides along."""
    return f" Every program has all of {rider.state.name}, one more column of the values; the first block stores it."


def owned(plan: RowPlan) -> str:
    several = isinstance(plan, ChunkKernelPlan) and plan.mixed is not None
    state, its = ("states", "their") if several else ("state", "the state's")
    return (
        f"A program owns BLOCK_{plan.value} indices of {plan.value} of the {state} of one head of one sequence,"
        f" transposed: [{plan.value}, {plan.key}], so that matrix products have {its} rows as theirs. Nothing"
        f" sums over {plan.value}."
    )


def _sums(plan: ChunkKernelPlan, *, erases: bool = True) -> str:
    if plan.mixed is not None:
        return numbers_of(plan.mixed)
    if plan.row_decay is None:
        return ""
    before = " G_before up to the row before it," if erases and plan.erases_before else ""
    return f"G is the sum of g from the chunk's start up to a row,{before} G_end to the chunk's end. "


def numbers_of(mixed: Mixed) -> str:
    """What several states are called, and their numbers."""
    states = ", ".join(f"X_{place} is {state.name}" for place, state in enumerate(mixed.states))
    starts, ends = (
        " and ".join(f"{role}_{what}_p" for role in of) for of, what in ((mixed.of, "start"), (mixed.into, "end"))
    )
    return (
        f"{states}; {starts} say what rows read of X_p as it is before the chunk, {ends} what of a row is in X_p behind"
        " it, whole_p_r what X_p has then of X_r. "
    )


def erased_from(plan: ChunkKernelPlan) -> str:
    """The decay from the chunk's start to where erasures read."""
    return "" if plan.row_decay is None else "e^G_before " if plan.erases_before else "e^G "


def _output(plan: ChunkKernelPlan) -> str:
    """The output expression, in which `read` is S^T q."""
    names = {plan.read: "read"} if plan.rider is None else {plan.read: "read", plan.rider.read: "column"}
    return to_source(expression_renamed(plan.chunk.normal_form.output, names))


def _score(reader: str, writer: str, plan: ChunkKernelPlan) -> str:
    moment = "G_before_i" if reader == "y" and plan.erases_before else "G_i"
    decay = f" e^({moment} - G_j)" if plan.row_decay is not None else ""
    if plan.mixed is not None:
        decay = f" weights_{reader}{writer}_ij"
    return f"{reader}_i . {writer}_j{decay}"


def _read(plan: ChunkKernelPlan, *parts: Part) -> str:
    """How many elements a token has of what a kernel loads."""
    symbol = "" if plan.spec.steps is None else plan.spec.steps.symbol
    loads = {action.source.name: action.source for part in parts for action in part.rows if isinstance(action, RowLoad)}
    once = count([decl.dims for decl in loads.values() if decl.per == "token"])
    each = count([decl.dims for decl in loads.values() if decl.per == "step"])
    return total_of(*filter(None, (once, each and f"{symbol}*({each})")))


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
