"""From a spec to its normal form, chunk form and adjoint, and the proof that they are right. SymPy lives here."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from flagen.algebra import proof
from flagen.algebra.adjoint import Adjoint, adjoint
from flagen.algebra.chunk import ChunkForm, chunk_form
from flagen.algebra.monomials import OutsideNormalForm
from flagen.algebra.normal_form import NormalForm
from flagen.algebra.orient import normal_form
from flagen.algebra.proof import Proof
from flagen.algebra.scan import ScanForm
from flagen.algebra.staged import Stage, StagedForm
from flagen.diagnostics import Span
from flagen.spec.model import Expr, Repeat, Solution, Spec, walk

if TYPE_CHECKING:
    from flagen.algebra.levels import LevelForm
    from flagen.algebra.mini_batches import MiniBatchForm
    from flagen.algebra.ranks import RankForm
    from flagen.algebra.solved import SolvedForm
    from flagen.algebra.solved_read import SystemRead

__all__ = [
    "Adjoint",
    "ChunkForm",
    "Derivation",
    "NoChunkForm",
    "NormalForm",
    "Proof",
    "ScanForm",
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
    """What was derived from `spec`: its normal form with a chunk form and an adjoint; or the scan form of its
    elementwise states; or the stages that it runs in, and what was derived from each; or what a mini-batch of its
    tokens does, and what was derived from that, as a stage; or what a chunk does to columns of a state in levels, and
    what was derived from that; or the reason why there is none of these."""

    spec: Spec
    normal_form: NormalForm | None
    chunk_form: ChunkForm | None
    adjoint: Adjoint | None
    no_chunk_form: NoChunkForm | None
    scan: ScanForm | None = None
    staged: StagedForm | None = None
    stages: tuple[Derivation, ...] = ()
    mini_batches: MiniBatchForm | None = None
    levels: LevelForm | None = None
    riding: NormalForm | None = None
    """The normal form of all states, where there are two stages and the vector state of one rides on the other's."""
    whole: Spec | None = None
    """The spec as it is declared, where a state of it has two dims for its keys that are one in `spec`."""
    ranks: RankForm | None = None
    """The rows of a token, where some have a dim of their own; the recurrence of these is the one stage."""
    solved: SolvedForm | None = None
    """What the output is the solution of, if it is one: the forms beside it are those of its operator."""
    system_read: SystemRead | NoChunkForm | None = None
    """What that system is solved by as kernels take it, or why they do not."""
    of_read: Derivation | None = None
    """What was derived of that."""
    inference: Derivation | None = None
    """The stages of calls of which nobody asks for gradients, where these are others."""


# Most specs have the normal form: what finds and proves other ones is imported for those that do not.


def derive(spec: Spec) -> Derivation:
    """Normal form, chunk form and adjoint of `spec`, or its scan form, or its stages, or its mini-batches, or what its
    chunks do to columns."""
    if spec.levels is not None:
        return _by_columns(spec)
    if all(len(state.dims) < 3 for state in spec.states):
        return _by_mini_batches(spec, _derived(spec))
    from flagen.algebra.products import with_pairs

    try:
        pairs = with_pairs(spec)
    except OutsideNormalForm as outside:
        return Derivation(spec, None, None, None, NoChunkForm(outside.reason, outside.span))
    return replace(_by_mini_batches(pairs, _derived(pairs)), whole=spec)


def _by_mini_batches(spec: Spec, whole: Derivation) -> Derivation:
    """What was derived of the whole of `spec`, or where that has no chunk form of its mini-batches."""
    if whole.no_chunk_form is None or not spec.firsts:
        return whole
    from flagen.algebra.mini_batches import OutsideMiniBatches, mini_batch_form

    try:
        form = mini_batch_form(spec)
    except OutsideMiniBatches:
        return whole
    within = _derived(form.within)
    if within.no_chunk_form is not None:
        return replace(whole, no_chunk_form=within.no_chunk_form)
    return Derivation(spec, None, None, None, None, stages=(within,), mini_batches=form)


def _by_columns(spec: Spec) -> Derivation:
    """What was derived of the columns of a state that is kept in levels."""
    from flagen.algebra.levels import columns_of, level_form

    of_columns = derive(columns_of(spec))
    if of_columns.no_chunk_form is not None:
        return Derivation(spec, None, None, None, of_columns.no_chunk_form)
    try:
        form = level_form(spec, of_columns.spec, of_columns.normal_form)
    except OutsideNormalForm as outside:
        return Derivation(spec, None, None, None, NoChunkForm(outside.reason, outside.span))
    return Derivation(spec, None, None, None, None, stages=(of_columns,), levels=form)


