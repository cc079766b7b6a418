"""Compiled templates, kept from one process to the next: compiling them takes longer than all else in a build.

A template is compiled to Python code that also says which names it uses. What decides what comes out is its text, its
name, the releases of Jinja2 and Python, and flagen's own code around it: an entry begins with a hash of all these and
of the code, and one that begins otherwise (an old one, a damaged one) is not there. Neither is one that cannot be read,
and what cannot be written is not kept: a build goes on without.
"""

from __future__ import annotations

import hashlib
import os
import sys
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import jinja2
from jinja2.bccache import Bucket, BytecodeCache

LOCATION = "FLAGEN_CACHE"
"""The variable of the environment that names the directory; empty, nothing is kept."""

_HASH = hashlib.sha256
_OWN = b"".join((Path(__file__).with_name(name)).read_bytes() for name in ("env.py", "template_cache.py"))


def cache_directory(environ: Mapping[str, str] = os.environ) -> Path | None:
    """Where the user has caches, unless told otherwise; None for nowhere."""
    if LOCATION in environ:
        return Path(environ[LOCATION]) if environ[LOCATION] else None
    if environ.get("XDG_CACHE_HOME"):
        return Path(environ["XDG_CACHE_HOME"], "flagen")
    with suppress(RuntimeError):  # There need not be a home.
        return Path.home() / ".cache" / "flagen"
    return None


class TemplateCache(BytecodeCache):
    """A file for each template; the next version of a template takes the place of the last."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def load_bytecode(self, bucket: Bucket) -> None:
        with suppress(OSError, ValueError, EOFError, TypeError):
            content = self._path(bucket).read_bytes()
            start, code = content[: _HASH().digest_size], content[_HASH().digest_size :]
            if start == _fingerprint(bucket, code):
                bucket.bytecode_from_string(code)

    def dump_bytecode(self, bucket: Bucket) -> None:
        code, target = bucket.bytecode_to_string(), self._path(bucket)
        with suppress(OSError):
            self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            handle, temporary = tempfile.mkstemp(dir=self.directory)
            try:
                with os.fdopen(handle, "wb") as file:
                    file.write(_fingerprint(bucket, code) + code)
                os.replace(temporary, target)  # Never half of one, whoever else builds at the same time.
            finally:
                Path(temporary).unlink(missing_ok=True)

    def _path(self, bucket: Bucket) -> Path:
        return self.directory / f"{bucket.key}.{sys.implementation.cache_tag}.template"


def _fingerprint(bucket: Bucket, code: bytes) -> bytes:
    """A hash of an entry and of all that it is made from; `key` is the template's path, `checksum` that of its text."""
    releases = f"{bucket.key} {bucket.checksum} {jinja2.__version__} {sys.version}"
    return _HASH(b"\n".join((releases.encode(), _OWN, code))).digest()
