"""Running maxima: who is the larger at ties, at infinities and at what is no number; in pieces; over 65,536 tokens."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import cache
from types import ModuleType

import pytest
import torch
from torch import Tensor

from flagen.spec import parse_spec
from tests.fuzz.packages import build, imported

TEXT = """
flagen: 1
name: {name}
state: {{m: {{dims: [K], init: {init}}}}}
inputs: {{x: [K], w: [K]}}
update: m = maximum(m + w, {other})
output: o = m
"""
PEAK = TEXT.format(name="peak", init="-.inf", other="x")
BOUNDED = TEXT.format(name="bounded", init="0", other="0").replace("+ w", "+ w + x")
FORMS = ("naive_recurrent", "naive_chunk", "chunk", "fused_recurrent")
CHUNKED = FORMS[1:3]


@pytest.fixture(scope="module")
def packages() -> Iterator[Callable[[str], ModuleType]]:
    """The package of a spec, built once."""
    with ExitStack() as stack:
        yield cache(lambda text: stack.enter_context(imported(build(parse_spec(text)))))


@pytest.fixture
def form(packages, kernels) -> Callable[..., Callable[..., tuple[Tensor, Tensor]]]:
    def of(kind: str, text: str = PEAK) -> Callable[..., tuple[Tensor, Tensor]]:
        name = parse_spec(text).name
        return lambda *args, **more: getattr(packages(text), f"{kind}_{name}")(*args, output_final_state=True, **more)

    return of


def drawn(tokens: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Terms, and decays of which some channels have none."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(1, tokens, 1, 4, generator=generator, dtype=torch.float64)
    w = -torch.rand(1, tokens, 1, 4, generator=generator, dtype=torch.float64)
    return x, w * torch.tensor([0.0, 1e-3, 0.1, 1.0])


def expected(x: Tensor, w: Tensor, first: float = -math.inf) -> Tensor:
    """By numbers of Python, token by token."""
    states, m = [], torch.full_like(x[:, 0], first)
    for token in range(x.shape[1]):
        m = torch.maximum(m + w[:, token], x[:, token])
        states.append(m)
    return torch.stack(states, 1)


def pulled(function: Callable[..., tuple[Tensor, Tensor]], *leaves: Tensor, first: Tensor) -> list[Tensor]:
    """Gradients of the inputs and of the first state, by whole numbers that tell tokens and channels apart."""
    leaves = tuple(leaf.detach().clone().requires_grad_() for leaf in (*leaves, first))
    o, final = function(*leaves[:-1], initial_state=leaves[-1])
    weights = torch.arange(o.numel(), dtype=o.dtype).reshape(o.shape) % 7 - 3
    return list(torch.autograd.grad((o * weights).sum() + 64 * final.sum(), leaves))


# ----------------------------------------------------------------------------------------------------------- the larger


@pytest.mark.parametrize("text", [PEAK, BOUNDED])
@pytest.mark.parametrize("kind", FORMS[1:])
def test_ties_are_shared_as_the_recurrence_shares_them(form, kind, text):
    """Of whole numbers: two, three and more in a row are equal, and halves of halves are exact."""
    generator = torch.Generator().manual_seed(1)
    x, w = (torch.randint(-1, 2, (1, 80, 1, 4), generator=generator).float() for _ in range(2))
    first = torch.tensor([0.0, 1.0, -1.0, 0.0]).reshape(1, 1, 4)
    found, wanted = (pulled(form(each, text), x, w * (x > 0), first=first) for each in (kind, "naive_recurrent"))
    halves = wanted[0].unique()
    assert (halves % 1 != 0).any() == (text == PEAK)
    for one, other in zip(found, wanted, strict=True):
        assert torch.equal(one, other)


@pytest.mark.interpreted
@pytest.mark.parametrize("text", [PEAK, BOUNDED])
def test_the_interpreter_has_the_same_kernels(form, text):
    x, w = (each.float().mul(2).round() for each in drawn(37))
    first = torch.tensor([0.0, 1.0, -math.inf, 0.0]).reshape(1, 1, 4)
    chunk, recurrent = (form(kind, text) for kind in ("chunk", "naive_recurrent"))
    assert torch.equal(chunk(x, w, initial_state=first)[0], recurrent(x, w, initial_state=first)[0])
    pairs = zip(*(pulled(function, x, w, first=first) for function in (chunk, recurrent)), strict=True)
    assert all(torch.equal(one, other) for one, other in pairs)


@pytest.mark.parametrize("kind", FORMS)
def test_what_is_nothing_stays_nothing(form, kind):
    """A state of -inf has gradients of zero and a half, and none that is NaN; and so has a decay of all there was."""
    x, w = (each.float() for each in drawn(40))
    x[:, :20, :, 0] = w[:, 30, :, 1] = x[:, 20:, :, 2] = -math.inf
    o, final = form(kind)(x, w)
    assert torch.allclose(o, expected(x, w), atol=1e-5)
    assert torch.equal(final, o[:, -1])
    assert (o[:, :20, :, 0] == -math.inf).all() and o[:, 20:].isfinite().all()
    for gradient in pulled(form(kind), x, w, first=torch.full((1, 1, 4), -math.inf)):
        assert gradient.isfinite().all()


@pytest.mark.parametrize("kind", FORMS)
def test_what_is_no_number_stays_none(form, kind):
    """From its token on, in its channel."""
    x, w = (each.float() for each in drawn(40))
    x[:, 11, :, 1] = w[:, 25, :, 3] = math.nan
    o, _ = form(kind)(x, w)
    wanted = torch.zeros(40, 4, dtype=torch.bool)
    wanted[11:, 1] = wanted[25:, 3] = True
    assert torch.equal(o[0, :, 0].isnan(), wanted)


# ------------------------------------------------------------------------------------------------------------ sequences


@pytest.mark.parametrize("kind", CHUNKED)
def test_float32_keeps_its_digits_over_many_tokens(form, kind):
    x, w = drawn(65_536)
    x[:, 1:, :, :2] -= 8  # What was the largest at first, is so for long.
    o, _ = form(kind)(x.float(), w.float())
    assert (o.double() - expected(x, w)).abs().max() <= 2e-4


@pytest.mark.parametrize("kind", FORMS)
def test_a_call_that_is_split_resumes_exactly(form, kind):
    """Between two chunks to the bit; elsewhere within the rounding of a chunk."""
    x, w = (each.float() for each in drawn(200))
    whole, end = form(kind)(x, w)
    for cut, bound in ((128, 0.0), (1, 1e-6), (101, 1e-6)):
        head, middle = form(kind)(x[:, :cut], w[:, :cut])
        tail, last = form(kind)(x[:, cut:], w[:, cut:], initial_state=middle)
        assert (torch.cat([head, tail], 1) - whole).abs().max() <= bound
        assert (last - end).abs().max() <= bound


@pytest.mark.parametrize("kind", FORMS)
def test_packed_sequences_have_maxima_of_their_own(form, kind):
    lengths = (70, 0, 1, 33)
    x, w = (each.float() for each in drawn(sum(lengths)))
    offsets = torch.tensor([0, *torch.tensor(lengths).cumsum(0).tolist()])
    for first in (None, torch.tensor([2.0, -1.0, -math.inf, 0.5]).reshape(4, 1, 1).expand(4, 1, 4)):
        o, finals = form(kind)(x, w, initial_state=first, cu_seqlens=offsets)
        parts = zip(o.split(lengths, 1), x.split(lengths, 1), w.split(lengths, 1), strict=True)
        for place, (found, *part) in enumerate(parts):
            start = None if first is None else first[place : place + 1]
            alone, final = form(kind)(*part, initial_state=start)
            assert torch.equal(found, alone)
            assert torch.equal(finals[place : place + 1], final)
