"""The rows of a normal form, printed: what the front end makes of the inputs, token by token and micro-step by
micro-step."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain

from flagen.algebra.normal_form import Block, Decay, DeltaRow, MicroStep, NormalForm, Numbers, Read, factors_of
from flagen.algebra.ranks import RankRead
from flagen.algebra.scan import ONE, ZERO
from flagen.backends.printed import product_of
from flagen.backends.text import tuple_of
from flagen.backends.torch_.printer import Code, Printer
from flagen.backends.torch_.scope import Scope
from flagen.plan.chunk import Count, rows_per_token
from flagen.spec.model import Expr, Name

RowOf = Callable[[MicroStep, int], Expr | None]
NumbersOf = Callable[[MicroStep, int], Numbers]


@dataclass(frozen=True)
class Rows:
    """One row tensor: its channel dim, empty for one number a row, and what each (micro-step, slot) has; or a read's
    q, of which a token has one."""

    dim: str
    of: RowOf | Expr


@dataclass(frozen=True)
class NumberRows:
    """Numbers for each register, or a whole mix of them: what each (micro-step, slot) has; or those of a read, of which
    a token has one."""

    of: NumbersOf | Numbers


def rows_of_numbers(nf: NormalForm) -> Mapping[str, NumberRows]:
    """How the rows of `nf` mix, read and write its registers, by the names of the chunk form."""
    count = len(nf.registers)
    none = (ZERO,) * count
    apart = tuple(ONE if place % (count + 1) == 0 else ZERO for place in range(count * count))

    def of_delta(part: Callable[[DeltaRow], Numbers]) -> NumbersOf:
        return lambda step, slot: part(step.deltas[slot]) if slot < len(step.deltas) else none

    return {
        "mix": NumberRows(lambda step, slot: tuple(chain.from_iterable(step.mix)) if slot == 0 else apart),
        "aw": NumberRows(of_delta(lambda row: row.into)),
        "cy": NumberRows(of_delta(lambda row: row.of)),
        "ak": NumberRows(lambda step, slot: step.writes[slot].into if slot < len(step.writes) else none),
        **{f"cq{number}": NumberRows(read.of) for number, read in enumerate(nf.reads)},
    }


def written_rows(nf: NormalForm) -> Mapping[str, Rows]:
    """What the rows of `nf` erase, write and decay with, by the names of the normal form."""
    decayed = nf.key if nf.decay_kind == "key" else ""
    return {
        "w": Rows(nf.key, lambda step, slot: step.deltas[slot].w if slot < len(step.deltas) else None),
        "y": Rows(nf.key, lambda step, slot: step.deltas[slot].y if slot < len(step.deltas) else None),
        "z": Rows(nf.value, lambda step, slot: step.deltas[slot].z if slot < len(step.deltas) else None),
        "k": Rows(nf.key, lambda step, slot: step.writes[slot].k if slot < len(step.writes) else None),
        "v": Rows(nf.value, lambda step, slot: step.writes[slot].v if slot < len(step.writes) else None),
        "g": Rows(decayed, lambda step, slot: _log(step.decay) if slot == 0 else None),
    }


def with_sides(nf: NormalForm, rows: Mapping[str, Rows]) -> Iterator[tuple[str, Rows]]:
    """Rows by name, those over pairs of keys followed by both sides of them."""
    yield from rows.items()
    for name in nf.factored:
        for place, dim in enumerate(nf.spec.pairs[nf.key]):
            yield f"{name}{'ab'[place]}", Rows(dim, _side(rows[name].of, place))


def _side(of: RowOf | Expr, place: int) -> RowOf | Expr:
    """One side of a row over pairs."""

    def side(expr: Expr | None) -> Expr | None:
        factors = None if expr is None else factors_of(expr)
        return None if factors is None else factors[place]

    if callable(of):
        row = of
        return lambda step, slot: side(row(step, slot))
    found = side(of)
    assert found is not None
    return found


def _log(decay: Decay | None) -> Expr | None:
    return None if decay is None else decay.log


def expressions(nf: NormalForm) -> Iterator[Expr]:
    """Everything that the rows of `nf` are made of."""
    yield from (decay.log for decay in nf.decays)
    yield from vectors(nf)
    for step in nf.steps:
        yield from chain(*step.mix, *(row.of + row.into for row in step.deltas), *(row.into for row in step.writes))
    yield from chain.from_iterable(read.of for read in nf.reads)


def vectors(nf: NormalForm) -> Iterator[Expr]:
    """What the rows of `nf` erase and write with."""
    for step in nf.steps:
        for delta in step.deltas:
            yield from (delta.w, delta.y, *([] if delta.z is None else [delta.z]))
        for write in step.writes:
            yield from (write.k, write.v)


@dataclass(frozen=True)
class ReadScope(Scope):
    """Names outside the chunk form, and the reads that come out of it."""

    reads: tuple[Read | RankRead, ...]

    def code(self, expr: Expr) -> Code:
        if isinstance(expr, Name) and expr.kind == "local":
            return Code(self.read_name(expr.name), expr.dims, "token")
        return super().code(expr)

    def read_name(self, name: str) -> str:
        """What a read is called; a single one needs no number."""
        return "read" if len(self.reads) == 1 and "read" not in self.names else name


class RowPrinter:
    """Prints a row tensor as [batch, tokens, (rows of a token,) HV, channels]."""

    def __init__(self, nf: NormalForm, printer: Printer) -> None:
        self.printer = printer
        self.nf = nf

    @property
    def single(self) -> bool:
        """Whether a token has one row, which then has no axis of its own."""
        return rows_per_token(self.nf) == Count(1)

    def row(self, name: str, row: Rows) -> str:
        if not callable(row.of):
            return self._whole(row.of, row.dim, repeated=False)
        blocks = [self._block(block, row, decays=name == "g") for block in self.nf.blocks]
        if len(blocks) == 1:
            return blocks[0][1] or blocks[0][0] if self.single else blocks[0][0]
        return f"torch.cat({tuple_of(text for text, _ in blocks)}, dim=2)"

    def numbers(self, rows: NumberRows) -> str:
        """Rows of numbers, [batch, tokens, (rows of a token,) HV, numbers]."""
        if not callable(rows.of):
            return self._numbers(rows.of)
        of, (block,) = rows.of, self.nf.blocks
        parts = [self._numbers(of(step, slot)) for step in block.steps for slot in range(self.nf.slots)]
        return parts[0] if self.single else f"torch.stack({tuple_of(parts)}, dim=2)"

    def _numbers(self, numbers: Numbers) -> str:
        printed = (self.printer.aligned(self.printer.print(number), ()).text for number in numbers)
        return f"registers.numbers(args, {', '.join(printed)})"

    def _block(self, block: Block, row: Rows, *, decays: bool) -> tuple[str, str | None]:
        """The block's rows with their axis, and, where it is one row of one micro-step, without it."""
        assert callable(row.of)
        rows = [row.of(step, slot) for step in block.steps for slot in range(self.nf.slots)]
        led = [self._with_lead(block, row)] if decays and block.lead is not None else []
        parts = [*led, *(self._part(expr, row.dim, block.repeated) for expr in rows[len(led) :])]
        if len(parts) == 1:
            return (parts[0], None) if block.repeated else (f"{_atom(parts[0])}.unsqueeze(2)", parts[0])
        if block.repeated:
            return f"torch.stack({tuple_of(parts)}, dim=3).flatten(2, 3)", None
        return f"torch.stack({tuple_of(parts)}, dim=2)", None

    def _with_lead(self, block: Block, row: Rows) -> str:
        assert block.lead is not None and self.nf.spec.steps is not None
        lead = self._whole(block.lead.log, row.dim, repeated=False)
        return f"rows.first_step({lead}, {self.nf.spec.steps.argument})"

    def _part(self, expr: Expr | None, dim: str, repeated: bool) -> str:
        if expr is not None:
            return self._whole(expr, dim, repeated)
        return f"rows.zeros(args, {', '.join(self._shape(dim, repeated)[2:])})"

    def _shape(self, dim: str, repeated: bool) -> list[str]:
        steps = [self.nf.spec.steps.argument] if repeated and self.nf.spec.steps else []
        channels = product_of(*(f"args.{each}" for each in self.nf.spec.pairs.get(dim, (dim,)))) if dim else "1"
        return ["args.batch", "args.tokens", *steps, "args.HV", channels]

    def _whole(self, expr: Expr, dim: str, repeated: bool) -> str:
        """`expr` over every token (and micro-step), over `dim`; over one channel where `dim` is empty."""
        code = self.printer.print(expr)
        level = "step" if repeated else "token"
        shape = self._shape(dim, repeated)
        if code.level == "number":
            return f"torch.full({tuple_of(shape)}, {code.text}, dtype=args.dtype, device=args.device)"
        dims = (dim,) if dim else ()
        aligned = self.printer.aligned(code, dims, "step" if repeated else None)
        if not dims:
            aligned = Code(f"{aligned.atom}[..., None]", (), aligned.level)
        if code.level == level and (code.dims == dims or not dims):
            return aligned.text
        return f"{aligned.atom}.expand({', '.join(shape)})"


def _atom(text: str) -> str:
    return text if text.isidentifier() else f"({text})"
