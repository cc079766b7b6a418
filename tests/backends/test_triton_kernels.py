"""Kernels of odd specs, interpreted, against the definition: every construct, at sizes that no power of two divides."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import pytest
import torch

from flagen.functions import FUNCTIONS
from flagen.spec import model, parse_spec
from tests.backends.triton_odd import ODD, Package, build, error, make_call

pytestmark = [
    pytest.mark.usefixtures("interpreter", "poisoned_memory"),
    pytest.mark.xdist_group("odd kernels"),  # They are built once for all.
]

NAMES = list(ODD)


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Package]:
    directory: Path = tmp_path_factory.mktemp("odd")
    return {name: build(text, directory) for name, text in ODD.items()}


@pytest.mark.filterwarnings("ignore:.*encountered in:RuntimeWarning")  # What stands in padding may be anything.
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "shape",
    [
        {"seed": 0},
        {"lengths": (0, 3, 1, 0, 3, 0), "initial": False, "seed": 1},
        {"groups": 1, "H": 3, "B": 1, "T": 1, "n": 3, "seed": 2},
    ],
    ids=["batch", "packed", "one token"],
)
def test_float32(packages: dict[str, Package], name: str, shape: dict[str, object]) -> None:
    call = make_call(packages[name], **shape)
    for expected, got in zip(call.naive(), call.fused(), strict=True):
        assert error(expected, got) <= 1e-5


@pytest.mark.filterwarnings("ignore:.*encountered in:RuntimeWarning")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", ["slots", "elementwise", "preconditioned", "shares", "steps"])
def test_low_precision(packages: dict[str, Package], name: str, dtype: torch.dtype) -> None:
    call = make_call(packages[name], dtype=dtype)
    output, *finals = call.fused()
    expected, *states = call.naive()
    assert output.dtype == dtype
    assert error(expected, output) <= 5e-3
    for state, got in zip(states, finals, strict=True):
        assert got.dtype == torch.float32
        assert error(state, got) <= 1e-5  # The state never leaves float32.


@pytest.mark.parametrize("name", NAMES)
def test_no_token_leaves_the_state_alone(packages: dict[str, Package], name: str) -> None:
    call = make_call(packages[name], T=0)
    output, *finals = call.fused()
    given = call.keyword["initial_state"]
    assert output.shape[1] == 0
    for state, final in zip(given if isinstance(given, tuple) else (given,), finals, strict=True):
        assert torch.equal(state, final)


def test_without_a_state_to_start_from_it_is_the_specs(packages: dict[str, Package]) -> None:
    _, p, q, z = make_call(packages["elementwise"], T=0, initial=False).fused()
    assert (p == 0).all() and (q == 0).all() and (z == -torch.inf).all()


def test_a_step_on_from_the_final_state_is_one_pass(packages: dict[str, Package]) -> None:
    whole = make_call(packages["slots"], T=6, B=1)
    fused = packages["slots"].fused.fused_recurrent_slots
    first, state = fused(*(x[:, :4] for x in whole.positional), **whole.keyword, output_final_state=True)
    rest, final = fused(*(x[:, 4:] for x in whole.positional), initial_state=state, output_final_state=True)
    output, *finals = whole.fused()
    assert error(output, torch.cat([first, rest], dim=1)) <= 1e-6
    assert all(error(one, other) <= 1e-6 for one, other in zip(finals, final, strict=True))


def test_a_sequence_gets_the_same_bits_whatever_stands_beside_it(packages: dict[str, Package]) -> None:
    call = make_call(packages["shares"], B=3)
    together, *_ = call.fused()
    alone = packages["shares"].fused.fused_recurrent_shares
    state = tuple(s[1:2] for s in call.keyword["initial_state"])
    assert torch.equal(alone(*(x[1:2] for x in call.positional), initial_state=state)[0], together[1:2])


def test_the_odd_specs_use_every_construct() -> None:
    """What is tested above is the language, not a part of it."""
    every = [
        node
        for name in NAMES
        for spec in [parse_spec(ODD[name])]
        for value in [
            *(derived.value for derived in spec.derived),
            *(assign.value for assign in spec.output),
            *(a.value for s in spec.update for a in (s.body if isinstance(s, model.Repeat) else (s,))),
        ]
        for node in model.walk(value)
    ]
    called = {node.function for node in every if isinstance(node, model.Call | model.Reduce | model.RowMap)}
    assert called == {*FUNCTIONS, *model.REDUCTIONS, *model.ROW_MAPS}
    # No spec says pairs: they are made of outer products. What solves systems has no kernel.
    assert {type(node) for node in every} == set(get_args(model.Expr)) - {model.Pairs, model.Solution}
