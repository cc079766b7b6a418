"""A wrong argument raises ValueError that names it, says what it was, and says what was expected."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor

from flagen.spec.model import Input
from tests.numeric.problems import Problem, Shape, form, forms, make, spec_of, state_names, with_form
from tests.tiers import each_form, variants

BATCH = Shape(T=6, B=2, H=2, groups=2, n=2)
PACKED = Shape(lengths=(2, 0, 4), H=2, groups=2, n=2)


@dataclass(frozen=True)
class Mistake:
    """A problem with one argument spoiled, its name, and how the message must show what it was; both are patterns."""

    problem: Problem
    argument: str
    was: str


def shape_of(x: Tensor) -> str:
    """The shape as a list or a tuple."""
    return rf"[\[(]{', '.join(map(str, x.shape))},?[\])]"


def spoil(problem: Problem, name: str, change: Callable[[Tensor], object], was: Callable[[object], str]) -> Mistake:
    if name == "cu_seqlens":
        wrong = change(problem.cu_seqlens)
        return Mistake(replace(problem, cu_seqlens=wrong), name, was(wrong))
    wrong = change(problem.leaves[name])
    return Mistake(problem.with_leaves({**problem.leaves, name: wrong}), called(problem, name), was(wrong))


def called(problem: Problem, leaf: str) -> str:
    """What a message calls one of the leaves: a state of several by its own name, too."""
    states = dict(zip(state_names(problem.name, "initial"), spec_of(problem.name).states, strict=True))
    return rf"initial_state \({states[leaf].name}\)" if leaf in states and len(states) > 1 else leaf


def grown(dim: int) -> Callable[[Tensor], Tensor]:
    """One longer along `dim`."""
    return lambda x: torch.cat([x, x.narrow(dim, 0, 1)], dim)


def tensor_mistakes(problem: Problem) -> Iterator[Mistake]:
    spec = spec_of(problem.name)
    first = spec.inputs[0].name
    for name in problem.leaves:
        yield spoil(problem, name, lambda x: x[..., None], shape_of)
        yield spoil(problem, name, lambda x: x.to(torch.int64), lambda _: "int64")
        yield spoil(problem, name, lambda x: x.tolist(), lambda _: "list")
        if name != first:
            yield spoil(problem, name, lambda x: x.to("meta"), lambda _: "meta")

    seen: set[str] = set()
    for decl in spec.inputs:
        yield from input_mistakes(problem, decl, first, seen)
        seen |= {decl.heads, *decl.dims}
    for param in (p for p in spec.params if p.is_tensor):
        yield spoil(problem, param.name, grown(0), shape_of)
    for name in state_names(problem.name, "initial"):
        for dim in range(problem.leaves[name].ndim):
            yield spoil(problem, name, grown(dim), shape_of)


def input_mistakes(problem: Problem, decl: Input, first: str, seen: set[str]) -> Iterator[Mistake]:
    """Sizes that disagree with what earlier inputs said."""
    if decl.name != first:
        yield spoil(problem, decl.name, grown(0), shape_of)
        yield spoil(problem, decl.name, grown(1), shape_of)
    if decl.heads in seen:
        yield spoil(problem, decl.name, grown(2), shape_of)
    for axis, dim in enumerate(decl.dims, start=3):
        if dim in seen:
            yield spoil(problem, decl.name, grown(axis), shape_of)


def offset_mistakes(problem: Problem) -> Iterator[Mistake]:
    def offsets(*values: int) -> Callable[[object], Tensor]:
        return lambda _: torch.tensor(values)

    def values_of(x: Tensor) -> str:
        return rf"[\[(]{', '.join(map(str, x.tolist()))}[\])]"

    for wrong in (
        offsets(1, 2, 2, 6),
        offsets(0, 4, 2, 6),
        offsets(0, 2, 2, 5),
        offsets(0, 2, 2, 7),
        offsets(-1, 2, 6),
    ):
        yield spoil(problem, "cu_seqlens", wrong, values_of)
    yield spoil(problem, "cu_seqlens", lambda x: x[None], shape_of)
    yield spoil(problem, "cu_seqlens", lambda x: x[:0], shape_of)
    yield spoil(problem, "cu_seqlens", lambda x: x.float(), lambda _: "float32")
    yield spoil(problem, "cu_seqlens", lambda x: x.short(), lambda _: "int16")
    yield spoil(problem, "cu_seqlens", lambda x: x.tolist(), lambda _: "list")
    yield spoil(problem, "cu_seqlens", lambda x: x.to("meta"), lambda _: "meta")
    # A state for each of B sequences, where there are three packed ones.
    for name in state_names(problem.name, "initial"):
        yield spoil(problem, name, lambda x: x[:1], shape_of)


def refused(function: Callable, mistake: Mistake, **keywords: object) -> None:
    with pytest.raises(ValueError) as raised:
        mistake.problem.call(function, **keywords)
    message = str(raised.value)
    assert re.search(rf"(?<!\w){mistake.argument}(?!\w)", message), message
    assert re.search(mistake.was, message), message
    assert "expected" in message


FORMS = forms("naive_recurrent", "naive_chunk", "fused_recurrent")
every_form = each_form(FORMS)


@every_form
def test_wrong_tensors(name, kind):
    for mistake in tensor_mistakes(make(name, BATCH).to(torch.float32)):
        refused(form(kind, name), mistake)


@every_form
def test_wrong_offsets(name, kind):
    for mistake in offset_mistakes(make(name, PACKED).to(torch.float32)):
        refused(form(kind, name), mistake)


@each_form((kind, n) for kind, n in FORMS if len(spec_of(n).states) > 1)
def test_several_states_go_in_a_tuple_of_all(name, kind):
    problem = make(name, BATCH).to(torch.float32)
    several = re.escape(", ".join(state.name for state in spec_of(name).states))
    for wrong in (problem.initial_state[0], problem.initial_state[:1], (*problem.initial_state, None), ()):
        refused(form(kind, name), Mistake(replace(problem, initial_state=wrong), "initial_state", several))


@every_form
def test_packed_sequences_need_a_batch_of_one(name, kind):
    problem = replace(make(name, BATCH).to(torch.float32), cu_seqlens=torch.tensor([0, 2, 6]))
    refused(form(kind, name), Mistake(problem, "cu_seqlens", "2"))


@each_form((kind, n) for kind, n in FORMS if spec_of(n).has_value_heads)
def test_value_heads_come_in_groups(name, kind):
    """Three value heads cannot share two key heads."""
    valued = {i.name for i in spec_of(name).inputs if i.heads == "HV"}
    problem = make(name, replace(BATCH, H=3, groups=1)).to(torch.float32)
    ungrouped = {n: x if n in valued or x.ndim < 3 else x[:, :, :2] for n, x in problem.tensors.items()}
    first = next(n for n in problem.tensors if n in valued)
    refused(form(kind, name), Mistake(problem.with_tensors(**ungrouped), first, "3"))


@every_form
def test_there_is_no_operator_without_heads(name, kind):
    problem = replace(make(name, replace(BATCH, H=0)).to(torch.float32), initial_state=None)
    first = next(iter(problem.tensors))
    refused(form(kind, name), Mistake(problem, first, shape_of(problem.tensors[first])))


@each_form((kind, n) for kind, n in FORMS if spec_of(n).steps is not None)
@pytest.mark.parametrize("count", [0, -1, 1.5, 5])
def test_wrong_step_counts(name, kind, count):
    problem, argument = make(name, BATCH).to(torch.float32), spec_of(name).steps.argument
    if count == 5:  # A count that the rows of the per-step inputs are no multiple of.
        keys = next(i.name for i in spec_of(name).inputs if i.per == "step")
        refused(form(kind, name), Mistake(problem, keys, shape_of(problem.tensors[keys])), **{argument: count})
    else:
        refused(form(kind, name), Mistake(problem, argument, re.escape(str(count))), **{argument: count})


@pytest.mark.parametrize("size", [0, -16, 2.5])
@variants(with_form("naive_chunk"))
def test_wrong_chunk_sizes(name, size):
    problem = make(name, BATCH).to(torch.float32)
    refused(form("naive_chunk", name), Mistake(problem, "chunk_size", re.escape(str(size))), chunk_size=size)


def required(name: str) -> list[str]:
    """The numbers that a call has to say."""
    return [param.name for param in spec_of(name).params if not param.is_tensor and param.default is None]


@pytest.mark.parametrize(("kind", "name"), [(kind, n) for kind, n in FORMS if required(n) and not spec_of(n).steps])
def test_missing_keywords(name, kind):
    """Python's own error names them."""
    problem = make(name, BATCH)
    for missing in required(name):
        rest = {n: x for n, x in problem.scalars.items() if n != missing}
        with pytest.raises(TypeError, match=missing):
            replace(problem, scalars=rest).call(form(kind, name))
