"""Train a small byte-level language model whose tokens are mixed by a generated operator.

    python examples/train_tiny_lm.py gated_delta_product
    python examples/train_tiny_lm.py gated_delta_product --compare naive_recurrent    a second run from the same seed
    python examples/train_tiny_lm.py kda --steps 600 --resume                         go on where the last run stopped

Any variant of generated/ will do: what its operators take, in which shape and range, is read from its spec. The text is
this project's own, prose and source; the last tenth of every file is held out. A run leaves its checkpoint, losses.json
and loss.png in runs/NAME/. It ends with bits per byte of the text held out and a sample: the prompt goes through the
operator at once, and from the state that leaves the recurrent form decodes byte after byte.
"""

from __future__ import annotations

import importlib
import json
import math
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any

import matplotlib
import torch
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.text import Text
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, logsigmoid, normalize, silu, softplus

from flagen.diagnostics import SpecError
from flagen.project import Project, UsageError
from flagen.spec import load_spec
from flagen.spec.model import Input, Param, Spec

ROOT = Path(__file__).resolve().parent.parent
TEXT = ("README.md", "CONTRIBUTING.md", "docs/**/*.md", "specs/*.yaml", "flagen/**/*.py")
HELD_OUT = 0.1
BYTES = 256
HEAD_DIM = 32
WINDOW = 4  # Tokens that the short convolution sees.
LEARNING_RATE, WARMUP = 3e-3, 20
SAVE_EVERY = 50
EVALUATED = 64  # Sequences at a time.
PROMPT, SAMPLE, TEMPERATURE = 64, 256, 0.7

Operator = Callable[..., tuple[Tensor, Any]]
"""A generated function. Its final state, a tensor or several, only ever goes back into one."""

console = Console()


class Form(StrEnum):
    CHUNK = "chunk"
    NAIVE_CHUNK = "naive_chunk"
    FUSED_RECURRENT = "fused_recurrent"
    NAIVE_RECURRENT = "naive_recurrent"


@dataclass(frozen=True)
class Config:
    """What makes two runs the same run: it is in a checkpoint, and has to be the same to resume from it."""

    variant: str
    layers: int
    width: int
    context: int
    batch: int
    seed: int


@dataclass(frozen=True)
class Variant:
    spec: Spec
    package: ModuleType

    def operator(self, form: Form) -> Operator:
        operator = self.find(form)
        if operator is None:
            forms = ", ".join(form for form in Form if self.find(form))
            raise typer.BadParameter(f"{self.spec.name} has no form {form}; it has {forms}")
        return operator

    def find(self, form: Form) -> Operator | None:
        return getattr(self.package, f"{form}_{self.spec.name}", None)

    @property
    def best(self) -> Form:
        """The first form there is: chunk by chunk, unless the recurrence has no chunks."""
        return next(form for form in Form if self.find(form))

    @property
    def decoder(self) -> Operator:
        """The form that goes token by token: the kernel, or what every spec has."""
        return self.find(Form.FUSED_RECURRENT) or self.operator(Form.NAIVE_RECURRENT)


# --------------------------------------------------------------------------------------------------------------- model


@dataclass
class Past:
    """What a layer keeps of the tokens before: the last few for the convolution, and the operator's state."""

    window: Tensor
    state: Any


