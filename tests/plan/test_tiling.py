"""Rules for tiles and warps: data of the plan, which tell each kernel's constants."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from flagen import pipeline
from flagen.kernel.ir import Program
from flagen.plan.model import tilings
from flagen.plan.tiling import Choice, Tiles, Tiling, Where
from flagen.spec import parse_spec
from tests.specs import SPECS
from tests.tiers import REPRESENTATIVES


def constants(tiling: Tiling) -> set[str]:
    """All that a rule tells of some kernel."""
    tiles = [part.tiles if isinstance(part, Where) else part for part in tiling.body if not isinstance(part, Choice)]
    return {constant.name for each in tiles for constant in each.constants}


def blocks(program: Program) -> Iterator[str]:
    """The blocks that the kernels of a program are compiled for."""
    for kernel in program.kernels:
        yield from (size for size in kernel.sizes if size.startswith("BLOCK_"))


@pytest.mark.parametrize("name", REPRESENTATIVES)
def test_every_block_of_every_kernel_has_a_rule(name: str) -> None:
    spec, _ = pipeline.load(SPECS / f"{name}.yaml")
    plan = pipeline.make_plan(spec, pipeline.derive(spec))
    programs = pipeline.lower(plan)
    for form, program in (
        (plan.fused, programs.fused_recurrent),
        (plan.chunk_kernel, programs.chunk),
    ):
        if program is not None:
            told = set().union(*map(constants, tilings(form)))
            assert told >= set(blocks(program)), form


def test_rules_are_shown_with_the_plan() -> None:
    text = pipeline.Stages(SPECS / "gated_delta_rule.yaml").dump("plan")
    for rule in (
        "launch_config(K: int, V: int)",
        "reverse_config(walk",
        "gradients_config(K: int",
        "dtype: torch.dtype)",
    ):
        assert rule in text
    assert "    prepare: tiles, num_warps = 4 if hopper and rows == 64 else 8, num_stages = 1" in text


def test_a_rule_names_what_it_returns() -> None:
    one = Tiles("walk = inside", (Choice("num_warps", "4"),))
    assert Tiling("f", (), "tuple[dict[str, int], ...]", "Docs.", (one,)).returned == ("walk", "inside")
    assert Tiling("f", (), "dict[str, int]", "Docs.", (Tiles("", one.constants),)).returned == ()


def test_a_rule_where_the_largest_tile_is_not_of_the_state() -> None:
    """What is cut into blocks is none of its dims: nothing says how many indices fit."""
    spec = parse_spec("""
flagen: 1
name: vector
state: {h: [V]}
inputs: {v: [V], m: [K, M]}
update: h = (1 - mean(m)) * h + v
output: o = h
""")
    plan = pipeline.make_plan(spec, pipeline.derive(spec))
    rule, *_ = tilings(plan.fused)
    told = {part.name: part.value for part in rule.body if isinstance(part, Choice)}
    assert told["BLOCK_V"] == "min(triton.next_power_of_2(V), 64)"
