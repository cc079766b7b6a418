"""The training example: every variant learns, chunk by chunk as token by token, and a run goes on where it stopped."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from typer import Typer
from typer.testing import CliRunner, Result

from examples import train_tiny_lm as example
from examples.train_tiny_lm import Config, Form, Run, find_variant
from tests.specs import OPERATORS
from tests.tiers import variants

NAMES = list(OPERATORS)
SCALAR_AND_CHANNEL_DECAYS = ("gated_delta_product", "mamba2", "kda", "rwkv6")
CPU = torch.device("cpu")
SMALL = "--layers 1 --width 32 --context 16 --batch 2".split()
SAME = 1e-5
"""How many bits the loss of a step may differ by between two forms, whose parameters drift apart by rounding."""

every_variant = variants(NAMES)


@pytest.fixture(autouse=True)
def _in_pytorch(monkeypatch: pytest.MonkeyPatch) -> None:
    """In Triton's interpreter a few steps take minutes, so may many threads; and of the text, one file is enough."""
    monkeypatch.delenv("TRITON_INTERPRET")
    monkeypatch.setattr(example, "TEXT", ("docs/spec_language.md",))
    torch.set_num_threads(1)


def start(name: str, form: Form | None = None, **settings: int) -> Run:
    shape = {"layers": 1, "width": 64, "context": 24, "batch": 4, "seed": 0} | settings
    variant = find_variant(name)
    return Run.start(variant, Config(variant=name, **shape), form or variant.best, CPU)


def trained(run: Run, steps: int) -> Run:
    text, _ = example.read_text()
    for _ in range(steps):
        run.step(text)
    return run


def far_apart(one: Run, other: Run) -> float:
    return max(abs(a - b) for a, b in zip(one.losses, other.losses, strict=True))


def command(*arguments: str | Path) -> Result:
    app = Typer()
    app.command()(example.main)
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


# ------------------------------------------------------------------------------------------------------------ learning


@every_variant
def test_the_loss_falls(name: str) -> None:
    run = trained(start(name, seed=1), 20)
    assert sum(run.losses[-3:]) < sum(run.losses[:3]) - 3 * 2


@every_variant
def test_every_parameter_takes_part(name: str) -> None:
    run = trained(start(name, layers=2), 1)
    still = [key for key, x in run.model.named_parameters() if x.grad is None or not x.grad.any()]
    assert not still


@every_variant
def test_arguments_are_in_their_ranges(name: str) -> None:
    """At the ends of what a projection may give, too."""
    mixer = start(name).model.layers[0].mixer
    declared = {decl.name: decl for decl in (*mixer.spec.inputs, *mixer.tensors)}
    for size in (0.1, 100.0):
        given = mixer.arguments(size * torch.randn(2, 5, 64))
        assert given.keys() == declared.keys()
        for key, x in given.items():
            low, high = declared[key].range.low, declared[key].range.high
            assert ((low <= x) & (x <= high)).all(), key
            assert x.std() > 0, key


@pytest.mark.parametrize("name", SCALAR_AND_CHANNEL_DECAYS)
def test_chunks_and_tokens_give_the_same_curve(name: str) -> None:
    """Beyond one chunk."""
    one, other = (trained(start(name, form, context=70, batch=2), 5) for form in (Form.CHUNK, Form.NAIVE_RECURRENT))
    assert far_apart(one, other) < SAME


def test_the_curve_of_a_wrong_operator_is_another() -> None:
    right, wrong = start("gated_delta_product"), start("gated_delta_product")
    wrong.operator = slightly_off(wrong.operator)
    assert far_apart(trained(right, 12), trained(wrong, 12)) > 3 * SAME


def slightly_off(operator: Callable[..., tuple[Tensor, Any]]) -> Callable[..., tuple[Tensor, Any]]:
    def off(**arguments: Any) -> tuple[Tensor, Any]:
        o, state = operator(**arguments)
        return o + 3e-3 * o.roll(1, -1), state

    return off


def test_the_seed_decides() -> None:
    first, again, other = (trained(start("gla", seed=seed), 3) for seed in (0, 0, 1))
    assert first.losses == again.losses
    assert far_apart(first, other) > 100 * SAME


