"""What a person sees: results, diagnostics and tables, styled in a terminal and plain in a pipe.

Everything is printed as text, never as markup, so what a spec says cannot style or steer a terminal.
"""

from __future__ import annotations

import sys
from collections.abc import Collection, Iterable, Sequence
from functools import cache
from itertools import groupby, zip_longest
from typing import TYPE_CHECKING, Literal

from flagen.diagnostics import Diagnostic, Source

if TYPE_CHECKING:
    from rich.console import Console

    from flagen.builds import Built, Collected, Result
    from flagen.catalogue import Variant
    from flagen.describe_layer import LayerSheet
    from flagen.emit.writer import Changes
    from flagen.inspection import Compiled, Direction, Figures, Metered, MeteredGradients, Shape, Timed

_STYLES = {"error": "bold red", "warning": "bold yellow", "note": "bold cyan"}
# With more specs than this, one line each has to do.
_IN_FULL = 2
_ROOM_FOR_TITLES = 110


# --------------------------------------------------------------------------------------------------------------- builds


def follow(results: Iterable[Result], total: int, *, check: bool, verbose: bool) -> list[Result]:
    """Print each result as it comes, with a progress bar in a terminal, and a summary; returns the results."""
    from flagen.builds import Broken

    seen: list[Result] = []
    bugs: dict[str, str] = {}
    full = verbose or total <= _IN_FULL
    for result in _with_progress(results, total):
        if isinstance(result, Broken) and bugs.setdefault(result.message, result.spec) != result.spec:
            failed(f"{result.spec}: the same bug as for {bugs[result.message]}")
        else:
            _print_result(result, full=full, check=check, verbose=verbose)
        seen.append(result)
    if total > 1:
        _print_summary(seen, check)
    return seen


def orphans(names: Sequence[str], out: str) -> None:
    for name in names:
        _err(f"{out}/{name}: no spec builds this package", "yellow")


def _print_result(result: Result, *, full: bool, check: bool, verbose: bool) -> None:
    from flagen import builds

    match result:
        case builds.UpToDate(_, package):
            _out(f"{package}: up to date", "dim")
        case builds.Refused(_, source, diagnostics):
            refused(source, diagnostics)
        case builds.Unwritable(spec, message):
            failed(f"{spec}: {message}")
        case builds.Broken(spec, message):
            broken(f"{spec}: {message}")
        case builds.Built():
            _print_built(result, full=full, check=check, verbose=verbose)
        case builds.Collected():
            _print_collected(result, check=check)


def _print_built(built: Built, *, full: bool, check: bool, verbose: bool) -> None:
    package, changes = built.package, built.changes
    for remark in package.remarks:
        _print_diagnostic(remark, package.source)
    _print_edited(built, check)
    done = f"{len(changes.written)} written, {len(changes.unchanged)} unchanged"
    if changes.removed:
        done += f", {len(changes.removed)} removed"
    if check:
        done = "differs" if built.diff else "as built"
    seconds = sum(package.seconds.values())
    proved = "proved" if package.proof else "no chunk form to prove"
    if package.around:
        proved = f"a layer around the operators of {package.around}"
    _out(f"{package.name}: {proved}; {built.directory}: {done} ({seconds:.2f} s)", "red" if built.diff else "green")
    if full:
        for line in package.proof:
            _out(f"  proved  {line}", "dim")
    if verbose:
        for path in sorted(package.files):
            state = "same" if path in changes.unchanged else "differs" if check else "wrote"
            _out(f"  {state:7} {built.directory}/{path}", "dim")
        _out("  " + "  ".join(f"{stage} {taken:.3f} s" for stage, taken in package.seconds.items()), "dim")
    _print_diff(built.diff)


def _print_edited(result: Built | Collected, check: bool) -> None:
    for path in result.changes.edited:
        becomes = "not what flagen wrote" if check else "removed" if path in result.changes.removed else "overwritten"
        _err(f"{result.directory}/{path}: edited by hand, and {becomes}", "yellow")