class Mixer(nn.Module):
    """A generated operator behind a short convolution, its inputs projected from what comes in.

    Every input gets the shape and the range that the spec declares; so do params that are tensors, which are trained.
    """

    def __init__(self, spec: Spec, width: int, layer: int, layers: int) -> None:
        super().__init__()
        self.spec = spec
        self.heads = width // HEAD_DIM
        self.steps = (spec.steps.default or 2) if spec.steps else 1
        self.sizes = [math.prod(self.shape(decl)) for decl in spec.inputs]
        self.filter = nn.Parameter(torch.randn(WINDOW, width) / WINDOW**0.5)
        self.project = nn.Linear(width, sum(self.sizes))
        self.tensors = [param for param in spec.params if param.is_tensor]
        self.params = nn.ParameterList(
            torch.randn([self.heads] * param.per_head + [HEAD_DIM] * len(param.dims)) for param in self.tensors
        )
        self.numbers = numbers(spec, {"layer_idx": layer, "num_layers": layers})
        if spec.steps:
            self.numbers[spec.steps.argument] = self.steps
        self.norm = nn.RMSNorm(HEAD_DIM ** len(spec.output_dims), eps=1e-5)
        self.out = nn.Linear(self.heads * HEAD_DIM ** len(spec.output_dims), width)

    def shape(self, decl: Input) -> list[int]:
        """An input's shape at one token: its micro-steps, heads and dims."""
        return [self.steps if decl.per == "step" else 1, self.heads, *(HEAD_DIM for _ in decl.dims)]

    def forward(self, x: Tensor, operator: Operator, past: Past | None) -> tuple[Tensor, Past]:
        x, window = self.convolve(x, past)
        state = None if past is None else past.state
        o, state = operator(**self.arguments(x), **self.numbers, initial_state=state, output_final_state=True)
        return self.out(self.norm(o.reshape(*o.shape[:3], -1)).flatten(2)), Past(window, state)

    def arguments(self, x: Tensor) -> dict[str, Tensor]:
        """Every tensor that the operator takes, by its name."""
        projected = self.project(x).split(self.sizes, dim=-1)
        inputs = {
            decl.name: within(flat.unflatten(-1, self.shape(decl)).flatten(1, 2), decl)
            for decl, flat in zip(self.spec.inputs, projected, strict=True)
        }
        params = {decl.name: within(raw, decl) for decl, raw in zip(self.tensors, self.params, strict=True)}
        return inputs | params

    def convolve(self, x: Tensor, past: Past | None) -> tuple[Tensor, Tensor]:
        """A causal convolution of each channel, and the tokens that the next call has to see."""
        before = x.new_zeros(x.shape[0], WINDOW - 1, x.shape[2]) if past is None else past.window
        seen = torch.cat([before, x], dim=1)
        convolved = sum(seen[:, i : i + x.shape[1]] * self.filter[i] for i in range(WINDOW))
        return silu(convolved), seen[:, -(WINDOW - 1) :]


class Layer(nn.Module):
    def __init__(self, spec: Spec, width: int, layer: int, layers: int) -> None:
        super().__init__()
        self.mixer_norm, self.mlp_norm = nn.RMSNorm(width), nn.RMSNorm(width)
        self.mixer = Mixer(spec, width, layer, layers)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor, operator: Operator, past: Past | None) -> tuple[Tensor, Past]:
        mixed, past = self.mixer(self.mixer_norm(x), operator, past)
        x = x + mixed
        return x + self.mlp(self.mlp_norm(x)), past


class LanguageModel(nn.Module):
    def __init__(self, spec: Spec, config: Config) -> None:
        super().__init__()
        self.embed = nn.Embedding(BYTES, config.width)
        self.layers = nn.ModuleList(Layer(spec, config.width, i, config.layers) for i in range(config.layers))
        self.norm = nn.RMSNorm(config.width)
        self.head = nn.Linear(config.width, BYTES)

    def forward(self, tokens: Tensor, operator: Operator, pasts: list[Past] | None = None) -> tuple[Tensor, list[Past]]:
        """Logits [B, T, 256] of each next byte, from bytes [B, T]; and what to go on from."""
        x, after = self.embed(tokens), []
        for i, layer in enumerate(self.layers):
            x, past = layer(x, operator, pasts[i] if pasts else None)
            after.append(past)
        return self.head(self.norm(x)), after


