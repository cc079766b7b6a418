"""A command line to type at, in a project of its own."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from flagen.cli import run

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Done:
    """What a command left: its exit code and what it printed."""

    code: int
    out: str
    err: str


Flagen = Callable[..., Done]


@dataclass(frozen=True)
class Workspace:
    """A directory with `specs/`, the working directory of a test."""

    root: Path

    def spec(self, name: str) -> Path:
        return self.root / "specs" / f"{name}.yaml"

    def take(self, *names: str) -> None:
        """Copy specs of flagen's own into the project."""
        for name in names:
            shutil.copy(ROOT / "specs" / f"{name}.yaml", self.spec(name))

    def edit(self, name: str, old: str, new: str) -> None:
        text = self.spec(name).read_text()
        assert old in text
        self.spec(name).write_text(text.replace(old, new))

    def generated(self) -> dict[str, str]:
        """Every file of the packages in `generated/`, with its text."""
        return {path: text for path, text in self.everything().items() if not _is_common(path)}

    def common(self) -> dict[str, str]:
        """The other files in `generated/`: what packages share, and the lists of them."""
        return {path: text for path, text in self.everything().items() if _is_common(path)}

    def everything(self) -> dict[str, str]:
        root = self.root / "generated"
        return {p.relative_to(root).as_posix(): p.read_text() for p in sorted(root.rglob("*")) if p.is_file()}


def _is_common(path: str) -> bool:
    return "/" not in path or path.startswith(("shared/", "modules/", "compat/", "models/"))


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    root = tmp_path / "project"
    (root / "specs").mkdir(parents=True)
    monkeypatch.chdir(root)
    return Workspace(root)


@pytest.fixture
def flagen(project: Workspace, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Flagen:
    """Run the command in this process, in the project."""

    def call(*arguments: str) -> Done:
        monkeypatch.setattr(sys, "argv", ["flagen", *arguments])
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            run()
        code = stop.value.code
        assert code is None or isinstance(code, int)
        return Done(code or 0, *capsys.readouterr())

    return call
