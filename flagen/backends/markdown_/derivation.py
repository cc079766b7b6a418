"""The context of `DERIVATION.md`: what the spec says, what was derived from it and proved, and what it costs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from flagen.algebra.normal_form import Decay, NormalForm, Numbers
from flagen.algebra.ranks import RankForm
from flagen.backends.markdown_.printer import EquationPrinter, ExpressionPrinter, symbol
from flagen.backends.markdown_.scan import scan_context
from flagen.backends.protocol import Rendering
from flagen.backends.stages import PACKAGE_OF_COLUMNS, PACKAGE_OF_MINI_BATCH, PACKAGE_OF_ROWS, package_of
from flagen.backends.text import markdown
from flagen.plan.chunk import ChunkPlan
from flagen.plan.chunk_kernel import ChunkKernelPlan
from flagen.plan.cost import LEVELS, ROWS, Cost, cost
from flagen.plan.model import LevelPlan, MiniBatchPlan, Plan, RankPlan, StagedPlan
from flagen.plan.scan import ScanPlan
from flagen.plan.unavailable import Unavailable
from flagen.spec.model import Assign, Expr, Name, Repeat, Spec, walk

_SIZES = (64, 128, 256)


def derivation_file(plan: Plan) -> Rendering:
    """`DERIVATION.md` of a package."""
    spec = plan.spec
    chunk = plan.chunk if isinstance(plan.chunk, ChunkPlan) else None
    form = plan.chunk.form if isinstance(plan.chunk, ScanPlan) else None
    staged = plan.chunk if isinstance(plan.chunk, StagedPlan) else None
    batches = plan.chunk if isinstance(plan.chunk, MiniBatchPlan) else None
    levels = plan.chunk if isinstance(plan.chunk, LevelPlan) else None
    ranks = plan.chunk if isinstance(plan.chunk, RankPlan) else None
    planned = None if isinstance(plan.chunk, Unavailable) else plan.chunk
    printer = ExpressionPrinter(_Subscripts(spec).of)
    nf = None if chunk is None else chunk.normal_form
    solved = None if chunk is None else chunk.solved
    rows = printer if nf is None else ExpressionPrinter(_Subscripts(nf.spec).of)
    adjoint = plan.derivation.adjoint
    equations = EquationPrinter(
        numbered=nf is not None and len(nf.reads) > 1, per_key=nf is not None and nf.decay_kind == "key"
    )
    return Rendering(
        "DERIVATION.md",
        "markdown/DERIVATION.md.j2",
        {
            "title": markdown(spec.title or spec.name),
            "paper": markdown(spec.paper),
            "description": markdown(spec.description),
            "recurrence": list(_recurrence(spec, printer)),
            "sizes": [(symbol(entry.name), printer.print(entry.value)) for entry in spec.following],
            "steps": (symbol(spec.steps.symbol), spec.steps.argument) if spec.steps else None,
            "reason": markdown(plan.chunk.reason) if isinstance(plan.chunk, Unavailable) else "",
            "normal_form": [] if nf is None else list(_normal_form(nf, rows, has_output=solved is None)),
            "residual": "" if solved is None else _with_reads(solved.operator, rows.print(solved.residual)),
            "orientation": "" if nf is None else _orientation(nf),
            "chunk_form": [] if chunk is None else [equations.print(s) for s in chunk.form.system.statements],
            "adjoint": [] if adjoint is None else [equations.print(s) for s in adjoint.system.statements],
            "registers": [] if nf is None else [symbol(state.name) for state in nf.registers],
            "halves": isinstance(plan.chunk_kernel, ChunkKernelPlan) and plan.chunk_kernel.mixed is not None,
            "decays": nf is not None and nf.decay_kind != "none",
            "key": "" if nf is None else symbol(nf.key),
            "pair": [] if nf is None else [symbol(side) for side in nf.spec.pairs.get(nf.key, ())],
            "value": "" if nf is None else symbol(nf.value),
            "stages": [] if staged is None else list(_stages(staged)),
            "mini_batch": None if batches is None else _mini_batch(batches, printer),
            "levels": None if levels is None else _levels(levels),
            "rows": [] if ranks is None else list(_rows_of_token(ranks.form, printer)),
            "page_of_rows": f"{PACKAGE_OF_ROWS}/DERIVATION.md",
            "ahead": None if staged is None else _ahead(staged),
            "inference": [] if staged is None else list(_inference(staged)),
            "output": "" if staged is None else _output_of_stages(staged),
            "riding": _riding(plan, printer),
            **scan_context(form, printer),
            "size": 0 if planned is None else planned.size,
            "costs": [_row(cost(spec, planned, size, plan.derivation.spec.pairs)) for size in _SIZES],
            "cost_rows": [f"{symbol(dim)} = {ROWS}" for dim in sorted(spec.row_dims)],
            "cost_steps": _row_steps(spec),
            "cost_levels": LEVELS if spec.levels is not None else 0,
        },
    )


class _Subscripts:
    """Which token, and which of its micro-steps, a name's value belongs to."""

    def __init__(self, spec: Spec) -> None:
        self.per = {i.name: i.per for i in spec.inputs} | {d.name: d.per for d in spec.derived}
        self.constant = {d.name for d in spec.derived if not _varies(d.value, spec)}

    def of(self, name: Name) -> str:
        if name.kind not in ("input", "derived") or name.name in self.constant:
            return ""
        return "t,j" if self.per[name.name] == "step" else "t"


