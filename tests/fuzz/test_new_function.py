"""A function is a row of a table: one that the language does not have climbs the ladder as soon as there is its row."""

from __future__ import annotations

import math

import pytest
import torch

from flagen.backends.triton_ import device
from flagen.functions import FUNCTIONS, Function
from flagen.intervals import rising
from flagen.project import DEVICE
from flagen.spec import check_spec, parse_spec
from tests.fuzz import interpreter, kernels, ladder
from tests.fuzz.packages import build, imported

pytestmark = [
    pytest.mark.usefixtures("interpreter", "poisoned_memory"),
    pytest.mark.filterwarnings("ignore:.*encountered in:RuntimeWarning"),
]

ERF = Function(
    name="erf",
    summary="the error function",
    value=math.erf,
    interval=rising(math.erf),
    slopes=("1.1283791670955126 * exp(-x ** 2)",),
    finite=True,
    torch="torch.erf",
    python="math.erf({0})",
    triton="tl.erf",
)
"""Triton's core has it."""

SOFTSIGN = Function(
    name="softsign",
    summary="`x / (1 + abs(x))`",
    definition="x / (1 + abs(x))",
    value=lambda x: math.copysign(1, x) if math.isinf(x) else x / (1 + abs(x)),
    interval=rising(lambda x: math.copysign(1, x) if math.isinf(x) else x / (1 + abs(x))),
    finite=True,
)
"""Triton's core lacks it: it is a function of the device, too."""

ON_DEVICE = """

@triton.jit
def softsign(x):
    return x / (1.0 + tl.abs(x))
"""

DECLARED = "state: {S: [K, V]}\ninputs: {q: [K], k: [K], v: {dims: [V], heads: HV}, g: [], gk: [K], b: []}\n"
SPECS = {
    "chunks, a decay of each head": DECLARED
    + """
params: {u: {}, w: {dims: [K]}}
decay: {a: exp(-1 - f(g))}
update: S = a * S + outer(f(k), f(u) * f(b) * (v - S.T @ f(k)))
output: o = f(K ** -0.5) * S.T @ f(q * w) + mean(f(gk))
""",
    "chunks, a decay of each key": DECLARED
    + "update: S = exp(-softplus(f(gk))) * S + outer(k, f(v) * f(b))\noutput: o = f(S.T @ q) + f(g)\n",
    "a scan": """
state: {h: [K]}
inputs: {x: [K], g: [K]}
update: h = (1 + f(g)) * 0.5 * h + f(x)
output: o = f(h) * x
""",
    "token by token, of a state": DECLARED
    + "update: S = f(0.5 * S + outer(f(k), v)) * (1 + f(g) * f(b))\noutput: o = S.T @ q + f(sum(f(gk)))\n",
}
FORMS = {
    "chunks, a decay of each head": {"naive_recurrent", "naive_chunk", "fused_recurrent", "chunk"},
    "chunks, a decay of each key": {"naive_recurrent", "naive_chunk", "fused_recurrent", "chunk"},
    "a scan": {"naive_recurrent", "naive_chunk", "fused_recurrent", "chunk"},
    "token by token, of a state": {"naive_recurrent", "fused_recurrent"},
}


def text_of(spec: str, function: str) -> str:
    return f"flagen: 1\nname: new\n{SPECS[spec]}".replace("f(", f"{function}(")


@pytest.fixture
def files(row: Function, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """`row` is in the table, and on the device; the files that have to ship for it."""
    meaning = {"erf": torch.erf, "softsign": torch.nn.functional.softsign}[row.name]
    monkeypatch.setitem(interpreter._FUNCTIONS, row.name, meaning)
    monkeypatch.setitem(FUNCTIONS, row.name, row)
    if row.triton:
        return {}
    for names in (device.FUNCTIONS, device.OF_A_TOKEN, device.OF_SCANS, device.OF_CHUNKS):
        monkeypatch.setitem(names, "maps", (*names["maps"], row.name))
    return {"shared/device/maps.py": (DEVICE / "maps.py").read_text(encoding="utf-8") + ON_DEVICE}


@pytest.mark.parametrize(
    ("row", "text"),
    [*((ERF, text) for text in SPECS), (SOFTSIGN, next(iter(SPECS)))],
    ids=[*(f"erf, {text}" for text in SPECS), "softsign"],
)
def test_every_form_is_the_recurrence(row, text, files):
    """Derived, proved, and right in float64 and on tiles, with its gradients."""
    spec = parse_spec(text_of(text, row.name))
    package_files = build(spec)
    if "naive_chunk" in FORMS[text]:
        assert rf"\operatorname{{{row.name}}}\left(" in package_files["DERIVATION.md"]
    with imported({**package_files, **files}) as package:
        assert {form for form in FORMS[text] if hasattr(package, f"{form}_new")} == FORMS[text]
        assert ladder.check(spec, package) == len(ladder.SHAPES)
        told = kernels.check(spec, package, shapes=kernels.SHAPES[:1])
    leaves = [decl.name for decl in (*spec.inputs, *(param for param in spec.params if param.is_tensor))]
    assert told >= {"o", *(f"d {name}" for name in leaves)}


@pytest.mark.parametrize("row", [ERF])
def test_it_is_a_word_of_the_language_then(row, files):
    codes = [d.code for d in check_spec(text_of("a scan", "erf").replace("erf(x)", "erf(x, x)"))[1]]
    assert codes == ["E407"]
    assert [d.code for d in check_spec(text_of("a scan", "erf").replace("x", "erf"))[1]][:1] == ["E302"]


def test_without_its_row_it_is_none():
    assert {d.code for d in check_spec(text_of("a scan", "erf"))[1]} == {"E408"}
