"""The tables of what the generated kernels compile to and what they move, for every variant.

    python -m benchmarks.tables             bring benchmarks/results/ up to date
    python -m benchmarks.tables --check     write nothing; exit 1 if the tables are not those of generated/
    python -m benchmarks.tables --fresh     redo even what has not changed; with --check, to compare it

Of each variant there is a hash, of its package and the tools, and of each kernel one of all that goes into it: what has
not changed is neither compiled nor metered again, and a check compares hashes. Recording and metering run no kernel and
take seconds a variant; compiling takes the time. Compilers differ from release to release: under another
Triton than the one that the tables name there is nothing to compare, and a check says so.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Self, TypeVar

import typer

from flagen import inspection
from flagen.inspection import ARCHS, METERED, OPERATORS, SIZES, Compiled, Metered, MeteredGradients, Package
from flagen.project import Project

Row = TypeVar("Row", Metered, MeteredGradients)

BACKWARD = [(arch, SIZES[0]) for arch in ("sm_80", "sm_90")]
"""Where the kernels of gradients are compiled: they are many and take minutes, and what tells on their tiles is here. A
test compiles some of them for the other architectures."""

ROOT = Path(__file__).resolve().parent.parent
RESULTS = Path(__file__).parent / "results"

KERNELS = """\
# What the generated kernels compile to

Triton {triton}, no GPU involved; inputs in bf16, states in float32, sequences packed, states taken and given. Forward,
and where gradients have kernels, backward on sm_80 and sm_90 at the first size; `save_states=True` marks what only a
call that saves states launches.
A cell has registers of a thread / bytes it spills / a program's shared memory in bytes, then matrix instructions;
what is wrong stands in bold. Written by `make tables`; for one variant: `flagen inspect NAME`.
"""

MOVED = """\
# What the generated operators move

Counted from launches under Triton {triton}: forward, bf16, every dim {size}, HV = H, nothing saved for a backward.
Bytes and flops are for each token and head, without a final state; what that adds for each head has a column of its
own. Moved counts each address once a launch, and the torch operators between kernels. The minimum is inputs read and
output written once. Written by `make tables`; kernel by kernel: `flagen meter NAME`.
"""

MOVED_WITH_GRADIENTS = """\
## With gradients

Forward, and backward to the gradients of all inputs, where these have kernels. Kept is what autograd holds on to in
between, inputs among it, and states with `save_states=True`. At the minimum, inputs are read twice, the output and the
gradients of the inputs are written once, and the gradient of the output is read once.
"""


@dataclass(frozen=True)
class Tables:
    """All rows, and the Triton that they are of; `keys`: what each variant's are of, as a hash."""

    triton: str
    kernels: Sequence[Compiled]
    metered: Sequence[Metered]
    gradients: Sequence[MeteredGradients]
    keys: Mapping[str, str]

    @classmethod
    def empty(cls) -> Self:
        """Those of no package, and of no Triton."""
        return cls("", (), (), (), {})

    @classmethod
    def read(cls) -> Self:
        """The committed tables; empty ones, of no Triton, where there are none."""
        if not (RESULTS / "kernels.json").exists():
            return cls.empty()
        kernels, metered = (json.loads((RESULTS / f"{name}.json").read_text()) for name in ("kernels", "metered"))
        return cls(
            kernels["triton"],
            [Compiled(**row) for row in kernels["rows"]],
            [Metered.from_json(row) for row in metered["rows"]],
            [MeteredGradients.from_json(row) for row in metered["gradients"]],
            metered.get("keys", {}),
        )

    def files(self) -> dict[str, str]:
        """What benchmarks/results/ has to hold."""
        return {
            "kernels.json": _json(self.triton, rows=self.kernels),
            "kernels.md": kernels_page(self.triton, self.kernels),
            "metered.json": _json(
                self.triton,
                {"keys": self.keys},
                rows=self.metered,
                gradients=self.gradients,
            ),
            "metered.md": metered_page(self.triton, self.metered, self.gradients),
        }


LAYERS = ("gated_deltanet",)
"""The layers whose operators are in the tables, beside all that are specs of their own: the kernels of the others are
those of the recurrence that each wraps, with a front end."""


def packages() -> list[Package]:
    project = Project(ROOT)
    names = [path.stem for path in project.all_specs() if path.stem in LAYERS or not _has_layer(path)]
    return [inspection.find_package(project, name) for name in names]


def _has_layer(path: Path) -> bool:
    return re.search(r"^layer:", path.read_text(encoding="utf-8"), re.MULTILINE) is not None