def _derived(spec: Spec) -> Derivation:
    """Normal form, chunk form and adjoint of `spec`, or its scan form, or its stages."""
    if any(isinstance(node, Solution) for node in _nodes(spec)):
        return _of_solutions(spec)
    try:
        sorted_ = normal_form(spec)
    except OutsideNormalForm as outside:
        return _by_ranks(spec, NoChunkForm(outside.reason, outside.span))
    chunk = chunk_form(sorted_)
    return Derivation(spec, sorted_, chunk, adjoint(chunk), None)


def _by_ranks(spec: Spec, outside: NoChunkForm) -> Derivation:
    """What is derived from a spec whose rows have a dim of their own; of any other, which is outside the normal form
    for the reason `outside`, its scan form or its stages."""
    from flagen.algebra.ranks import ErasingRows, has_ranks, rank_form

    if not has_ranks(spec):
        return _scanned(spec, outside)
    try:
        form = rank_form(spec)
    except ErasingRows as reason:
        return _scanned(spec, NoChunkForm(reason.reason, reason.span))
    except OutsideNormalForm:
        return _scanned(spec, outside)
    return Derivation(spec, None, None, None, None, stages=(_derived(form.within),), ranks=form)


def _nodes(spec: Spec) -> Iterator[Expr]:
    """Everything in the statements of `spec`."""
    for statement in (*spec.update, *spec.output):
        for assign in statement.body if isinstance(statement, Repeat) else (statement,):
            yield from walk(assign.value)


def _of_solutions(spec: Spec) -> Derivation:
    """What is derived from a spec that solves systems with its states: of one whose output is a solution, and nothing
    else, the forms of the system's operator; else stages, of which some are such specs."""
    from flagen.algebra.solved import is_solution, solved_form
    from flagen.algebra.solved_read import system_read

    if not is_solution(spec):
        return _staged(spec)
    try:
        solved = solved_form(spec)
    except OutsideNormalForm as outside:
        return Derivation(spec, None, None, None, NoChunkForm(outside.reason, outside.span))
    chunk = chunk_form(solved.operator)
    derived = Derivation(spec, solved.operator, chunk, adjoint(chunk), None, solved=solved)
    try:
        read = system_read(solved)
    except OutsideNormalForm as outside:
        return replace(derived, system_read=NoChunkForm(outside.reason, outside.span))
    return replace(derived, system_read=read, of_read=_derived(read.spec))


def _scanned(spec: Spec, outside: NoChunkForm) -> Derivation:
    """The scan form of a spec outside the normal form, for the reason `outside`; else its stages."""
    from flagen.algebra.find_scan import OutsideScan, scan_form
    from flagen.algebra.ranks import has_ranks

    try:
        form = scan_form(spec)
    except OutsideScan as reason:
        if len(spec.states) > 1:
            return _staged(spec)
        # Of a matrix state it says why there is no normal form, of any other why there is no scan.
        matrix = len(spec.states[0].dims) == 2
        return Derivation(spec, None, None, None, outside if matrix else NoChunkForm(reason.reason, reason.span))
    if len(spec.states) > 1 and has_ranks(spec):
        staged = _staged(spec)
        if any(stage.ranks for stage in staged.stages):
            return staged
    if any(scan.low_rank for scan in form.scans):
        return _staged(spec) if len(spec.states) > 1 else Derivation(spec, None, None, None, outside)
    return Derivation(spec, None, None, None, None, form)


def _staged(spec: Spec) -> Derivation:
    from flagen.algebra.flow import MixedStates, OutsideStages
    from flagen.algebra.inference import inference_form
    from flagen.algebra.lookahead import with_rows_ahead
    from flagen.algebra.riding import riding_form
    from flagen.algebra.stages import staged_form

    try:
        form = with_rows_ahead(staged_form(spec))
    except OutsideStages as outside:
        return _mixed(spec, NoChunkForm(outside.reason, outside.span), whole=isinstance(outside, MixedStates))
    stages = tuple(map(_of_stage, form.stages))
    plain = (stage.normal_form for stage in stages if stage.solved is None)
    matrix = next((form for form in plain if form is not None), None)
    whole = Derivation(spec, None, None, None, None, None, form, stages, riding=riding_form(form, matrix))
    forward = inference_form(form)
    if forward is None:
        return whole
    known = dict(zip((stage.spec.name for stage in form.stages), stages, strict=True))
    others = (known.get(stage.spec.name) or _of_stage(stage) for stage in forward.stages)
    return replace(whole, inference=Derivation(spec, None, None, None, None, None, forward, tuple(others)))


