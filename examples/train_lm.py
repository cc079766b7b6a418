"""Train a small byte-level language model around any layer, on one process or on several.

    python examples/train_lm.py GatedDeltaNet
    python examples/train_lm.py KimiDeltaAttention --set head_dim=16 --set num_heads=8
    python examples/train_lm.py GatedDeltaNet --steps 600 --resume           go on where the last run stopped
    torchrun --standalone --nproc-per-node 2 examples/train_lm.py GatedDeltaNet   sharded by FSDP2

Any layer of generated/layers.py will do, your own included. The text is this project's own, prose and source; the last
tenth of every file is held out. A run leaves in runs/NAME/ its checkpoint, losses.json and loss.png, and model/, which
`CausalLM.from_pretrained` loads. It ends with bits per byte of the text held out and a sample.

On one process, a run that was resumed has the bits of one that was not interrupted.
"""

from __future__ import annotations

import inspect
import json
import math
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any

import torch
import torch.distributed as dist
import typer
import yaml
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.text import Text
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict, set_state_dict
from torch.distributed.fsdp import fully_shard

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from examples.train_tiny_lm import (  # noqa: E402
    BYTES,
    LEARNING_RATE,
    PROMPT,
    SAMPLE,
    SAVE_EVERY,
    TEMPERATURE,
    WARMUP,
    as_text,
    console,
    draw,
    find_device,
    guess,
    read_text,
)
from generated.models import CausalLM, ModelConfig  # noqa: E402

HEAD_DIM = 32
WHOLE = StateDictOptions(full_state_dict=True, cpu_offload=True)


@dataclass(frozen=True)
class Config:
    """What makes two runs the same run: it is in a checkpoint, and has to be the same to resume from it."""

    architecture: dict[str, Any]
    context: int
    batch: int
    seed: int


@dataclass(frozen=True)
class Workers:
    """The processes that train together: this one's rank and their number."""

    rank: int = 0
    count: int = 1

    @property
    def leads(self) -> bool:
        return self.rank == 0


