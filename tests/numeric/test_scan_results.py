"""A scan that returns several results, as a part of a package in a directory of its own."""

from __future__ import annotations

import importlib
from dataclasses import replace
from types import ModuleType

import pytest
import torch

from flagen import pipeline
from flagen.algebra.find_scan import scan_form
from flagen.algebra.scan_proof import prove
from flagen.backends.torch_.arguments import arguments_file
from flagen.backends.torch_.scan import scan_renderings
from flagen.backends.triton_.scan import scan_kernel_renderings
from flagen.emit.env import environment, render
from flagen.emit.format import format_python
from flagen.kernel.scan import scan_backward, scan_forward
from flagen.plan.free_names import asked_name
from flagen.plan.scan import plan_scan
from flagen.plan.scan_backward import plan_scan_kernels
from flagen.plan.unavailable import Unavailable
from flagen.project import bundled
from flagen.spec import parse_spec
from tests.fuzz.packages import imported
from tests.numeric.problems import assert_close, cotangent

pytestmark = [pytest.mark.usefixtures("kernels"), pytest.mark.usefixtures("poisoned_memory")]

TEXT = """
flagen: 1
name: softmax_over_time
state: {z: {dims: [K], init: -.inf}, n: []}
inputs: {k: {dims: [K], heads: HV}, v: [V]}
params: {u: {dims: [K], per: head}}
update:
  - z = logaddexp(z, k)
  - n = n + 1
output:
  - decay = exp(z_prev - z)
  - write = outer(exp(k - z + u), v)
  - o = sum(write * n, K) + sum(decay) * v
"""
RESULTS = ("decay", "o", "write")


@pytest.fixture(scope="module")
def part() -> ModuleType:
    spec = replace(parse_spec(TEXT, "part.yaml"), wide_outputs=frozenset(RESULTS) - {"o"})
    form = scan_form(spec, RESULTS)
    prove(form)
    plan = plan_scan(form)
    kernel, backward = plan_scan_kernels(plan)
    assert not isinstance(kernel, Unavailable) and not isinstance(backward, Unavailable)
    whole = pipeline.make_plan(spec, pipeline.derive(spec))
    env = environment(bundled("templates"))
    kernels = scan_kernel_renderings(kernel, backward, scan_forward(kernel, backward), scan_backward(backward))
    renderings = (arguments_file(whole), *scan_renderings(plan), *kernels)
    known = {"shared": "...", "asked": asked_name(whole.spec)}
    files = {f"part/{each.path}": render(env, each.template, each.context, **known) for each in renderings}
    with imported(format_python(files) | {"__init__.py": "", "part/__init__.py": ""}) as package:
        yield package


def modules(part: ModuleType):
    chunk = importlib.import_module(f"{part.__name__}.part.naive_chunk")
    fused = importlib.import_module(f"{part.__name__}.part.chunk")
    return chunk.naive_chunk_softmax_over_time, fused.chunk_softmax_over_time


def inputs(dtype: torch.dtype, tokens: int = 37):
    generator = torch.Generator().manual_seed(0)
    shapes = ((1, tokens, 4, 6), (1, tokens, 2, 5), (4, 6))
    return [torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype).requires_grad_() for shape in shapes]


def reference(k, v, u):
    """Token by token, by hand."""
    k, v = k.double(), v.double().repeat_interleave(2, dim=2)
    z = torch.cat([torch.full_like(k[:, :1], -torch.inf), k.logcumsumexp(1)], 1)
    decay = (z[:, :-1] - z[:, 1:]).exp()
    write = (k - z[:, 1:] + u.double()).exp()[..., None] * v[..., None, :]
    n = torch.arange(1, k.shape[1] + 1)[None, :, None, None]
    return decay, (write * n[..., None]).sum(-2) + decay.sum(-1)[..., None] * v, write, z[:, -1]


def gradients(results, tensors):
    named = {name: x for name, x in zip((*RESULTS, "z"), results, strict=True) if x.requires_grad}
    loss = sum((x.double() * cotangent(name, x)).sum() for name, x in named.items())
    found = torch.autograd.grad(loss, tensors)
    return {name: x.detach() for name, x in named.items()} | {f"d {i}": g for i, g in enumerate(found)}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("kernel", [False, True])
def test_every_result(part, kernel, dtype):
    tensors = inputs(dtype)
    decay, o, write, (z, n) = modules(part)[kernel](*tensors, output_final_state=True)
    computed = torch.float64 if dtype == torch.float64 else torch.float32
    assert (decay.dtype, o.dtype, write.dtype) == (computed, dtype, computed)
    assert (n == 37).all()
    bound = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 8e-3}[dtype]
    expected = gradients(reference(*tensors), tensors)
    assert_close(expected, gradients((decay, o, write, z), tensors), bound)


@pytest.mark.parametrize("kernel", [False, True])
def test_one_result_alone(part, kernel):
    """The others, and the final states, have no gradient."""
    for place, _ in enumerate(RESULTS):
        tensors = inputs(torch.float32, 20)
        results = modules(part)[kernel](*tensors)
        assert results[-1] is None
        found = torch.autograd.grad(results[place].double().square().sum(), tensors, materialize_grads=True)
        wanted = torch.autograd.grad(
            reference(*tensors)[place].square().sum(), tensors, allow_unused=True, materialize_grads=True
        )
        assert_close(dict(enumerate_(wanted)), dict(enumerate_(found)), 1e-4)


def enumerate_(found):
    return ((f"d {place}", x) for place, x in enumerate(found))


def test_compiles_whole(part):
    tensors = inputs(torch.float32, 20)
    function = modules(part)[True]
    expected = function(*tensors)[:3]
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")(*tensors)[:3]
    assert_close(dict(zip(RESULTS, expected, strict=True)), dict(zip(RESULTS, compiled, strict=True)), 1e-6)


def test_a_part_without_an_output_of_its_own():
    """All results in the dtype that is computed in: nothing is said of the output's."""
    spec = replace(parse_spec(TEXT, "part.yaml"), wide_outputs=frozenset(RESULTS) - {"o"})
    spec = replace(spec, output=spec.output[:2])
    plan = plan_scan(scan_form(spec, RESULTS[::2]))
    (chunk,) = scan_renderings(plan)
    text = render(environment(bundled("templates")), chunk.template, chunk.context, shared="..")
    assert "-> tuple[Tensor, Tensor, tuple[Tensor, Tensor] | None]" in text
    assert ".dtype\n" not in text