def _mixed(spec: Spec, outside: NoChunkForm, *, whole: bool) -> Derivation:
    """The chunk form of states that numbers mix. Else there is none, for the reason `outside`; or, where states use
    others `whole`, for the reason that keeps them from being mixed."""
    from flagen.algebra.registers import are_registers, registers_form

    if not are_registers(spec):
        return Derivation(spec, None, None, None, outside)
    try:
        sorted_ = registers_form(spec)
    except OutsideNormalForm as reason:
        missing = NoChunkForm(reason.reason, reason.span) if whole else outside
        return Derivation(spec, None, None, None, missing)
    chunk = chunk_form(sorted_)
    return Derivation(spec, sorted_, chunk, adjoint(chunk), None)


def _prove_inference(whole: Derivation, forward: Derivation) -> Iterator[str]:
    """What is proved of the stages of calls without gradients: of those that calls with gradients do not have."""
    from flagen.algebra.staged_proof import prove_stages

    assert forward.staged is not None
    others = [place for place, part in enumerate(forward.stages) if part not in whole.stages]
    proved = prove_stages(forward.staged)
    for place in others:
        part = forward.stages[place]
        proved += tuple(f"stage of {forward.staged.stages[place].called}: {x}" for x in prove(part.spec, part).lines)
    return (f"without gradients: {line}" for line in proved)


def _of_stage(stage: Stage) -> Derivation:
    if not stage.is_scan:
        return derive(stage.spec)
    from flagen.algebra.find_scan import scan_form

    return Derivation(stage.spec, None, None, None, None, scan_form(stage.spec, stage.outputs))


def prove(spec: Spec, derivation: Derivation) -> Proof:
    """Prove what was derived; raises InternalError where it is not the recurrence."""
    if derivation.whole is not None:
        from flagen.algebra.products import prove_pairs

        pairs = prove_pairs(derivation.whole, derivation.spec)
        return Proof((*pairs, *prove(derivation.spec, replace(derivation, whole=None)).lines))
    if derivation.ranks is not None:
        from flagen.algebra.rank_proof import prove_ranks

        (within,) = derivation.stages
        lines = [f"row by row: {line}" for line in prove(within.spec, within).lines]
        return Proof((*prove_ranks(derivation.ranks), *lines))
    if derivation.mini_batches is not None:
        from flagen.algebra.mini_batches import prove_mini_batches

        (within,) = derivation.stages
        lines = [f"within a mini-batch: {line}" for line in prove(within.spec, within).lines]
        return Proof((*prove_mini_batches(derivation.mini_batches), *lines))
    if derivation.levels is not None:
        from flagen.algebra.levels_proof import prove_levels

        (columns,) = derivation.stages
        lines = [f"columns of a chunk: {line}" for line in prove(columns.spec, columns).lines]
        return Proof((*prove_levels(derivation.levels), *lines))
    if derivation.staged is not None:
        from flagen.algebra.riding import prove_riding
        from flagen.algebra.staged_proof import prove_stages

        lines = [
            f"stage of {stage.called}: {line}"
            for stage, part in zip(derivation.staged.stages, derivation.stages, strict=True)
            for line in prove(part.spec, part).lines
        ]
        riding = () if derivation.riding is None else prove_riding(derivation.riding)
        forward = () if derivation.inference is None else _prove_inference(derivation, derivation.inference)
        return Proof((*prove_stages(derivation.staged), *riding, *lines, *forward))
    if derivation.scan is not None:
        from flagen.algebra import scan_proof

        return scan_proof.prove(derivation.scan)
    if derivation.chunk_form is None or derivation.adjoint is None:
        assert derivation.no_chunk_form is not None
        return Proof((f"nothing derived: {derivation.no_chunk_form.reason}",))
    proved = proof.prove(derivation.chunk_form, derivation.adjoint)
    if derivation.solved is None:
        return proved
    from flagen.algebra.solved_proof import prove_solved

    of_operator = (f"operator of the system: {line}" for line in proved.lines)
    read = derivation.of_read
    proved_of_read = () if read is None else prove(read.spec, read).lines
    of_read = (f"its read with keys of its own: {line}" for line in proved_of_read)
    of_solution = prove_solved(derivation.solved, derivation.chunk_form, derivation.adjoint)
    return Proof((*of_operator, *of_read, *of_solution))
