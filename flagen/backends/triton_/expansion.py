"""The context of a `chunk.py` that launches kernels over the rows of tokens, which it evaluates first."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping

from flagen.backends.printed import total_of
from flagen.backends.signature import output_dtype
from flagen.backends.torch_.rows import ReadScope, RowPrinter, Rows, expressions, vectors, written_rows
from flagen.backends.torch_.scope import names_used, prelude
from flagen.backends.triton_.chunk_launcher import chunk_launcher_context, docs_of_kernels, function_context
from flagen.backends.triton_.kernel import tensor_names
from flagen.backends.triton_.operator import result_of
from flagen.kernel.ir import Program
from flagen.plan.chunk import Count
from flagen.plan.expansion import ExpandedPlan, Row
from flagen.plan.free_names import free_name
from flagen.plan.schedule import declared_names


def expanded_launcher_context(plan: ExpandedPlan, program: Program) -> Mapping[str, object]:
    """Every value `triton/chunk.py.j2` uses; `program`: the kernels over the rows."""
    spec, nf = plan.spec, plan.normal_form
    scope = ReadScope(spec, nf.reads)
    read, output = RowPrinter(nf, scope.printer()), scope.printer()
    asked = [row.q for row in nf.steps if isinstance(row, Row) and row.q is not None]
    lines, before = prelude(scope, (*asked, *expressions(nf), nf.output))
    named = names_used(spec, (*asked, *vectors(nf)))
    rounded = free_name("rounded", set(declared_names(spec)))
    arguments = list(_arguments(plan, read, rounded))
    over = chunk_launcher_context(plan.kernels, program)
    given = [decl.name for decl in spec.inputs if decl.dims and decl.name in named]
    rows = None if read.single else _counted(plan, plan.rows)
    steps = over["steps"]
    assert steps is None or isinstance(steps, str)
    function = function_context(
        spec,
        plan.size,
        rows,
        products=str(over["products"]),
        rows_of_form="" if rows is None else _text(plan, plan.rows, 'keywords["{}"]'),
    )
    return {
        **over,
        **function,
        **docs_of_kernels(spec, function, steps),
        "launched": over["declarations"],
        "output_dtype": "torch.float32",
        "returned": [result_of(spec.output_dims, output_dtype(spec))],
        "launcher": "_launch_rows",
        "expansion": {
            "dtype": output_dtype(spec),
            "note": _note(plan),
            "rows": rows,
            **_of_rows(rows),
            "initial": _turned("initial_state", nf.transposed),
            "final": _turned("final", nf.transposed),
            "rounded": rounded,
            "products": f"products_of({', '.join(given or tensor_names(spec))})",
            "prelude": lines,
            "arguments": arguments,
            "reads": [
                (scope.read_name(name), "outputs" if rows is None else f"outputs[:, :, {_text(plan, row)}]")
                for name, row in plan.reads
            ],
            "output": output.aligned(output.print(nf.output), spec.output_dims).text,
            "l2norm": "l2norm" in before.needs | output.needs | read.printer.needs,
        },
    }


def _of_rows(rows: str | None) -> Mapping[str, str]:
    """What the kernels take for the sizes of a call and for where its sequences begin: they count rows, which are
    tokens where each has one."""
    if rows is None:
        return {"over": "args", "offsets": "cu_seqlens"}
    return {
        "over": f"_over_rows(args, {rows})",
        "offsets": f"None if cu_seqlens is None else cu_seqlens.long() * {rows}",
    }


def _turned(state: str, transposed: bool) -> str:
    """A state that may be None, as it is, or the other way round for kernels over the transposed recurrence."""
    return f"None if {state} is None else {state}.mT" if transposed else state


def _arguments(plan: ExpandedPlan, printer: RowPrinter, rounded: str) -> Iterator[tuple[str, str]]:
    """What the kernels over the rows are launched with: rows [batch, tokens, HV, channels] of all tokens."""
    written = written_rows(plan.normal_form)
    for role, name in plan.names.items():
        dims = plan.dims_of(role)
        if role == "q":
            text = printer.row(role, Rows(dims[0], lambda row, _: row.q if isinstance(row, Row) else None))
        else:
            text = printer.row(role, written[role])
        dtype = "torch.float32" if role == "g" else rounded
        text = f"({text}).to({dtype})" if printer.single else f"_as_tokens({text}, {dtype})"
        yield name, text if dims else f"{text}[..., 0]"


def _counted(plan: ExpandedPlan, rows: Count) -> str:
    """A number of rows as an operand."""
    text = _text(plan, rows)
    return f"({text})" if " " in text else text


def _text(plan: ExpandedPlan, rows: Count, called: str = "{}") -> str:
    """A number of rows; `called` is how the number of micro-steps is read, by its name."""
    return rows.text(called.format(plan.spec.steps.argument) if plan.spec.steps else "")


def _note(plan: ExpandedPlan) -> str:
    """What the rows of a token take."""
    counts = Counter(dim for role in plan.names if role != "g" for dim in plan.dims_of(role))
    numbers = total_of(*(f"{count} {dim}" if count > 1 else dim for dim, count in counts.items()))
    read = plan.kernels.spec.output_dims[0]
    rows = _text(plan, plan.rows)
    many = "its row is" if rows == "1" else f"its {rows} rows are"
    return (
        f"No kernel evaluates this recurrence from the inputs ({plan.reason}). For each token and value head, {many}"
        f" evaluated in PyTorch and kept in memory, {numbers} numbers each in the dtype of the products; so is what"
        f" they read, {read} numbers each in float32, of which the output is made."
    )