@every_variant
def test_decoding_is_the_whole_sequence_at_once(name: str) -> None:
    """A prompt, then byte after byte from the state it leaves."""
    variant, run = find_variant(name), start(name, layers=2)
    tokens = torch.randint(0, 256, (2, 21), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected, _ = run.model(tokens, run.operator)
        logits, pasts = run.model(tokens[:, :17], run.operator)
        pieces = [logits]
        for t in range(17, 21):
            logits, pasts = run.model(tokens[:, t : t + 1], variant.decoder, pasts)
            pieces.append(logits)
    torch.testing.assert_close(torch.cat(pieces, dim=1), expected, atol=1e-4, rtol=1e-4)


# -------------------------------------------------------------------------------------------------------- command line


def test_a_run_that_was_interrupted_is_the_same_run(tmp_path: Path) -> None:
    for out, steps in (("whole", (9,)), ("parts", (4, 9))):
        for number, upto in enumerate(steps):
            resume = ["--resume"] if number else []
            done = command("mamba2", *SMALL, "--steps", str(upto), "--out", tmp_path / out, *resume)
            assert done.exit_code == 0, done.output
    whole, parts = (json.loads((tmp_path / out / "losses.json").read_text()) for out in ("whole", "parts"))
    assert len(whole["bits_per_byte"]["chunk"]) == 9
    assert whole == parts


def test_two_forms_side_by_side(tmp_path: Path) -> None:
    done = command("delta_rule", *SMALL, "--steps", "3", "--compare", "naive_recurrent", "--out", tmp_path)
    assert done.exit_code == 0, done.output
    assert {path.name for path in tmp_path.iterdir()} == {"chunk.pt", "naive_recurrent.pt", "losses.json", "loss.png"}
    report = json.loads((tmp_path / "losses.json").read_text())
    assert {form: len(losses) for form, losses in report["bits_per_byte"].items()} == {"chunk": 3, "naive_recurrent": 3}
    assert report["held_out_bits_per_byte"].keys() == {"chunk", "naive_recurrent"}
    saved = torch.load(tmp_path / "chunk.pt", weights_only=True)
    assert saved.keys() == {"model", "optimizer", "step", "losses", "config"}
    assert saved["step"] == 3


def test_a_loss_that_is_no_number_ends_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Run, "bits", lambda self, pieces: self.model.head.bias.sum() * float("nan"))
    done = command("gla", *SMALL, "--steps", "3", "--out", tmp_path)
    assert done.exit_code == 1
    assert "the loss of step 1 is nan" in done.output
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["gated_delta_prodct"], "did you mean gated_delta_product"),
        (["gla", "--form", "parallel"], "naive_recurrent"),
        (["gla", "--device", "nonsense"], "nonsense cannot be used"),
        (["gla", "--width", "33"], "expected a multiple of 32, got 33"),
        (["gla", "--context", "9999999"], "the text held out has"),
        (["gla", "--resume", "--out", "nowhere"], "there is no checkpoint"),
    ],
)
def test_what_cannot_be_is_said(arguments: list[str], message: str) -> None:
    done = command(*arguments)
    assert done.exit_code == 2
    assert message in " ".join(done.output.replace("│", " ").split())


def test_without_a_chunk_form_it_trains_by_the_next(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for form in (Form.CHUNK, Form.NAIVE_CHUNK):
        monkeypatch.delattr(f"generated.gla.{form}_gla")
    done = command("gla", *SMALL, "--steps", "1", "--out", tmp_path)
    assert done.exit_code == 0, done.output
    assert (tmp_path / "fused_recurrent.pt").exists()


def test_a_form_that_a_variant_lacks_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr("generated.gla.chunk_gla")
    done = command("gla", "--form", "chunk")
    assert done.exit_code == 2
    said = " ".join(done.output.replace("│", " ").split())
    assert "gla has no form chunk; it has naive_chunk, fused_recurrent, naive_recurrent" in said


def test_a_checkpoint_of_another_run_is_refused(tmp_path: Path) -> None:
    assert command("gla", *SMALL, "--steps", "1", "--out", tmp_path).exit_code == 0
    done = command("gla", *SMALL, "--steps", "2", "--seed", "3", "--resume", "--out", tmp_path)
    assert done.exit_code == 2
    assert "is of another run: seed was 0, not 3" in " ".join(done.output.replace("│", " ").split())
