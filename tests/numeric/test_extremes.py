"""Gates at the ends of what a spec declares, and keys that all but coincide: finite, and still the recurrence."""

from __future__ import annotations

import importlib
import math

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from flagen.spec.model import Call, walk
from flagen.spec.usage import assignments
from tests.margins import beyond
from tests.numeric.problems import (
    NAMES,
    VARIANTS,
    Problem,
    Shape,
    assert_close,
    evaluate,
    form,
    make,
    rms_ratio,
    spec_of,
    with_form,
)
from tests.numeric.references import REFERENCES
from tests.tiers import variants

SHAPE = Shape(T=37, K=8, V=6, groups=2)
UNBOUNDED = (-math.inf, math.inf)
CHUNKED = with_form("naive_chunk")
RECURRENT = with_form("fused_recurrent")


def levels(name: str) -> dict[str, list[float]]:
    """For each tensor of a declared range: its ends, and -20 where that lies between them."""
    spec = spec_of(name)
    declared = {
        x.name: (x.range.low, x.range.high) for x in (*spec.inputs, *spec.params) if x.name not in scalars(name)
    }
    declared = {x: ends for x, ends in declared.items() if ends != UNBOUNDED}
    ends = {**declared, **VARIANTS[name].ends}
    return {x: [low, high] + [-20.0] * (low < -20 < high) for x, (low, high) in ends.items()}


def scalars(name: str) -> set[str]:
    return {param.name for param in spec_of(name).params if not param.is_tensor}


GATED = [name for name in NAMES if levels(name)]


def at_low(x: Tensor, values: list[float]) -> Tensor:
    return torch.full_like(x, values[0])


def at_high(x: Tensor, values: list[float]) -> Tensor:
    return torch.full_like(x, values[1])


def at_20(x: Tensor, values: list[float]) -> Tensor:
    return torch.full_like(x, values[-1])


def mixed(x: Tensor, values: list[float]) -> Tensor:
    """Each element at one of the levels, or left as it was."""
    choice = torch.randint(0, len(values) + 1, x.shape, generator=torch.Generator().manual_seed(x.numel()))
    return torch.stack([*(torch.full_like(x, value) for value in values), x]).gather(0, choice[None])[0]


def extreme(name: str, place) -> Problem:
    problem = make(name, SHAPE)
    return problem.with_tensors(**{x: place(problem.tensors[x], values) for x, values in levels(name).items()})


def check_every_form(
    problem: Problem, chunk_size: int, exponents: float = 0.0, *, ill_conditioned: bool = False
) -> None:
    """Every form is the reference. `exponents`: how large log weights get. A chunk form adds them up in another order,
    each time to the last digit that float32 has there, and that is the relative error of what they weigh; no factor of
    three is to spare, for these are sums of two numbers, which every processor rounds alike. Where the
    problem is `ill_conditioned`, a chunk form in float32 has to be as near as CONDITION times the recurrence there."""
    name, rounding = problem.name, 4 * exponents * torch.finfo(torch.float32).eps / 2
    expected = evaluate(REFERENCES[name], problem)
    assert all(x.isfinite().all() for x in expected.values())
    assert_close(expected, evaluate(form("naive_recurrent", name), problem), 1e-12)
    if name in CHUNKED:
        assert_close(expected, evaluate(form("naive_chunk", name), problem, chunk_size=chunk_size), 1e-9)

    single = problem.to(torch.float32)
    expected = evaluate(REFERENCES[name], single.to(torch.float64))
    if name in CHUNKED:
        found = evaluate(form("naive_chunk", name), single, chunk_size=chunk_size)
        conditioned = CONDITION * float32_loss(single) if ill_conditioned else turns(single)
        assert_close(expected, found, max(1e-5, rounding, conditioned), gradients=1e-4)
    if name in RECURRENT:
        values = {x: value for x, value in expected.items() if not x.startswith("d ")}
        assert_close(values, evaluate(form("fused_recurrent", name), single, wrt=()), max(1e-5, turns(single)))


CONDITION = 32
"""How much more than the recurrence a chunk form may lose in float32 where keys are alike and reflected. Its inverse of
I - L hands the rounding of every row of L on to all later rows: measured, that is up to 16 times with 128 rows."""