@dataclass
class Run:
    """A model in training, whole or sharded."""

    config: Config
    model: CausalLM
    optimizer: torch.optim.Optimizer
    workers: Workers
    device: torch.device
    losses: list[float] = field(default_factory=list)
    """Bits per byte of each step; their number is the number of steps done."""

    @classmethod
    def start(cls, config: Config, workers: Workers, device: torch.device) -> Run:
        torch.manual_seed(config.seed)
        model = CausalLM(ModelConfig.from_dict(config.architecture)).to(device)
        if workers.count > 1:
            for block in model.decoder.layers:
                fully_shard(block)
            fully_shard(model)
        optimizer = torch.optim.AdamW(groups(model), lr=LEARNING_RATE, betas=(0.9, 0.95))
        return cls(config, model, optimizer, workers, device)

    def step(self, text: Tensor) -> None:
        """One step on random pieces of `text`, which depend on the seed and the number of the step alone."""
        done, config = len(self.losses), self.config
        generator = torch.Generator().manual_seed(config.seed * 1_000_003 + done)
        starts = torch.randint(len(text) - config.context, (config.batch, 1), generator=generator)
        own = starts.tensor_split(self.workers.count)[self.workers.rank]
        pieces = text[own + torch.arange(config.context + 1)].to(self.device)
        for group in self.optimizer.param_groups:
            group["lr"] = LEARNING_RATE * min(1, (done + 1) / WARMUP)

        loss = self.bits(pieces)
        self.optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        mean = loss.detach()
        if self.workers.count > 1:
            dist.all_reduce(mean, dist.ReduceOp.AVG if self.device.type == "cuda" else dist.ReduceOp.SUM)
            mean = mean if self.device.type == "cuda" else mean / self.workers.count
        if not mean.isfinite():
            raise FloatingPointError(f"the loss of step {done + 1} is {mean.item()}")
        self.losses.append(mean.item())

    def bits(self, pieces: Tensor) -> Tensor:
        """Bits per byte of pieces [B, T + 1], each predicted from its beginning."""
        loss = self.model(pieces, labels=pieces).loss
        assert loss is not None
        return loss / math.log(2)

    @torch.no_grad()
    def evaluate(self, text: Tensor) -> float:
        """Bits per byte of a text, in pieces as long as those of training."""
        length = self.config.context + 1
        pieces = text[: len(text) // length * length].view(-1, length).to(self.device)
        return sum(self.bits(some).item() * len(some) for some in pieces.split(64)) / len(pieces)

    def save(self, path: Path) -> None:
        """Leave a checkpoint, whole or not at all; every process takes part."""
        model, optimizer = get_state_dict(self.model, self.optimizer, options=WHOLE)
        if self.workers.leads:
            draft = path.with_suffix(".draft")
            torch.save({"model": model, "optimizer": optimizer, "losses": self.losses, **asdict(self.config)}, draft)
            draft.replace(path)

    def load(self, path: Path) -> None:
        """Go on from a checkpoint of the same run, with as many processes or others."""
        if not path.is_file():
            raise typer.BadParameter(f"there is no checkpoint {path} to resume from")
        saved = torch.load(path, map_location="cpu", weights_only=True)
        ours = asdict(self.config)
        others = [f"{key} was {saved[key]}, not {x}" for key, x in ours.items() if saved[key] != x]
        if others:
            raise typer.BadParameter(f"{path} is of another run: {', '.join(others)}")
        set_state_dict(
            self.model,
            self.optimizer,
            model_state_dict=saved["model"],
            optim_state_dict=saved["optimizer"],
            options=WHOLE,
        )
        self.losses = saved["losses"]

    def export(self, directory: Path) -> None:
        """Leave the model alone, for `CausalLM.from_pretrained`; every process takes part."""
        tensors, _ = get_state_dict(self.model, [], options=WHOLE)
        if self.workers.leads:
            whole = CausalLM(self.model.config)
            whole.load_tensors(tensors)
            whole.save_pretrained(directory)


def groups(model: nn.Module) -> list[dict[str, Any]]:
    """Parameters with weight decay and those without: vectors, and what its layer says has none."""
    decayed = [p for p in model.parameters() if p.ndim > 1 and not getattr(p, "_no_weight_decay", False)]
    kept = set(map(id, decayed))
    others = [p for p in model.parameters() if id(p) not in kept]
    return [{"params": decayed, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]


def train(run: Run, text: Tensor, steps: int, checkpoint: Path, title: str) -> None:
    """Train up to `steps` steps in all, with a checkpoint now and then and at the end."""
    begun, start = len(run.losses), time.perf_counter()
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[figures]}"),
    )
    with Progress(*columns, TimeRemainingColumn(), console=console, disable=not run.workers.leads) as progress:
        task = progress.add_task(title, total=steps, completed=begun, figures="")
        while len(run.losses) < steps:
            run.step(text)
            tokens = (len(run.losses) - begun) * run.config.batch * run.config.context
            speed = tokens / (time.perf_counter() - start)
            progress.update(task, advance=1, figures=f"{run.losses[-1]:.3f} bits per byte, {speed:,.0f} tokens/s")
            if len(run.losses) % SAVE_EVERY == 0:
                run.save(checkpoint)
    run.save(checkpoint)


def sample(model: CausalLM, prompt: Tensor, seed: int, length: int = SAMPLE) -> Tensor:
    """Bytes [length] that the model puts behind a prompt [T]."""
    generator = torch.Generator(prompt.device).manual_seed(seed)
    tokens = model.generate(
        prompt[None], max_new_tokens=length, do_sample=True, temperature=TEMPERATURE, generator=generator
    )
    return tokens[0, len(prompt) :].cpu()


def report(run: Run, text: Tensor, held_out: Tensor, out: Path, name: str) -> None:
    """What the run came to, on the screen and as losses.json and loss.png."""
    figure = run.evaluate(held_out)
    if not run.workers.leads:
        return
    everything = {"config": asdict(run.config), "bits_per_byte": run.losses, "held_out_bits_per_byte": figure}
    (out / "losses.json").write_text(json.dumps(everything, indent=2) + "\n")
    draw({name: run.losses}, name, out / "loss.png")
    console.print(f"{figure:.3f} bits per byte of the {len(held_out)} bytes held out", highlight=False)
    console.print(f"by how often each byte occurs: {guess(text, held_out):.3f}", highlight=False)


