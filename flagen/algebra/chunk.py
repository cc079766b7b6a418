"""The chunk form of a normal form: a chunk's reads and next state, all its tokens at once.

Rows and offsets of one chunk (`flagen.algebra.equations` names the indices):

    w y z       delta rows, Gy Gw their offsets where they read and write
    k v         write rows, Gk their offset
    q0 q1 …     one read row per token and read, Gq0 Gq1 … their offsets
    S0          the state before the chunk; Gend the offset of its end

    L = [j seen by i] <y, Gy; w, Gw>          N = [m seen by i] <y, Gy; k, Gk>
    U = (I - L)^{-1} (z + N v + (y e^Gy) S0)
    O = (q e^Gq) S0 + A U + B v               A = [j seen by t] <q, Gq; w, Gw>,  B = [m seen by t] <q, Gq; k, Gk>
    S1 = e^Gend S0 + (w e^{Gend - Gw})^T U + (k e^{Gend - Gk})^T v

A right read scores with the values and decays the output side instead.

Where keys are pairs, k = ka x kb, rows have scores that are products of scores: <q; k> = <qa; ka> <qb; kb>. Only what
is read of the state and written to it has rows as long as a key.

Of registers, a score is multiplied by what of its writer reaches its reader, and what is read of S0 by what of each
register does: with `mix` the matrix of each micro-step, aw ak the numbers by which rows are written, cy cq those by
which registers are read,

    Myw[i,j] = cy_i mix ... mix aw_j       Fy[i,p] = (cy_i mix ... mix)_p, from the chunk's start
    Ew[j,r] = (mix ... mix aw_j)_r         F = mix ... mix, of the whole chunk

each a `Weights`, sums of products without a quotient or a logarithm: numbers of any sign, 0 among them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from flagen.algebra.equations import (
    Equation,
    Exponent,
    Factor,
    Letters,
    Mask,
    Solve,
    Statement,
    System,
    Term,
    Weights,
)
from flagen.algebra.normal_form import NormalForm, Read


@dataclass(frozen=True)
class ChunkForm:
    """The system, and which of its tensors it is for: the outputs of the reads, in order, and the next state."""

    normal_form: NormalForm
    system: System
    outputs: tuple[str, ...]

    def dump(self) -> str:
        return f"chunk form of {self.normal_form.spec.name}\n{self.system.dump()}"


def chunk_form(nf: NormalForm) -> ChunkForm:
    """The chunk form of `nf`."""
    return _Builder(nf).build()


class _Builder:
    def __init__(self, nf: NormalForm) -> None:
        self.nf = nf
        self.decays = nf.decay_kind != "none"
        self.of_registers: Letters = ("p",) if nf.registers else ()
        self.inputs: dict[str, Letters] = {"S0": (*self.of_registers, "x", "y")}
        if nf.registers:
            self.inputs["mix"] = ("s", "p", "r")
        self.offsets: dict[str, Letters] = {}
        self.statements: list[Statement] = []
        self.factored = nf.factored

    def build(self) -> ChunkForm:
        if self.nf.has_delta:
            self.inputs |= {"w": ("j", "x"), "y": ("i", "x")}
            if self.nf.has_erased_write:
                self.inputs["z"] = ("i", "y")
            self._numbers(("aw", "j"), ("cy", "i"))
            self._offset("Gw", "j")
            self._offset("Gy", "i")
        if self.nf.has_write:
            self.inputs |= {"k": ("m", "x"), "v": ("m", "y")}
            self._numbers(("ak", "m"))
            self._offset("Gk", "m")
        for number, read in enumerate(self.nf.reads):
            self.inputs[f"q{number}"] = ("t", "x" if read.side == "left" else "y")
            self._numbers((f"cq{number}", "t"))
            self._offset(f"Gq{number}", "t")
        self._offset("Gend", "")
        for name in self.factored:
            (row, _) = self.inputs[name]
            self.inputs |= {f"{name}a": (row, "a"), f"{name}b": (row, "b")}
        if self.nf.registers:
            self.statements += self._weights()
        if self.nf.has_delta:
            self._solve()
        outputs = tuple(self._read(number, read) for number, read in enumerate(self.nf.reads))
        self._next_state()
        system = System(self.inputs, self.offsets, tuple(self.statements))
        return ChunkForm(self.nf, system, outputs)

    # -------------------------------------------------------------------------------------------------------- equations

    def _solve(self) -> None:
        right = [Term((Factor("z", ("i", "y")),))] if self.nf.has_erased_write else []
        self._define("L", ("i", "j"), self._score("y", "i", "w", "j"))
        if self.nf.has_write:
            self._define("N", ("i", "m"), self._score("y", "i", "k", "m"))
            right.append(Term((Factor("N", ("i", "m")), Factor("v", ("m", "y")))))
        right.append(Term(self._of_start("y", "i", "x"), self._decay((1, "Gy", "i"))))
        self._define("R", ("i", "y"), *right)
        self.statements.append(Solve(Factor("U", ("i", "y")), "L", "R"))

    def _read(self, number: int, read: Read) -> str:
        q, offset, output = f"q{number}", f"Gq{number}", f"O{number}"
        at_start = self._decay((1, offset, "t"))
        if read.side == "left":
            terms = [Term(self._of_start(q, "t", "x"), at_start)]
            for score, rows, written, row in self._rows(number):
                self._define(score, ("t", row), self._score(q, "t", rows, row))
                terms.append(Term((Factor(score, ("t", row)), Factor(written, (row, "y")))))
            self._define(output, ("t", "y"), *terms)
        else:
            terms = [Term(self._of_start(q, "t", "y"), at_start)]
            for score, rows, written, row in self._rows(number):
                scores = (*self._weight(q, "t", rows, row), Factor(q, ("t", "y")), Factor(written, (row, "y")))
                scored = Term(scores, mask=Mask(q, "t", row))
                self._define(score, ("t", row), scored)
                between = self._decay((1, offset, "t"), (-1, f"G{rows}", row))
                terms.append(Term((Factor(score, ("t", row)), Factor(rows, (row, "x"))), between))
            self._define(output, ("t", "x"), *terms)
        return output

    def _rows(self, number: int) -> list[tuple[str, str, str, str]]:
        """(name of the scores, key side, value side, row index) of the row families there are."""
        scores = {"w": f"A{number}", "k": f"B{number}"}
        return [(scores[rows], rows, written, row) for rows, written, row in self._families()]

    def _families(self) -> list[tuple[str, str, str]]:
        """(key side, value side, row index) of the rows that are written."""
        return [("w", "U", "j")] * self.nf.has_delta + [("k", "v", "m")] * self.nf.has_write

    def _next_state(self) -> None:
        start = Factor("S0", (*self.of_registers, "x", "y"))
        mixed = (Factor("F", ("r", "p")),) if self.nf.registers else ()
        terms = [Term((*mixed, start), self._decay((1, "Gend", "")))]
        for rows, written, row in self._families():
            left = (Factor(f"E{rows}", (row, "r")),) if self.nf.registers else ()
            factors = (*left, Factor(rows, (row, "x")), Factor(written, (row, "y")))
            terms.append(Term(factors, self._decay((1, "Gend", ""), (-1, f"G{rows}", row))))
        self._define("S1", (*("r" for _ in self.of_registers), "x", "y"), *terms)

    # ----------------------------------------------------------------------------------------------------------- pieces

    def _score(self, reader: str, row: str, writer: str, column: str) -> Term:
        """<reader, Greader; writer, Gwriter> over the key channels, masked."""
        weights = self._weight(reader, row, writer, column)
        factors = (*weights, Factor(reader, (row, "x")), Factor(writer, (column, "x")))
        if {reader, writer} <= set(self.factored):
            sides = (("a", Factor(f"{reader}a", (row, "a"))), ("b", Factor(f"{reader}b", (row, "b"))))
            factors = tuple(f for side, own in sides for f in (own, Factor(f"{writer}{side}", (column, side))))
        decay = self._decay((1, f"G{reader}", row), (-1, f"G{writer}", column))
        return Term(factors, decay, Mask(reader, row, column))

    def _of_start(self, reader: str, row: str, channel: str) -> tuple[Factor, ...]:
        """What a reader's row reads of the state before the chunk, but for decays."""
        factors = (Factor(reader, (row, channel)), Factor("S0", (*self.of_registers, "x", "y")))
        if channel == "y":
            factors = factors[::-1]
        return (Factor(f"F{reader}", (row, "p")), *factors) if self.nf.registers else factors

    def _weight(self, reader: str, row: str, writer: str, column: str) -> tuple[Factor, ...]:
        """What of each row that writes reaches each that reads; nothing where there is one state."""
        return (Factor(f"M{reader}{writer}", (row, column)),) if self.nf.registers else ()

    def _weights(self) -> Iterator[Weights]:
        """What reaches each reader, and the registers at the end, of those before the chunk and of each row."""
        mixes = Factor("mix", ("s", "p", "r"))
        writers = [(rows, Factor(f"a{rows}", (row, "p"))) for rows, _, row in self._families()]
        readers = [("y", "i")] * self.nf.has_delta + [(f"q{n}", "t") for n in range(len(self.nf.reads))]
        for reader, row in readers:
            numbers, upto = Factor(f"c{reader}", (row, "p")), f"G{reader}"
            yield Weights(Factor(f"F{reader}", (row, "p")), mixes, numbers, upto, None, "")
            for rows, written in writers:
                column = written.index[0]
                target, mask = Factor(f"M{reader}{rows}", (row, column)), Mask(reader, row, column)
                yield Weights(target, mixes, numbers, upto, written, f"G{rows}", mask)
        yield Weights(Factor("F", ("r", "p")), mixes, None, "Gend", None, "")
        for rows, written in writers:
            yield Weights(Factor(f"E{rows}", (written.index[0], "r")), mixes, None, "Gend", written, f"G{rows}")

    def _numbers(self, *tensors: tuple[str, str]) -> None:
        """The numbers of rows for each register."""
        if self.nf.registers:
            self.inputs |= {name: (row, "p") for name, row in tensors}

    def _decay(self, *exponents: tuple[int, str, str]) -> tuple[Exponent, ...]:
        if not self.decays:
            return ()
        return tuple(Exponent(1 if sign > 0 else -1, offset, row) for sign, offset, row in exponents)

    def _offset(self, name: str, row: str) -> None:
        if self.decays:
            channel = ("x",) if self.nf.decay_kind == "key" else ()
            self.offsets[name] = (*((row,) if row else ()), *channel)

    def _define(self, tensor: str, index: Letters, *terms: Term) -> None:
        self.statements.append(Equation(Factor(tensor, index), terms))


