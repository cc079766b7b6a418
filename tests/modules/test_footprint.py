"""What losses over 128k columns in bf16 add to memory, forward and backward, against the plain form of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from generated.modules import FusedCrossEntropyLoss, FusedKLDivLoss, FusedLinearCrossEntropyLoss
from generated.modules.chunked import row_chunks
from generated.modules.grpo import fused_grpo_loss
from tests.tiers import exhaustive

from .footprint import Footprint, added_peak

COLUMNS = 1 << 17
ROWS = 2048
WIDTH = 256


def hidden_states(rows: int = ROWS, width: int = WIDTH) -> tuple[Tensor, Tensor, Tensor]:
    x = torch.empty(rows, width, dtype=torch.bfloat16, requires_grad=True)
    weight = torch.empty(COLUMNS, width, dtype=torch.bfloat16, requires_grad=True)
    return x, weight, torch.empty(rows, dtype=torch.long)


def logits() -> tuple[Tensor, Tensor]:
    made = torch.empty(ROWS, COLUMNS, dtype=torch.bfloat16, requires_grad=True)
    return made, torch.empty(ROWS, dtype=torch.long)


def plain_linear(x: Tensor, weight: Tensor, target: Tensor) -> Tensor:
    return F.cross_entropy(F.linear(x, weight).float(), target)


def plain_kl(x: Tensor, weight: Tensor, target: Tensor) -> Tensor:
    teacher = F.linear(x.detach(), weight.detach()).float().log_softmax(-1)
    student = F.linear(x, weight).float().log_softmax(-1)
    return F.kl_div(student, teacher, reduction="batchmean", log_target=True)


def kl(x: Tensor, weight: Tensor, target: Tensor) -> Tensor:
    return FusedKLDivLoss()(x, x.detach(), weight, weight.detach())


def linear(x: Tensor, weight: Tensor, target: Tensor) -> Tensor:
    loss: Tensor = FusedLinearCrossEntropyLoss()(x, target, weight)
    return loss


def linear_with_everything(x: Tensor, weight: Tensor, target: Tensor) -> Tensor:
    module = FusedLinearCrossEntropyLoss(label_smoothing=0.1, logit_scale=0.5, logit_softcapping=30.0, use_l2warp=True)
    loss: Tensor = module(x, target, weight)
    return loss


@pytest.mark.parametrize(
    ("ours", "plain"),
    [
        (linear, plain_linear),
        pytest.param(linear_with_everything, plain_linear, marks=exhaustive),
        (kl, plain_kl),
    ],
)
def test_linear_losses_add_a_tenth(ours: Callable[..., Tensor], plain: Callable[..., Tensor]) -> None:
    assert added_peak(hidden_states, ours) <= added_peak(hidden_states, plain) / 10


def test_what_the_linear_cross_entropy_adds_is_as_the_readme_has_it() -> None:
    for step, mebibytes in ((linear, 225), (plain_linear, 3072)):
        assert abs(added_peak(hidden_states, step) / 2**20 - mebibytes) < 0.01
    shown = (Path(__file__).parents[2] / "README.md").read_text()
    assert f"{ROWS} rows of {COLUMNS:,} columns in\nbf16 add 225 MiB forward and backward, the plain form 3072" in shown


def test_no_tensor_is_as_large_as_the_logits() -> None:
    """But one of weight's size there is: its gradient."""
    largest = max(WIDTH, ROWS // 64) * COLUMNS * 4

    class Largest(Footprint):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            out = super().__torch_dispatch__(func, types, args, kwargs)
            assert all(size <= largest for _, size in self.alive.values())
            return out

    with FakeTensorMode():
        inputs = hidden_states()
        with Largest():
            linear(*inputs).backward()


def plain_cross_entropy(made: Tensor, target: Tensor) -> Tensor:
    return F.cross_entropy(made.float(), target)


@pytest.mark.parametrize("inplace", [pytest.param(False, marks=exhaustive), True])
def test_losses_of_logits_add_a_tenth_and_the_gradient_itself(inplace: bool) -> None:
    def ours(made: Tensor, target: Tensor) -> Tensor:
        loss: Tensor = FusedCrossEntropyLoss(inplace_backward=inplace, lse_square_scale=1e-4)(made, target)
        return loss

    gradient = 0 if inplace else 2 * ROWS * COLUMNS
    assert added_peak(logits, ours) - gradient <= added_peak(logits, plain_cross_entropy) / 10


@exhaustive
def test_grpo_in_place() -> None:
    def policy() -> tuple[Tensor, ...]:
        made = torch.empty(4, 512, COLUMNS, dtype=torch.bfloat16, requires_grad=True)
        return made, torch.empty(4, 511), torch.empty(4, 600, dtype=torch.long), torch.empty(4)

    def ours(made: Tensor, ref: Tensor, ids: Tensor, advantages: Tensor) -> Tensor:
        loss = fused_grpo_loss(made, ref, ids, advantages, inplace=True)
        assert isinstance(loss, Tensor)
        return loss.mean()

    def plain(made: Tensor, ref: Tensor, ids: Tensor, advantages: Tensor) -> Tensor:
        logp = made[:, :-1].float().log_softmax(-1).gather(-1, ids[:, -511:, None]).squeeze(-1)
        gain = (logp - logp.detach()).exp() * advantages[:, None]
        return (0.1 * ((ref - logp).exp() - (ref - logp) - 1) - gain).mean()

    assert added_peak(policy, ours) <= added_peak(policy, plain) / 10


@pytest.mark.parametrize("rows", [0, 1, 63, 64, 65, 2048])
@pytest.mark.parametrize("columns", [1, 1000, COLUMNS])
def test_chunks_are_all_rows_once(rows: int, columns: int) -> None:
    chunks = list(row_chunks(rows, columns))
    assert [row for chunk in chunks for row in range(chunk.start, chunk.stop)] == list(range(rows))
    assert chunks
