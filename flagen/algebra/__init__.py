"""From a spec to its normal form, chunk form and adjoint, and the proof that they are right. SymPy lives here."""

from __future__ import annotations

from dataclasses import dataclass

from flagen.algebra import proof
from flagen.algebra.adjoint import Adjoint, adjoint
from flagen.algebra.chunk import ChunkForm, chunk_form
from flagen.algebra.flow import OutsideStages
from flagen.algebra.monomials import OutsideNormalForm
from flagen.algebra.normal_form import NormalForm
from flagen.algebra.orient import normal_form
from flagen.algebra.proof import Proof
from flagen.algebra.staged_proof import prove_stages
from flagen.algebra.stages import StagedForm, staged_form
from flagen.diagnostics import Span
from flagen.spec.model import Spec

__all__ = [
    "Adjoint",
    "ChunkForm",
    "Derivation",
    "NoChunkForm",
    "NormalForm",
    "Proof",
    "StagedForm",
    "derive",
    "prove",
]


@dataclass(frozen=True)
class NoChunkForm:
    """Why a spec has no chunk form, and which part of it is the reason."""

    reason: str
    span: Span


@dataclass(frozen=True)
class Derivation:
    """What was derived from `spec`: all three forms, or the stages that it runs in and what was derived from these, or
    the reason why there are none."""

    spec: Spec
    normal_form: NormalForm | None
    chunk_form: ChunkForm | None
    adjoint: Adjoint | None
    no_chunk_form: NoChunkForm | None
    staged: StagedForm | None = None
    stages: tuple[Derivation, ...] = ()


def derive(spec: Spec) -> Derivation:
    """Normal form, chunk form and adjoint of `spec`."""
    if len(spec.states) > 1:
        return _derive_stages(spec)
    try:
        sorted_ = normal_form(spec)
    except OutsideNormalForm as outside:
        return Derivation(spec, None, None, None, NoChunkForm(outside.reason, outside.span))
    chunk = chunk_form(sorted_)
    return Derivation(spec, sorted_, chunk, adjoint(chunk), None)


def _derive_stages(spec: Spec) -> Derivation:
    try:
        form = staged_form(spec, _is_scan)
    except OutsideStages as outside:
        return Derivation(spec, None, None, None, NoChunkForm(outside.reason, outside.span))
    return Derivation(spec, None, None, None, None, form, tuple(derive(stage.spec) for stage in form.stages))


def _is_scan(spec: Spec) -> bool:
    return False


def prove(spec: Spec, derivation: Derivation) -> Proof:
    """Prove what was derived; raises InternalError where it is not the recurrence."""
    if derivation.staged is not None:
        lines = [
            f"stage of {part.spec.states[0].name}: {line}"
            for part in derivation.stages
            for line in prove(part.spec, part).lines
        ]
        return Proof((*prove_stages(derivation.staged), *lines))
    if derivation.chunk_form is None or derivation.adjoint is None:
        assert derivation.no_chunk_form is not None
        return Proof((f"nothing derived: {derivation.no_chunk_form.reason}",))
    return proof.prove(derivation.chunk_form, derivation.adjoint)
