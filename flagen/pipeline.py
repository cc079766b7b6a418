"""From a spec's file to a package of operators.

    stage   takes               gives                            layer
    ------  ------------------  -------------------------------  -----------------------------
    load    a YAML file         Spec, or every error in it       flagen.spec
    derive  Spec                Derivation: the normal form,     flagen.algebra
                                the chunk form, the adjoint
    prove   Spec, Derivation    Proof, or no build               flagen.algebra
    plan    Spec, Derivation    Plan                             flagen.plan
    emit    Plan                the package's files, as text     flagen.backends, flagen.emit
    write   the files           what changed on disk             flagen.emit

`compile_spec` is the first five and touches nothing; `build` runs it for many specs, in several processes where that
pays, and writes. Nothing is written for a spec that fails at any stage, and one that fails does not stop the others.

Each stage imports its layer when it runs: a command that derives nothing never loads SymPy.
"""

from __future__ import annotations

import os
import time
import traceback
from collections.abc import Collection, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from multiprocessing import active_children, get_context
from pathlib import Path
from signal import SIG_IGN, SIGINT, signal
from threading import current_thread, main_thread
from typing import TYPE_CHECKING

from flagen import __version__
from flagen.collection import DIRECTORIES, Exports, Surroundings, exports_of, packages_in
from flagen.diagnostics import NOWHERE, Diagnostic, InternalError, Source, SpecError
from flagen.emit.writer import Changes, ForeignFile
from flagen.freshness import fingerprint, fresh_package, record_path, remember, sources
from flagen.project import Project, bundled

if TYPE_CHECKING:
    from flagen.algebra import Derivation, Proof, StagedForm
    from flagen.describe_layer import LayerSheet
    from flagen.plan.expansion import ExpandedPlan
    from flagen.plan.model import Plan, Unavailable
    from flagen.spec.model import Spec

# Below this many specs, starting processes costs more than it saves.
_WORTH_A_POOL = 3


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


def compile_spec(path: Path, shown: str) -> Package:
    """Take the spec at `path` through every stage; `shown` is the path its files name as their origin.

    Raises:
        SpecError: the spec is wrong.
        InternalError: a derivation failed its proof, or flagen is wrong in another way.
    """
    clock = Clock()
    with clock.stage("load"):
        spec, remarks = load(path)
    with clock.stage("derive"):
        derivation = derive(spec)
    with clock.stage("prove"):
        proof = prove(spec, derivation)
    with clock.stage("plan"):
        plan = make_plan(spec, derivation)
    with clock.stage("emit"):
        files = emit(spec, plan, shown)
    proved = proof.lines if derivation.no_chunk_form is None else ()
    return Package(spec.name, files, proved, spec.source, remarks + remarks_on(plan), clock.seconds)


def load(path: Path) -> tuple[Spec, tuple[Diagnostic, ...]]:
    """The checked spec at `path`, and the warnings about it."""
    from flagen.spec import check_file

    return check_file(path)


def derive(spec: Spec) -> Derivation:
    """The normal form, chunk form and adjoint of the recurrence, or why it has none."""
    from flagen import algebra

    return algebra.derive(spec)


def prove(spec: Spec, derivation: Derivation) -> Proof:
    """What holds in exact arithmetic; raises InternalError where something does not."""
    from flagen import algebra

    return algebra.prove(spec, derivation)


def make_plan(spec: Spec, derivation: Derivation) -> Plan:
    """Which operators the package gets and everything the backends have to know to print them."""
    from flagen import plan

    uses = () if spec.layer is None else spec.layer.uses
    others = {use.name: plan.make_plan(use.spec, derive(use.spec)) for use in uses if use.spec is not None}
    return plan.with_layer(plan.make_plan(spec, derivation), others)


def emit(spec: Spec, plan: Plan, shown: str) -> dict[str, str]:
    """The text of every file of the package, under its banner and formatted."""
    from flagen.emit.banner import seal
    from flagen.emit.format import format_python

    return {path: seal(path, text) for path, text in format_python(rendered(spec, plan, shown)).items()}


