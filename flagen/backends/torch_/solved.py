"""The context of `naive_chunk.py` where the output is the solution of a system: its operator over the rows of the
normal form, and the steps that it is solved by."""

from __future__ import annotations

from flagen.algebra.equations import called
from flagen.algebra.solved import SolvedForm
from flagen.backends.notes import naive_chunk_notes
from flagen.backends.protocol import Rendering
from flagen.backends.signature import Parameter
from flagen.backends.solutions import MAX_ITERATIONS
from flagen.backends.text import wrapped
from flagen.backends.torch_.chunk import Equations, legend_of, names_of
from flagen.backends.torch_.common import common_context
from flagen.backends.torch_.printer import Printer
from flagen.backends.torch_.rows import RowPrinter, Rows, expressions, written_rows
from flagen.backends.torch_.scope import Scope, prelude
from flagen.plan.chunk import ChunkPlan
from flagen.plan.model import Plan


def solved_file(plan: Plan, chunk: ChunkPlan, solved: SolvedForm) -> Rendering:
    """`naive_chunk.py` of a package whose output is `solved`."""
    spec, nf = plan.spec, chunk.normal_form
    lines, before = prelude(scope := Scope(spec), (*expressions(nf), solved.right, solved.shift))
    printer = RowPrinter(nf, Printer(scope.code))
    present = {*chunk.system.inputs, *(["g"] if nf.decay_kind != "none" else [])}
    rows = {name: row for name, row in written_rows(nf).items() if name in present}
    rows |= {"right": Rows(nf.value, solved.right), "shift": Rows(nf.value if solved.shift.dims else "", solved.shift)}
    names = {**names_of(chunk), "q0": "p", "O0": "product"}
    equations = Equations(chunk, names)
    size = Parameter("chunk_size", "int", str(chunk.size), True, "tokens per chunk.")
    return Rendering(
        "naive_chunk.py",
        "torch/solved.py.j2",
        {
            **common_context(spec, size, MAX_ITERATIONS),
            "notes": naive_chunk_notes(plan),
            "prelude": lines,
            "rows": [(name, printer.row(name, row)) for name, row in rows.items()],
            "row_names": list(rows),
            "transposed": nf.transposed,
            "equations_of_chunk": [
                line
                for statement in chunk.form.system.statements
                for line in wrapped(str(called(statement, names)), 112)
            ],
            "legend": legend_of(chunk),
            "setup": equations.setup,
            "before": equations.before,
            "scan": equations.scan,
            "scanned": equations.scanned,
            "kept": chunk.kept,
            "after": equations.after,
            "l2norm": "l2norm" in before.needs | printer.printer.needs,
            "key": nf.key,
            "value": nf.value,
        },
    )