def split_solve(chunk: ChunkForm) -> System:
    """The chunk form with U split into what needs the state before the chunk and what does not:

        U = Ubar + Wbar S0,  Ubar = (I - L)^{-1} (z + N v),  Wbar = (I - L)^{-1} (y e^Gy)

    Ubar and Wbar come from one solve for all chunks at once; only `Ubar + Wbar S0` runs chunk after chunk.
    """
    statements: list[Statement] = []
    for statement in chunk.system.statements:
        match statement:
            case Equation(Factor("R"), terms):
                free = tuple(term for term in terms if "S0" not in term.tensors())
                (carried,) = (term for term in terms if "S0" in term.tensors())
                decayed = Term(carried.factors[:1], carried.exponents)
                statements.append(Equation(Factor("Rbar", ("i", "y")), free))
                statements.append(Equation(Factor("Ybar", ("i", "x")), (decayed,)))
            case Solve(target, matrix):
                state = Term((Factor("Wbar", ("i", "x")), Factor("S0", ("x", "y"))))
                statements.append(Solve(Factor("Ubar", target.index), matrix, "Rbar"))
                statements.append(Solve(Factor("Wbar", ("i", "x")), matrix, "Ybar"))
                statements.append(Equation(target, (Term((Factor("Ubar", target.index),)), state)))
            case _:
                statements.append(statement)
    return System(chunk.system.inputs, chunk.system.offsets, tuple(statements))
