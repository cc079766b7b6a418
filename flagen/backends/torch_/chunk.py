"""The context of `naive_chunk.py`: the front end as the rows of the normal form, then the chunk form over them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from flagen.algebra.equations import Equation, Exponent, Factor, called
from flagen.algebra.normal_form import NormalForm, Read
from flagen.backends.notes import naive_chunk_notes
from flagen.backends.printed import product_of
from flagen.backends.protocol import Rendering
from flagen.backends.signature import Parameter
from flagen.backends.text import wrapped
from flagen.backends.torch_.common import common_context
from flagen.backends.torch_.equations import EquationPrinter
from flagen.backends.torch_.printer import Printer
from flagen.backends.torch_.rows import (
    ReadScope,
    RowPrinter,
    Rows,
    expressions,
    rows_of_numbers,
    with_sides,
    written_rows,
)
from flagen.backends.torch_.scope import prelude
from flagen.plan.chunk import ChunkPlan
from flagen.plan.model import Plan


def chunk_file(plan: Plan, chunk: ChunkPlan) -> Rendering:
    """`naive_chunk.py` of a package that has a chunk form."""
    spec, nf = plan.spec, chunk.normal_form
    rows = dict(rows_of(chunk))
    scope = ReadScope(spec, nf.reads)
    lines, before = prelude(scope, (*(read.q for read in nf.reads), *expressions(nf), nf.output))
    printer = Printer(scope.code)
    names = names_of(chunk)
    equations = Equations(chunk, names)
    reads = [names[f"O{number}"] for number in range(len(nf.reads))]
    rows_printer = RowPrinter(nf, Printer(scope.code))
    arguments = [(names.get(row, row), rows_printer.row(row, value)) for row, value in rows.items()]
    numbers = {name: value for name, value in rows_of_numbers(nf).items() if name in chunk.system.inputs}
    arguments += [(names.get(name, name), rows_printer.numbers(value)) for name, value in numbers.items()]
    o = printer.aligned(printer.print(nf.output), spec.output_dims).text
    size = Parameter("chunk_size", "int", str(chunk.size), True, "tokens per chunk.")
    return Rendering(
        "naive_chunk.py",
        "torch/naive_chunk.py.j2",
        {
            **common_context(spec, size),
            "notes": naive_chunk_notes(plan),
            "prelude": lines,
            "rows": arguments,
            "row_names": [name for name, _ in arguments],
            "final": "final.unbind(2)" if nf.registers else "final",
            "chunked": [name for name, _ in arguments if name != "mix"],
            "registers": [state.name for state in nf.registers],
            "reads": [scope.read_name(read.name) for read in nf.reads],
            "output": o,
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
            "read": _returned(f"rows.tokens({value}, tokens)" for value in reads),
            "nothing_read": _returned(
                f"S.new_zeros(S.shape[0], 0, S.shape[1], S.shape[{_axis(read) + bool(nf.registers)}])"
                for read in nf.reads
            ),
            "after": equations.after,
            "first": arguments[0][0],
            "l2norm": "l2norm" in before.needs | printer.needs | rows_printer.printer.needs,
            "key": product_of(*nf.spec.pairs.get(nf.key, (nf.key,))),
            "pairs": _axis_of_pairs(nf),
            "value": nf.value,
        },
    )


def _returned(reads: Iterable[str]) -> str:
    """The reads and the state, as what a function returns."""
    return ", ".join((*reads, "S")) if (reads := list(reads)) else "(S,)"


def _axis_of_pairs(nf: NormalForm) -> int | None:
    """The axis of a state that callers know which is the first of two that are one here."""
    return 2 + nf.state.dims.index(nf.key) if nf.state.shape else None


def _axis(read: Read) -> int:
    """The axis of the state that is as long as what is read."""
    return 3 if read.side == "left" else 2


def names_of(chunk: ChunkPlan) -> dict[str, str]:
    """Tensors of the system whose names carry a number that a single read does not need."""
    single = len(chunk.normal_form.reads) == 1
    numbered = (
        {
            f"{letter}{n}": letter
            for letter in ("q", "A", "B", "O", "cq", "Fq")
            for n in range(len(chunk.normal_form.reads))
        }
        if single
        else {}
    )
    if single:
        numbered |= {"q0a": "qa", "q0b": "qb"}
        numbered |= {"Mq0w": "Mqw", "Mq0k": "Mqk"}
    return {**numbered, **{f"O{n}": "o" if single else f"o{n}" for n in range(len(chunk.normal_form.reads))}}


def legend_of(chunk: ChunkPlan) -> list[str]:
    nf = chunk.normal_form
    lines = [
        "Indices: t tokens"
        + (", i and j delta rows" if nf.has_delta else "")
        + (", m write rows" if nf.has_write else "")
    ]
    if nf.registers:
        lines[0] += ", p and r registers"
    if pair := nf.spec.pairs.get(nf.key):
        lines[0] += f", x over all pairs of a over {pair[0]} and b over {pair[1]}"
    else:
        lines[0] += f", x over {nf.key}"
    lines[0] += f", y over {nf.value}; repeated ones are summed."
    if nf.registers:
        lines.append("mix(to b after a) is the product of the mixes of all rows behind a up to b, last one leftmost.")
    if nf.decay_kind != "none":
        lines.append(
            "G* is the sum of g from the chunk's start to where a row reads or writes, Gend to the chunk's end."
        )
    elif nf.registers:
        lines.append("G* is where a row reads or writes, Gend the chunk's end.")
    return lines


# ------------------------------------------------------------------------------------------------------------ equations


class Equations:
    """The three phases of the chunk form, printed."""

    def __init__(self, chunk: ChunkPlan, names: dict[str, str]) -> None:
        printer = EquationPrinter(chunk, dict(names))
        before = []
        for statement in chunk.before:
            if isinstance(statement, Equation) and printer.value(statement) in _plain(chunk, printer):
                printer.names[statement.target.tensor] = printer.value(
                    statement
                )  # only another name for its right side
            else:
                before.append(statement)
        self.before = printer.lines(tuple(before))
        scan = _ScanPrinter(
            chunk,
            {**printer.names, "S0": "S", "S1": "S"},
            shared=printer.shared,
            setup=printer.setup,
            local={s.target.tensor for s in chunk.scan} | {"S0"},
        )
        self.scan = scan.lines(chunk.scan)
        self.scanned = scan.scanned
        self.after = printer.lines(chunk.after)
        self.setup = printer.setup


def _plain(chunk: ChunkPlan, printer: EquationPrinter) -> set[str]:
    return {printer.names.get(name, name) for name in chunk.system.inputs}


@dataclass
class _ScanPrinter(EquationPrinter):
    """Prints what runs chunk after chunk: all that the scan does not compute itself is one chunk's part, `x_n` of
    `x`."""

    local: frozenset[str] | set[str] = frozenset()
    scanned: list[str] = field(default_factory=list)

    def _given(self, tensor: str) -> str:
        return tensor if tensor in self.local else self._one_chunk(tensor)

    def _one(self, name: str) -> str:
        return self._one_chunk(name)

    def _decayed(self, factor: Factor, exponents: tuple[Exponent, ...], *, bare: bool = True) -> str:
        if factor.tensor in self.local:
            name = self.name(factor)
            if not exponents:
                return name
            return f"{self._one_chunk(self._factor(exponents))} * {name}"
        if not exponents:
            return self._one_chunk(self.name(factor))
        where = "to_end" if any(exponent.sign < 0 for exponent in exponents) else "from_start"
        return self._one_chunk(
            self._shared(f"{self.name(factor)}_{where}", f"{self.name(factor)} * {self._factor(exponents)}")
        )

    def _one_chunk(self, name: str) -> str:
        if name not in self.scanned:
            self.scanned.append(name)
        return f"{name}_n"


# ----------------------------------------------------------------------------------------------------------------- rows


def rows_of(chunk: ChunkPlan) -> Iterator[tuple[str, Rows]]:
    """Every row tensor of the chunk form."""
    nf = chunk.normal_form
    reads = {f"q{n}": Rows(nf.key if read.side == "left" else nf.value, read.q) for n, read in enumerate(nf.reads)}
    present = {*chunk.system.inputs, *(["g"] if nf.decay_kind != "none" else [])}
    every = with_sides(nf, {**reads, **written_rows(nf)})
    yield from ((name, row) for name, row in every if name in present)
