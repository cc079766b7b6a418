"""The training example around layers: it learns, goes on where it stopped, and gives the same on two processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from typer import Typer
from typer.testing import CliRunner, Result

from examples import train_lm as example
from examples import train_tiny_lm
from generated.models import CausalLM
from tests.tiers import exhaustive

SMALL = "--layers 2 --width 32 --context 24 --batch 4".split()

pytestmark = [
    pytest.mark.filterwarnings("ignore:Operators run without kernels"),
    pytest.mark.xdist_group("a model"),  # It is trained once for all.
]


@pytest.fixture(scope="module", autouse=True)
def _in_pytorch() -> Iterator[None]:
    """Layers take the PyTorch forms, on one thread; the text is short. Also for what is made once for all tests."""
    threads = torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("TRITON_INTERPRET", raising=False)
        patch.setattr(train_tiny_lm, "TEXT", ("docs/spec_language.md",))
        patch.setattr(example, "SAMPLE", 8)
        patch.setattr(example, "WARMUP", 2)
        torch.set_num_threads(1)
        yield
        torch.set_num_threads(threads)


def command(*arguments: str | Path) -> Result:
    app = Typer()
    app.command()(example.main)
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def losses(out: Path) -> list[float]:
    return json.loads((out / "losses.json").read_text())["bits_per_byte"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("whole")
    done = command("GatedDeltaNet", *SMALL, "--steps", "8", "--out", out)
    assert done.exit_code == 0, done.output
    return out


def test_it_learns_and_leaves_a_model(whole):
    assert losses(whole)[-1] < losses(whole)[0] - 0.5
    assert {path.name for path in whole.iterdir()} == {"checkpoint.pt", "losses.json", "loss.png", "model"}
    model = CausalLM.from_pretrained(whole / "model")
    assert model.generate(torch.tensor([list(b"The ")]), max_new_tokens=3).shape == (1, 7)


def test_a_resumed_run_has_the_bits_of_one_that_was_not_interrupted(whole, tmp_path):
    assert command("GatedDeltaNet", *SMALL, "--steps", "5", "--out", tmp_path).exit_code == 0
    assert command("GatedDeltaNet", *SMALL, "--steps", "8", "--out", tmp_path, "--resume").exit_code == 0
    assert losses(tmp_path) == losses(whole)
    one, other = (torch.load(out / "checkpoint.pt", weights_only=True) for out in (whole, tmp_path))
    assert all(torch.equal(x, other["model"][name]) for name, x in one["model"].items())


def test_a_checkpoint_of_another_run_is_refused(whole):
    done = command("GatedDeltaNet", *SMALL, "--steps", "9", "--out", whole, "--resume", "--seed", "1")
    assert done.exit_code == 2 and "another run" in done.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["Nothing"], "GatedDeltaNet"),
        (["GatedDeltaNet", "--set", "num_head=3"], "num_heads"),
        (["GatedDeltaNet", "--set", "num_heads"], "NAME=VALUE"),
    ],
)
def test_bad_arguments(arguments, message, tmp_path):
    done = command(*arguments, "--out", tmp_path)
    assert done.exit_code == 2 and message in done.output
    assert not list(tmp_path.iterdir())


@exhaustive
def test_two_processes_train_as_one(whole, tmp_path):
    """Sharded by FSDP2, over gloo: the same losses but for the order of sums."""
    program = (
        "import sys, torch, typer\n"
        "from examples import train_tiny_lm, train_lm\n"
        "torch.set_num_threads(1)\n"
        "train_tiny_lm.TEXT, train_lm.SAMPLE, train_lm.WARMUP = ('docs/spec_language.md',), 8, 2\n"
        "typer.run(train_lm.main)\n"
    )
    script = tmp_path / "train.py"
    script.write_text(program)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", script]
    arguments = ["GatedDeltaNet", *SMALL, "--steps", "8", "--out", tmp_path / "out"]
    done = subprocess.run(
        [*map(str, launch), *map(str, arguments)],
        cwd=example.ROOT,
        env={**os.environ, "PYTHONPATH": str(example.ROOT)},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    torch.testing.assert_close(
        torch.tensor(losses(tmp_path / "out")), torch.tensor(losses(whole)), rtol=1e-4, atol=1e-4
    )