# -------------------------------------------------------------------------------------------------------- command line


def small(layer: str, width: int, layers: int, settings: dict[str, Any]) -> dict[str, Any]:
    """The config of a small model: heads of 32 channels where the layer has heads, and what is set."""
    config = ModelConfig(layer)
    arguments = inspect.signature(config.layer_class).parameters
    values = {"hidden_size": width, "num_hidden_layers": layers, "vocab_size": BYTES, "eos_token_id": None}
    if "head_dim" in arguments:
        values["head_dim"] = HEAD_DIM
    if "num_heads" in arguments and arguments["num_heads"].default not in (None, inspect.Parameter.empty):
        values["num_heads"] = max(1, width // HEAD_DIM)
    return ModelConfig(layer, **(values | settings)).to_dict()


@contextmanager
def joined(device: torch.device) -> Iterator[Workers]:
    """The processes that torchrun started, or this one alone."""
    if "RANK" not in os.environ:
        yield Workers()
        return
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield Workers(dist.get_rank(), dist.get_world_size())
    finally:
        dist.destroy_process_group()


def setting(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not equals:
        raise typer.BadParameter(f"--set: expected NAME=VALUE, got {text}")
    return name, yaml.safe_load(value)


def main(
    layer: Annotated[str, typer.Argument(help="A layer of generated/layers.py.")] = "GatedDeltaNet",
    settings: Annotated[list[str] | None, typer.Option("--set", help="NAME=VALUE of the model's config.")] = None,
    steps: Annotated[int, typer.Option(min=1, help="Steps in all.")] = 300,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1, ...")] = "cpu",
    seed: Annotated[int, typer.Option(min=0, max=2**31 - 1, help="The same seed, the same losses.")] = 0,
    layers: Annotated[int, typer.Option(min=1)] = 2,
    width: Annotated[int, typer.Option(min=HEAD_DIM, help="Channels of a token.")] = 128,
    context: Annotated[int, typer.Option(min=8, help="Bytes of a training sequence.")] = 128,
    batch: Annotated[int, typer.Option(min=1, help="Sequences of a step, of all processes together.")] = 16,
    out: Annotated[Path | None, typer.Option(help="Where results go; default runs/LAYER.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the checkpoint there.")] = False,
) -> None:
    """Train a small byte-level language model around a layer."""
    if device == "cuda" and "LOCAL_RANK" in os.environ:
        device = f"cuda:{os.environ['LOCAL_RANK']}"
    place = find_device(device)
    try:
        config = Config(small(layer, width, layers, dict(map(setting, settings or []))), context, batch, seed)
    except (TypeError, ValueError) as error:
        raise typer.BadParameter(str(error)) from None
    text, held_out = read_text()
    if context >= len(held_out):
        raise typer.BadParameter(f"--context: the text held out has {len(held_out)} bytes, got {context}")
    out = out or ROOT / "runs" / layer

    with joined(place) as workers:
        if batch % workers.count:
            raise typer.BadParameter(f"--batch: expected a multiple of the {workers.count} processes, got {batch}")
        run = Run.start(config, workers, place)
        if resume:
            run.load(out / "checkpoint.pt")
        out.mkdir(parents=True, exist_ok=True)
        try:
            train(run, text, steps, out / "checkpoint.pt", layer)
        except FloatingPointError as error:
            console.print(f"{error}: try another seed", style="bold red")
            raise typer.Exit(1) from None
        report(run, text, held_out, out, layer)
        run.export(out / "model")
        if workers.leads:
            prompt = held_out[:PROMPT]
            model = CausalLM.from_pretrained(out / "model")
            console.print(Text(as_text(prompt), "dim") + Text(as_text(sample(model, prompt, seed))))


if __name__ == "__main__":
    typer.run(main)