def within(x: Tensor, decl: Input | Param) -> Tensor:
    """Any numbers mapped smoothly into the range of what they are for.

    Vectors without one get length 1, which a delta rule needs of its keys. What is bounded above alone is a log decay,
    and starts out keeping the state for some twenty tokens.
    """
    low, high = decl.range.low, decl.range.high
    if math.isinf(low) and math.isinf(high):
        return normalize(x, dim=-1) if decl.dims else x
    if math.isinf(low):
        return high + logsigmoid(x) / 16
    if math.isinf(high):
        return low + softplus(x)
    return low + (high - low) * torch.sigmoid(x)


def numbers(spec: Spec, known: Mapping[str, float]) -> dict[str, float]:
    """The numbers that a call has to be given: by name what is known, else the nearest to 0 that is allowed."""
    required = [param for param in spec.params if not param.is_tensor and param.default is None]
    return {param.name: known.get(param.name, max(param.range.low, min(param.range.high, 0))) for param in required}


# ------------------------------------------------------------------------------------------------------------ training


@dataclass
class Run:
    """A model in training by one form of its operator."""

    config: Config
    operator: Operator
    model: LanguageModel
    optimizer: torch.optim.Optimizer
    losses: list[float] = field(default_factory=list)
    """Bits per byte of each step; their number is the number of steps done."""

    @classmethod
    def start(cls, variant: Variant, config: Config, form: Form, device: torch.device) -> Run:
        torch.manual_seed(config.seed)
        model = LanguageModel(variant.spec, config).to(device)
        optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, betas=(0.9, 0.95), weight_decay=0.1)
        return cls(config, variant.operator(form), model, optimizer)

    @property
    def device(self) -> torch.device:
        return self.model.head.weight.device

    def step(self, text: Tensor) -> None:
        """One step on random pieces of `text`, which depend on the seed and the number of the step alone."""
        done, config = len(self.losses), self.config
        generator = torch.Generator().manual_seed(config.seed * 1_000_003 + done)
        starts = torch.randint(len(text) - config.context, (config.batch, 1), generator=generator)
        pieces = text[starts + torch.arange(config.context + 1)].to(self.device)
        for group in self.optimizer.param_groups:
            group["lr"] = LEARNING_RATE * min(1, (done + 1) / WARMUP)

        loss = self.bits(pieces)
        if not loss.isfinite():
            raise FloatingPointError(f"the loss of step {done + 1} is {loss.item()}")
        self.optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.losses.append(loss.item())

    def bits(self, pieces: Tensor) -> Tensor:
        """Bits per byte of pieces [B, T + 1], each predicted from its beginning."""
        logits, _ = self.model(pieces[:, :-1], self.operator)
        return cross_entropy(logits.flatten(0, 1), pieces[:, 1:].flatten()) / math.log(2)

    @torch.no_grad()
    def evaluate(self, text: Tensor) -> float:
        """Bits per byte of a text, in pieces as long as those of training."""
        length = self.config.context + 1
        pieces = text[: len(text) // length * length].view(-1, length).to(self.device)
        return sum(self.bits(some).item() * len(some) for some in pieces.split(EVALUATED)) / len(pieces)

    def save(self, path: Path) -> None:
        """Leave a checkpoint, whole or not at all."""
        draft = path.with_suffix(".draft")
        state = {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict()}
        torch.save(state | {"step": len(self.losses), "losses": self.losses, "config": asdict(self.config)}, draft)
        draft.replace(path)

    def load(self, path: Path) -> None:
        """Go on from a checkpoint of the same run."""
        if not path.is_file():
            raise typer.BadParameter(f"there is no checkpoint {path} to resume from")
        saved = torch.load(path, map_location=self.device, weights_only=True)
        ours = asdict(self.config)
        others = [f"{key} was {saved['config'][key]}, not {x}" for key, x in ours.items() if saved["config"][key] != x]
        if others:
            raise typer.BadParameter(f"{path} is of another run: {', '.join(others)}")
        self.model.load_state_dict(saved["model"])
        self.optimizer.load_state_dict(saved["optimizer"])
        self.losses = saved["losses"]


def train(run: Run, text: Tensor, steps: int, checkpoint: Path, title: str) -> None:
    """Train up to `steps` steps in all, with a checkpoint now and then and at the end."""
    begun, start = len(run.losses), time.perf_counter()
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[figures]}"),
    )
    with Progress(*columns, TimeRemainingColumn(), console=console) as progress:
        task = progress.add_task(title, total=steps, completed=begun, figures="")
        while len(run.losses) < steps:
            run.step(text)
            tokens = (len(run.losses) - begun) * run.config.batch * run.config.context
            speed = tokens / (time.perf_counter() - start)
            progress.update(task, advance=1, figures=f"{run.losses[-1]:.3f} bits per byte, {speed:,.0f} tokens/s")
            if len(run.losses) % SAVE_EVERY == 0:
                run.save(checkpoint)
    run.save(checkpoint)


