"""How far a NaN gets: to no earlier token, or, as the docstring then says, to those of its chunk.

Products of a chunk meet what a token must not see with zero, and zero times NaN is NaN.
"""

from __future__ import annotations

import ast

import torch

from flagen.spec.model import Name
from tests.numeric.problems import FORMS, ROOT, Shape, form, forms, make, spec_of
from tests.tiers import each_form

SHAPE = Shape(T=26, K=8, V=6)
CHUNK, TOKEN = 16, 20
"""The token is the fifth of the second chunk; with micro-steps chunks are shorter still."""


def first_nan(kind: str, name: str) -> int:
    """The first token to which a NaN in an input of TOKEN gets."""
    spec, first = spec_of(name), SHAPE.T
    chunked = {"chunk_size": CHUNK} if kind in ("naive_chunk", "chunk") else {}
    for decl in spec.inputs:
        # Mini-batches are chunks, and begin where those do; so do chunks of a state in levels.
        every = {each.every.name: CHUNK for each in spec.firsts if isinstance(each.every, Name)}
        problem = make(name, SHAPE, state=not (spec.firsts or spec.levels), **every).to(torch.float32)
        rows = SHAPE.n if decl.per == "step" else 1
        x = problem.tensors[decl.name].clone()
        x[:, TOKEN * rows] = torch.nan
        o, _ = problem.with_tensors(**{decl.name: x}).call(form(kind, name), **chunked)
        reached = o.isnan().flatten(2).any(-1).any(0).nonzero()
        first = min(first, *reached.flatten().tolist(), SHAPE.T)
    return first


@each_form(forms(*FORMS))
def test_a_nan_stays_where_its_docstring_says(kind, name):
    says = "A NaN reaches all tokens of its chunk" in form(kind, name).__doc__
    first = first_nan(kind, name)
    assert says == (first < TOKEN)
    assert first >= CHUNK, "the chunk before is none of its business"
    assert first <= TOKEN


def test_padding_is_zero():
    """Masked loads read zeros where there is nothing, the log of zero, or a factor of one; PyTorch pads with zeros."""
    kernels = sorted((ROOT / "generated").rglob("*.py"))
    loads = 0
    for path in kernels:
        for call in (node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)):
            given = {keyword.arg: keyword.value for keyword in call.keywords}
            match call.func:
                case ast.Attribute(ast.Name("tl"), "load") if "mask" in given:
                    loads += 1
                    other = ast.unparse(given["other"]) if "other" in given else None
                    assert other in ("0.0", "1.0", "float('-inf')"), f"{path}:{call.lineno}"
                case ast.Attribute(ast.Name("functional"), "pad"):
                    assert len(call.args) == 2 and not given, f"{path}:{call.lineno}"
    assert loads > 1000