def rendered(spec: Spec, plan: Plan, shown: str) -> dict[str, str]:
    """The same as it comes out of the templates."""
    from flagen.backends import BACKENDS
    from flagen.emit.banner import Origin, add_banner
    from flagen.emit.env import environment, render

    env = environment(bundled("templates"))
    origin = Origin(__version__, shown, spec.sha256)
    files: dict[str, str] = {}
    for rendering in (rendering for backend in BACKENDS for rendering in backend.renderings(plan)):
        if rendering.path in files:
            raise InternalError(f"two backends write {rendering.path}")
        shared = "." * (rendering.path.count("/") + 2)  # What all packages share is beside this one.
        text = render(env, rendering.template, rendering.context, shared=shared)
        files[rendering.path] = add_banner(rendering.path, text, origin)
    return files


def remarks_on(plan: Plan) -> tuple[Diagnostic, ...]:
    """Which forms the spec does not get, which gradients run in PyTorch, or at what price kernels come, and why."""
    from flagen.plan import Unavailable

    remarks = _remarks_on_chunks(plan)
    if isinstance(plan.fused, Unavailable):
        remarks += (_remark("no-kernel", plan, plan.fused, "no fused_recurrent kernel"),)
    elif isinstance(plan.fused_backward, Unavailable):
        remarks += (_remark("no-backward-kernel", plan, plan.fused_backward, "no fused_recurrent backward kernels"),)
    return remarks