def _varies(expr: Expr, spec: Spec) -> bool:
    definitions = {d.name: d.value for d in spec.derived}
    for node in walk(expr):
        if isinstance(node, Name):
            if node.kind == "input":
                return True
            if node.kind == "derived" and _varies(definitions[node.name], spec):
                return True
    return False


def _recurrence(spec: Spec, printer: ExpressionPrinter) -> Iterator[str]:
    for derived in spec.derived:
        name = Name(derived.name, "derived", derived.value.dims)
        yield f"{printer.print(name)} &= {printer.print(derived.value)}"
    for statement in spec.update:
        if isinstance(statement, Repeat):
            assert spec.steps is not None
            yield rf"&\text{{for }} j = 1, \dots, {symbol(spec.steps.symbol)}:"
            for inner in statement.body:
                yield rf"\quad {_assign(inner, printer)}"
        else:
            yield _assign(statement, printer)
    for statement in spec.output:
        target = "o_t" if statement.target == "o" else symbol(statement.target)
        yield f"{target} &= {printer.print(statement.value)}"


def _assign(statement: Assign, printer: ExpressionPrinter) -> str:
    arrow = r"\leftarrow" if statement.to_state else "="
    return f"{symbol(statement.target)} &{arrow} {printer.print(statement.value)}"


def _normal_form(nf: NormalForm, printer: ExpressionPrinter, *, has_output: bool) -> Iterator[tuple[str, str, str]]:
    """(what, the row's quantities, a remark) for each row of the normal form."""
    for number, block in enumerate(nf.blocks):
        times = "each micro-step" if block.repeated and nf.spec.steps else "once"
        if block.lead:
            yield "decay", _decay(block.lead, printer), "before the first micro-step only"
        for step in block.steps:
            where = times if len(nf.blocks) == 1 else f"block {number}, {times}"
            if step.decay:
                yield "decay", _decay(step.decay, printer), where
            if step.mix:
                entries = r" \\ ".join(" & ".join(map(printer.print, row)) for row in step.mix)
                yield "mix", rf"\Phi = \begin{{pmatrix}} {entries} \end{{pmatrix}}", where
            for row in step.deltas:
                z = "0" if row.z is None else printer.print(row.z)
                when = "after" if row.after_decay else "before"
                text = f"w = {printer.print(row.w)}, \\quad y = {printer.print(row.y)}, \\quad z = {z}"
                text += _numbers(printer, a=row.into, c=row.of)
                remark = f"{where}; y reads {when} the decay" if nf.decay_kind != "none" else where
                yield "delta row", text, remark
            for write in step.writes:
                text = f"k = {printer.print(write.k)}, \\quad v = {printer.print(write.v)}"
                yield "write row", text + _numbers(printer, a=write.into), where
    for read in nf.reads:
        product = r"S^\top q" if read.side == "left" else r"S\,q"
        text = rf"{_read_name(nf, read.name)} = {product}, \quad q = {printer.print(read.q)}"
        text += _numbers(printer, c=read.of)
        yield f"{read.side} read", text, nf.describe(read.position)
    if has_output:
        yield "output", f"o = {_with_reads(nf, printer.print(nf.output))}", ""


def _with_reads(nf: NormalForm, text: str) -> str:
    """A formula with its reads called as the table calls them."""
    for read in nf.reads:
        text = text.replace(symbol(read.name), _read_name(nf, read.name))
    return text


def _numbers(printer: ExpressionPrinter, **numbers: Numbers) -> str:
    """By which numbers registers get a row or are read; nothing of one state."""
    printed = ((name, ", ".join(map(printer.print, each))) for name, each in numbers.items() if each)
    return "".join(rf", \quad {name} = ({text})" for name, text in printed)


def _stages(plan: StagedPlan) -> Iterator[tuple[str, str, list[str]]]:
    """The state of each stage, the page of its derivation, and its recurrence."""
    for stage in plan.stages:
        printer = ExpressionPrinter(_Subscripts(stage.spec).of)
        page = f"{package_of(stage, plan.spec.name)}/DERIVATION.md"
        states = ", ".join(symbol(state.name) for state in stage.stage.states)
        yield states, page, list(_recurrence(stage.stage.shown, printer))


