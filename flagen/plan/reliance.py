"""What a form takes for granted about the values it is given: where it relies on a range, and whether a NaN reaches
other tokens of its chunk."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

from flagen.algebra.normal_form import NormalForm
from flagen.plan.chunk import ChunkPlan
from flagen.plan.chunk_kernel import ChunkKernelPlan
from flagen.plan.expansion import ExpandedPlan
from flagen.plan.key_kernel import KeyKernelPlan
from flagen.plan.model import LevelPlan, MiniBatchPlan, Plan, RankPlan, SolvedPlan, StagedPlan
from flagen.plan.row_planner import scalar_factors
from flagen.spec.model import Call, Expr, Input, Name, Param, Spec, walk

Use = Literal["log", "leaf", "inverse"]
"""A log of the decay is taken; rows decay from the middle of a block, so that half of them grow; the inverse of a chunk
is multiplied with few digits, for its entries are small."""


@dataclass(frozen=True)
class Reliance:
    """A use that is right for values of `declared` within their ranges."""

    use: Use
    declared: tuple[Input | Param, ...]


def has_range(decl: Input | Param) -> bool:
    return not (math.isinf(decl.range.low) and math.isinf(decl.range.high))


def mixes_tokens(plan: Plan) -> bool:
    """Whether the forms by chunks take products over the tokens of a chunk, and mask what a token must not see."""
    match plan.chunk:
        case ChunkPlan():
            return True
        case MiniBatchPlan(_, within) | RankPlan(_, within):
            return mixes_tokens(within)
        case LevelPlan(_, columns):
            return mixes_tokens(columns)
        case StagedPlan(_, stages):
            return any(mixes_tokens(stage.plan) for stage in stages)
    return False


def reliances_of_chunk(plan: Plan) -> tuple[Reliance, ...]:
    """What `naive_chunk` relies on."""
    match plan.chunk:
        case ChunkPlan(normal_form=nf):
            return _some(Reliance("log", _behind(plan.spec, _logs(nf.log_decays))))
        case RankPlan(form):
            return _some(Reliance("log", _behind(plan.spec, _logs(form.log_decays))))
        case MiniBatchPlan(_, within):
            return _of_the_whole(plan.spec, reliances_of_chunk(within))
        case LevelPlan(_, columns):
            return _of_the_whole(plan.spec, reliances_of_chunk(columns))
        case StagedPlan(_, stages):
            return _of_the_whole(plan.spec, (each for stage in stages for each in reliances_of_chunk(stage.plan)))
    return ()


def reliances_of_kernels(plan: Plan) -> tuple[Reliance, ...]:
    """What the kernels of `chunk` rely on besides."""
    match plan.chunk_kernel:
        case RankPlan(_, within):
            return reliances_of_kernels(within)
        case SolvedPlan(read=read):
            return _of_the_whole(plan.spec, reliances_of_kernels(read))
        case ExpandedPlan(normal_form=nf, kernels=kernels):
            return _of_rows(plan.spec, nf, kernels)
        case ChunkKernelPlan() | KeyKernelPlan() as kernels:
            return _of_rows(plan.spec, kernels.chunk.normal_form, kernels)
        case LevelPlan(_, columns):
            return _of_the_whole(plan.spec, reliances_of_kernels(columns))
        case StagedPlan(_, stages):
            return _of_the_whole(plan.spec, (each for stage in stages for each in reliances_of_kernels(stage.plan)))
    return ()


def _of_rows(spec: Spec, nf: NormalForm, kernels: ChunkKernelPlan | KeyKernelPlan) -> tuple[Reliance, ...]:
    found = []
    if isinstance(kernels, KeyKernelPlan) and not kernels.leaf.is_one:
        found.append(Reliance("leaf", _behind(spec, (decay.log for decay in nf.decays))))
    if kernels.delta is not None and kernels.contracts:
        rows = (row for step in nf.steps for row in step.deltas)
        found.append(Reliance("inverse", _behind(spec, (factor for row in rows for factor in scalar_factors(row.y)))))
    return _some(*found)


def _some(*found: Reliance) -> tuple[Reliance, ...]:
    return tuple(each for each in found if each.declared)


def _of_the_whole(spec: Spec, found: Iterable[Reliance]) -> tuple[Reliance, ...]:
    """What stages rely on, of what the whole is given: the rest it makes itself."""
    uses: dict[Use, list[str]] = {}
    for each in found:
        uses.setdefault(each.use, []).extend(decl.name for decl in each.declared)
    declared: tuple[Input | Param, ...] = (*spec.inputs, *spec.params)
    return _some(*(Reliance(use, tuple(d for d in declared if d.name in names)) for use, names in uses.items()))


def _logs(decays: Iterable[Expr]) -> Iterator[Expr]:
    """What a log is taken of, for log decays that no exponential gives."""
    for log in decays:
        yield from (node for node in walk(log) if isinstance(node, Call) and node.function in ("log", "log1p"))


def _behind(spec: Spec, expressions: Iterable[Expr]) -> tuple[Input | Param, ...]:
    """The inputs and params with a range that the expressions are made of."""
    values = {decl.name: decl.value for decl in spec.derived}
    names: set[str] = set()
    waiting = list(expressions)
    while waiting:
        found = {node.name for node in walk(waiting.pop()) if isinstance(node, Name)} - names
        names |= found
        waiting += [values[name] for name in sorted(found) if name in values]
    declared: tuple[Input | Param, ...] = (*spec.inputs, *spec.params)
    return tuple(decl for decl in declared if decl.name in names and has_range(decl))
