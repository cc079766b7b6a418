"""What README.md shows is what happens."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from flagen.diagnostics import SpecError
from flagen.spec import load_spec, parse_spec
from tests.specs import LAYERS, OPERATORS

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.DOTALL | re.MULTILINE)


def variant(name: str) -> str:
    """The spec of that name in the README."""
    (text,) = [block for block in blocks("yaml") if f"\nname: {name}\n" in block]
    return text


def console(command: str) -> str:
    """What the README shows that `command` prints."""
    (session,) = [block for block in blocks("console") if block.startswith(f"$ {command}\n")]
    return session.split("\n", 1)[1]


def flagen(*arguments: str, cwd: Path) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "flagen", *arguments], cwd=cwd, capture_output=True, text=True, check=False, timeout=900
    )
    return done.stdout + done.stderr


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A project with the worked example in it."""
    (tmp_path / "specs").mkdir()
    (tmp_path / "specs" / "decoupled_delta.yaml").write_text(variant("decoupled_delta"))
    return tmp_path


def test_the_first_example_is_the_spec_it_names() -> None:
    shown, ours = parse_spec(variant("gated_delta_rule")), load_spec(ROOT / "specs" / "gated_delta_rule.yaml")
    assert (shown.inputs, shown.derived, shown.update, shown.output) == (
        ours.inputs,
        ours.derived,
        ours.update,
        ours.output,
    )


def test_what_there_is_is_counted() -> None:
    """Operators, layers and examples; and every operator has its place in the table of variants."""
    assert f"has {len(OPERATORS)} operators ready, and {len(LAYERS)} layers" in README
    assert f"has {len(list((ROOT / 'examples' / 'specs').glob('*.yaml')))} more that no paper has" in README
    rows = [line for line in README.splitlines() if line.startswith("| ")]
    assert not [name for name in OPERATORS if not any(f"`{name}`" in row for row in rows)]


def test_starting_a_variant(tmp_path: Path) -> None:
    (tmp_path / "specs").mkdir()
    command = "flagen new decoupled_delta --like gated_delta_rule"
    assert flagen(*command.split()[1:], cwd=tmp_path) == console(command)


def test_the_mistake_is_reported_as_shown() -> None:
    with pytest.raises(SpecError) as error:
        parse_spec(variant("decoupled_delta").replace("write * v", "wirte * v"), "specs/decoupled_delta.yaml")
    assert f"{error.value}\n" == console("flagen check decoupled_delta")


def test_the_normal_form_is_as_shown(project: Path) -> None:
    command = "flagen explain decoupled_delta --stage normal-form"
    assert flagen(*command.split()[1:], cwd=project).strip() == console(command).strip()


def test_the_dataflow_is_as_shown() -> None:
    (drawn,) = blocks("mermaid")
    assert f"```mermaid\n{drawn}```" in flagen(
        *"explain gated_deltanet --stage layer --format markdown".split(), cwd=ROOT
    )


def test_the_build_prints_as_shown(project: Path) -> None:
    figures = re.compile(r"\d+ written|\(\d+\.\d\d s\)")
    command = "flagen build decoupled_delta"
    printed = flagen(*command.split()[1:], cwd=project)
    assert figures.sub("", printed) == figures.sub("", console(command))


CHECKED = {
    "naive_chunk_gated_delta_rule": "o.shape == (B, T, H, V) and state.shape == (B, H, K, V)",
    "CausalLM": "loss.isfinite() and prompt.shape[1] < tokens.shape[1] <= prompt.shape[1] + 8",
    "as_fla": "__import__('fla.ops.kda').ops.kda.chunk_kda.__module__.startswith('generated.')",
}
"""What is true after each Python example, by a word in it."""


def test_each_python_example_is_checked() -> None:
    assert [[word for word in CHECKED if word in block] for block in blocks("python")] == [[word] for word in CHECKED]


@pytest.mark.parametrize("word", CHECKED)
def test_the_python_examples_run(word: str, tmp_path: Path) -> None:
    (program,) = (block for block in blocks("python") if word in block)
    program = f"import sys; sys.path.insert(0, {str(ROOT)!r})\n{program}\nassert {CHECKED[word]}\n"
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    subprocess.run([sys.executable, "-c", program], cwd=tmp_path, env=environment, check=True, timeout=900)


def test_make_targets_exist() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    texts = README + (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    named = set(re.findall(r"(?:`|^)make ([a-z-]+)", texts, re.MULTILINE))
    assert {"demo", "test"} <= named
    assert not {target for target in named if not re.search(rf"^{target}:", makefile, re.MULTILINE)}