def make(old: Tables, packages: Sequence[Package], *, fresh: bool) -> Tables:
    """The tables of what is in generated/; unless `fresh`, what has not changed keeps its rows of `old`."""
    triton = inspection.triton_version()
    if fresh or old.triton != triton:
        old = Tables.empty()
    changed = _changed(old, packages)
    same = {package.name for package in packages} - {package.name for package in changed}
    recorded = inspection.record(changed, backward=BACKWARD)
    known = {row.key: row for row in old.kernels}
    lacking = {launched.variant for launched in recorded if launched.key not in known}
    new = [package for package in changed if package.name in lacking]
    known |= {row.key: row for row in inspection.compile_kernels(new, but=known, backward=BACKWARD)}
    kernels = [replace(known[launched.key], **asdict(launched)) for launched in recorded]
    return Tables(
        triton,
        sorted((*(row for row in old.kernels if row.variant in same), *kernels), key=lambda row: row.variant),
        _ordered((*(row for row in old.metered if row.variant in same), *inspection.meter(changed))),
        _ordered((*(row for row in old.gradients if row.variant in same), *inspection.meter_gradients(changed))),
        {package.name: inspection.package_key(package) for package in packages},
    )


def _changed(tables: Tables, packages: Sequence[Package]) -> list[Package]:
    """The packages that are not what the tables are of."""
    return [package for package in packages if tables.keys.get(package.name) != inspection.package_key(package)]


def _ordered(rows: Iterable[Row]) -> list[Row]:
    """By operator, then variant; rows of the same two stay as they are."""
    return sorted(rows, key=lambda row: (OPERATORS.index(row.operator), row.variant))


def drift_of_kernels(tables: Tables, packages: Sequence[Package]) -> list[str]:
    """How the rows of packages that have changed differ from what these launch; nothing is compiled to find out."""
    changed = _changed(tables, packages)
    same = {package.name for package in packages} - {package.name for package in changed}
    committed = {row.key: row.kernel for row in tables.kernels if row.variant not in same}
    recorded = {row.key: row.kernel for row in inspection.record(changed, backward=BACKWARD)}
    new = Counter(kernel for key, kernel in recorded.items() if key not in committed)
    gone = Counter(kernel for key, kernel in committed.items() if key not in recorded)
    found = [f"kernels: {kernel}: {count} rows are missing" for kernel, count in new.items()]
    return found + [f"kernels: {kernel}: {count} rows are of something else" for kernel, count in gone.items()]


def drift(tables: Tables, packages: Sequence[Package]) -> list[str]:
    """How the tables differ from what is in generated/, and their files from the tables."""
    found = drift_of_kernels(tables, packages)
    names = {package.name for package in packages}
    other = [package.name for package in _changed(tables, packages)] + sorted(tables.keys.keys() - names)
    found += [f"metered: {name}: the rows are of something else" for name in other]
    return found + [f"{name} was edited" for name in edited(tables)]


def edited(tables: Tables) -> list[str]:
    """The files in benchmarks/results/ that are not as `tables` has them."""
    files = tables.files().items()
    return [name for name, text in files if not (RESULTS / name).exists() or (RESULTS / name).read_text() != text]


def main(
    check: Annotated[bool, typer.Option("--check", help="Write nothing; exit 1 if they are out of date.")] = False,
    fresh: Annotated[bool, typer.Option("--fresh", help="Redo what has not changed, too.")] = False,
) -> None:
    """Bring the tables of benchmarks/results/ up to date."""
    old, triton = Tables.read(), inspection.triton_version()
    if check and old.triton not in ("", triton):
        print(f"SKIPPED: the tables are of Triton {old.triton}, and this is Triton {triton}")
        return
    if check and not fresh:
        found = drift(old, packages())
    else:
        new = make(old, packages(), fresh=fresh)
        found = [f"{name} differs" for name in edited(new)]
        if not check:
            RESULTS.mkdir(exist_ok=True)
            for name, text in new.files().items():
                (RESULTS / name).write_text(text)
            calls = len(new.metered) + len(new.gradients)
            print(f"{len(new.kernels)} kernels compiled, {calls} calls metered: {len(found)} files written")
            return
    for line in found:
        print(line)
    print("the tables are not those of generated/: run `make tables`" if found else "the tables are up to date")
    raise typer.Exit(bool(found))


# --------------------------------------------------------------------------------------------------------------- pages