def _print_collected(collected: Collected, *, check: bool) -> None:
    changes = collected.changes
    _print_edited(collected, check)
    if check:
        done = "differs"
    else:
        done = f"{len(changes.written)} written" + (f", {len(changes.removed)} removed" if changes.removed else "")
    _out(f"{collected.directory}: what packages share, and the lists of them: {done}", "red" if check else "green")
    _print_diff(collected.diff)


def _print_diff(diff: str) -> None:
    styles = {"+": "green", "-": "red", "@": "cyan"}
    for line in diff.split("\n")[:-1]:
        _out(line, styles.get(line[0], "") if line and not line.startswith(("+++", "---")) else "bold")


def _print_summary(results: Sequence[Result], check: bool) -> None:
    from flagen import builds

    results = [result for result in results if not isinstance(result, builds.Collected)]
    built = [result for result in results if isinstance(result, builds.Built)]
    differing = sum(bool(result.diff) for result in built)
    fresh = sum(isinstance(result, builds.UpToDate) for result in results)
    failures = len(results) - len(built) - fresh
    counts = [f"{differing} differ", f"{len(built) - differing} as built"] if check else [f"{len(built)} built"]
    counts += [f"{fresh} up to date"] if fresh else []
    counts += [f"{failures} failed"] if failures else []
    _out(f"{len(results)} specs: {', '.join(counts)}", "bold red" if differing or failures else "bold green")


def _with_progress(results: Iterable[Result], total: int) -> Iterable[Result]:
    if total < 2 or not _console(sys.stdout.isatty()).is_terminal:
        return results
    from rich.progress import Progress

    def tracked() -> Iterable[Result]:
        with Progress(console=_console(), transient=True) as progress:
            yield from progress.track(results, total=total, description="building")

    return tracked()


# --------------------------------------------------------------------------------------------------- one spec, in words


def vendored(package: str, changes: Changes) -> None:
    for path in changes.edited:
        becomes = "removed" if path in changes.removed else "overwritten"
        _err(f"{package}/{path}: edited by hand, and {becomes}", "yellow")
    removed = f", {len(changes.removed)} removed" if changes.removed else ""
    _out(f"{package}: {len(changes.written)} written, {len(changes.unchanged)} unchanged{removed}", "green")


def checked(spec: str, source: Source, remarks: Sequence[Diagnostic]) -> None:
    for remark in remarks:
        _print_diagnostic(remark, source)
    warnings = sum(remark.severity == "warning" for remark in remarks)
    _out(f"{spec}: ok" + (f", {warnings} warning{'s' * (warnings > 1)}" if warnings else ""), "green")


def refused(source: Source, diagnostics: Iterable[Diagnostic]) -> None:
    for diagnostic in diagnostics:
        _print_diagnostic(diagnostic, source)


def failed(message: str) -> None:
    _err(f"flagen: {message}", "bold red")


def broken(message: str) -> None:
    failed(f"{message.rstrip()}\nThis is a bug in flagen, not in the spec. Please report it, with the spec.")


def created(paths: Sequence[str], name: str) -> None:
    for path in paths:
        _out(f"wrote {path}", "green")
    _out(f"Edit it, then run `flagen check {name}` and `flagen build {name}`.")


def stage(name: str, text: str, *, markdown: bool) -> None:
    title = name.replace("-", " ").capitalize()
    if markdown:
        _out(f"## {title}\n\n```text\n{text.rstrip()}\n```\n")
    else:
        _out(title, "bold cyan")
        _out("".join(f"  {line}".rstrip() + "\n" for line in text.rstrip().split("\n")))


def layer(sheet: LayerSheet, *, markdown: bool) -> None:
    """A layer: tables in a terminal, aligned text otherwise, and in Markdown its dataflow drawn."""
    if markdown or not _console().is_terminal:
        stage("layer", sheet.dump(), markdown=markdown)
        if markdown:
            _out(f"```mermaid\n{sheet.flowchart}\n```\n")
        return
    from rich.table import Table
    from rich.text import Text

    _out("Layer", "bold cyan")
    _out(f"  {sheet.heading}", "bold")
    for note in sheet.notes:
        _out(f"  {note}")
    for drawn in sheet.tables:
        table = Table(box=None, header_style="bold", pad_edge=False, title=drawn.title, title_justify="left")
        for place, column in enumerate(drawn.columns):
            justify: Literal["left", "right"] = "right" if place in drawn.numbers else "left"
            style = "cyan" if place == 0 else "dim" if drawn.columns[place] == "shape" else None
            table.add_column(Text(column), justify=justify, style=style, no_wrap=place == 0, overflow="fold")
        for row in drawn.rows:
            table.add_row(*(Text(_printable(cell)) for cell in row))
        _console().print(table)
        _out("")