def float32_loss(problem: Problem) -> float:
    """What the recurrence itself loses of its results in float32, on the same numbers."""
    recurrence = form("naive_recurrent", problem.name)
    expected = evaluate(recurrence, problem.to(torch.float64), wrt=())
    found = evaluate(recurrence, problem, wrt=())
    return max(rms_ratio(expected[name], x) for name, x in found.items())


TURNS = 12
"""How much more than the recurrence a form may lose in float32 where angles add up: a chunk drops whole turns when it
has added up all, and waves turn by multiples of an angle. Measured, that is up to 6 times over 64 tokens."""


def turns(problem: Problem) -> float:
    """What a form may lose of a spec's angles in float32; 0 where none add up."""
    values = (assign.value for assign in assignments(spec_of(problem.name).update))
    counted = any(isinstance(node, Call) and node.function == "fraction" for value in values for node in walk(value))
    return TURNS * float32_loss(problem.to(torch.float32)) if counted else 0.0


@pytest.mark.parametrize("place", [at_low, at_high, at_20, mixed])
@variants(GATED)
def test_gates_at_their_ends(name, place):
    check_every_form(extreme(name, place), chunk_size=16)


@variants(name for name in NAMES if "beta" in levels(name))
def test_correlated_keys_written_at_full_strength(name):
    """An inverse by powers of L loses every digit here, and looks perfect on random keys."""
    problem = make(name, Shape(T=70, K=16, V=12, groups=2))
    tensors = problem.tensors
    erased = "v" if name == "oja" else "k"
    keys = normalize(1 + 0.1 * torch.randn(tensors[erased].shape, generator=torch.Generator().manual_seed(0)), dim=-1)
    beta = 0.99 * torch.full_like(tensors["beta"], levels(name)["beta"][1])
    gentle = {x: 0.01 * tensors[x] for x in ("g",) if x in tensors}
    problem = problem.with_tensors(**{erased: keys.double()}, beta=beta, **gentle)
    check_every_form(problem, chunk_size=64, ill_conditioned=True)


@pytest.mark.parametrize("seed", range(3))
def test_the_solve_loses_little_more_than_a_substitution(seed):
    """Row by row, in the order of the rows: then what is left of reflections of like keys is rounded least."""
    generator = torch.Generator().manual_seed(seed)
    keys = normalize(1 + 0.1 * torch.randn(4, 128, 16, generator=generator), dim=-1)
    L, right = (-1.98 * keys @ keys.mT).tril(-1), torch.randn(4, 128, 12, generator=generator)
    by_rows = {torch.float32: right.clone(), torch.float64: right.double()}
    for dtype, x in by_rows.items():
        for row in range(127):
            x[:, row + 1 :] += L[:, row + 1 :, row, None].to(dtype) * x[:, None, row]
    (solved,) = importlib.import_module("generated.shared.rows").solve(L, right)
    exact = by_rows[torch.float64]
    # Measured 1.0 to 1.5; `solve_triangular` of all rows at once, 4 to 5.
    failure = beyond("solved", rms_ratio(exact, solved), 3 * rms_ratio(exact, by_rows[torch.float32]))
    assert not failure, failure


@pytest.mark.parametrize("state", [True, False], ids=["finite state", "no state"])
@pytest.mark.parametrize("name", [name for name in NAMES if VARIANTS[name].log_weight])
def test_tokens_without_weight(name, state):
    """At -inf in some channels or heads, in all, and for many tokens on end; a log-sum-exp has to have begun."""
    problem = make(name, SHAPE, state=state)
    weights = problem.tensors[VARIANTS[name].log_weight].clone()
    weights[:, 2::3, ..., ::2] = -math.inf
    weights[:, 5] = -math.inf
    weights[:, 17:35] = -math.inf
    check_every_form(problem.with_tensors(**{VARIANTS[name].log_weight: weights}), chunk_size=16)


@pytest.mark.parametrize("state", [True, False], ids=["finite state", "no state"])
@pytest.mark.parametrize("name", [name for name in NAMES if VARIANTS[name].log_weight])
def test_tokens_that_outweigh_all_others(name, state):
    """e^100 is no float32; beside it, what came before and what comes after is nothing."""
    problem = make(name, SHAPE, state=state)
    weights = problem.tensors[VARIANTS[name].log_weight].clone()
    weights[:, 4] += 100
    weights[:, 20] += 120
    check_every_form(problem.with_tensors(**{VARIANTS[name].log_weight: weights}), chunk_size=16, exponents=120)
