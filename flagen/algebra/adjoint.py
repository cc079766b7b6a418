"""The adjoint of a system of equations, by transposing it term by term.

Every term is linear in each of its factors, so the cotangent of a factor is the cotangent of the left side times the
other factors, under the same decays and the same mask. Three rules are not transposition:

    U = (I - L)^{-1} R    dR = (I - L)^{-T} dU and dL = [j seen by i] dR U^T: no gradient through the inverse is needed
    weights of registers  are products of mixes: the derivative by one is what stands before it and behind it
    a decay offset        meets one tensor in every term that has it: its gradient is that tensor times its cotangent
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from flagen.algebra.chunk import ChunkForm
from flagen.algebra.equations import (
    Equation,
    Factor,
    Letters,
    Mask,
    OffsetGradient,
    Solve,
    Statement,
    System,
    Term,
    Weights,
    WeightsGradient,
)
from flagen.diagnostics import InternalError


@dataclass(frozen=True)
class Adjoint:
    """Gradients of a chunk's inputs and offsets from those of its reads and its next state (dO0 …, dS1)."""

    chunk_form: ChunkForm
    system: System

    def dump(self) -> str:
        return f"adjoint of the chunk form of {self.chunk_form.normal_form.spec.name}\n{self.system.dump()}"


def adjoint(chunk: ChunkForm) -> Adjoint:
    """The adjoint of `chunk`, in the order a backward pass computes it."""
    system = chunk.system
    given: dict[str, Letters] = dict(system.inputs)
    given |= {s.target.tensor: s.target.index for s in system.statements}
    given |= {f"d{name}": system.equation(name).target.index for name in (*chunk.outputs, "S1")}
    statements: list[Statement] = []
    for statement in reversed(system.statements):
        name = statement.target.tensor
        if f"d{name}" not in {*given, *(s.target.tensor for s in statements)}:
            statements.append(_gradient(system, name, statement.target.index))
        if isinstance(statement, Solve):
            right = system.equation(statement.right).target
            statements.append(Solve(Factor(f"d{right.tensor}", right.index), statement.matrix, f"d{name}", True))
            statements.append(_matrix_gradient(system, statement))
    statements += [_gradient(system, name, index) for name, index in system.inputs.items()]
    statements += [_offset_gradient(system, offset, index) for offset, index in system.offsets.items()]
    return Adjoint(chunk, System(given, system.offsets, tuple(statements)))


def _gradient(system: System, name: str, index: Letters) -> Equation | WeightsGradient:
    """How d`name` comes about."""
    weights = [statement for statement in system.statements if isinstance(statement, Weights)]
    uses = tuple(use for use in weights if name in {end.tensor for end in (use.mixes, use.reader, use.writer) if end})
    return WeightsGradient(Factor(f"d{name}", index), uses) if uses else _by_terms(system, name, index)


def _by_terms(system: System, name: str, index: Letters) -> Equation:
    """d`name` at `index`: every term that uses it, transposed.

    Where `name` is masked, so is its cotangent: the entries behind the mask reach nothing, and their decays may
    overflow.
    """
    mask = _mask(system, name)
    terms = [
        _transposed(statement, term, place, index)
        for statement in system.statements
        if isinstance(statement, Equation)
        for term in statement.terms
        for place, factor in enumerate(term.factors)
        if factor.tensor == name
    ]
    masked = tuple(replace(term, mask=mask) if term.mask is None else term for term in terms)
    return Equation(Factor(f"d{name}", index), masked)


def _mask(system: System, name: str) -> Mask | None:
    if not system.defines(name):
        return None
    statement = system.equation(name)
    if isinstance(statement, Weights):
        return statement.mask
    masks = {term.mask for term in statement.terms} if isinstance(statement, Equation) else {None}
    return masks.pop() if len(masks) == 1 else None