def catalogue(variants: Sequence[Variant]) -> None:
    """One row a variant: a table in a terminal, aligned columns in a pipe."""
    from flagen.catalogue import COLUMNS, cells

    rows = [tuple(_printable(cell) for cell in cells(variant)) for variant in variants]
    if _console().is_terminal:
        _print_table(COLUMNS, rows)
    else:
        _print_aligned(COLUMNS, rows)


def compiled(kernels: Sequence[Compiled], triton: str) -> None:
    """What each kernel became, and whether that is fit to ship; what isn't stands out."""
    from flagen.inspection import verdict

    verdicts = ["; ".join(verdict(kernel)) for kernel in kernels]
    rows = [
        (
            *(kernel.kernel, kernel.size, kernel.config, kernel.arch),
            *map(str, (kernel.registers, kernel.spill_bytes, kernel.shared_memory)),
            " ".join(f"{name} {count}" for name, count in kernel.matrix_instructions.items()) or "-",
            wrong or "ok",
        )
        for kernel, wrong in zip(kernels, verdicts, strict=True)
    ]
    columns = ("kernel", "size", "config", "arch", "registers", "spilled", "shared", "matrix instructions", "verdict")
    _print_aligned(columns, rows, styles=["bold red" if wrong else "" for wrong in verdicts], numbers=range(4, 7))
    bad = sum(map(bool, verdicts))
    _out(f"{len(rows)} compiled by Triton {triton}, bf16: {f'{bad} not fit to ship' if bad else 'all fit to ship'}")


def timed(rows: Sequence[Timed], variant: str, shape: Shape, triton: str) -> None:
    """How long each kernel of each operator takes, forward and backward, and what that comes from."""
    from flagen.inspection import METERED

    sizes = ", ".join(f"{name} {size}" for name, size in shape._asdict().items())
    columns = (
        "",
        "programs",
        "latency",
        "issue",
        "tensor",
        "resident",
        "exposed",
        "products",
        "spilled",
        "MB",
        "ms",
        "",
    )
    for (operator, direction), part in groupby(rows, lambda row: (row.operator, row.direction)):
        call = list(part)
        _out(f"{operator}_{variant}, {direction}, bf16, every dim {METERED.first}, {sizes}", "bold cyan")
        _print_aligned(columns, [_timed_row(row) for row in call], numbers=range(1, len(columns) - 1))
        _out(f"predicted: {1e3 * sum(row.seconds for row in call):.3f} ms")
    note = "latency, issue, tensor, exposed: cycles of an SM for one program; resident: programs that fit one"
    _out(f"estimated for an H200 from what Triton {triton} compiles to; {note}", "dim")


def _timed_row(row: Timed) -> tuple[str, ...]:
    cycles = (row.latency, row.issue, row.tensor)
    return (
        row.kernel,
        str(row.programs or "-"),
        *map(_rounded, (*cycles, row.resident, row.exposed)),
        "-" if row.products is None else f"{row.products:.1f}",
        _rounded(row.spill_bytes),
        _rounded(row.moved / 1e6),
        f"{1e3 * row.seconds:.3f}",
        row.bound,
    )


def _rounded(number: float | None) -> str:
    return "-" if number is None else f"{number:.0f}"


