"""Many specs to packages on disk: compiled in several processes where that pays, compared with what is there, written.

Nothing is written for a spec that fails at any stage of `flagen.pipeline`, and one that fails does not stop the others.
"""

from __future__ import annotations

import gc
import os
import traceback
from collections.abc import Collection, Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from signal import SIG_IGN, SIGINT, signal
from threading import current_thread, main_thread

from flagen.collection import DIRECTORIES, Exports, Surroundings, exports_of, packages_in
from flagen.diagnostics import Diagnostic, InternalError, Source, SpecError
from flagen.emit.writer import Changes, ForeignFile
from flagen.freshness import fingerprint, fresh_package, record_path, remember, sources
from flagen.pipeline import Package, compile_spec
from flagen.project import Project

# Below this many specs, starting processes costs more than it saves.
_WORTH_A_POOL = 3


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
    from concurrent.futures import ProcessPoolExecutor
    from multiprocessing import active_children, get_context

    # Workers start from nothing: forking a process that shows progress from a thread is asking for a deadlock.
    others = set(active_children())
    pool = ProcessPoolExecutor(workers, mp_context=get_context("spawn"), initializer=gc.disable)
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
