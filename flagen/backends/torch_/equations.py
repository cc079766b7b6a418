"""Prints the equations of a chunk form as PyTorch: matrix products over the rows of all chunks at once.

A tensor of the system is [..., rows, channels]; a term of two factors is a matrix product, and its decays go where they
stay at most 1:

    e^{+read}              on the rows that carry it          w * from the chunk's start
    e^{end - write}        on the rows that carry it          w * to the chunk's end
    e^{read - write}       between two families of rows       a [readers, rows] matrix; halving for per-key decay

Where keys are pairs, a score is a product of two.

Of registers, scores are multiplied by what of each row reaches each reader, and the other terms are einsums with the
letters of the system.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from itertools import groupby

from flagen.algebra.equations import FAMILY, Equation, Exponent, Factor, Solve, Statement, Term, Weights
from flagen.backends.printed import total_of
from flagen.diagnostics import InternalError
from flagen.plan.chunk import ChunkPlan, Count, Reader


@dataclass(frozen=True)
class Timeline:
    """Where a reader's rows stand on the chunk's timeline.

    `simple`: the last row whose decay it includes, counted from its own row, where readers and rows pair up one to one;
    None where they have to be counted.
    """

    reader: Reader
    simple: int | None


@dataclass
class EquationPrinter:
    """Prints statements and remembers which helper values and functions the printed lines need.

    `indexed` names tensors that are read one chunk at a time (`x[:, :, n]`) in the scan.
    """

    plan: ChunkPlan
    names: dict[str, str]
    shared: dict[str, str] = field(default_factory=dict)  # expression -> name of the value that holds it
    setup: list[str] = field(default_factory=list)

    @property
    def per_key(self) -> bool:
        return self.plan.normal_form.decay_kind == "key"

    # ------------------------------------------------------------------------------------------------------- statements

    def lines(self, statements: tuple[Statement, ...]) -> list[str]:
        """One line a statement; solves that share a matrix become one solve, and what reaches one reader one line."""
        result: list[str] = []
        for _, group in groupby(statements, _together):
            match list(group):
                case [Solve(), *_] as solves:
                    result += self._solves([each for each in solves if isinstance(each, Solve)])
                case [Weights(), *_] as weights:
                    result.append(self._weights([each for each in weights if isinstance(each, Weights)]))
                case equations:
                    for each in equations:
                        assert isinstance(each, Equation)
                        result.append(f"{self.name(each.target)} = {self.value(each)}")
        return result

    def _weights(self, weights: list[Weights]) -> str:
        """What reaches one reader: of the registers before the chunk, and of each family of rows."""
        into = [f"a{rows}" for rows in ("w", "k") if rows in self.plan.system.inputs]
        reach = self._shared("reach", f"registers.reach({', '.join(('mix', *into))})")
        families = f", families={len(into)}" if len(into) != 1 else ""
        targets = ", ".join(self.name(each.target) for each in weights)
        targets = targets if into else f"({targets},)"
        if (reader := weights[0].reader) is None:
            return f"{targets} = registers.at_end({reach}{families})"
        timeline = self.timeline(reader.tensor.removeprefix("c"))
        match timeline.simple:
            case 0:
                rows = "[..., 1:, :, :]"
            case -1:
                rows = "[..., :-1, :, :]"
            case _:
                rows = f"[..., {self._last(timeline)} + 1, :, :]"
        return f"{targets} = registers.weights({self.name(reader)}, {reach}{rows}{families})"

    def _solves(self, solves: list[Solve]) -> list[str]:
        targets = ", ".join(self.name(solve.target) for solve in solves)
        rights = ", ".join(self.names.get(solve.right, solve.right) for solve in solves)
        if len(solves) == 1:
            targets = f"({targets},)"
        return [f"{targets} = rows.solve({self._given(solves[0].matrix)}, {rights})"]

    def _given(self, tensor: str) -> str:
        """A tensor that the statements before have, or are given."""
        return tensor

    def value(self, equation: Equation) -> str:
        """The right side of `equation`."""
        return total_of(*(self._term(term, equation.target) for term in equation.terms))

    def name(self, factor: Factor) -> str:
        return self.names.get(factor.tensor, factor.tensor)

    # ------------------------------------------------------------------------------------------------------------ terms

    def _term(self, term: Term, target: Factor) -> str:
        if len(term.factors) == 1:
            (factor,) = term.factors
            return self._decayed(factor, term.exponents)
        if "register" in {FAMILY[letter] for letter in term.letters}:
            return self._einsum(term, target)
        if len(term.factors) == 4:
            return self._masked(term, target, self._scores_of_pairs(term))
        if len(term.factors) == 3:
            # What does not reach a reader has the weight 0: nothing is left to mask.
            weight, *factors = term.factors
            return f"{self.name(weight)} * ({self._term(replace(term, factors=tuple(factors), mask=None), target)})"
        left, right = self._ordered(term, target)
        (summed,) = set(left.index) & set(right.index) - set(target.index)
        reads = [e for e in term.exponents if e.sign > 0]
        writes = [e for e in term.exponents if e.sign < 0]
        if reads and writes and reads[0].row:
            product = self._pairwise(left, right, reads[0], summed)
        else:
            product = self._product(left, right, term.exponents, summed, target)
        return self._masked(term, target, product)

    def _scores_of_pairs(self, term: Term) -> str:
        """Scores of rows over pairs of keys, which are products of scores, and the decay between the rows."""
        one, other, second, fourth = map(self.name, term.factors)
        scores = f"({one} @ {other}.mT) * ({second} @ {fourth}.mT)"
        read = next((exponent for exponent in term.exponents if exponent.sign > 0), None)
        if read is None:
            return scores
        return f"{scores} * {self._decay_matrix(self.timeline(read.offset.removeprefix('G')))}"

    def _einsum(self, term: Term, target: Factor) -> str:
        """A term of registers; its decays go with the rows that carry them, or with the state."""
        rows = next((exponent.row for exponent in term.exponents if exponent.row), None)
        carriers = [f for f in term.factors if rows in f.index and ("x" in f.index if self.per_key else _is_row(f))]
        printed = [self._decayed(f, term.exponents if f in carriers[:1] else ()) for f in term.factors]
        letters = ",".join(f"...{''.join(factor.index)}" for factor in term.factors)
        text = f'torch.einsum("{letters}->...{"".join(target.index)}", {", ".join(printed)})'
        if not term.exponents or carriers:
            return text
        decay = self._one(self._factor(term.exponents))
        return f"{decay if rows else f'{decay}[..., None, :, :]'} * {text}"

    def _one(self, name: str) -> str:
        """What is the same for all rows of a chunk."""
        return name

    def _ordered(self, term: Term, target: Factor) -> tuple[Factor, Factor]:
        one, other = term.factors
        return (one, other) if target.index[0] in one.index else (other, one)

    def _product(
        self, left: Factor, right: Factor, exponents: tuple[Exponent, ...], summed: str, target: Factor
    ) -> str:
        rows = next((e.row for e in exponents if e.row), None)
        carrier = next((f for f in (left, right) if rows in f.index), None)
        outside = bool(exponents) and self.per_key and (carrier is None or "x" not in carrier.index)
        sides = [self._decayed(f, () if outside or f is not carrier else exponents, bare=False) for f in (left, right)]
        one = _oriented(sides[0], left, left.index[-1] == summed)
        other = _oriented(sides[1], right, right.index[0] == summed)
        text = f"{one} @ {other}"
        return f"{self._factor(exponents)} * ({text})" if outside else text

    def _pairwise(self, left: Factor, right: Factor, read: Exponent, summed: str) -> str:
        """Decays between the rows of a reader and the rows it reads."""
        timeline = self.timeline(read.offset.removeprefix("G"))
        one, other = self.name(left), self.name(right)
        scores = summed == "x"
        if self.per_key:
            function = "rows.decayed_scores" if scores else "rows.decayed_product"
            return f"{function}({one}, {other}, g, {self._last(timeline)})"
        decay = self._decay_matrix(timeline)
        return f"({one} @ {other}.mT) * {decay}" if scores else f"({one} * {decay}) @ {other}"

    def _decayed(self, factor: Factor, exponents: tuple[Exponent, ...], *, bare: bool = True) -> str:
        if not exponents:
            return self.name(factor)
        text = f"{self.name(factor)} * {self._factor(exponents)}"
        return text if bare else f"({text})"

    def _masked(self, term: Term, target: Factor, text: str) -> str:
        if term.mask is None:
            return text
        timeline = self.timeline(term.mask.reader)
        reader = timeline.reader
        if timeline.simple is not None:
            diagonal = -1 if reader.seen is None else reader.seen.fixed - 1
            decays_end_there = bool(term.exponents) and timeline.simple == diagonal
            # A triangular solve, for its part, reads nothing but what is below the diagonal.
            if decays_end_there or target.tensor == "L":
                return text
            return f"({text}).tril({'' if diagonal == 0 else diagonal})"
        return f"torch.where({self._seen(reader)}, {text}, 0.0)"

    # ----------------------------------------------------------------------------------------------------------- decays

    def _factor(self, exponents: tuple[Exponent, ...]) -> str:
        """The name of e^{...} over the rows that carry it."""
        (read,) = (e for e in exponents if e.sign > 0)
        if any(e.sign < 0 for e in exponents):
            return self._shared("to_end", "rows.until_end(g).exp()")
        if not read.row:
            return self._shared("at_end", "g.sum(-2).exp()[..., None]")
        timeline = self.timeline(read.offset.removeprefix("G"))
        name = f"from_start_{self.names.get(timeline.reader.tensor, timeline.reader.tensor)}"
        if timeline.simple == 0:
            return self._shared("from_start", "g.cumsum(-2).exp()")
        if timeline.simple == -1:
            return self._shared("before", "functional.pad(g.cumsum(-2), (0, 0, 1, -1)).exp()")
        return self._shared(
            name, f"functional.pad(g.cumsum(-2), (0, 0, 1, 0))[..., {self._last(timeline)} + 1, :].exp()"
        )

    def _decay_matrix(self, timeline: Timeline) -> str:
        """Decays from each row to each reader: [readers, rows]."""
        decay = self._shared("decay", "rows.decay(g)")
        if timeline.simple == 0:
            return decay
        name = f"decay_{self.names.get(timeline.reader.tensor, timeline.reader.tensor)}"
        return self._shared(name, f"functional.pad({decay}, (0, 0, 1, 0))[..., {self._last(timeline)} + 1, :]")

    def _shared(self, name: str, value: str) -> str:
        if value not in self.shared:
            self.shared[value] = name
            self.setup.append(f"{name} = {value}")
        return self.shared[value]

    # --------------------------------------------------------------------------------------------------------- timeline

    def timeline(self, tensor: str) -> Timeline:
        """Where the rows of the reader `tensor` stand."""
        reader = self.plan.reader(tensor)
        own_rows = reader.seen is None and self.plan.slots == 1
        if own_rows or self.plan.rows == Count(1):
            before = -1 if reader.seen is None else reader.seen.fixed - 1
            return Timeline(reader, before + reader.after_decay)
        return Timeline(reader, None)

    def _rows(self) -> str:
        any_rows = next(name for name in ("g", "w", "k") if name == "g" or name in self.plan.system.inputs)
        any_rows = any_rows if self.plan.system.offsets or any_rows != "g" else self._a_row_tensor()
        return self._shared("row", f"torch.arange({any_rows}.shape[-2], device=S.device)")

    def _a_row_tensor(self) -> str:
        return next(name for name in ("w", "k") if name in self.plan.system.inputs)

    def _first_seen(self, reader: Reader) -> str:
        """How many rows of the timeline each row of the reader sees."""
        row = self._rows()
        name = self.names.get(reader.tensor, reader.tensor)
        if reader.seen is None:
            slots = self.plan.slots
            return self._shared(f"seen_{name}", f"{row} // {slots} * {slots}") if slots > 1 else row
        token = self._shared("token", "torch.arange(size, device=S.device)")
        per_token = self._shared("per_token", f"{row}.shape[0] // size")
        seen = reader.seen
        if seen == self.plan.rows:
            return self._shared(f"seen_{name}", f"({token} + 1) * {per_token}")
        offset = self._counted(seen)
        return self._shared(f"seen_{name}", f"{token} * {per_token}{f' + {offset}' if offset else ''}")

    def _counted(self, count: Count) -> str:
        """`count` from the rows there are: per_token = fixed + repeated * n."""
        if not count.repeated:
            return str(count.fixed) if count.fixed else ""
        rows = self.plan.rows
        steps = f"(per_token - {rows.fixed}) // {rows.repeated}" if rows.fixed or rows.repeated > 1 else "per_token"
        text = steps if count.repeated == 1 else f"{count.repeated} * ({steps})"
        return f"{text} + {count.fixed}" if count.fixed else text

    def _last(self, timeline: Timeline) -> str:
        """Index of the last row whose decay each row of the reader includes."""
        name = self.names.get(timeline.reader.tensor, timeline.reader.tensor)
        if timeline.simple is not None:
            row = self._rows()
            return row if timeline.simple == 0 else self._shared(f"last_{name}", f"{row} - {-timeline.simple}")
        seen = self._first_seen(timeline.reader)
        return seen if timeline.reader.after_decay else self._shared(f"last_{name}", f"{seen} - 1")

    def _seen(self, reader: Reader) -> str:
        name = self.names.get(reader.tensor, reader.tensor)
        return self._shared(f"sees_{name}", f"{self._rows()} < {self._first_seen(reader)}[:, None]")


def _is_row(factor: Factor) -> bool:
    """Whether a factor is a row, and not what reaches or leaves registers."""
    return not any(FAMILY[letter] == "register" for letter in factor.index)


def _together(statement: Statement) -> tuple[object, ...]:
    """Statements that are one line have the same."""
    match statement:
        case Solve(_, matrix):
            return ("solve", matrix)
        case Weights(upto=upto):
            return ("weights", upto)
    return ("equations",)


def _oriented(text: str, factor: Factor, as_is: bool) -> str:
    """A matrix with the summed index where the product wants it."""
    if len(factor.index) != 2:
        raise InternalError(f"{factor} is no matrix")
    return text if as_is else f"{text}.mT"
