"""What each stage makes of three specs, as `flagen explain` shows it, beside what it made of them before.

A change shows up as a difference. Look at it, and if it is what you meant, take it over with

    FLAGEN_ACCEPT=1 python -m pytest tests/golden
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from flagen.pipeline import Stages

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
CASES = {
    "gated_delta_product": Path("specs/gated_delta_product.yaml"),
    "oja": Path("specs/oja.yaml"),
    "normalized": Path("tests/golden/normalized.yaml"),
}
STAGES = ("normal-form", "chunk-form", "adjoint", "plan")
ACCEPT = "FLAGEN_ACCEPT=1 python -m pytest tests/golden"


def dumps(name: str) -> dict[str, str]:
    """File name to text, a file a stage."""
    stages = Stages(CASES[name])
    return {f"{stage}.txt": f"{stages.dump(stage)}\n" for stage in STAGES}


def accept(directory: Path, files: dict[str, str]) -> None:
    directory.mkdir(exist_ok=True)
    for path in directory.iterdir():
        if path.name not in files:
            path.unlink()
    for name, text in files.items():
        (directory / name).write_text(text, encoding="utf-8")


@pytest.mark.parametrize("name", CASES)
def test_stages(name, monkeypatch):
    monkeypatch.chdir(ROOT)  # dumps name the spec's file as it was given
    directory, files = HERE / name, dumps(name)
    if os.environ.get("FLAGEN_ACCEPT"):
        accept(directory, files)
    found = {path.name: path.read_text(encoding="utf-8") for path in sorted(directory.iterdir())}
    assert sorted(found) == sorted(files), f"files are missing or left over: {ACCEPT}"
    for file, text in files.items():
        assert found[file] == text, f"{name}/{file} is not what it was; if it should be, {ACCEPT}"


def test_every_directory_belongs_to_a_case():
    directories = {path.name for path in HERE.iterdir() if path.is_dir() and path.name != "__pycache__"}
    assert directories == set(CASES), f"a case is missing or left over: {ACCEPT}"