def _ahead(plan: StagedPlan) -> dict[str, str] | None:
    """What a matrix starts from whose rows are written at the end of their tokens."""
    ahead = plan.form.ahead
    if ahead is None:
        return None
    spec = replace(plan.spec, inputs=(*plan.spec.inputs, *plan.form.passed))
    start = ExpressionPrinter(_Subscripts(spec).of).print(ahead.start)
    return {"state": symbol(ahead.state), "following": symbol(ahead.following), "start": start}


def _inference(plan: StagedPlan) -> Iterator[str]:
    """The stages that only calls without gradients have, each with a link to the page of its derivation."""
    for stage in plan.every[len(plan.stages) :]:
        states = ", ".join(symbol(state.name) for state in stage.stage.states)
        yield f"[that of $`{states}`$]({package_of(stage, plan.spec.name)}/DERIVATION.md)"


def _mini_batch(plan: MiniBatchPlan, printer: ExpressionPrinter) -> dict[str, str]:
    """How long a mini-batch is, what stands still in it, and which copies it begins with."""
    form = plan.form
    return {
        "page": f"{PACKAGE_OF_MINI_BATCH}/DERIVATION.md",
        "every": printer.print(form.first.every),
        "first": symbol(form.first.name),
        "still": ", ".join(map(symbol, form.still)),
        "copies": r" \qquad ".join(rf"{symbol(copy)} \leftarrow {symbol(name)}" for copy, name in form.copies.items()),
    }


def _levels(plan: LevelPlan) -> dict[str, str]:
    """What is kept in levels, and what is one of the columns that chunks are run on."""
    form = plan.form
    names = {"state": form.levels.state, "scales": form.scales, "written": form.values, "key": form.key}
    return {what: symbol(name) for what, name in names.items()} | {"page": f"{PACKAGE_OF_COLUMNS}/DERIVATION.md"}


def _rows_of_token(form: RankForm, printer: ExpressionPrinter) -> Iterator[str]:
    """The rows of a token, and what its output is made of, a line each."""
    for row in form.writes:
        over = "" if row.rank is None else rf" \quad \text{{for each of }} {symbol(row.rank)}"
        yield rf"k &= {printer.print(row.rows)}, & v &= {printer.print(row.columns)}{over}"
    for read in form.reads:
        over = "" if read.rank is None else rf" \quad \text{{for each of }} {symbol(read.rank)}"
        yield rf"q &= {printer.print(read.q)}, & {symbol(read.name)} &{over}"
    if form.decay is not None:
        yield rf"g &= {printer.print(form.decay)} & & \text{{of the first row}}"
    yield rf"o &= {printer.print(form.output)}"


def _output_of_stages(plan: StagedPlan) -> str:
    """The output where it is evaluated behind the stages."""
    if plan.form.output is None:
        return ""
    spec = replace(plan.spec, inputs=(*plan.spec.inputs, *plan.form.passed))
    return ExpressionPrinter(_Subscripts(spec).of).print(plan.form.output)


def _riding(plan: Plan, printer: ExpressionPrinter) -> str:
    """How a vector state rides on the matrix, in words."""
    nf = plan.derivation.riding
    if nf is None or nf.column is None or not isinstance(plan.chunk_kernel, ChunkKernelPlan):
        return ""
    S, z = symbol(nf.state.name), symbol(nf.column.state.name)
    scale = "1" if nf.column.scale is None else printer.print(nf.column.scale)
    return (
        f"$`{z}`$ decays as $`{S}`$ does, is written along the same keys and read by the same queries. So it is one"
        f" more column of the values, of $`{scale}`$."
    )


def _decay(decay: Decay, printer: ExpressionPrinter) -> str:
    return f"g = {printer.print(decay.log)}"


def _read_name(nf: NormalForm, name: str) -> str:
    """What a read is called in the table; one read needs no number."""
    number = f"_{name.removeprefix('read')}" if len(nf.reads) > 1 else ""
    return rf"\mathrm{{read}}{number}"


def _orientation(nf: NormalForm) -> str:
    pair = nf.spec.pairs.get(nf.key)
    text = f"{'Each register' if nf.registers else 'S'} is [{' · '.join(pair) if pair else nf.key}, {nf.value}]"
    if pair:
        text += f", with all pairs of {pair[0]} and {pair[1]} for keys"
    if nf.decays or nf.has_delta:
        text += "; decay and erase act on these" if pair else f"; decay and erase act on {nf.key}"
    return f"{text}, so the declared state is transposed" if nf.transposed else text


def _row(amount: Cost) -> tuple[str, ...]:
    chunk = "–" if amount.chunk_flops is None else f"{amount.chunk_flops:,}"
    return (
        str(amount.size),
        f"{amount.recurrent_flops:,}",
        chunk,
        f"{amount.bytes_moved:,}",
        f"{amount.state_bytes:,}",
    )


def _row_steps(spec: Spec) -> str:
    if spec.steps is None:
        return ""
    return f"{spec.steps.argument} = {spec.steps.default or 1}"
