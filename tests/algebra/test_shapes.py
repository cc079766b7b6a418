"""Every odd shape comes down to the rows it should, and what is derived from them is proved."""

from __future__ import annotations

import pytest

from flagen import algebra
from tests.algebra.shapes import SHAPES


@pytest.mark.parametrize("shape", SHAPES)
def test_normal_form(shape):
    spec = SHAPES[shape].spec
    derivation = algebra.derive(spec)
    assert derivation.normal_form is not None, derivation.no_chunk_form
    heading = "normal form of written: "
    assert derivation.normal_form.dump().removeprefix(heading) == SHAPES[shape].normal_form
    proof = algebra.prove(spec, derivation)
    assert proof.lines[0].startswith("chunk form = recurrence")
