"""The spec language: YAML and expressions in, a frozen and fully checked `Spec` out."""

from __future__ import annotations

import os
from functools import cache
from hashlib import sha256

from flagen.diagnostics import Diagnostic, Source, Span, SpecError
from flagen.spec.limits import MAX_BYTES
from flagen.spec.loader import load
from flagen.spec.model import Spec
from flagen.spec.printer import to_source
from flagen.spec.ranges import interval_of
from flagen.spec.reader import Find, read_spec
from flagen.spec.report import CODES, Report

__all__ = ["CODES", "check_file", "check_spec", "interval_of", "load_spec", "parse_spec", "to_source"]


def load_spec(path: str | os.PathLike[str]) -> Spec:
    """The spec in a file. Raises SpecError with every diagnostic of the file."""
    return check_file(path)[0]


def check_file(path: str | os.PathLike[str]) -> tuple[Spec, tuple[Diagnostic, ...]]:
    """The spec in a file, and the warnings about it. Raises SpecError with every diagnostic of the file."""
    file = os.fspath(path)
    try:
        with open(file, "rb") as stream:
            # One byte more than is allowed tells that there are too many, however many there are.
            data = stream.read(MAX_BYTES + 1)
    except OSError as error:
        message = f"cannot read the file: {error.strerror or error}"
        raise SpecError(Source(file, ""), [Diagnostic("E101", Span(file, 1, 1), message)]) from None
    return _checked(*_check(data, file, _beside(file)))


def parse_spec(text: str, file: str = "<spec>", beside: str | os.PathLike[str] | None = None) -> Spec:
    """The spec in a text; others that it uses are looked for beside the file `beside`. Raises SpecError with every
    diagnostic of the text."""
    return _checked(*_check(_encode(text), file, None if beside is None else _beside(os.fspath(beside))))[0]


def check_spec(text: str, file: str = "<spec>") -> tuple[Spec | None, tuple[Diagnostic, ...]]:
    """The spec in a text, None where it has errors, and its errors and warnings in order of position."""
    spec, report = _check(_encode(text), file)
    return spec, report.ordered()


def _encode(text: str) -> bytes:
    # A lone surrogate becomes bytes that are not UTF-8, and is reported as just that.
    return text.encode("utf-8", "surrogatepass")


def _check(data: bytes, file: str, find: Find | None = None) -> tuple[Spec | None, Report]:
    root, report = load(data, file)
    return (None if root is None else read_spec(root, report, sha256(data).hexdigest(), find)), report


def _beside(file: str) -> Find:
    """Finds the specs that stand in the same directory as a file: what a layer there uses."""

    @cache
    def find(name: str) -> Spec | str:
        path = os.path.join(os.path.dirname(file), f"{name}.yaml")
        if not os.path.isfile(path):
            return f"there is no {name}.yaml beside this spec"
        with open(path, "rb") as stream:
            data = stream.read(MAX_BYTES + 1)
        # Without a way to find others: what that spec itself uses is no concern of this one.
        return _check(data, path)[0] or f"{name}.yaml has errors of its own"

    return find


def _checked(spec: Spec | None, report: Report) -> tuple[Spec, tuple[Diagnostic, ...]]:
    if spec is None:
        raise SpecError(report.source, report.diagnostics)
    return spec, report.ordered()
