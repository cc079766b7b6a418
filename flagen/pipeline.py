"""From a spec's file to a package of operators.

    stage   takes               gives                            layer
    ------  ------------------  -------------------------------  -----------------------------
    load    a YAML file         Spec, or every error in it       flagen.spec
    derive  Spec                Derivation: the normal form,     flagen.algebra
                                the chunk form, the adjoint
    prove   Spec, Derivation    Proof, or no build               flagen.algebra
    plan    Spec, Derivation    Plan                             flagen.plan
    lower   Plan                Programs: kernels as data        flagen.kernel
    check   Spec, Programs      what is proved of the kernels,   flagen.kernel
                                or no build
    emit    Plan, Programs      the package's files, as text     flagen.backends, flagen.emit
    write   the files           what changed on disk             flagen.emit

`compile_spec` is all but the last and touches nothing; `flagen.builds` runs it for many specs, and writes.

Each stage imports its layer when it runs: a command that derives nothing never loads SymPy.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from flagen import __version__
from flagen.diagnostics import NOWHERE, Diagnostic, InternalError, Source
from flagen.project import bundled

if TYPE_CHECKING:
    from flagen.algebra import Derivation, Proof, StagedForm
    from flagen.describe_layer import LayerSheet
    from flagen.kernel import Programs
    from flagen.plan.expansion import ExpandedPlan
    from flagen.plan.model import Plan
    from flagen.plan.unavailable import Unavailable
    from flagen.spec.model import Spec


# ------------------------------------------------------------------------------------------------------------- one spec


@dataclass(frozen=True)
class Package:
    """A compiled spec: the text of every file, what was proved (nothing, where nothing could be derived), and what the
    spec's author should know."""

    name: str
    files: Mapping[str, str]
    proof: tuple[str, ...]
    source: Source
    remarks: tuple[Diagnostic, ...]
    seconds: Mapping[str, float]
    around: str = ""
    """The package whose operators it is a layer around, where it has none of its own."""


def compile_spec(path: Path, shown: str) -> Package:
    """Take the spec at `path` through every stage; `shown` is the path its files name as their origin.

    Raises:
        SpecError: the spec is wrong.
        InternalError: a derivation failed its proof, or flagen is wrong in another way.
    """
    from flagen.emit.written import in_words

    clock = Clock()
    with clock.stage("load"):
        spec, remarks = load(path)
    if spec.recurrence_of is not None:
        return _around(spec, spec.recurrence_of, remarks, shown, clock)
    with clock.stage("derive"):
        derivation = derive(spec)
    with clock.stage("prove"):
        proof = prove(spec, derivation)
    with clock.stage("plan"):
        plan = make_plan(spec, derivation)
    with clock.stage("lower"):
        programs = lower(plan)
    with clock.stage("check"):
        checked = prove_kernels(spec, programs)
    with clock.stage("emit"):
        files = emit(spec, plan, programs, shown)
    proved = (*(proof.lines if derivation.no_chunk_form is None else ()), *checked)
    proved = tuple(in_words(line, plan.spec.written) for line in proved)
    return Package(spec.name, files, proved, spec.source, remarks + remarks_on(plan), clock.seconds)


def _around(spec: Spec, other: Spec, remarks: tuple[Diagnostic, ...], shown: str, clock: Clock) -> Package:
    """The package of a layer around the operators of another spec, which are proved where those are built."""
    with clock.stage("derive"):
        derivation = derive(spec)
    with clock.stage("plan"):
        plan = make_plan(spec, derivation)
    with clock.stage("emit"):
        files = emit(spec, plan, None, shown)
    return Package(spec.name, files, (), spec.source, remarks, clock.seconds, other.name)


def load(path: Path) -> tuple[Spec, tuple[Diagnostic, ...]]:
    """The checked spec at `path`, and the warnings about it."""
    from flagen.spec import check_file

    return check_file(path)


def derive(spec: Spec) -> Derivation:
    """The normal form, chunk form and adjoint of the recurrence, or why it has none."""
    from flagen import algebra
    from flagen.plan.own_names import for_generated_code

    return algebra.derive(for_generated_code(spec))


def prove(spec: Spec, derivation: Derivation) -> Proof:
    """What holds in exact arithmetic; raises InternalError where something does not."""
    from flagen import algebra
    from flagen.plan.own_names import for_generated_code

    return algebra.prove(for_generated_code(spec), derivation)


def make_plan(spec: Spec, derivation: Derivation) -> Plan:
    """Which operators the package gets and everything the backends have to know to print them."""
    from flagen import plan

    others = {name: _plan(used, derive(used)) for name, used in spec.used.items()}
    return plan.with_layer(_plan(spec, derivation), others)