@torch.no_grad()
def sample(run: Run, decoder: Operator, prompt: Tensor, length: int) -> Tensor:
    """Bytes [length] that the model puts behind a prompt [T]."""
    generator = torch.Generator().manual_seed(run.config.seed)
    logits, pasts = run.model(prompt[None].to(run.device), run.operator)
    tokens = []
    for _ in range(length):
        chances = torch.softmax(logits[0, -1].float().cpu() / TEMPERATURE, dim=-1)
        tokens.append(torch.multinomial(chances, 1, generator=generator))
        logits, pasts = run.model(tokens[-1][None].to(run.device), decoder, pasts)
    return torch.cat(tokens)


# ---------------------------------------------------------------------------------------------------- text and pictures


def read_text() -> tuple[Tensor, Tensor]:
    """The bytes to train on, and those held out."""
    paths = [path for pattern in TEXT for path in sorted(ROOT.glob(pattern))]
    texts = [path.read_bytes() for path in paths]
    cuts = [int(len(text) * (1 - HELD_OUT)) for text in texts]
    kept = b"".join(text[:cut] for text, cut in zip(texts, cuts, strict=True))
    held_out = b"".join(text[cut:] for text, cut in zip(texts, cuts, strict=True))
    return torch.tensor(list(kept)), torch.tensor(list(held_out))


def guess(text: Tensor, held_out: Tensor) -> float:
    """Bits per byte by how often each byte occurs in `text`: what can be had without a model."""
    counts = torch.bincount(text, minlength=BYTES) + 1.0
    return -(counts / counts.sum()).log2()[held_out].mean().item()


def as_text(tokens: Tensor) -> str:
    """Bytes as text that is safe to print."""
    text = bytes(tokens.tolist()).decode(errors="replace")
    return "".join(c if c.isprintable() or c == "\n" else "\N{REPLACEMENT CHARACTER}" for c in text)


def report(runs: Mapping[Form, Run], text: Tensor, held_out: Tensor, out: Path) -> None:
    """What the runs came to, on the screen and as losses.json and loss.png."""
    config = next(iter(runs.values())).config
    losses = {str(form): run.losses for form, run in runs.items()}
    figures = {str(form): run.evaluate(held_out) for form, run in runs.items()}
    everything = {"config": asdict(config), "bits_per_byte": losses, "held_out_bits_per_byte": figures}
    (out / "losses.json").write_text(json.dumps(everything, indent=2) + "\n")
    draw(losses, config.variant, out / "loss.png")

    for form, value in figures.items():
        console.print(f"{form}: {value:.3f} bits per byte of the {len(held_out)} bytes held out", highlight=False)
    console.print(f"by how often each byte occurs: {guess(text, held_out):.3f}", highlight=False)
    if len(runs) > 1:
        apart = max(abs(one - other) for one, other in zip(*losses.values(), strict=False))
        console.print(f"the two losses of a step are at most {apart:.1e} bits apart", highlight=False)


