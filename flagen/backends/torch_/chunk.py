"""The context of `chunk.py`: the front end as the rows of the normal form, then the chunk form over them."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from fractions import Fraction

from flagen.algebra.equations import Equation, Exponent, Factor
from flagen.algebra.normal_form import Block, Decay, MicroStep, NormalForm, Read
from flagen.backends.protocol import Rendering
from flagen.backends.signature import Parameter
from flagen.backends.text import tuple_of, wrapped
from flagen.backends.torch_.common import common_context
from flagen.backends.torch_.equations import EquationPrinter
from flagen.backends.torch_.printer import Code, Printer
from flagen.backends.torch_.scope import Scope, prelude
from flagen.plan.chunk import ChunkPlan, Count
from flagen.plan.model import Plan
from flagen.spec.model import Expr, Name, Number


def chunk_file(plan: Plan, chunk: ChunkPlan) -> Rendering:
    """`chunk.py` of a package that has a chunk form."""
    spec, nf = plan.spec, chunk.normal_form
    rows = dict(_Rows(chunk).all())
    scope = _ReadScope(spec, nf.reads)
    lines, before = prelude(scope, (*_expressions(nf), nf.output))
    printer = Printer(scope.code)
    names = _names(chunk)
    equations = _Equations(chunk, names)
    reads = [names[f"O{number}"] for number in range(len(nf.reads))]
    rows_printer = _RowPrinter(chunk, Printer(scope.code))
    arguments = [(names.get(row, row), rows_printer.row(row, value)) for row, value in rows.items()]
    o = printer.aligned(printer.print(nf.output), spec.output_dims).text
    size = Parameter("chunk_size", "int", str(chunk.size), True, "tokens per chunk.")
    return Rendering(
        "chunk.py",
        "torch/chunk.py.j2",
        {
            **common_context(spec, size),
            "prelude": lines,
            "rows": arguments,
            "row_names": [name for name, _ in arguments],
            "reads": [scope.read_name(read.name) for read in nf.reads],
            "output": o,
            "transposed": nf.transposed,
            "equations_of_chunk": [
                line
                for statement in chunk.form.system.statements
                for line in wrapped(_renamed(str(statement), names), 112)
            ],
            "legend": _legend(chunk),
            "setup": equations.setup,
            "before": equations.before,
            "scan": equations.scan,
            "scanned": equations.scanned,
            "kept": chunk.kept,
            "read": _returned(f"_tokens({value}, tokens)" for value in reads),
            "nothing_read": _returned(
                f"S.new_zeros(S.shape[0], 0, S.shape[1], S.shape[{_axis(read)}])" for read in nf.reads
            ),
            "after": equations.after,
            "first": arguments[0][0],
            "functions": equations.functions | rows_printer.functions,
            "l2norm": "l2norm" in before.needs | printer.needs | rows_printer.printer.needs,
            "key": nf.key,
            "value": nf.value,
        },
    )


@dataclass(frozen=True)
class _ReadScope(Scope):
    """Names outside the chunk form, and the reads that come out of it."""

    reads: tuple[Read, ...]

    def code(self, expr: Expr) -> Code:
        if isinstance(expr, Name) and expr.kind == "local":
            return Code(self.read_name(expr.name), expr.dims, "token")
        return super().code(expr)

    def read_name(self, name: str) -> str:
        """What a read is called; a single one needs no number."""
        return "read" if len(self.reads) == 1 and "read" not in self.names else name


def _returned(reads: Iterable[str]) -> str:
    """The reads and the state, as what a function returns."""
    return ", ".join((*reads, "S")) if (reads := list(reads)) else "(S,)"


def _axis(read: Read) -> int:
    """The axis of the state that is as long as what is read."""
    return 3 if read.side == "left" else 2


def _names(chunk: ChunkPlan) -> dict[str, str]:
    """Tensors of the system whose names carry a number that a single read does not need."""
    single = len(chunk.normal_form.reads) == 1
    numbered = (
        {f"{letter}{n}": letter for letter in "qABO" for n in range(len(chunk.normal_form.reads))} if single else {}
    )
    return {**numbered, **{f"O{n}": "o" if single else f"o{n}" for n in range(len(chunk.normal_form.reads))}}


def _renamed(text: str, names: dict[str, str]) -> str:
    """An equation with its tensors, and the offsets named after them, called as in the code."""
    offsets = {f"G{tensor}": f"G{name}" for tensor, name in names.items()}
    return re.sub(r"\b\w+\b", lambda word: (names | offsets).get(word[0], word[0]), text)


def _legend(chunk: ChunkPlan) -> list[str]:
    nf = chunk.normal_form
    lines = [
        "Indices: t tokens"
        + (", i and j delta rows" if nf.has_delta else "")
        + (", m write rows" if nf.has_write else "")
    ]
    lines[0] += f", x over {nf.key}, y over {nf.value}; repeated ones are summed."
    if nf.decay_kind != "none":
        lines.append(
            "G* is the sum of g from the chunk's start to where a row reads or writes, Gend to the chunk's end."
        )
    return lines


# ------------------------------------------------------------------------------------------------------------ equations


class _Equations:
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
            functions=printer.functions,
            local={s.target.tensor for s in chunk.scan} | {"S0"},
        )
        self.scan = scan.lines(chunk.scan)
        self.scanned = scan.scanned
        self.after = printer.lines(chunk.after)
        self.setup = printer.setup
        self.functions = printer.functions


def _plain(chunk: ChunkPlan, printer: EquationPrinter) -> set[str]:
    return {printer.names.get(name, name) for name in chunk.system.inputs}


@dataclass
class _ScanPrinter(EquationPrinter):
    """Prints what runs chunk after chunk: all that the scan does not compute itself is one chunk's part, `x_n` of
    `x`."""

    local: frozenset[str] | set[str] = frozenset()
    scanned: list[str] = field(default_factory=list)

    def _decayed(self, factor: Factor, exponents: tuple[Exponent, ...], *, bare: bool = True) -> str:
        if factor.tensor in self.local:
            name = self.name(factor)
            if not exponents:
                return name
            return f"{self._one_chunk(self._factor(exponents))} * {name}"
        if not exponents:
            return self._one_chunk(self.name(factor))
        return self._one_chunk(
            self._shared(f"{self.name(factor)}_to_end", f"{self.name(factor)} * {self._factor(exponents)}")
        )

    def _one_chunk(self, name: str) -> str:
        if name not in self.scanned:
            self.scanned.append(name)
        return f"{name}_n"


# ----------------------------------------------------------------------------------------------------------------- rows

RowOf = Callable[[MicroStep, int], Expr | None]


@dataclass(frozen=True)
class _Row:
    """One row tensor of the chunk form: its channel dim and what each (micro-step, slot) has; or a read's q."""

    dim: str
    of: RowOf | Expr


