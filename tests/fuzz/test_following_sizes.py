"""Dims whose sizes follow from others: what packages make of them, and what they refuse."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor
from typer.testing import CliRunner

from flagen import cli
from flagen.algebra.small_sizes import small_sizes
from flagen.inspection.calls import Workload
from flagen.inspection.calls import sizes as inspected
from flagen.inspection.work import SIZES
from flagen.kernel.settings import CHUNKS, ROWS, SETTINGS
from flagen.pipeline import remarks_on
from flagen.plan.rows import TOKEN
from flagen.spec import load_spec, parse_spec
from flagen.spec.model import Number, Spec
from flagen.spec.sizes import fitting
from tests.fuzz import kernels, ladder
from tests.fuzz.packages import build, imported, planned

OWN = Path(__file__).parents[2] / "examples" / "specs"

STAGES = """\
flagen: 2
name: sizes_of_stages
title: Sizes of stages
description: A stage whose state has a dim of no tensor that it gets, and dims called as generated code calls its own.
dims: {row: K / 2, tokens: row + V - 1, M: 6 * HV / H, copy: K, L: M / 2}
state: {P: [row], n: [L], S: [K, V], Q: [copy, tokens]}
inputs:
  q: [K]
  k: [K]
  v: {dims: [V], heads: HV}
  w: {dims: [copy], heads: HV}
  a: {dims: [], heads: HV, range: [-.inf, 0]}
params:
  u: {dims: [tokens], per: head, default: 1 / tokens}
  m: {dims: [M], per: head, default: L * row ** -0.5}
decay: {alpha: exp(a)}
update:
  - P = alpha * P + (1 - alpha) * mean(k)
  - n = alpha * n + sum(m) * mean(v)
  - S = alpha * S + sum(P) * outer(k, v)
  - Q = alpha * Q + outer(w, u)
output: o = S.T @ q * sum(n) + sum(Q.T @ w) * v
"""


@pytest.fixture(scope="module")
def staged() -> Iterator[tuple[Spec, ModuleType]]:
    spec = parse_spec(STAGES)
    with imported(build(spec)) as package:
        yield spec, package


@pytest.fixture(scope="module")
def half_keys() -> Iterator[ModuleType]:
    with imported(build(load_spec(OWN / "half_keys.yaml"))) as package:
        yield package


def arguments(K: int, R: int, V: int = 4, T: int = 3) -> tuple[Tensor, ...]:
    q, k = torch.ones(2, 1, T, 2, K)
    return q, k, torch.ones(1, T, 2, R), torch.ones(1, T, 2, V), -torch.ones(1, T, 2)


def forms(package: ModuleType) -> list[Callable[..., tuple[Tensor, object]]]:
    found = [getattr(package, name) for name in dir(package) if name.endswith("half_keys") and "tune" not in name]
    return [form for form in found if inspect.isfunction(form) or callable(form)]


# ------------------------------------------------------------------------------------------------------------- choosing


@pytest.mark.parametrize(
    ("dims", "wanted", "expected"),
    [
        ("R: K / 4", {"K": 3}, {"K": 4, "R": 1}),
        ("R: K / 4", {"K": 100}, {"K": 100, "R": 25}),
        ("R: K * 0.3", {"K": 3}, {"K": 10, "R": 3}),
        ("R: 12", {"K": 3}, {"K": 3, "R": 12}),
        ("R: K - 3", {"K": 2}, {"K": 4, "R": 1}),
        ("R: 12 / K", {"K": 5}, {"K": 6, "R": 2}),
        ("R: 12 / K", {"K": 500}, {"K": 2, "R": 6}),
        ("R: K * V / 6", {"K": 2, "V": 2}, {"K": 3, "V": 2, "R": 1}),
        ("R: K / (V - 2)", {"K": 2, "V": 2}, {"K": 2, "V": 3, "R": 2}),
        ("R: M / 2, M: K / 2", {"K": 3}, {"K": 4, "R": 1, "M": 2}),
        ("R: K * HV / 3", {"K": 2}, {"K": 3, "R": 4}),
    ],
)
def test_sizes_that_go_together_are_near_to_those_that_are_wanted(dims, wanted, expected):
    text = (
        f"flagen: 2\nname: example\ndims: {{{dims}}}\nstate: {{S: [R, V]}}\ninputs: {{k: [K], v: [V]}}\n"
        "update: S = mean(k) * S\noutput: o = sum(S, R) * v\n"
    )
    sizes = fitting(parse_spec(text), {"V": 5, **wanted, "H": 2, "HV": 4})
    assert sizes == {"V": 5, **expected, "H": 2, "HV": 4}


@pytest.mark.parametrize("path", [OWN / "half_keys.yaml", OWN / "twelve_slots.yaml", None])
def test_whatever_chooses_sizes_chooses_some_that_go_together(path):
    spec = parse_spec(STAGES) if path is None else load_spec(path)

    # Proofs know sizes by name: for them a number of the spec is as long as any other.
    numbers = {entry.name: int(entry.value.value) for entry in spec.following if isinstance(entry.value, Number)}

    def go_together(sizes, H, HV):
        return fitting(spec, {**sizes, "H": H, "HV": HV}) == {**sizes, "H": H, "HV": HV}

    assert go_together(small_sizes(spec) | numbers, 2, 4)
    for setting in (*SETTINGS, *CHUNKS, *ROWS):
        for sizes in (setting.row_sizes(spec, TOKEN), *(setting.sizes(spec, dim) for dim in (None, *spec.dims))):
            assert go_together({**sizes.dims, **numbers}, sizes.H, sizes.HV)
            assert sizes.dims.keys() == set(spec.dims)
    for size in SIZES:
        sizes = inspected(spec, Workload(size, 1, H=2, groups=2))
        assert go_together({dim: sizes[dim] for dim in spec.dims}, sizes["H"], sizes["HV"])


# ----------------------------------------------------------------------------------------------------------- generated


def test_every_form_of_stages_is_the_recurrence(staged):
    spec, package = staged
    assert ladder.check(spec, package) == len(ladder.SHAPES)


@pytest.mark.usefixtures("kernels", "poisoned_memory")
@pytest.mark.filterwarnings("ignore:.*encountered in:RuntimeWarning")
def test_every_kernel_of_stages_is_the_recurrence(staged):
    spec, package = staged
    told = kernels.check(spec, package, shapes=kernels.SHAPES[:1])
    assert {"o", "d u", "d m", "final P", "final Q"} <= told


@pytest.mark.usefixtures("kernels", "poisoned_memory")
@pytest.mark.filterwarnings("ignore:.*encountered in:RuntimeWarning")
def test_a_size_may_be_a_number_alone():
    """Which no kernel has blocks of, and none is refused for."""
    spec = load_spec(OWN.parents[1] / "tests" / "spec" / "valid" / "following_sizes.yaml")
    assert "M" in spec.dims and "M" not in spec.axes
    assert not any("`M`" in remark.message for remark in remarks_on(planned(spec)))
    with imported(build(spec)) as package:
        assert ladder.check(spec, package, shapes=ladder.SHAPES[:2]) == 2
        assert {"o", "d q", "d c", "final P"} <= kernels.check(spec, package, shapes=kernels.SHAPES[:1])


HEADS = """\
flagen: 2
name: sizes_of_heads
title: Sizes of heads
dims: {M: 2 * HV / H}
state: {n: [M], S: [K, V]}
inputs: {q: [K], k: [K], v: {dims: [V], heads: HV}, a: {dims: [], heads: HV, range: [-.inf, 0]}}
decay: {alpha: exp(a)}
update:
  - n = alpha * n + mean(v)
  - S = alpha * S + sum(n) * outer(k, v)
