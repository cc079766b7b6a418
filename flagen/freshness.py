"""Whether a package is what a build would make now, told without building it.

A build is a function of the spec's bytes and those of the specs it uses, the name it is reported under, and the
tools: flagen's own sources and templates, Python and the libraries that print. After a build the hash of these and of
each file it made are kept in the project's `.flagen/`, one file a package. Losing that directory costs a rebuild and
nothing else.
"""

from __future__ import annotations

import functools
import hashlib
import json
import re
import sys
from collections.abc import Mapping
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any

from flagen.emit.writer import own_files
from flagen.project import DEVICE, PACKAGE, RUNTIME, bundled

_NAME = re.compile(rb"\b[a-z][a-z0-9_]{0,63}\b")
"""What may be a package's name."""
_LIBRARIES = ("gmpy2", "jinja2", "pyyaml", "ruff", "sympy")


@functools.cache
def tools_hash() -> str:
    """A hash of everything but the spec that decides what is in a package."""
    digest = hashlib.sha256(repr((sys.version_info[:2], [(name, version(name)) for name in _LIBRARIES])).encode())
    for directory, pattern in ((PACKAGE, "*.py"), (bundled("templates"), "*.j2")):
        for path in sorted(directory.rglob(pattern)):
            if path.is_relative_to(RUNTIME) and not path.is_relative_to(DEVICE):
                continue  # Written as it is, whatever the spec.
            content = path.read_bytes()
            digest.update(f"\n{path.relative_to(directory).as_posix()} {len(content)}\n".encode())
            digest.update(content)
    return digest.hexdigest()


def sources(path: Path) -> bytes:
    """The bytes of a spec, and of those beside it whose names stand in it, where it may use some."""
    text = path.read_bytes()
    parts = [text]
    if b"uses" in text or b"recurrence" in text:
        names = {name.decode() for name in _NAME.findall(text)} - {path.stem}
        beside = (path.with_name(f"{name}.yaml") for name in sorted(names))
        parts += [other.read_bytes() for other in beside if other.is_file()]
    return b"\n".join(parts)


def fingerprint(spec: bytes, shown: str) -> str:
    """A hash of everything that decides what a build of this spec, reported under the name `shown`, makes."""
    return _sha256(f"{tools_hash()}\n{shown}\n".encode() + spec)


def fresh_package(record: Path, key: str, out: Path) -> str | None:
    """The package in `out` that a build with the fingerprint `key` made, if it is there and untouched; else None."""
    with suppress(*_DAMAGE):
        remembered = json.loads(record.read_bytes())
        package = out / str(remembered["package"])
        files = _untouched(remembered, key, package)
        return package.name if files and files.keys() >= set(own_files(package)) else None
    return None


def fresh_files(record: Path, key: str, directory: Path) -> dict[str, str]:
    """The files in `directory` that were remembered under `key`, where all of them are there and untouched; or none."""
    with suppress(*_DAMAGE):
        files = _untouched(json.loads(record.read_bytes()), key, directory)
        return {path: (directory / path).read_bytes().decode() for path in files}
    return {}


_DAMAGE = (OSError, ValueError, KeyError, TypeError, AttributeError)
"""What comes of a record that is missing or damaged, or a file that is gone: then it is built again."""


def _untouched(remembered: Mapping[str, Any], key: str, directory: Path) -> Mapping[str, str]:
    """The files of a record and their hashes, if it is that of `key` and they are as they were; else nothing."""
    files: Mapping[str, str] = remembered["files"]
    same = remembered["key"] == key
    return files if same and all(_sha256((directory / x).read_bytes()) == sha for x, sha in files.items()) else {}


def remember(record: Path, key: str, package: str, files: Mapping[str, str]) -> None:
    """Keep what a build with the fingerprint `key` made, for the next one to find."""
    record.parent.mkdir(parents=True, exist_ok=True)
    ignore = record.parent / ".gitignore"
    if not ignore.exists():
        ignore.write_text("*\n")
    hashes = {path: _sha256(text.encode()) for path, text in sorted(files.items())}
    record.write_text(json.dumps({"key": key, "package": package, "files": hashes}, indent=1))


def record_path(memory: Path, spec: Path, out: Path) -> Path:
    """Where the build of `spec` into `out` is remembered."""
    both = "\n".join((str(spec.resolve()), str(out.resolve())))
    return memory / f"{_sha256(both.encode(errors='surrogateescape'))[:20]}.json"


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
