"""From a spec to its normal form, chunk form and adjoint, and the proof that they are right. SymPy lives here."""

from __future__ import annotations

from dataclasses import dataclass

from flagen.algebra import proof, scan_proof
from flagen.algebra.adjoint import Adjoint, adjoint
from flagen.algebra.chunk import ChunkForm, chunk_form
from flagen.algebra.monomials import OutsideNormalForm
from flagen.algebra.normal_form import NormalForm
from flagen.algebra.orient import normal_form
from flagen.algebra.proof import Proof
from flagen.algebra.scan import OutsideScan, ScanForm, scan_form
from flagen.diagnostics import Span
from flagen.spec.model import Spec

__all__ = [
    "Adjoint",
    "ChunkForm",
    "Derivation",
    "NoChunkForm",
    "NormalForm",
    "Proof",
    "ScanForm",
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
    """What was derived from `spec`: its normal form with a chunk form and an adjoint; where it has none, the scan form
    of its elementwise states; or the reason why there is neither."""

    spec: Spec
    normal_form: NormalForm | None
    chunk_form: ChunkForm | None
    adjoint: Adjoint | None
    no_chunk_form: NoChunkForm | None
    scan: ScanForm | None = None


def derive(spec: Spec) -> Derivation:
    """Normal form, chunk form and adjoint of `spec`, or its scan form."""
    try:
        sorted_ = normal_form(spec)
    except OutsideNormalForm as outside:
        return _scanned(spec, NoChunkForm(outside.reason, outside.span))
    chunk = chunk_form(sorted_)
    return Derivation(spec, sorted_, chunk, adjoint(chunk), None)


def _scanned(spec: Spec, outside: NoChunkForm) -> Derivation:
    """The scan form of a spec outside the normal form, for the reason `outside`."""
    try:
        form = scan_form(spec)
    except OutsideScan as reason:
        # One matrix state is looked at statement by statement, anything else is turned away at the door.
        matrix = len(spec.states) == 1 and len(spec.states[0].dims) == 2
        return Derivation(spec, None, None, None, outside if matrix else NoChunkForm(reason.reason, reason.span))
    if any(scan.low_rank for scan in form.scans):
        return Derivation(spec, None, None, None, outside)
    return Derivation(spec, None, None, None, None, form)


def prove(spec: Spec, derivation: Derivation) -> Proof:
    """Prove what was derived; raises InternalError where it is not the recurrence."""
    if derivation.scan is not None:
        return scan_proof.prove(derivation.scan)
    if derivation.chunk_form is None or derivation.adjoint is None:
        assert derivation.no_chunk_form is not None
        return Proof((f"nothing derived: {derivation.no_chunk_form.reason}",))
    return proof.prove(derivation.chunk_form, derivation.adjoint)