def kernels_page(triton: str, rows: Iterable[Compiled]) -> str:
    """A line a kernel, configuration and size, a column an architecture."""
    lines = [
        KERNELS.format(triton=triton),
        _row(("kernel", "size", "config", *ARCHS)),
        _row(["---"] * (3 + len(ARCHS))),
    ]
    cells: dict[tuple[str, str, str], dict[str, list[str]]] = {}
    for row in rows:
        cells.setdefault((row.kernel, row.size, row.config), {}).setdefault(row.arch, []).append(_cell(row))
    for place, by_arch in cells.items():
        lines.append(_row((*place, *("; ".join(by_arch.get(arch, ())) for arch in ARCHS))))
    return "\n".join((*lines, ""))


def metered_page(triton: str, rows: Iterable[Metered], gradients: Iterable[MeteredGradients]) -> str:
    """A line an operator; and the torch operators that run between its kernels. Then a line for each way to get its
    gradients."""
    heads = ("operator", "moved", "minimum", "ratio", "requested", "flops of `tl.dot`", "launches", "programs")
    more = ("torch between kernels", "final state", "its minimum")
    lines = [MOVED.format(triton=triton, size=METERED.first), _row((*heads, *more)), _row(["---"] * len(heads + more))]
    for row in rows:
        figures = [*row.kernels.values()]
        amounts = (row.moved, row.minimum, sum(x.requested for x in figures), sum(x.flops for x in figures))
        moved, minimum, requested, flops = (f"{amount / row.per:.0f}" for amount in amounts)
        lines.append(
            _row(
                (
                    *(_call(row), moved, minimum, f"{row.moved / row.minimum:.2f}", requested, flops),
                    *(str(sum(x.launches for x in figures)), str(sum(x.programs for x in figures))),
                    _between({name: done.moved for name, done in row.operators.items()}, row.per),
                    *(f"{row.final_state_bytes / row.heads:.0f}", f"{row.final_state_minimum / row.heads:.0f}"),
                )
            )
        )
    return "\n".join((*lines, "", MOVED_WITH_GRADIENTS, *_lines_with_gradients(gradients), ""))


def _lines_with_gradients(rows: Iterable[MeteredGradients]) -> Iterator[str]:
    amounts = ("moved", "minimum", "ratio", "forward", "backward", "kept")
    heads = ("operator", *amounts, "launches", "torch between kernels")
    yield from (_row(heads), _row(["---"] * len(heads)))
    for row in rows:
        moved, minimum, forward, backward, kept = (
            f"{amount / row.per:.0f}"
            for amount in (row.moved, row.minimum, row.forward.moved, row.backward.moved, row.kept)
        )
        between = Counter[str]()
        for name, done in (*row.forward.operators.items(), *row.backward.operators.items()):
            between[name] += done.moved
        yield _row(
            (
                *(_call(row), moved, minimum, f"{row.moved / row.minimum:.2f}", forward, backward, kept),
                f"{row.forward.launches} + {row.backward.launches}",
                _between(between, row.per),
            )
        )


def _between(moved: Mapping[str, int], per: int) -> str:
    """What the torch operators between kernels move, and their names."""
    total = sum(moved.values())
    return f"{total / per:.0f} ({', '.join(moved)})" if total else "-"


def _cell(row: Compiled) -> str:
    figures = f"{row.registers} / {row.spill_bytes} / {row.shared_memory}"
    instructions = [f"{name} {count}" for name, count in row.matrix_instructions.items()]
    wrong = [f"**{what}**" for what in inspection.verdict(row)]
    return ", ".join((figures, *instructions, *wrong))


def _call(row: Metered | MeteredGradients) -> str:
    saving = isinstance(row, MeteredGradients) and row.save_states
    return f"{row.operator}_{row.variant}{', save_states=True' if saving else ''}"


def _row(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _json(triton: str, keys: Mapping[str, Mapping[str, str]] | None = None, **lists: Sequence[Any]) -> str:
    """A row a line, so that a diff shows which have changed."""
    texts = {name: ",\n".join(json.dumps(asdict(row)) for row in rows) for name, rows in lists.items()}
    parts = [
        f'"triton": "{triton}"',
        *(f'"{name}": {json.dumps(hashes, indent=0)}' for name, hashes in (keys or {}).items()),
    ]
    parts += [f'"{name}": [\n{text}\n]' for name, text in texts.items()]
    return f"{{{', '.join(parts)}}}\n"


if __name__ == "__main__":
    typer.run(main)