@dataclass(frozen=True)
class _Rows:
    chunk: ChunkPlan

    def all(self) -> Iterator[tuple[str, _Row]]:
        nf = self.chunk.normal_form
        inputs = self.chunk.system.inputs
        for number, read in enumerate(nf.reads):
            yield f"q{number}", _Row(nf.key if read.side == "left" else nf.value, read.q)
        families: dict[str, tuple[str, RowOf]] = {
            "w": (nf.key, lambda step, slot: step.deltas[slot].w if slot < len(step.deltas) else None),
            "y": (nf.key, lambda step, slot: step.deltas[slot].y if slot < len(step.deltas) else None),
            "z": (nf.value, lambda step, slot: step.deltas[slot].z if slot < len(step.deltas) else None),
            "k": (nf.key, lambda step, slot: step.writes[slot].k if slot < len(step.writes) else None),
            "v": (nf.value, lambda step, slot: step.writes[slot].v if slot < len(step.writes) else None),
        }
        yield from ((name, _Row(dim, of)) for name, (dim, of) in families.items() if name in inputs)
        if nf.decay_kind != "none":
            dim = nf.key if nf.decay_kind == "key" else ""
            yield "g", _Row(dim, lambda step, slot: _log(step.decay) if slot == 0 else None)


def _log(decay: Decay | None) -> Expr | None:
    return None if decay is None else decay.log


