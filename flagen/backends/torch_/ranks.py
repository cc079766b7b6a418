"""The context of `naive_chunk.py`, and what it shares with `chunk.py`, where tokens have several rows: what these are,
and the call of their recurrence."""

from __future__ import annotations

from collections.abc import Iterator

from flagen.backends.notes import naive_chunk_notes
from flagen.backends.protocol import Rendering
from flagen.backends.signature import Parameter, output_dtype
from flagen.backends.stages import PACKAGE_OF_ROWS
from flagen.backends.text import tuple_of
from flagen.backends.torch_.common import common_context
from flagen.backends.torch_.printer import Printer
from flagen.backends.torch_.rows import ReadScope
from flagen.backends.torch_.scope import prelude
from flagen.plan.model import Plan, RankPlan
from flagen.spec.model import Dims, Expr


def rank_file(plan: Plan, planned: RankPlan) -> Rendering:
    """`naive_chunk.py` of a package whose tokens have several rows."""
    size = Parameter("chunk_size", "int", str(planned.size), True, "rows per chunk, of which a token has several.")
    context = {
        **common_context(plan.spec, size),
        **rank_context(planned, f"naive_chunk_{planned.within.spec.name}"),
        "notes": naive_chunk_notes(plan),
        "rounded": "args.dtype",
        "modes": [],
    }
    del context["output_dtype"]  # The lines of the rows have it.
    return Rendering("naive_chunk.py", "torch/ranks.py.j2", context)


def rank_context(planned: RankPlan, function: str) -> dict[str, object]:
    """What both functions of the whole have beside their signature; `function` is that of the rows."""
    form = planned.form
    spec, read_dim = form.spec, form.read_dim
    scope = ReadScope(spec, form.reads)
    lines, before = prelude(scope, (*form.expressions, form.output))
    printer = scope.printer()
    by_side = dict(zip(spec.states[0].dims, ("rows", "columns"), strict=True))
    keys, values = (
        [_rows(printer, getattr(row, by_side[dim]), row.rank, dim) for row in form.writes]
        for dim in (form.read_along, read_dim)
    )
    output = printer.aligned(printer.print(form.output), spec.output_dims)
    decay = None if form.decay is None else _whole(printer, form.decay, form.decay.dims)
    return {
        "package": PACKAGE_OF_ROWS,
        "function": function,
        "prelude": [f"dtype = {output_dtype(spec)}", *lines],
        "queries": tuple_of([_rows(printer, read.q, read.rank, form.read_along) for read in form.reads]),
        "keys": tuple_of(keys),
        "values": tuple_of(values),
        "written": list(_written(planned)),
        "log_decay": decay,
        "reads": tuple_of([scope.read_name(read.name) for read in form.reads]),
        "single": [scope.read_name(read.name) for read in form.reads if read.rank is None],
        "output": output.text,
        "l2norm": "l2norm" in before.needs | printer.needs,
    }


def _written(planned: RankPlan) -> Iterator[str]:
    """Which of the rows the sides of a write are, in the order of the state's dims."""
    form = planned.form
    for dim in form.spec.states[0].dims:
        yield "keys" if dim == form.read_along else "values"


def _rows(printer: Printer, expr: Expr, rank: str | None, dim: str) -> str:
    """Rows of all tokens, [batch, tokens, heads, rows, channels]."""
    if rank is not None:
        return _whole(printer, expr, (rank, dim))
    return f"({_whole(printer, expr, (dim,))}).unsqueeze(3)"


def _whole(printer: Printer, expr: Expr, dims: Dims) -> str:
    """`expr` for every token and head, over `dims`."""
    code = printer.print(expr)
    shape = ["args.batch", "args.tokens", "args.HV", *(f"args.{dim}" for dim in dims)]
    if code.level == "number":
        return f"torch.full({tuple_of(shape)}, {code.text}, dtype=args.dtype, device=args.device)"
    aligned = printer.aligned(code, dims)
    if code.level == "token" and set(code.dims) == set(dims):
        return aligned.text
    return f"{aligned.atom}.expand({', '.join(shape)})"