def metered(calls: Sequence[Metered], gradients: Sequence[MeteredGradients], triton: str) -> None:
    """What each operator moves and computes, without gradients and with them, against what it cannot go below."""
    for call in calls:
        _print_metered(call, "", [("", *each) for each in _work(call)])
        least = f"at least {_per(call.final_state_minimum, call.heads)}"
        _out(f"bytes a final state adds for each head: {_per(call.final_state_bytes, call.heads)}, {least}")
    for both in gradients:
        ways = (("forward", both.forward), ("backward", both.backward))
        told = ", save_states=True" if both.save_states else ""
        _print_metered(both, f" and its gradients{told}", [(way, *each) for way, done in ways for each in _work(done)])
        _out(f"bytes kept between forward and backward for each token and head: {_per(both.kept, both.per)}")
    _out(f"counted from launches under Triton {triton}; bytes and flops for each token and head", "dim")


def _work(done: Metered | Direction) -> list[tuple[str, Figures]]:
    return [*done.kernels.items(), *((f"torch.{name}", figures) for name, figures in done.operators.items())]


def _print_metered(call: Metered | MeteredGradients, what: str, work: Sequence[tuple[str, str, Figures]]) -> None:
    """A line a kernel or torch operator, after the direction that it ran in; then what they move together."""
    from flagen.inspection import METERED

    size = f"bf16, every dim {METERED.first}, {call.tokens} tokens, {call.heads} head"
    _out(f"{call.operator}_{call.variant}{what}, {size}", "bold cyan")
    columns = ("", "launches", "programs", "read", "written", "requested", "flops of tl.dot")
    rows = [
        (f"{way} {name}".lstrip(), *map(str, (done.launches, done.programs)), *(_per(x, call.per) for x in amounts))
        for way, name, done in work
        for amounts in [(done.read, done.written, done.requested, done.flops)]
    ]
    _print_aligned(columns, rows, numbers=range(1, len(columns)))
    times = f"{call.moved / call.minimum:.2f} times the minimum of {_per(call.minimum, call.per)}"
    _out(f"bytes moved for each token and head: {_per(call.moved, call.per)}, {times}")


def _per(amount: int, count: int) -> str:
    return f"{amount / count:.0f}"


def _print_aligned(
    columns: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    styles: Sequence[str] = (),
    numbers: Collection[int] = (),
) -> None:
    """Rows in aligned columns, those of `numbers` to the right; `styles` are the rows', not the head's."""
    widths = [max(map(len, column)) for column in zip(columns, *rows, strict=True)]
    for row, style in zip_longest((columns, *rows), ("bold", *styles), fillvalue=""):
        cells = (
            cell.rjust(width) if place in numbers else cell.ljust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        _out("  ".join(cells).rstrip(), style)


def _print_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A table that stays legible in 80 columns: titles go first, and names of operators take two lines."""
    from rich.table import Table
    from rich.text import Text

    shown = [i for i, column in enumerate(columns) if column != "title" or _console().width >= _ROOM_FOR_TITLES]
    table = Table(box=None, header_style="bold", pad_edge=False, collapse_padding=True)
    for i in shown:
        column = columns[i].replace("_", "\n")
        table.add_column(Text(column), no_wrap=columns[i] in ("name", "state"), style="cyan" if i == 0 else None)
    for row in rows:
        table.add_row(*(Text(row[i]) for i in shown))
    _console().print(table)


def _print_diagnostic(diagnostic: Diagnostic, source: Source) -> None:
    head, *rest = diagnostic.render(source).split("\n")
    _err(head, _STYLES[diagnostic.severity])
    for line in rest:
        _err(line)


# ------------------------------------------------------------------------------------------------------------- printing


@cache
def _console(stderr: bool = False) -> Console:
    from rich.console import Console

    return Console(stderr=stderr, highlight=False, markup=False, emoji=False, soft_wrap=True)


def _out(text: str, style: str = "") -> None:
    from rich.text import Text

    _console().print(Text(_printable(text), style))


def _err(text: str, style: str = "") -> None:
    from rich.text import Text

    _console(stderr=True).print(Text(_printable(text), style))


def _printable(text: str) -> str:
    """`text` with control characters spelled out: a spec's text may hold any, and a terminal obeys them."""
    return "".join(char if char.isprintable() or char in "\n\t" else ascii(char)[1:-1] for char in text)
