"""Tuning: the fastest tiles are taken, and only those that are right."""

from __future__ import annotations

import importlib
from dataclasses import replace

import pytest
import torch

from tests.numeric.problems import Problem, Shape, assert_close, evaluate, form, make
from tests.tiers import exhaustive

NAMES = ["simple_gla", "gated_delta_product", "kda", "oja"]


@pytest.fixture(params=[*NAMES[:2], *(pytest.param(name, marks=exhaustive) for name in NAMES[2:])])
def name(request):
    tables = [
        importlib.import_module(f"generated.{request.param}.{file}").TILES for file in ("chunk", "chunk_backward")
    ]
    kept = [dict(table) for table in tables]
    for table in tables:
        table.clear()
    yield request.param
    for table, known in zip(tables, kept, strict=True):
        table.clear()
        table.update(known)


def modules(name: str):
    return tuple(importlib.import_module(f"generated.{name}.{file}") for file in ("chunk", "chunk_tuning"))


def problem(name: str) -> Problem:
    return make(name, Shape(T=8, K=16, V=16)).to(torch.float32)


def tune(name: str, bench):
    return problem(name).call(getattr(modules(name)[1], f"tune_chunk_{name}"), bench=bench)


def of_walk(tiles):
    """The kernel with the state is the last that has stages to choose from, or the only one."""
    return tiles[min(1, len(tiles) - 1)]


def test_the_fastest_tiles_are_taken_from_then_on(name):
    launcher, _ = modules(name)

    def bench(run):
        run()
        (tiles,) = launcher.TILES.values()
        walk = of_walk(tiles)
        return 5.0 - (walk["num_warps"] == 4) - (walk["num_stages"] == 3)

    found = tune(name, bench)
    walk = of_walk(found)
    assert (walk["num_warps"], walk["num_stages"]) == (4, 3)
    assert list(launcher.TILES.values()) == [found]
    problem(name).call(form("chunk", name))
    assert list(launcher.TILES.values()) == [found]


def test_what_is_wrong_or_does_not_compile_is_not_taken_however_fast(name, monkeypatch):
    launcher, _ = modules(name)
    right = launcher._chunk.launch

    def launch(*arguments):
        o, *others = right(*arguments)
        (tiles,) = launcher.TILES.values()
        if of_walk(tiles)["num_warps"] == 4:
            o[..., 3] += 0.01
        if of_walk(tiles)["num_stages"] == 3:
            raise RuntimeError("out of resource: shared memory")
        return o, *others

    monkeypatch.setattr(launcher._chunk, "launch", launch)
    found = tune(name, lambda run: 10.0 - sum(of_walk(next(iter(launcher.TILES.values()))).values()))
    walk = of_walk(found)
    assert walk["num_warps"] == 8
    assert walk["num_stages"] < 3


def test_tiles_that_ship_and_are_wrong_are_an_error(name, monkeypatch):
    launcher, _ = modules(name)
    right = launcher._chunk.launch

    def launch(*arguments):
        o, *others = right(*arguments)
        return 2 * o, *others

    monkeypatch.setattr(launcher._chunk, "launch", launch)
    launcher.TILES["another call"] = ()
    with pytest.raises(RuntimeError, match="is wrong on this device with the tiles that ship"):
        tune(name, lambda run: 1.0)
    assert launcher.TILES == {"another call": ()}


def test_where_no_kernel_runs_there_is_nothing_to_tune(name):
    _, tuner = modules(name)
    with pytest.raises(RuntimeError, match="ran no kernel"):
        problem(name).to(torch.float64).call(getattr(tuner, f"tune_chunk_{name}"))


def test_what_is_kept_for_a_gradient_is_no_matter(name):
    """Tuning takes the arguments of a training step as they are."""
    launcher, tuner = modules(name)
    problem(name).call(getattr(tuner, f"tune_chunk_{name}"), bench=lambda run: 1.0, save_states=True)
    assert len(launcher.TILES) == 1


def test_a_bad_argument_is_named(name):
    _, tuner = modules(name)
    with pytest.raises(ValueError, match="chunk_size: expected 16, 32 or 64, got 7"):
        problem(name).call(getattr(tuner, f"tune_chunk_{name}"), chunk_size=7)


