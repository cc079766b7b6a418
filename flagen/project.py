"""Where things are: the project a command runs in, and what flagen brings along.

A project is a directory with `specs/` in it; packages go to `generated/` beside it, and what flagen remembers from one
build to the next to `.flagen/`. Nothing has to exist: without a project, the working directory is one.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

PACKAGE = Path(__file__).resolve().parent
RUNTIME = PACKAGE / "runtime"
"""What is written into every generated directory, as text."""
DEVICE = RUNTIME / "shared" / "device"
"""That of it which kernels call: they import its functions by name."""
VARIANT = re.compile(r"[a-z][a-z0-9_]{0,63}")


class UsageError(Exception):
    """The command line asks for something that is not there."""


@dataclass(frozen=True)
class Project:
    root: Path

    @classmethod
    def of(cls, directory: Path) -> Project:
        """The project that `directory` is in: the nearest directory with `specs/`, looking no further up than the
        repository's top; else `directory` itself."""
        start = directory.resolve()
        for candidate in (start, *start.parents):
            if (candidate / "specs").is_dir():
                return cls(candidate)
            if (candidate / ".git").exists():
                break
        return cls(start)

    @property
    def specs(self) -> Path:
        return self.root / "specs"

    @property
    def generated(self) -> Path:
        return self.root / "generated"

    @property
    def memory(self) -> Path:
        return self.root / ".flagen"

    def all_specs(self) -> tuple[Path, ...]:
        return tuple(Path(self.show(path)) for path in sorted(self.specs.glob("*.yaml")))

    def find_spec(self, argument: str, others: Path | None = None) -> Path:
        """The spec a person means by `argument`: a path, or the bare name of a variant in `specs/`; or in the directory
        `others`, where one is given.

        Raises:
            UsageError: there is no such file; says where it was looked for, and names the variants that look like it.
        """
        path = Path(argument)
        if path.is_file():
            return path
        folders = [self.specs] if others is None else [self.specs, others]
        for folder in folders:
            if VARIANT.fullmatch(argument) and (folder / f"{argument}.yaml").is_file():
                return Path(self.show(folder / f"{argument}.yaml"))
        if path.is_dir():
            raise UsageError(f"{argument} is a directory; name the specs in it, or use --all for all of specs/")
        known = {spec.stem for folder in folders for spec in folder.glob("*.yaml")}
        hint = nearest(path.stem, known)
        looked = [f"{self.show(folder)}/" for folder in folders if folder.is_dir()]
        where = f"in {' or '.join(looked)}" if looked else f"for there is no specs/ in {Path.cwd()} or above it"
        raise UsageError(f"there is no spec {argument}: no such file, and no variant of this name {where}{hint}")

    def show(self, path: Path) -> str:
        """`path` as printed in messages: as one would type it where one stands, if that is in the project, as the path
        is; else as it was given."""
        here, whole = Path.cwd().resolve(), _anchored(path)
        if whole.is_relative_to(self.root) and here.is_relative_to(self.root):
            return Path(os.path.relpath(whole, here)).as_posix()
        return str(path)

    def show_inside(self, path: Path) -> str:
        """`path` relative to the project when inside it, wherever one stands; else as it was given."""
        whole = _anchored(path)
        return whole.relative_to(self.root).as_posix() if whole.is_relative_to(self.root) else str(path)

    def show_portable(self, path: Path) -> str:
        """`path` as written into generated files: relative to the project when inside it, else only the file's name."""
        return self.show_inside(path) if _anchored(path).is_relative_to(self.root) else path.name

    def explain(self, error: OSError) -> str:
        """An error of the file system, with its path as others are shown."""
        if not isinstance(error.filename, str) or error.strerror is None:
            return str(error)
        return f"{self.show(Path(error.filename))}: {error.strerror}"


def nearest(name: str, known: Iterable[str]) -> str:
    """What follows a message about an unknown name: those that look like it, if any do."""
    near = difflib.get_close_matches(name, sorted(known), n=3)
    return f"; did you mean {' or '.join(near)}?" if near else ""


def bundled(kind: str) -> Path:
    """The directory `kind` ("templates" or "specs") that comes with flagen: in a wheel, or beside it in a checkout."""
    packed = PACKAGE / f"_{kind}"
    return packed if packed.is_dir() else PACKAGE.parent / kind


def _anchored(path: Path) -> Path:
    """`path` made absolute; the file itself may be a link and stays one."""
    return path.parent.resolve() / path.name
