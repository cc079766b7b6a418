"""Tuning: the fastest tiles are taken, and only those that are right."""

from __future__ import annotations

import importlib

import pytest
import torch

from tests.numeric.problems import Problem, Shape, form, make

NAMES = ["simple_gla", "gated_delta_product", "kda", "oja"]


@pytest.fixture(params=NAMES)
def name(request):
    launcher = importlib.import_module(f"generated.{request.param}.chunk_fused")
    kept = dict(launcher.TILES)
    launcher.TILES.clear()
    yield request.param
    launcher.TILES.clear()
    launcher.TILES.update(kept)


def modules(name: str):
    return tuple(importlib.import_module(f"generated.{name}.{file}") for file in ("chunk_fused", "chunk_tuning"))


def problem(name: str) -> Problem:
    return make(name, Shape(T=20, K=16, V=16)).to(torch.float32)


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
    right = launcher._launch

    def launch(*arguments):
        o, *others = right(*arguments)
        (tiles,) = launcher.TILES.values()
        if of_walk(tiles)["num_warps"] == 4:
            o[..., 3] += 0.01
        if of_walk(tiles)["num_stages"] == 3:
            raise RuntimeError("out of resource: shared memory")
        return o, *others

    monkeypatch.setattr(launcher, "_launch", launch)
    found = tune(name, lambda run: 10.0 - sum(of_walk(next(iter(launcher.TILES.values()))).values()))
    walk = of_walk(found)
    assert walk["num_warps"] == 8
    assert walk["num_stages"] < 3


def test_tiles_that_ship_and_are_wrong_are_an_error(name, monkeypatch):
    launcher, _ = modules(name)
    right = launcher._launch

    def launch(*arguments):
        o, *others = right(*arguments)
        return 2 * o, *others

    monkeypatch.setattr(launcher, "_launch", launch)
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
