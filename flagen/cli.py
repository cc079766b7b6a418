"""The command line: reads arguments, calls the pipeline, prints through `flagen.report`.

Exit codes: 0, all is well; 1, a spec is wrong, or `build --check` found a difference; 2, the command line is wrong, a
file could not be read or written, or flagen itself failed; 130, it was interrupted.
"""

from __future__ import annotations

import sys
import traceback
from contextlib import closing
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer
import typer.core

from flagen import __version__
from flagen.diagnostics import InternalError, SpecError
from flagen.project import Project, UsageError

if TYPE_CHECKING:
    from flagen.builds import Result
    from flagen.inspection import Shape

OK, WRONG, FAILED, INTERRUPTED = 0, 1, 2, 130


class _Commands(typer.core.TyperGroup):
    """The commands; an interrupt ends one without a word."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            sys.exit(INTERRUPTED)


app = typer.Typer(
    name="flagen",
    cls=_Commands,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)

SpecArgument = Annotated[str, typer.Argument(metavar="SPEC", help="A spec's path, or a variant's name in specs/.")]
SpecArguments = Annotated[
    list[str] | None, typer.Argument(metavar="[SPEC]...", help="Specs: paths, or names of variants in specs/.")
]


class Stage(StrEnum):
    """What `explain` can show."""

    spec = "spec"
    layer = "layer"
    normal_form = "normal-form"
    chunk_form = "chunk-form"
    adjoint = "adjoint"
    plan = "plan"
    proof = "proof"


class Format(StrEnum):
    terminal = "terminal"
    markdown = "markdown"


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"flagen {__version__}")
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Readable PyTorch and Triton operators from the recurrence of a linear-attention variant.

    Exit codes: 0 all is well; 1 a spec is wrong, or --check found a difference; 2 a wrong command line, a file that
    cannot be read or written, or a bug in flagen; 130 interrupted.
    """


@app.command()
def build(
    specs: SpecArguments = None,
    all_specs: Annotated[bool, typer.Option("--all", help="Build every spec in specs/.")] = False,
    out: Annotated[Path | None, typer.Option(help="Where packages go; default: generated/ of the project.")] = None,
    check: Annotated[
        bool, typer.Option("--check", help="Write nothing; show how what is there differs from a build. Exit 1 if so.")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Build what is up to date, too.")] = False,
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="Show each file, and the time of each stage.")
    ] = False,
) -> None:
    """Derive, prove and emit the operators of one or more specs.

    A spec whose package is up to date is skipped; --check skips nothing.
    """
    from flagen import builds, report

    project = Project.of(Path.cwd())
    paths = _paths(project, specs or [], all_specs)
    out = out or project.generated
    with closing(builds.build(project, paths, out, check=check, force=force)) as building:
        results = report.follow(building, len(paths), check=check, verbose=verbose)
    orphans = builds.orphans(results, out) if check and all_specs else ()
    report.orphans(orphans, project.show(out))
    raise typer.Exit(max([*map(_exit_code, results), WRONG if orphans else OK]))


@app.command()
def check(
    specs: SpecArguments = None,
    all_specs: Annotated[bool, typer.Option("--all", help="Check every spec in specs/.")] = False,
) -> None:
    """Say what is wrong with specs, or what they will not get; write nothing."""
    from flagen import pipeline, report

    project = Project.of(Path.cwd())
    code = OK
    for path in _paths(project, specs or [], all_specs):
        try:
            report.checked(project.show(path), *pipeline.inspect(path))
        except SpecError as error:
            report.refused(error.source, error.diagnostics)
            code = WRONG
    raise typer.Exit(code)


@app.command()
def explain(
    spec: SpecArgument,
    stage: Annotated[Stage | None, typer.Option(help="Show one stage only.")] = None,
    layout: Annotated[Format, typer.Option("--format", help="How to print it.")] = Format.terminal,
    config: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY=VALUE", help="A setting of the layer, instead of its default; may be repeated."),
    ] = None,
) -> None:
    """Show what each stage makes of a spec: what was read, derived, proved and planned.

    Of a spec with a layer, its modules, their parameters and what flows through it are shown, too.
    """
    from flagen import pipeline, report

    stages = pipeline.Stages(Project.of(Path.cwd()).find_spec(spec))
    markdown = layout is Format.markdown
    if (stage is None and stages.spec.layer is not None) or stage is Stage.layer or config:
        sheet = stages.layer(config or ())
    for name in [stage.value] if stage else stages.NAMES:
        if name == stages.LAYER:
            report.layer(sheet, markdown=markdown)
            continue
        report.stage(name, stages.dump(name), markdown=markdown)
        if name == "spec" and stage is None and stages.spec.layer is not None:
            report.layer(sheet, markdown=markdown)


@app.command()
def new(
    name: Annotated[str, typer.Argument(help="The new variant's name; its spec becomes specs/NAME.yaml.")],
    like: Annotated[str, typer.Option(metavar="VARIANT", help="The spec to start from: a name or a path.")],
) -> None:
    """Start a new variant from the spec of another."""
    from flagen import authoring, report

    project = Project.of(Path.cwd())
    report.created([project.show(path) for path in authoring.write_spec(project, name, like)], name)