def _plan(spec: Spec, derivation: Derivation) -> Plan:
    from flagen.plan import make_plan
    from flagen.plan.own_names import for_generated_code

    return make_plan(for_generated_code(spec), derivation)


def lower(plan: Plan) -> Programs:
    """The kernels of the package, as data."""
    from flagen import kernel

    return kernel.lower(plan)


def prove_kernels(spec: Spec, programs: Programs) -> tuple[str, ...]:
    """What was proved of the kernels, a line each; raises InternalError where one does not do what the spec says."""
    from flagen.kernel import prove as proof
    from flagen.plan.own_names import for_generated_code

    return proof.prove(for_generated_code(spec), programs)


def emit(spec: Spec, plan: Plan, programs: Programs | None, shown: str) -> dict[str, str]:
    """The text of every file of the package, under its banner and formatted; without programs, of the layer alone."""
    from flagen.emit.banner import seal
    from flagen.emit.format import format_python

    return {path: seal(path, text) for path, text in format_python(rendered(spec, plan, programs, shown)).items()}


def rendered(spec: Spec, plan: Plan, programs: Programs | None, shown: str) -> dict[str, str]:
    """The same as it comes out of the templates."""
    from flagen.backends import renderings
    from flagen.backends.markdown_ import symbols
    from flagen.emit.banner import Origin, add_banner
    from flagen.emit.env import environment, render
    from flagen.emit.written import as_written, layer_as_written
    from flagen.plan.free_names import asked_name

    env = environment(bundled("templates"))
    origin = Origin(__version__, shown, spec.sha256)
    asked = asked_name(plan.spec)
    files: dict[str, str] = {}
    for rendering in renderings(plan, programs):
        if rendering.path in files:
            raise InternalError(f"two backends write {rendering.path}")
        shared = "." * (rendering.path.count("/") + 2)  # What all packages share is beside this one.
        text = render(env, rendering.template, rendering.context, shared=shared, asked=asked)
        if plan.spec.written:
            text = as_written(rendering.path, text, plan.spec.written, plan.spec.dims, symbols(plan.spec.written))
        if plan.layer is not None and plan.layer.layer.written and rendering.path == "layer.py":
            text = layer_as_written(text, plan.layer.layer.written)
        files[rendering.path] = add_banner(rendering.path, text, origin)
    return files


def remarks_on(plan: Plan) -> tuple[Diagnostic, ...]:
    """Which forms the spec does not get, which gradients run in PyTorch, or at what price kernels come, and why."""
    from flagen.emit.written import in_words
    from flagen.plan import Unavailable

    remarks = _remarks_on_chunks(plan)
    if isinstance(plan.fused, Unavailable):
        remarks += (_remark("no-kernel", plan, plan.fused, "no fused_recurrent kernel"),)
    elif isinstance(plan.fused_backward, Unavailable):
        remarks += (_remark("no-backward-kernel", plan, plan.fused_backward, "no fused_recurrent backward kernels"),)
    return tuple(replace(remark, message=in_words(remark.message, plan.spec.written)) for remark in remarks)


def _remarks_on_chunks(plan: Plan) -> tuple[Diagnostic, ...]:
    """The remarks on the forms by chunks; those of stages under their names."""
    from flagen.plan import ExpandedPlan, LevelPlan, StagedPlan, Unavailable

    kernels, backward = plan.chunk_kernel, plan.chunk_backward
    if isinstance(kernels, StagedPlan):
        return tuple(
            replace(remark, message=f"stage of {stage.stage.called}: {remark.message}")
            for stage in kernels.stages
            for remark in _remarks_on_chunks(stage.plan)
        )
    if isinstance(kernels, LevelPlan):
        return tuple(
            replace(remark, message=f"columns of {kernels.form.levels.state}: {remark.message}")
            for remark in _remarks_on_chunks(kernels.columns)
        )
    if isinstance(plan.chunk, Unavailable):
        return (replace(_remark("no-chunk-form", plan, plan.chunk, "no chunk form"), hint=_hint(plan, plan.chunk)),)
    if isinstance(kernels, Unavailable):
        return (_remark("no-kernel", plan, kernels, "no chunk kernel"),)
    if isinstance(kernels, ExpandedPlan):
        price = "the chunk kernels get every row of a token from memory, and their gradients run in PyTorch"
        return (_remark("rows-in-memory", plan, kernels, price),)
    if isinstance(backward, Unavailable):
        return (_remark("no-backward-kernel", plan, backward, "the gradients of the chunk kernels run in PyTorch"),)
    return ()


