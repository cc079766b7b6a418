"""Putting a package on disk: what changed and nothing else, all of it or none, and never over somebody else's file."""

from __future__ import annotations

import difflib
import os
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from flagen.diagnostics import InternalError
from flagen.emit.banner import SUFFIXES, has_banner, is_edited


class ForeignFile(Exception):
    """A file that flagen did not write stands where it would write one."""

    def __init__(self, path: Path) -> None:
        super().__init__(f"{path} was not written by flagen (it has no banner); move it out of the way")
        self.path = path


@dataclass(frozen=True)
class Changes:
    """What writing a package would do, or did: paths inside the package, each in order. Of what is written or removed,
    `edited` had been changed by hand."""

    written: tuple[str, ...] = ()
    unchanged: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()
    edited: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.written or self.removed)

    def __or__(self, other: Changes) -> Changes:
        """The changes of both."""
        return Changes(
            self.written + other.written,
            self.unchanged + other.unchanged,
            self.removed + other.removed,
            self.edited + other.edited,
        )


def pending_changes(package: Path, files: Mapping[str, str], own: Collection[str] | None = None) -> Changes:
    """What has to change in the directory `package` to make it hold `files`; `own` are flagen's files that it holds, by
    default all in it.

    Raises:
        ForeignFile: a file there is not flagen's.
    """
    written, unchanged = [], []
    for path in sorted(files):
        _refuse_escape(path)
        present = _read(package / path)
        if present == files[path].encode():
            unchanged.append(path)
        elif present is None or _is_own(present):
            written.append(path)
        else:
            raise ForeignFile(package / path)
    stale = [path for path in sorted(own_files(package) if own is None else own) if path not in files]
    edited = [path for path in (*written, *stale) if is_edited((_read(package / path) or b"").decode(errors="replace"))]
    return Changes(tuple(written), tuple(unchanged), tuple(stale), tuple(edited))


def write_package(package: Path, files: Mapping[str, str], own: Collection[str] | None = None) -> Changes:
    """Make the directory `package` hold `files`: write what differs, remove what an earlier build left, or do nothing.

    Every new text is on disk beside its target before the first one takes its place, so a full disk or an interrupt
    leaves the package as it was.

    Raises:
        ForeignFile: a file there is not flagen's.
    """
    changes = pending_changes(package, files, own)
    staged: list[tuple[Path, Path]] = []
    try:
        for path in changes.written:
            target = package / path
            target.parent.mkdir(parents=True, exist_ok=True)
            staged.append((target.with_name(f".{target.name}.{os.getpid()}"), target))
            staged[-1][0].write_bytes(files[path].encode())
        for temporary, target in staged:
            os.replace(temporary, target)
    finally:
        for temporary, _ in staged:
            temporary.unlink(missing_ok=True)
    for path in changes.removed:
        (package / path).unlink(missing_ok=True)
    return changes


def differences(package: Path, shown: str, files: Mapping[str, str], own: Collection[str] | None = None) -> str:
    """A unified diff from what the directory `package` (called `shown` in the diff) holds to `files`; empty if equal.

    Raises:
        ForeignFile: a file there is not flagen's.
    """
    changes = pending_changes(package, files, own)
    diff: list[str] = []
    for path in sorted((*changes.written, *changes.removed)):
        old, new = _read(package / path), files.get(path)
        diff += difflib.unified_diff(
            _lines((old or b"").decode(errors="replace")),
            _lines(new or ""),
            "/dev/null" if old is None else f"a/{shown}/{path}",
            "/dev/null" if new is None else f"b/{shown}/{path}",
        )
    return "".join(line if line.endswith("\n") else f"{line}\n\\ No newline at end of file\n" for line in diff)


def own_files(package: Path, pattern: str = "**/*") -> Iterator[str]:
    """The files under the directory `package` that flagen wrote, as paths inside it."""
    for path in package.glob(pattern):
        if path.suffix in SUFFIXES and path.is_file() and not path.is_symlink() and _is_own(path.read_bytes()):
            yield path.relative_to(package).as_posix()


def _is_own(content: bytes) -> bool:
    return has_banner(content.decode(errors="replace"))


def _lines(text: str) -> list[str]:
    """The lines of `text` with their line feeds; other characters that Python takes for a line's end are left alone."""
    *whole, rest = text.split("\n")
    return [f"{line}\n" for line in whole] + ([rest] if rest else [])


def _read(path: Path) -> bytes | None:
    """The content of `path`, or None where there is no such file."""
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None


def _refuse_escape(path: str) -> None:
    if path.startswith("/") or ".." in Path(path).parts:
        raise InternalError(f"a generated file may not be written to {path!r}: it is outside its package")