@app.command()
def vendor(
    name: Annotated[str, typer.Argument(help="The package to copy: a variant's name.")],
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="Where to: the copy becomes DIR/NAME.")],
) -> None:
    """Copy a variant's package out of generated/, with what it needs of what packages share inside of it.

    The copy imports nothing but itself, torch and, where kernels run, Triton: put it into any project, under any name.
    Run the command again to bring it up to date; files that flagen did not write are never overwritten.
    """
    from flagen import report
    from flagen.vendor import vendor as write

    project = Project.of(Path.cwd())
    report.vendored(project.show(directory / name), write(project, name, directory))


@app.command("inspect")
def inspect_kernels(
    spec: SpecArgument,
    arch: Annotated[
        list[str] | None,
        typer.Option(metavar="ARCH", help="Compile for this one; may be repeated. Default: sm_80 sm_90 sm_100 gfx942."),
    ] = None,
    time: Annotated[
        str | None,
        typer.Option(metavar="B,T,H[,HV]", help="Predict the time of a call with these sizes on an H200, instead."),
    ] = None,
) -> None:
    """Compile the Triton kernels of a variant's package, without a GPU, and show what they became.

    Registers, spilled bytes, shared memory and matrix instructions of every kernel, forward and backward, configuration
    and size. With --time, how long each kernel of a call takes, from the code that it compiles to: an estimate.
    """
    from flagen import inspection, report

    if time is not None and arch:
        raise UsageError(f"--time is for {inspection.TIMED}; leave --arch out")
    package = inspection.find_package(Project.of(Path.cwd()), spec)
    if time is not None:
        shape = _shape(time)
        if not (timed := inspection.predict(package, shape)):
            raise UsageError(f"{package.name} has no Triton kernel")
        report.timed(timed, package.name, shape, inspection.triton_version())
        return
    kernels = inspection.compile_kernels([package], arch or inspection.ARCHS)
    if not kernels:
        raise UsageError(f"{package.name} has no Triton kernel")
    report.compiled(kernels, inspection.triton_version())


@app.command()
def meter(spec: SpecArgument) -> None:
    """Count what the Triton kernels of a variant's package move and compute.

    Operators whose gradients have kernels run again with their backward, and once more where they can save states.
    """
    from flagen import inspection, report

    package = inspection.find_package(Project.of(Path.cwd()), spec)
    calls = inspection.meter([package])
    if not calls:
        raise UsageError(f"{package.name} has no Triton kernel")
    report.metered(calls, inspection.meter_gradients([package]), inspection.triton_version())


@app.command("list")
def list_variants() -> None:
    """Show the variants in specs/, and which operators each has in generated/."""
    from flagen import catalogue, report

    report.catalogue(catalogue.variants(Project.of(Path.cwd())))


def _paths(project: Project, arguments: list[str], all_specs: bool) -> list[Path]:
    """The specs a command is about, each once, in the order given."""
    if all_specs == bool(arguments):
        raise UsageError("name the specs, or say --all" if not arguments else "name the specs or say --all, not both")
    paths = project.all_specs() if all_specs else [project.find_spec(argument) for argument in arguments]
    if not paths:
        raise UsageError(f"there are no specs in {project.show(project.specs)}/")
    return list({path.resolve(): path for path in paths}.values())


def _shape(text: str) -> Shape:
    """The sizes that --time is given."""
    from flagen import inspection

    sizes = text.split(",")
    if not (3 <= len(sizes) <= 4 and all(size.strip().isdecimal() and int(size) for size in sizes)):
        raise UsageError(f"--time takes B,T,H or B,T,H,HV, positive whole numbers, such as 8,4096,16; this is {text!r}")
    B, T, H, HV = map(int, (*sizes, sizes[2])[:4])
    if HV % H:
        raise UsageError(f"--time: {HV} value heads cannot be shared by {H} heads; HV is a multiple of H")
    return inspection.Shape(B, T, H, HV)


def _exit_code(result: Result) -> int:
    from flagen import builds

    match result:
        case builds.UpToDate():
            return OK
        case builds.Built(diff=diff) | builds.Collected(diff=diff):
            return WRONG if diff else OK
        case builds.Refused():
            return WRONG
        case builds.Unwritable() | builds.Broken():
            return FAILED


def run() -> NoReturn:
    """The `flagen` command: every failure becomes a message on stderr and an exit code."""
    from flagen import report

    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    try:
        app()
    except SpecError as error:
        report.refused(error.source, error.diagnostics)
        sys.exit(WRONG)
    except (UsageError, OSError) as error:
        report.failed(str(error))
        sys.exit(FAILED)
    except InternalError as error:
        report.broken(str(error))
        sys.exit(FAILED)
    except Exception:
        report.broken(traceback.format_exc())
        sys.exit(FAILED)
    raise AssertionError("typer always exits")