def _remarks_on_chunks(plan: Plan) -> tuple[Diagnostic, ...]:
    """The remarks on the forms by chunks; those of stages under their names."""
    from flagen.plan import ExpandedPlan, StagedPlan, Unavailable

    kernels, backward = plan.chunk_kernel, plan.chunk_backward
    if isinstance(kernels, StagedPlan):
        return tuple(
            replace(remark, message=f"stage of {stage.stage.state.name}: {remark.message}")
            for stage in kernels.stages
            for remark in _remarks_on_chunks(stage.plan)
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

    running = called_at(plan.spec.update, why.span) == "maximum"
    return "a running maximum of logarithms can be `logaddexp(m + f, x)`, which has a chunk form" if running else ""


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
    return stages.spec.source, stages.remarks + remarks_on(stages.plan)


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
        match stage:
            case "spec":
                from flagen.describe import describe

                return describe(self.spec)
            case self.LAYER:
                return self.layer().dump()
            case "proof":
                return "\n".join(prove(self.spec, self.derivation).lines)
            case "plan":
                return self.plan.dump()
            case _ if self.derivation.staged is not None:
                return self._dump_stages(stage.replace("-", "_"), self.derivation.staged)
            case _:
                return self._form(stage)

    def _form(self, stage: str) -> str:
        """The normal form, or the scan form in its place; what is done with a chunk; or how gradients go back."""
        if scan := self.derivation.scan:
            return {"normal-form": scan.dump, "chunk-form": scan.dump_chunk, "adjoint": scan.dump_adjoint}[stage]()
        missing = self.derivation.no_chunk_form
        if missing is not None:
            return f"none: {missing.reason}"
        form = getattr(self.derivation, stage.replace("-", "_"))
        return str(form.dump())

    def _dump_stages(self, form: str, staged: StagedForm) -> str:
        """A form of each stage; first, with the normal forms, what the stages are."""
        parts = [getattr(part, form).dump() for part in self.derivation.stages if getattr(part, form) is not None]
        if form != "normal_form":
            return "\n\n".join(parts)
        riding = [] if self.derivation.riding is None else [self.derivation.riding.dump()]
        return "\n\n".join([staged.dump(), *parts, *riding])


# ----------------------------------------------------------------------------------------------------------- many specs


@dataclass(frozen=True)
class Job:
    """One spec to build: where it is, what messages and generated files call it, and where its build is remembered."""

    path: Path
    shown: str
    origin: str
    record: Path
    key: str


@dataclass(frozen=True)
class UpToDate:
    """Nothing to do: the package is what a build would make."""

    spec: str
    package: str


@dataclass(frozen=True)
class Built:
    """The package is on disk; or with `check`, `diff` tells how the one on disk differs."""

    spec: str
    package: Package
    directory: str
    changes: Changes
    diff: str


@dataclass(frozen=True)
class Refused:
    """The spec is wrong."""

    spec: str
    source: Source
    diagnostics: tuple[Diagnostic, ...]


@dataclass(frozen=True)
class Unwritable:
    """The spec compiles, but its package cannot go where it should."""

    spec: str
    message: str


@dataclass(frozen=True)
class Broken:
    """flagen is wrong: a bug to report, with what it takes to find it."""

    spec: str
    message: str


@dataclass(frozen=True)
class Collected:
    """What is beside the packages is on disk; or with `check`, `diff` tells how what is on disk differs."""

    directory: str
    changes: Changes
    diff: str


Failure = Refused | Unwritable | Broken
Result = UpToDate | Built | Collected | Failure


def build(
    project: Project, specs: Iterable[Path], out: Path, *, check: bool = False, force: bool = False
) -> Generator[Result, None, None]:
    """Build `specs` into packages in the directory `out`, in order, yielding each result as it is known.

    A spec whose package is what it would build is skipped, but not with `force`. With `check` nothing is written and
    nothing is skipped: every spec is compiled and compared with what is in `out`. What packages share is written before
    them, the lists of what there is to import after them, where they are not what they should be.
    """
    around = Surroundings(out, project.memory)
    try:
        shared = Changes() if check else around.write_common()
    except (ForeignFile, OSError) as error:
        yield Unwritable(project.show(out), _why(project, error))
        return
    built: dict[str, Exports] = {}
    for result in _build_packages(project, specs, out, check, force):
        if isinstance(result, Built):
            built[result.package.name] = exports_of(_init_of(result.package))
        yield result
    try:
        if check:
            changes, diff = around.compare(built, project.show_inside(out))
        else:
            changes, diff = shared | around.write_listings(), ""
    except (ForeignFile, OSError) as error:
        yield Unwritable(project.show(out), _why(project, error))
        return
    if changes:
        yield Collected(project.show(out), changes, diff)


def _why(project: Project, error: ForeignFile | OSError) -> str:
    """An error of writing, its path shown as others are."""
    if isinstance(error, ForeignFile):
        return str(ForeignFile(Path(project.show(error.path))))
    return project.explain(error)


def _build_packages(
    project: Project, specs: Iterable[Path], out: Path, check: bool, force: bool
) -> Generator[Result, None, None]:
    jobs = [_job(project, path, out) for path in specs]
    fresh: dict[Job, str] = {}
    if not (check or force):
        fresh = {job: name for job in jobs if (name := fresh_package(job.record, job.key, out))}
    compiled = _compile_all([job for job in jobs if job not in fresh])
    owners: dict[str, str] = {}
    layers = _layers_beside(project, jobs, out)
    for job in jobs:
        outcome = fresh[job] if job in fresh else next(compiled)
        if isinstance(outcome, Refused | Broken):
            yield outcome
            continue
        name = outcome if isinstance(outcome, str) else outcome.name
        owner = owners.setdefault(name, job.shown)
        exports = packages_in(out).get(name, {}) if isinstance(outcome, str) else exports_of(_init_of(outcome))
        taken = [(layer, layers.setdefault(layer, job.shown)) for layer in exports.get("layer", ())]
        other = next(((layer, spec) for layer, spec in taken if spec != job.shown), None)
        if owner != job.shown:
            yield Unwritable(job.shown, f"builds the package {name}, and so does {owner}")
        elif other is not None:
            yield Unwritable(job.shown, f"makes the layer {other[0]}, and so does {other[1]}; class_name names it")
        elif isinstance(outcome, str):
            yield UpToDate(job.shown, name)
        else:
            yield _compare_or_write(project, job, outcome, out, check)


def _init_of(package: Package) -> str:
    return package.files["__init__.py"]


def _layers_beside(project: Project, jobs: Sequence[Job], out: Path) -> dict[str, str]:
    """The layers in `out` of specs that are there and are not built now, each with its spec."""
    from flagen.emit.banner import origin_of

    built = {job.origin for job in jobs}
    found: dict[str, str] = {}
    for package, exports in packages_in(out).items():
        origin = origin_of((out / package / "__init__.py").read_text(encoding="utf-8"))
        if origin is not None and origin not in built and (spec := project.root / origin).is_file():
            found |= dict.fromkeys(exports.get("layer", ()), project.show(spec))
    return found


def orphans(results: Collection[Result], out: Path) -> tuple[str, ...]:
    """The packages in `out` that none of `results` accounts for, where all specs were built: their spec is gone."""
    if any(isinstance(result, Refused | Broken) for result in results) or not out.is_dir():
        return ()  # The name of what failed is not known.
    from flagen.emit.writer import own_files

    built = {result.package.name for result in results if isinstance(result, Built)}
    packages = (path for path in sorted(out.iterdir()) if path.is_dir() and path.name not in {*built, *DIRECTORIES})
    return tuple(package.name for package in packages if any(own_files(package)))


def _job(project: Project, path: Path, out: Path) -> Job:
    origin = project.show_portable(path)
    record = record_path(project.memory, path, out)
    try:
        key = fingerprint(sources(path), origin)
    except OSError:
        key = ""  # Nothing was built from a file that cannot be read; loading it says so.
    return Job(path, project.show(path), origin, record, key)


def _compile_all(jobs: Sequence[Job]) -> Generator[Package | Refused | Broken, None, None]:
    workers = min(_processors(), len(jobs))
    if len(jobs) < _WORTH_A_POOL or workers < 2:
        yield from map(_try_compile, jobs)
        return
    # Workers start from nothing: forking a process that shows progress from a thread is asking for a deadlock.
    others = set(active_children())
    pool = ProcessPoolExecutor(workers, mp_context=get_context("spawn"))
    try:
        with _interrupts_ignored():  # An interrupt is for this process to answer: workers inherit that they ignore it.
            compiled = pool.map(_try_compile, jobs)
        yield from compiled
    except BaseException:
        for worker in set(active_children()) - others:
            worker.terminate()
        raise
    finally:
        pool.shutdown(cancel_futures=True)


@contextmanager
def _interrupts_ignored() -> Iterator[None]:
    if current_thread() is not main_thread():
        yield  # Only the main thread may say what is done about signals.
        return
    before = signal(SIGINT, SIG_IGN)
    try:
        yield
    finally:
        signal(SIGINT, before)


def _try_compile(job: Job) -> Package | Refused | Broken:
    """Compile, with every failure as a value: exceptions with arguments do not survive the way between processes."""
    try:
        return compile_spec(job.path, job.origin)
    except SpecError as error:
        return Refused(job.shown, error.source, error.diagnostics)
    except InternalError as error:
        return Broken(job.shown, str(error))
    except Exception:
        return Broken(job.shown, traceback.format_exc())


def _compare_or_write(project: Project, job: Job, package: Package, out: Path, check: bool) -> Built | Unwritable:
    from flagen.emit.writer import differences, pending_changes, write_package

    directory = out / package.name
    shown = project.show(directory)
    try:
        diff = differences(directory, project.show_inside(directory), package.files) if check else ""
        changes = pending_changes(directory, package.files) if check else write_package(directory, package.files)
    except (ForeignFile, OSError) as error:
        return Unwritable(job.shown, _why(project, error))
    if not check:
        with suppress(OSError):  # A build that cannot be remembered is built again.
            remember(job.record, job.key, package.name, package.files)
    return Built(job.shown, package, shown, changes, diff)


def _processors() -> int:
    """The processors this process may use; a container may have fewer than the machine."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
