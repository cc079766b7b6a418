"""The examples run, and the cross-check sees what it is there to see."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.tiers import exhaustive, tiered

ROOT = Path(__file__).resolve().parent.parent
VARIANT = "gla"


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """What the cross-check looks at, to be tampered with."""
    for name in (f"specs/{VARIANT}.yaml", "examples/crosscheck.py"):
        (tmp_path / name).parent.mkdir()
        shutil.copy(ROOT / name, tmp_path / name)
    for name in (VARIANT, "shared"):
        shutil.copytree(ROOT / "generated" / name, tmp_path / "generated" / name)
    shutil.copy(ROOT / "generated" / "__init__.py", tmp_path / "generated")
    return tmp_path


FEW = "import typer; from examples import crosscheck; crosscheck.LENGTHS = (9, 0, 1, 7); typer.run(crosscheck.main)"
"""The same on fewer tokens, for what their number does not decide."""


def crosscheck(
    checkout: Path, variant: str = VARIANT, run: tuple[str, ...] = ("-c", FEW)
) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *run, variant]
    return subprocess.run(command, cwd=checkout, capture_output=True, text=True, check=False, timeout=900)


@pytest.mark.parametrize(
    "run", [("-c", FEW), pytest.param(("examples/crosscheck.py",), marks=exhaustive)], ids=["few tokens", "all"]
)
def test_operators_agree(checkout: Path, run: tuple[str, ...]) -> None:
    done = crosscheck(checkout, run=run)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "gradient of initial S" in done.stdout
    assert "naive_chunk ┃ chunk   ┃ fused_recurrent" in done.stdout


@tiered("kind", [("naive_chunk",), ("chunk",), ("fused_recurrent",)], lambda kind: kind == "chunk")
def test_an_operator_that_is_slightly_off_is_found(checkout: Path, kind: str) -> None:
    init = checkout / "generated" / VARIANT / "__init__.py"
    text = init.read_text() + (
        f"\n_right = {kind}_{VARIANT}\n"
        f"def {kind}_{VARIANT}(*args, **kwargs):\n"
        "    o, final_state = _right(*args, **kwargs)\n"
        "    return o * (1 + 3e-5), final_state\n"
    )
    init.write_text(text)
    assert crosscheck(checkout).returncode == 1


def test_where_there_is_nothing_to_compare_it_says_so(checkout: Path) -> None:
    init = checkout / "generated" / VARIANT / "__init__.py"
    kinds = ("naive_chunk", "chunk", "fused_recurrent")
    init.write_text(init.read_text() + f"\ndel {', '.join(f'{kind}_{VARIANT}' for kind in kinds)}\n")
    done = crosscheck(checkout)
    assert done.returncode == 0 and "nothing was compared" in done.stdout


def test_a_variant_that_is_not_there_is_named(checkout: Path) -> None:
    done = crosscheck(checkout, "glaa")
    said = " ".join(word for word in done.stderr.split() if word.isascii())
    assert done.returncode == 2 and "Traceback" not in said and "did you mean gla?" in said


@pytest.mark.parametrize(("variant", "staged"), [("gla", False), ("gsa", True), ("abc_attn", True)])
def test_the_gradients_of_stages_are_compared_as_well(variant: str, staged: bool) -> None:
    """Their kernels are in the packages of the stages."""
    spec = importlib.util.spec_from_file_location("crosscheck", ROOT / "examples" / "crosscheck.py")
    assert spec is not None and spec.loader is not None
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    folder = ROOT / "generated" / variant
    assert (folder / "chunk_backward.py").exists() != staged
    assert example.has_backward_kernels(SimpleNamespace(__path__=[str(folder)]), "chunk")
    assert not example.has_backward_kernels(SimpleNamespace(__path__=[str(folder)]), "naive_chunk")