output: o = S.T @ q
"""


def test_a_stage_that_cannot_know_a_size_is_none_and_says_so():
    spec = parse_spec(HEADS)
    told = [remark.message for remark in remarks_on(planned(spec))]
    assert any("the size of M follows from H, and stages have one number of heads" in message for message in told)
    with imported(build(spec)) as package:
        assert ladder.check(spec, package) == len(ladder.SHAPES)


def test_every_form_refuses_sizes_that_do_not_go_together(half_keys):
    found = forms(half_keys)
    assert len(found) >= 3
    for form in found:
        with pytest.raises(ValueError, match=r"^R: expected a positive int; it is K / 2, which is 2.5 for K = 5$"):
            form(*arguments(K=5, R=2))
        expected = r"^r: expected shape \[B, T, H, R\] with R = K / 2 = 3, got \(1, 3, 2, 2\)$"
        with pytest.raises(ValueError, match=expected):
            form(*arguments(K=6, R=2))
        states = (torch.zeros(1, 2, 6, 4), torch.zeros(1, 2, 2, 4), torch.zeros(1, 2, 3))
        with pytest.raises(ValueError, match=r"^initial_state \(P\): expected shape \[N, HV, R, V\] with R = 3, got"):
            form(*arguments(K=6, R=3), initial_state=states)


def test_a_module_knows_the_sizes_of_its_params(half_keys):
    module = half_keys.HalfKeys(HV=2, K=6)
    assert module.rate.tolist() == [[pytest.approx(1 / 3)] * 3] * 2
    assert repr(module) == "HalfKeys(HV=2, K=6, scale=None, carry_state=False)"
    assert module(*arguments(K=6, R=3))[0].shape == (1, 3, 2, 4)
    with pytest.raises(ValueError, match=r"^R: expected a positive int; it is K / 2, which is 3.5 for K = 7$"):
        half_keys.HalfKeys(HV=2, K=7)


def test_a_module_knows_sizes_by_other_names(staged):
    _, package = staged
    module = package.SizesOfStages(HV=4, H=2, K=6, V=3)
    assert (module.row, module.tokens, module.M, module.L) == (3, 5, 12, 6)
    assert module.u.shape == (4, 5)
    with pytest.raises(ValueError, match=r"^row: expected a positive int; it is K / 2, which is 3.5 for K = 7$"):
        package.SizesOfStages(HV=4, H=2, K=7, V=3)


def test_sizes_are_computed_where_torch_compiles_for_any(half_keys):
    form = torch.compile(half_keys.naive_chunk_half_keys, fullgraph=True, backend="eager", dynamic=True)
    for K in (6, 10, 14):
        given = arguments(K=K, R=K // 2)
        torch.testing.assert_close(form(*given)[0], half_keys.naive_chunk_half_keys(*given)[0])


def test_a_copy_that_stands_alone_refuses_them_too(tmp_path, monkeypatch):
    (tmp_path / "specs").mkdir()
    (tmp_path / "specs" / "half_keys.yaml").write_text((OWN / "half_keys.yaml").read_text(encoding="utf-8"))
    monkeypatch.chdir(tmp_path)
    for command in (["build", "half_keys"], ["vendor", "half_keys", "copies"]):
        done = CliRunner().invoke(cli.app, command)
        assert done.exit_code == 0, done.output
    monkeypatch.syspath_prepend(tmp_path / "copies")
    import half_keys as copy

    assert copy.naive_recurrent_half_keys(*arguments(K=6, R=3))[0].shape == (1, 3, 2, 4)
    with pytest.raises(ValueError, match="R: expected a positive int"):
        copy.naive_recurrent_half_keys(*arguments(K=5, R=2))