# ------------------------------------------------------------------------------------------------------------- backward


@pytest.mark.parametrize("narrower", [0, 1, 2])
def test_each_kernel_of_the_backward_has_as_many_programs_as_its_own_tiles_ask(monkeypatch, narrower):
    """Tuning gives them blocks of different sizes, and what a kernel leaves unwritten is NaN here."""
    case = make("gated_delta_rule", Shape(T=20, K=16, V=64)).to(torch.float32)
    expected = evaluate(form("naive_chunk", "gated_delta_rule"), case)
    evaluate(form("chunk", "gated_delta_rule"), case)
    table = backward("gated_delta_rule").TILES
    for call, tiles in table.items():
        less = {**tiles[1 + narrower], "BLOCK_V": 16}
        monkeypatch.setitem(table, call, (*tiles[: 1 + narrower], less, *tiles[2 + narrower :]))
    assert_close(expected, evaluate(form("chunk", "gated_delta_rule"), case), 1e-5, gradients=1e-4)


def wanting(name: str) -> Problem:
    """A problem whose tensors all want gradients."""
    plain = problem(name)
    tensors = {tensor: x.requires_grad_() for tensor, x in plain.tensors.items()}
    return replace(plain, tensors=tensors)


def tune_gradients(name: str, bench):
    return wanting(name).call(getattr(modules(name)[1], f"tune_chunk_{name}"), bench=bench)


def backward(name: str):
    return importlib.import_module(f"generated.{name}.chunk_backward")


def test_the_backward_is_tuned_where_a_gradient_is_wanted(name):
    launcher, table = modules(name)[0], backward(name).TILES

    def bench(run):
        run()
        (tiles,) = table.values() or ((),)  # The forward call is tuned first.
        return (
            5.0 - sum(kernel["num_warps"] == 4 for kernel in tiles) - sum(kernel["num_stages"] == 3 for kernel in tiles)
        )

    found = tune_gradients(name, bench)
    ((forward,), (gradients,)) = launcher.TILES.values(), table.values()
    assert found == (*forward, *gradients)
    assert {(tiles["num_warps"], tiles["num_stages"]) for tiles in gradients} <= {(4, 3), (4, 1)}
    assert (gradients[-1]["num_warps"], gradients[-1]["num_stages"]) == (4, 3)
    o, *_ = wanting(name).call(form("chunk", name))
    o.sum().backward()
    assert list(table.values()) == [gradients]


def test_wrong_gradients_are_not_taken_however_fast(name, monkeypatch):
    launcher, table = modules(name)[0], backward(name).TILES
    right = launcher._chunk.backward

    def wrong(*arguments, **keywords):
        found = right(*arguments, **keywords)
        (tiles,) = table.values()
        if tiles[-1]["num_warps"] == 4:
            found[1][..., 3] += 0.2
        return found

    monkeypatch.setattr(launcher._chunk, "backward", wrong)
    found = tune_gradients(
        name, lambda run: 1.0 * sum(tiles["num_warps"] for table_ in table.values() for tiles in table_)
    )
    assert found[-1]["num_warps"] == 8
    assert any(tiles["num_warps"] == 4 for tiles in found[-len(next(iter(table.values()))) : -1])


def test_shipped_tiles_with_wrong_gradients_are_an_error(name, monkeypatch):
    launcher, table = modules(name)[0], backward(name).TILES
    right = launcher._chunk.backward
    monkeypatch.setattr(
        launcher._chunk,
        "backward",
        lambda *arguments, **keywords: [None if x is None else 2 * x for x in right(*arguments, **keywords)],
    )
    with pytest.raises(RuntimeError, match="is wrong on this device with the tiles that ship"):
        tune_gradients(name, lambda run: 1.0)
    assert table == {}


def test_without_a_gradient_wanted_the_backward_is_left_alone(name):
    tune(name, lambda run: 1.0)
    with torch.no_grad():
        tune_gradients(name, lambda run: 1.0)
    assert backward(name).TILES == {}