def _expressions(nf: NormalForm) -> Iterator[Expr]:
    for read in nf.reads:
        yield read.q
    for block in nf.blocks:
        if block.lead:
            yield block.lead.log
        for step in block.steps:
            if step.decay:
                yield step.decay.log
            for delta in step.deltas:
                yield from (delta.w, delta.y)
                if delta.z is not None:
                    yield delta.z
            for write in step.writes:
                yield from (write.k, write.v)


class _RowPrinter:
    """Prints a row tensor as [batch, tokens, (rows of a token,) HV, channels]."""

    def __init__(self, chunk: ChunkPlan, printer: Printer) -> None:
        self.chunk, self.printer = chunk, printer
        self.nf = chunk.normal_form
        self.functions: set[str] = set()

    def row(self, name: str, row: _Row) -> str:
        if not callable(row.of):
            return self._whole(row.of, row.dim, repeated=False)
        blocks = [self._block(block, row, decays=name == "g") for block in self.nf.blocks]
        if len(blocks) == 1:
            return blocks[0][0] if self.chunk.rows != Count(1) else blocks[0][1] or blocks[0][0]
        return f"torch.cat({tuple_of(text for text, _ in blocks)}, dim=2)"

    def _block(self, block: Block, row: _Row, *, decays: bool) -> tuple[str, str | None]:
        """The block's rows with their axis, and, where it is one row of one micro-step, without it."""
        assert callable(row.of)
        parts = [
            self._part(row.of(step, slot), row.dim, block.repeated)
            for step in block.steps
            for slot in range(self.chunk.slots)
        ]
        if decays and block.lead is not None:
            parts[0] = self._with_lead(block, parts[0], row)
        if len(parts) == 1:
            return (parts[0], None) if block.repeated else (f"{_atom(parts[0])}.unsqueeze(2)", parts[0])
        if block.repeated:
            return f"torch.stack({tuple_of(parts)}, dim=3).flatten(2, 3)", None
        return f"torch.stack({tuple_of(parts)}, dim=2)", None

    def _with_lead(self, block: Block, first: str, row: _Row) -> str:
        assert block.lead is not None and self.nf.spec.steps is not None
        self.functions.add("first_step")
        lead = self._whole(block.lead.log, row.dim, repeated=False)
        return f"_first_step({lead}, {self.nf.spec.steps.argument})"

    def _part(self, expr: Expr | None, dim: str, repeated: bool) -> str:
        return self._whole(Number(Fraction(0)) if expr is None else expr, dim, repeated)

    def _whole(self, expr: Expr, dim: str, repeated: bool) -> str:
        """`expr` over every token (and micro-step), over `dim`; over one channel where `dim` is empty."""
        code = self.printer.print(expr)
        level = "step" if repeated else "token"
        size = f"args.{dim}" if dim else "1"
        steps = self.nf.spec.steps
        shape = ["args.batch", "args.tokens", "args.HV", size]
        if repeated and steps:
            shape.insert(2, steps.argument)
        if code.level == "number":
            return f"torch.full({tuple_of(shape)}, {code.text}, dtype=args.dtype, device=args.device)"
        dims = (dim,) if dim else ()
        aligned = self.printer.aligned(code, dims, "step" if repeated else None)
        if not dims:
            aligned = Code(f"{_atom_of(aligned)}[..., None]", (), aligned.level)
        if code.level == level and (code.dims == dims or not dims):
            return aligned.text
        return f"{_atom_of(aligned)}.expand({', '.join(shape)})"


def _atom_of(code: Code) -> str:
    return code.bound(4)


def _atom(text: str) -> str:
    return text if text.isidentifier() else f"({text})"