def _hint(plan: Plan, why: Unavailable) -> str:
    """What has a chunk form in place of the reason that there is none; mostly nothing."""
    from flagen.spec.usage import called_at

    if plan.spec.levels is None and any(len(state.dims) == 3 for state in plan.spec.states):
        return (
            "a state with a key of two dims has one where rows are outer products, `S + outer(outer(k, l), v)`, read "
            "by two vectors, `(S.T @ q) @ r`, and all keys decay alike"
        )
    match called_at(plan.spec.update, why.span):
        case "minimum":
            return "a running minimum is one of the negative, `m = maximum(m - w, -x)`, which has a chunk form"
        case "relu":
            return "a sum that does not fall below 0 is `maximum(m + x, 0)`, which has a chunk form"
        case "floor":
            return "an angle in turns, without the whole ones, is `fraction(phi + x)`, which has a chunk form"
    return ""


def _remark(code: str, plan: Plan, why: Unavailable | ExpandedPlan, what: str) -> Diagnostic:
    # A reason may be found in what is no part of the spec, but made of it: the output is the last of that.
    span = plan.spec.output[-1].span if why.span == NOWHERE else why.span
    return Diagnostic(code, span, f"{what}: {why.reason}", severity="note")


@dataclass
class Clock:
    """How long each stage took."""

    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.seconds[name] = time.perf_counter() - start


# ------------------------------------------------------------------------------------------------------- for a person


def inspect(path: Path) -> tuple[Source, tuple[Diagnostic, ...]]:
    """The spec at `path` and everything to say about it that is no error; raises SpecError where there are any."""
    stages = Stages(path)
    of_forms = remarks_on(stages.plan) if stages.spec.recurrence_of is None else ()
    return stages.spec.source, stages.remarks + of_forms


class Stages:
    """The stages of one spec, each run when it is asked for: a form can be looked at even where its proof fails."""

    NAMES = ("spec", "normal-form", "chunk-form", "adjoint", "proof", "plan")
    LAYER = "layer"
    """The layer around the operator, which not every spec has."""

    def __init__(self, path: Path) -> None:
        self.spec, self.remarks = load(path)

    def layer(self, config: Sequence[str] = ()) -> LayerSheet:
        """The layer with its default config, or some of it given as `key=value`."""
        from flagen.describe_layer import describe_layer

        return describe_layer(self.spec, config)

    @cached_property
    def derivation(self) -> Derivation:
        return derive(self.spec)

    @cached_property
    def plan(self) -> Plan:
        return make_plan(self.spec, self.derivation)

    def dump(self, stage: str) -> str:
        """The result of `stage` as text to read."""
        from flagen.emit.written import in_words
        from flagen.plan.own_names import for_generated_code

        return in_words(self._dump(stage), for_generated_code(self.spec).written)

    def _dump(self, stage: str) -> str:
        match stage:
            case "spec":
                from flagen.describe import describe

                return describe(self.spec)
            case self.LAYER:
                return self.layer().dump()
            case "proof":
                spec = self.spec.recurrence_of or self.spec
                proved = prove(spec, self.derivation).lines
                return "\n".join((*proved, *prove_kernels(spec, lower(_plan(spec, self.derivation)))))
            case "plan":
                return self.plan.dump()
            case _:
                return _dumped(self.derivation, stage.replace("-", "_"))


def _dumped(derivation: Derivation, form: str) -> str:
    """The normal form, what is done with a chunk, or how gradients go back: those of what runs in the place of the
    whole, where something does. With the normal form, what that is."""
    if derivation.no_chunk_form is not None:
        return f"none: {derivation.no_chunk_form.reason}"
    if (scan := derivation.scan) is not None:
        return {"normal_form": scan.dump, "chunk_form": scan.dump_chunk, "adjoint": scan.dump_adjoint}[form]()
    if derivation.staged is not None:
        return _dumped_stages(derivation, derivation.staged, form)
    inside = derivation.ranks or derivation.levels or derivation.mini_batches
    if inside is not None:
        (within,) = derivation.stages
        return "\n\n".join([*([inside.dump()] if form == "normal_form" else []), _dumped(within, form)])
    if form == "normal_form" and derivation.solved is not None:
        return derivation.solved.dump()
    return str(getattr(derivation, form).dump())


def _dumped_stages(derivation: Derivation, staged: StagedForm, form: str) -> str:
    """A form of each stage that is no scan; first, with the normal forms, what the stages are."""
    parts = [_dumped(part, form) for part in derivation.stages if part.scan is None]
    if form != "normal_form":
        return "\n\n".join(parts)
    riding = [] if derivation.riding is None else [derivation.riding.dump()]
    return "\n\n".join([staged.dump(), *parts, *riding])
