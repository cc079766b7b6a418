"""Where things are: the project a command runs in, and what flagen brings along.

A project is a directory with `specs/` in it; packages go to `generated/` beside it, and what flagen remembers from one
build to the next to `.flagen/`. Nothing has to exist: without a project, the working directory is one.
"""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass
from pathlib import Path

PACKAGE = Path(__file__).resolve().parent
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
        return tuple(_from_here(path) for path in sorted(self.specs.glob("*.yaml")))

    def find_spec(self, argument: str) -> Path:
        """The spec a person means by `argument`: a path, or the bare name of a variant in `specs/`.

        Raises:
            UsageError: there is no such file; names the variants that look like it.
        """
        path = Path(argument)
        if path.is_file():
            return path
        if path.is_dir():
            raise UsageError(f"{argument} is a directory; name the specs in it, or use --all for all of specs/")
        named = self.specs / f"{argument}.yaml"
        if VARIANT.fullmatch(argument) and named.is_file():
            return _from_here(named)
        near = difflib.get_close_matches(path.stem, [spec.stem for spec in self.all_specs()], n=3)
        hint = f"; did you mean {' or '.join(near)}?" if near else ""
        raise UsageError(f"there is no spec {argument}{hint}")

    def show(self, path: Path) -> str:
        """`path` as printed in messages and files: relative to the project when inside it, else as it was given."""
        try:
            return _anchored(path).relative_to(self.root).as_posix()
        except ValueError:
            return str(path)

    def show_portable(self, path: Path) -> str:
        """`path` as written into generated files: relative to the project when inside it, else only the file's name."""
        inside = _anchored(path).is_relative_to(self.root)
        return self.show(path) if inside else path.name


def bundled(kind: str) -> Path:
    """The directory `kind` ("templates" or "specs") that comes with flagen: in a wheel, or beside it in a checkout."""
    packed = PACKAGE / f"_{kind}"
    return packed if packed.is_dir() else PACKAGE.parent / kind


def _from_here(path: Path) -> Path:
    """`path` relative to the working directory when inside it, as a person there would type it."""
    here = Path.cwd()
    return path.relative_to(here) if path.is_relative_to(here) else path


def _anchored(path: Path) -> Path:
    """`path` made absolute; the file itself may be a link and stays one."""
    return path.parent.resolve() / path.name