def _transposed(equation: Equation, term: Term, place: int, index: Letters) -> Term:
    used = term.factors[place].index
    # The tensor's own indices take the names they have on the left; whoever had those names takes the old ones.
    swap = dict(zip(used, index, strict=True)) | dict(zip(index, used, strict=True))
    others = term.factors[:place] + term.factors[place + 1 :]
    cotangent = Factor(f"d{equation.target.tensor}", equation.target.index)
    return Term((cotangent, *others), term.exponents, term.mask, term.sign).renamed(swap)


def _matrix_gradient(system: System, solve: Solve) -> Equation:
    rows = system.equation(solve.matrix).target
    (row, column), channel = rows.index, solve.target.index[1]
    factors = (Factor(f"d{solve.right}", (row, channel)), Factor(solve.target.tensor, (column, channel)))
    return Equation(Factor(f"d{solve.matrix}", rows.index), (Term(factors, mask=Mask("y", row, column)),))


def _offset_gradient(system: System, offset: str, index: Letters) -> OffsetGradient:
    """The tensor (a factor, or the left side) that stands in every term with `offset` gives the gradient: tensor times
    cotangent, with the exponent's sign."""
    uses = [
        (equation, term, exponent)
        for equation in system.statements
        if isinstance(equation, Equation)
        for term in equation.terms
        for exponent in term.exponents
        if exponent.offset == offset
    ]
    signs = {exponent.sign for _, _, exponent in uses}
    if len(signs) != 1:
        raise InternalError(f"offset {offset} stands with both signs")
    sign: Literal[1, -1] = signs.pop()
    target = Factor(f"d{offset}", index)
    tensor = offset.removeprefix("G")
    if f"{tensor}a" in system.inputs and index == system.inputs[tensor][:1]:
        return _of_pairs(system, target, sign, tensor, [term for _, term, _ in uses])
    if tensor in system.inputs and _owns(system, tensor, len(uses)) and index[-1:] != ("y",):
        own = system.inputs[tensor]
        if all(tensor in term.tensors() for _, term, _ in uses) and (index == own or index == own[:1]):
            return OffsetGradient(target, ((sign, Factor(tensor, own), Factor(f"d{tensor}", own)),))
    targets = {equation.target for equation, _, _ in uses}
    if len(targets) == 1 and all(len(e.terms) == len(uses) for e, _, _ in uses):
        (left,) = targets
        cotangent = Factor(f"d{left.tensor}", left.index)
        return OffsetGradient(target, ((sign, left, cotangent),))
    raise InternalError(f"offset {offset} does not meet one tensor in every term")


def _of_pairs(
    system: System, target: Factor, sign: Literal[1, -1], tensor: str, terms: Sequence[Term]
) -> OffsetGradient:
    """The same of a row of pairs: a score has one side of it, all else the whole."""
    names = [name for name in (tensor, f"{tensor}a") if any(name in term.tensors() for term in terms)]
    every = [t for s in system.statements if isinstance(s, Equation) for t in s.terms]
    counts = [sum(name in term.tensors() for name in names) for term in terms]
    if set(counts) != {1} or sum(not names_in.isdisjoint(t.tensors()) for t in every for names_in in [{*names}]) != len(
        terms
    ):
        raise InternalError(f"offset G{tensor} does not meet one row in every term")
    own = [Factor(name, system.inputs[name]) for name in names]
    return OffsetGradient(target, tuple((sign, row, Factor(f"d{row.tensor}", row.index)) for row in own))


def _owns(system: System, tensor: str, uses: int) -> bool:
    """Whether `tensor` occurs in as many terms as its offset does, hence in no term without it."""
    terms = [t for s in system.statements if isinstance(s, Equation) for t in s.terms if tensor in t.tensors()]
    return len(terms) == uses


def cotangents(chunk: ChunkForm) -> Mapping[str, Letters]:
    """The gradients a backward pass starts from, with their indices."""
    return {f"d{name}": chunk.system.equation(name).target.index for name in (*chunk.outputs, "S1")}
