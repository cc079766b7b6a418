"""Plans that several tests look at, made once."""

from __future__ import annotations

from functools import cache

from flagen.pipeline import derive, make_plan
from flagen.plan import ExpandedPlan, LevelPlan, Plan, RankPlan, StagedPlan
from flagen.spec import load_spec, parse_spec
from flagen.spec.model import Spec
from tests.backends.triton_odd import ODD
from tests.specs import OPERATORS


@cache
def spec_of(name: str) -> Spec:
    """An operator's spec, or an odd one."""
    return parse_spec(ODD[name]) if name in ODD else load_spec(OPERATORS[name])


def is_whole(name: str) -> bool:
    """Whether there are kernels for all that the chunk form of a variant does: none of its stages runs in PyTorch, and
    it does not put levels together there."""
    kernels = plan_of(name).chunk_kernel
    in_pytorch = isinstance(kernels, StagedPlan) and any(kernels.without_kernels())
    return not in_pytorch and not isinstance(kernels, LevelPlan)


def writes_ahead(name: str) -> bool:
    """Whether the last stage of a variant has rows of the token before as rows of their own tokens."""
    chunk = plan_of(name).chunk
    return isinstance(chunk, StagedPlan) and chunk.form.ahead is not None


def adds_up_rows(name: str) -> bool:
    """Whether PyTorch multiplies the rows of a token with one another, around kernels."""
    return any(isinstance(plan, RankPlan) for plan in kernels_of(name))


def makes_rows(name: str) -> bool:
    """Whether PyTorch makes the rows that kernels take, of products that are batched as PyTorch likes."""
    return any(isinstance(plan, ExpandedPlan) for plan in kernels_of(name))


def is_staged(name: str) -> bool:
    """Whether an argument may go to several stages, whose gradients are added up."""
    return isinstance(plan_of(name).chunk_kernel, StagedPlan)


def kernels_of(name: str) -> list[object]:
    """How the chunk form of a variant runs in kernels, or of each of its stages."""
    kernels = plan_of(name).chunk_kernel
    return [stage.plan.chunk_kernel for stage in kernels.stages] if isinstance(kernels, StagedPlan) else [kernels]


def has_inference(name: str) -> bool:
    """Whether calls of `chunk` of which nobody asks for gradients run in other stages."""
    chunk = plan_of(name).chunk
    return isinstance(chunk, StagedPlan) and chunk.inference is not None


@cache
def plan_of(name: str) -> Plan:
    return make_plan(spec_of(name), derive(spec_of(name)))
