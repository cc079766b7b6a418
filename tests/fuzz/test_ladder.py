"""The ladder fails where it should: a package with one character wrong does not climb it."""

from __future__ import annotations

from functools import cache

import pytest

from flagen.spec import load_spec
from flagen.spec.model import Spec
from tests.algebra.cases import SPECS
from tests.fuzz.ladder import check
from tests.fuzz.packages import SHARED, build, imported

ONE = "gated_delta_product"

# Each says the same in the file as printed, but for one thing.
MISTAKES = [
    ("naive_recurrent.py", "+ b_t[", "- b_t["),
    ("naive_recurrent.py", "alpha_t[..., None, None] * S", "1 * S"),
    ("naive_recurrent.py", "b_t[:, j,", "b_t[:, 0,"),
    ("naive_recurrent.py", "scale * torch.einsum", "torch.einsum"),
    ("naive_chunk.py", "A @ U", "A @ Ubar"),
    ("naive_chunk.py", "last_q = seen_q - 1", "last_q = seen_q - 2"),
    ("naive_chunk.py", "seen_q = (token + 1)", "seen_q = (token + 0)"),
    ("naive_chunk.py", "S = at_end_n * S", "S = S"),
    ("shared/rows.py", "g[..., 1:, :]", "g[..., :-1, :]"),
    ("shared/rows.py", "solve_triangular(-L", "solve_triangular(L"),
    ("naive_chunk.py", "y=-(b", "y=(b"),
    ("shared/rows.py", "[:, :tokens]", "[:, -tokens:]"),
    ("shared/arguments.py", "state[run : run + 1]", "state[:1]"),
    (
        "shared/arguments.py",
        "repeat_interleave(self.HV // x.shape[2], dim=2)",
        "repeat(1, 1, self.HV // x.shape[2], *[1] * (x.ndim - 3))",
    ),
    ("shared/module.py", "output_final_state=output_final_state or carries", "output_final_state=False"),
    ("module.py", "initial_state=initial_state,", "initial_state=self.state,"),
]


SEVERAL = "abc_attn"

# The same of several states, one of which starts at -inf.
MISTAKES_OF_SEVERAL = [
    ("naive_recurrent.py", "z_prev = z", "z_prev = z - 1e-6"),
    ("naive_recurrent.py", "torch.logaddexp(z, s_t)", "torch.logaddexp(z_prev + 0.1, s_t)"),
    ("naive_recurrent.py", "finals.append((z, Sk, Sv))", "finals.append((z, Sk, 2 * Sv))"),
    ("arguments.py", "-math.inf", "0.0"),
    ("shared/arguments.py", "state[run : run + 1]", "state[:1]"),
    ("module.py", "initial_state=initial_state,", "initial_state=self.state,"),
]


@cache
def built(name: str) -> tuple[Spec, dict[str, str]]:
    spec = load_spec(SPECS / f"{name}.yaml")
    return spec, {**SHARED, **build(spec, kernels=False)}


@pytest.mark.parametrize("name", [ONE, SEVERAL])
def test_as_built(name):
    spec, files = built(name)
    with imported(files) as package:
        check(spec, package)


@pytest.mark.parametrize(
    ("name", "path", "right", "wrong"),
    [(ONE, *mistake) for mistake in MISTAKES] + [(SEVERAL, *mistake) for mistake in MISTAKES_OF_SEVERAL],
    ids=[f"{path}: {wrong}" for path, _, wrong in (*MISTAKES, *MISTAKES_OF_SEVERAL)],
)
def test_one_mistake(name, path, right, wrong):
    spec, files = built(name)
    assert right in files[path], "the file no longer says this: make the mistake elsewhere"
    with (
        imported({**files, path: files[path].replace(right, wrong)}) as package,
        pytest.raises(AssertionError),
    ):
        check(spec, package)