def draw(curves: Mapping[str, list[float]], title: str, path: Path) -> None:
    """The loss of every run, step by step; later ones thinner, so that those below show where they agree."""
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6.4, 3.2), layout="constrained")
    for number, (form, losses) in enumerate(curves.items()):
        axes.plot(range(1, len(losses) + 1), losses, label=form, linewidth=3 / (1 + 2 * number))
    axes.set(title=title, xlabel="step", ylabel="bits per byte")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=100)
    pyplot.close(figure)


# -------------------------------------------------------------------------------------------------------- command line


def find_variant(name: str) -> Variant:
    sys.path.insert(0, str(ROOT))
    try:
        spec = load_spec(Project(ROOT).find_spec(name))
    except (UsageError, SpecError) as error:
        raise typer.BadParameter(str(error)) from None
    if (other := spec.recurrence_of) is not None:
        raise typer.BadParameter(f"{name} is a layer around the operators of {other.name}: train with those")
    if not (ROOT / "generated" / spec.name).is_dir():
        raise typer.BadParameter(f"there is no generated/{spec.name}; run `flagen build {spec.name}`")
    return Variant(spec, importlib.import_module(f"generated.{spec.name}"))


def find_device(name: str) -> torch.device:
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        raise typer.BadParameter(f"{name} cannot be used: {str(error).splitlines()[0]}") from None


def main(
    name: Annotated[str, typer.Argument(help="A variant of generated/.")] = "gated_delta_product",
    form: Annotated[Form | None, typer.Option(help="Form of the operator to train with; default: the first.")] = None,
    compare: Annotated[Form | None, typer.Option(help="Train by this form, too, from the same seed.")] = None,
    steps: Annotated[int, typer.Option(min=1, help="Steps in all.")] = 300,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1, ...")] = "cpu",
    seed: Annotated[int, typer.Option(min=0, max=2**31 - 1, help="The same seed, the same losses.")] = 0,
    layers: Annotated[int, typer.Option(min=1)] = 2,
    width: Annotated[int, typer.Option(min=HEAD_DIM, help=f"A multiple of {HEAD_DIM}, the size of a head.")] = 128,
    context: Annotated[int, typer.Option(min=8, help="Bytes of a training sequence.")] = 128,
    batch: Annotated[int, typer.Option(min=1, help="Sequences of a step.")] = 16,
    out: Annotated[Path | None, typer.Option(help="Where results go; default runs/NAME.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the checkpoint there.")] = False,
) -> None:
    """Train a small byte-level language model with a generated operator."""
    variant, place = find_variant(name), find_device(device)
    form = form or variant.best
    if width % HEAD_DIM:
        raise typer.BadParameter(f"--width: expected a multiple of {HEAD_DIM}, got {width}")
    text, held_out = read_text()
    if context >= len(held_out):
        raise typer.BadParameter(f"--context: the text held out has {len(held_out)} bytes, got {context}")
    config = Config(variant.spec.name, layers, width, context, batch, seed)
    out = out or ROOT / "runs" / config.variant

    runs = {each: Run.start(variant, config, each, place) for each in dict.fromkeys([form, compare or form])}
    for each, run in runs.items():
        if resume:
            run.load(out / f"{each}.pt")
    out.mkdir(parents=True, exist_ok=True)
    for each, run in runs.items():
        try:
            train(run, text, steps, out / f"{each}.pt", f"{config.variant}, {each}")
        except FloatingPointError as error:
            console.print(f"{error}: try another seed", style="bold red")
            raise typer.Exit(1) from None

    report(runs, text, held_out, out)
    prompt = held_out[:PROMPT]
    console.print(Text(as_text(prompt), "dim") + Text(as_text(sample(runs[form], variant.decoder, prompt, SAMPLE))))


if __name__ == "__main__":
    typer.run(main)
