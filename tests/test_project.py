"""What the repository promises about itself."""

from __future__ import annotations

import re
import subprocess
import tomllib
from pathlib import Path

import pytest

import flagen

ROOT = Path(__file__).resolve().parent.parent
MAX_LINES = 500
MAX_LINES_OF_KERNELS = 640
"""Of a generated file of kernels: the front end of a layer makes some longer, and several states, each of which has in
them what others have once."""


def tracked() -> list[Path]:
    listing = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True)
    return [ROOT / name for name in listing.stdout.split("\0") if name and (ROOT / name).is_file()]


@pytest.fixture(scope="module")
def texts() -> dict[str, str]:
    """Every tracked file and its text. Pictures have none; specs that show how odd input is read are not all text."""
    paths = {path.relative_to(ROOT).as_posix(): path for path in tracked() if path.suffix not in (".png", ".npz")}
    odd = ("tests/spec/invalid/", "tests/spec/valid/")
    return {name: path.read_text(encoding="utf-8") for name, path in paths.items() if not name.startswith(odd)}


def test_no_file_names_somebodys_machine(texts: dict[str, str]) -> None:
    absolute = re.compile(r"(?<![\w./$}])/(?:home|root|tmp|work|Users|mnt)/\w")
    assert not {name: found for name, text in texts.items() if (found := absolute.findall(text))}


def test_no_file_is_too_long_to_find_ones_way_in(texts: dict[str, str]) -> None:
    """But for `generated/ops.py`: it lists what there is to import, and is as long as that is much."""
    ours = {name: text for name, text in texts.items() if name.endswith((".py", ".j2")) and name != "generated/ops.py"}
    files = "fused_recurrent_backward_kernels|chunk_kernels|chunk_backward_gradients|chunk_backward_walks"
    kernels = re.compile(rf"generated/\w+/(?:{files})\.py")
    most = {name: MAX_LINES_OF_KERNELS if kernels.fullmatch(name) else MAX_LINES for name in ours}
    assert not {name: text.count("\n") for name, text in ours.items() if text.count("\n") > most[name]}


def test_nothing_is_left_for_later(texts: dict[str, str]) -> None:
    mark = re.compile("TO" + "DO|FIX" + r"ME|\bXX" + r"X\b")
    assert not {name: found for name, text in texts.items() if (found := mark.findall(text))}


def test_text_files_end_in_one_newline(texts: dict[str, str]) -> None:
    assert not [name for name, text in texts.items() if text and (not text.endswith("\n") or text.endswith("\n\n"))]


def test_no_text_of_a_spec_can_reach_an_evaluator(texts: dict[str, str]) -> None:
    evaluator = re.compile(r"\b(?:eval|exec|sympify|parse_expr|lambdify|parse_latex)\(")
    ours = {name: text for name, text in texts.items() if name.startswith("flagen/")}
    assert not {name: found for name, text in ours.items() if (found := evaluator.findall(text))}


def test_the_changelog_knows_this_version(texts: dict[str, str]) -> None:
    assert "## Unreleased" in texts["CHANGELOG.md"] or f"## {flagen.__version__}" in texts["CHANGELOG.md"]


def test_links_between_documents_lead_somewhere(texts: dict[str, str]) -> None:
    broken = []
    for name, text in texts.items():
        if name.endswith(".md"):
            for target in re.findall(r"\]\((?!https?:|#|mailto:)([^)#\s]+)", text):
                if not (ROOT / name).parent.joinpath(target).exists():
                    broken.append(f"{name}: {target}")
    assert not broken


def test_decision_records_are_numbered_once(texts: dict[str, str]) -> None:
    records = [Path(name).name for name in texts if name.startswith("docs/decisions/")]
    numbers = [name[:3] for name in records]
    assert all(re.fullmatch(r"\d{3}-[a-z0-9-]+\.md", name) for name in records), records
    assert len(set(numbers)) == len(numbers)


def test_building_depends_on_no_torch() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert not [need for need in project["dependencies"] if need.startswith(("torch", "triton"))]
