"""Elementwise scans: what is found, what is refused and where, and a proof that a wrong one does not pass."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import pytest
from gmpy2 import mpq

from flagen import algebra
from flagen.algebra import scan_proof
from flagen.algebra.exact import Oracle
from flagen.algebra.find_scan import OutsideScan, scan_form
from flagen.algebra.rewrite import map_children
from flagen.algebra.scan import ONE, Scan, ScanForm
from flagen.diagnostics import InternalError, Span
from flagen.spec import parse_spec, to_source
from flagen.spec.model import Binary, Call, Negate, StateRead
from tests.algebra.cases import recurrence, text_of, variant
from tests.numeric.scans import COMMITTED, NAMES, spec_of

# -------------------------------------------------------------------------------------------------------- what is found


@dataclass(frozen=True)
class Found:
    """A recurrence, and for each scan in order its state, kind, factor and term as source."""

    state: str
    update: str
    output: str
    scans: tuple[tuple[str, str, str, str], ...]


FOUND = {
    "a vector": Found("h: [K]", "h = exp(gk) * h + q", "o = h", (("h", "affine", "exp(gk)", "q"),)),
    "a sum": Found("h: [K]", "h = q + h", "o = h", (("h", "affine", "1", "q"),)),
    "no memory": Found("h: [K]", "h = q", "o = h + h_prev", (("h", "affine", "0", "q"),)),
    "unchanged": Found(
        "h: [K], e: [K]",
        "- e = e\n- h = h * e + q",
        "o = h",
        (("e", "affine", "1", "0"), ("h", "affine", "e", "q")),
    ),
    "statements composed": Found(
        "h: [K]",
        "- h = s * h\n- h = h - q\n- h = -(h / r)",
        "o = h",
        (("h", "affine", "-(s / r)", "-(-q / r)"),),
    ),
    "a local of its own": Found(
        "h: [K]", "- y = s * h - q\n- h = h + r * y", "o = h + y", (("h", "affine", "1 + r * s", "r * -q"),)
    ),
    "rows and columns": Found(
        "h: [K, V]",
        "h = gk * h - outer(k, v) * (gv * h)",
        "o = sum(h, K)",
        (("h", "affine", "gk - outer(k, v) * gv", "0"),),
    ),
    "a running log-sum-exp": Found(
        "z: {dims: [K], init: -.inf}", "z = logaddexp(q, z + g)", "o = z", (("z", "logaddexp", "g", "q"),)
    ),
    "log-sum-exps shifted and nested": Found(
        "z: [K]",
        "- z = logaddexp(z, q) - s\n- z = logaddexp(z - s, k)",
        "o = z",
        (("z", "logaddexp", "-s - s", "logaddexp(q - s - s, k)"),),
    ),
    "a running maximum": Found(
        "m: {dims: [K], init: -.inf}", "m = maximum(q, m + g)", "o = m", (("m", "maximum", "g", "q"),)
    ),
    "maxima, shifted and nested": Found(
        "m: [K]",
        "- m = maximum(m, q) - s\n- m = maximum(m - s, k)",
        "o = m",
        (("m", "maximum", "-s - s", "maximum(q - s - s, k)"),),
    ),
    "a running maximum under a param": Found(
        "m: [K]", "m = maximum(m - u * k, q)", "o = m", (("m", "maximum", "-(u * k)", "q"),)
    ),
    "a bound from below": Found("h: [K]", "h = maximum(h + q, 0)", "o = h", (("h", "maximum", "q", "0"),)),
    "an angle in turns": Found(
        "phi: [K]", "phi = fraction(q * s + (phi + k))", "o = phi", (("phi", "phase", "1", "q * s + k"),)
    ),
    "turns that go back": Found("phi: [K]", "phi = fraction(phi - q)", "o = phi", (("phi", "phase", "1", "-q"),)),
    "turns that only lose their whole": Found(
        "phi: [K]", "phi = fraction(phi)", "o = phi + q", (("phi", "phase", "1", "0"),)
    ),
    "turns after turns": Found(
        "phi: [K]",
        "- phi = fraction(phi + q)\n- back = fraction(phi) - k\n- phi = fraction(back + fraction(q))",
        "o = phi",
        (("phi", "phase", "1", "q - k + fraction(q)"),),
    ),
    "later by an angle": Found(
        "phi: [K], h: [K]",
        "- phi = fraction(phi + q)\n- h = cos(phi) * h + sin(phi_prev)",
        "o = h",
        (("phi", "phase", "1", "q"), ("h", "affine", "cos(phi)", "sin(phi_prev)")),
    ),
    "later by earlier": Found(
        "h: [K], z: [K]",
        "- z = z + q\n- h = (z_prev - z) * h + z",
        "o = h",
        (("z", "affine", "1", "q"), ("h", "affine", "z_prev - z", "z")),
    ),
    "before its update": Found(
        "h: [K], z: [K]",
        "- y = z\n- h = y * h + z\n- z = z + q",
        "o = h",
        (("z", "affine", "1", "q"), ("h", "affine", "y", "z_prev")),
    ),
}


@pytest.mark.parametrize("name", FOUND)
def test_found(name):
    case = FOUND[name]
    form = scan_form(recurrence(case.update, case.output, state=case.state))
    assert [(s.state.name, s.kind, to_source(s.factor), to_source(s.term)) for s in form.scans] == list(case.scans)
    scan_proof.prove(form)
    assert form.dump() and form.dump_chunk() and form.dump_adjoint()


@pytest.mark.parametrize("name", NAMES)
def test_proved(name):
    form = scan_form(spec_of(name))
    lines = scan_proof.prove(form).lines
    assert "chunk lengths 1 to 5, two chunks" in lines[0]
    assert lines[1].endswith(f"initial {form.spec.states[-1].name}")


@pytest.mark.parametrize("name", COMMITTED)
def test_committed_variants_are_scans(name):
    derivation = variant(name)
    assert derivation.scan is not None
    assert derivation.normal_form is None


@pytest.mark.parametrize("name", ["gsa", "abc_attn", "lightnet", "linear_attn_normalized", "linear_attn"])
def test_matrices_of_outer_products_are_none_as_a_whole(name):
    """Their elements are scans, but matrix products serve them better."""
    assert any(part.low_rank for part in scan_form(variant(name).spec).scans)
    assert variant(name).scan is None


def test_several_results():
    spec = recurrence(
        "- z = logaddexp(z, k)", "[decay = exp(z_prev - z), o = decay * k]", state="z: {dims: [K], init: -.inf}"
    )
    form = scan_form(spec, results=("decay", "o"))
    assert form.results == ("decay", "o")
    assert form.dims("decay") == form.dims("o") == ("K",)
    scan_proof.prove(form)


def test_locals_that_nobody_reads_are_left_out():
    form = scan_form(recurrence("- y = h * q\n- h = h + y\n- x2 = tanh(h)", "o = h + x2", state="h: [K]"))
    assert [part.target for part in form.update if not isinstance(part, Scan)] == ["x2"]


# ------------------------------------------------------------------------------------------------------ what is refused


@dataclass(frozen=True)
class Refusal:
    """A recurrence, what is wrong with it between << and >>, and the reason."""

    update: str
    reason: str
    state: str = "h: [K]"
    output: str = "o = h"


REFUSALS = {
    "a function of the state": Refusal("h = <<tanh(h)>> + q", "the update of `h` is not affine in it: `tanh`"),
    "a power of the state": Refusal("h = <<h ** 2>> + q", "the update of `h` is not affine in it: `**`"),
    "a square": Refusal("h = <<h * h>> + q", "`h` is multiplied by itself"),
    "a square by way of a local": Refusal("- y = s * h\n- h = <<h * y>> + q", "`h` is multiplied by itself"),
    "a quotient": Refusal("h = q / <<h>>", "the update divides by `h`"),
    "a sum over the state": Refusal("h = h + q * <<sum(h)>>", "the update mixes elements of `h`"),
    "a delta rule": Refusal(
        "S = S + outer(k, v - <<S.T @ k>>)", "the update mixes elements of `S`", state="S: [K, V]", output="o = S.T @ q"
    ),
    "a softmax": Refusal("h = <<softmax(h)>> + q", "the update mixes elements of `h`"),
    "a cycle": Refusal(
        "- h = h + z_prev * q\n- <<z = z + h>>",
        "the updates of `h` and `z` need one another",
        state="h: [K], z: [K]",
        output="o = h + z",
    ),
    "a cycle by way of a local": Refusal(
        "- y = tanh(z)\n- h = y * h + q\n- <<z = z + h>>",
        "the updates of `h` and `z` need one another",
        state="h: [K], z: [K]",
        output="o = h + z",
    ),
    "a scaled log-sum-exp": Refusal(
        "h = <<s * logaddexp(h, q)>>", "a logaddexp of `h` may be shifted, and nothing else"
    ),
    "a scaled state in a log-sum-exp": Refusal("h = logaddexp(<<s * h>>, q)", "`h` is scaled inside a logaddexp"),
    "both sides of a log-sum-exp": Refusal("h = <<logaddexp(h, h + q)>>", "both sides of the logaddexp read `h`"),
    "a sum of log-sum-exps": Refusal(
        "h = <<logaddexp(h, q)>> + h", "a logaddexp of `h` may be shifted, and nothing else"
    ),
    "a maximum of a multiple": Refusal("h = maximum(<<s * h>>, q)", "`h` is scaled inside a maximum"),
    "a maximum mirrored": Refusal("h = maximum(q, <<k - h>>)", "`h` is scaled inside a maximum"),
    "a scaled maximum": Refusal("h = <<s * maximum(h, q)>>", "a maximum of `h` may be shifted, and nothing else"),
    "a sum of maxima": Refusal("h = h + <<maximum(h, q)>>", "a maximum of `h` may be shifted, and nothing else"),
    "both sides of a maximum": Refusal("h = <<maximum(h - q, h + q)>>", "both sides of the maximum read `h`"),
    "a maximum of a log-sum-exp": Refusal(
        "h = maximum(<<logaddexp(h, q)>>, k)", "a logaddexp of `h` may be shifted, and nothing else"
    ),
    "a log-sum-exp of a maximum": Refusal(
        "h = logaddexp(<<maximum(h, q)>>, k)", "a maximum of `h` may be shifted, and nothing else"
    ),
    "a running minimum": Refusal("h = <<minimum(h, q)>>", "the update of `h` is not affine in it: `minimum`"),
    "turns of a multiple": Refusal("h = fraction(<<2 * h + q>>)", "`h` is scaled inside a fraction"),
    "turns mirrored": Refusal("h = fraction(<<q - h>>)", "`h` is scaled inside a fraction"),
    "turns of a log-sum-exp": Refusal(
        "h = fraction(<<logaddexp(h, q)>>)", "a logaddexp of `h` may be shifted, and nothing else"
    ),
    "turns without their whole, and more": Refusal(
        "h = <<fraction(h + q)>> + k", "a fraction of `h` may be shifted inside another fraction, and nothing else"
    ),
    "turns that are scaled": Refusal(
        "h = <<s * fraction(h + q)>>", "a fraction of `h` may be shifted inside another fraction, and nothing else"
    ),
    "two turns": Refusal(
        "h = <<fraction(h + q)>> + h", "a fraction of `h` may be shifted inside another fraction, and nothing else"
    ),
    "a log-sum-exp of turns": Refusal(
        "h = logaddexp(<<fraction(h)>>, q)",
        "a fraction of `h` may be shifted inside another fraction, and nothing else",
    ),
    "turns scaled in a fraction": Refusal(
        "h = fraction(q + <<2 * fraction(h)>>)",
        "a fraction of `h` may be shifted inside another fraction, and nothing else",
    ),
    "whole turns alone": Refusal("h = h - <<floor(h)>> + q", "the update of `h` is not affine in it: `floor`"),
    "decays added over different dims": Refusal(
        "h = <<gk * h + gv * h>>",
        "the update of `h` brings tensors over [K] and [V] together",
        state="h: [K, V]",
        output="o = sum(h, K)",
    ),
    "locals without end": Refusal(
        "- y0 = q * h\n" + "".join(f"- y{n + 1} = y{n} + y{n}\n" for n in range(40)) + "- <<h = h + y40>>",
        "with its locals written out, this is too large an expression",
    ),
    "states without end": Refusal(
        "- h = h + q\n" + "- h = h + h\n" * 10 + "- <<h = h + h>>\n" + "- h = h + h",
        "with its locals written out, this is too large an expression",
    ),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_refused(name):
    refusal = REFUSALS[name]
    marked = text_of(refusal.update, refusal.output, state=refusal.state)
    spec = parse_spec(marked.replace("<<", "").replace(">>", ""), "written.yaml")
    with pytest.raises(OutsideScan) as refused:
        scan_form(spec)
    assert refused.value.reason == refusal.reason

    before, _, rest = marked.partition("<<")
    line, column = before.count("\n") + 1, len(before) - before.rfind("\n")
    assert refused.value.span == Span("written.yaml", line, column, rest.index(">>"))


def test_micro_steps_are_refused():
    with pytest.raises(OutsideScan, match="an update in micro-steps has no scan form") as refused:
        scan_form(recurrence("- h = h + q\n- repeat: n\n  do:\n    - h = h + kj", "o = h", state="h: [K]"))
    assert (refused.value.span.line, refused.value.span.column) == (10, 5)


@pytest.mark.parametrize("name", ["a function of the state", "a cycle", "a sum over the state"])
def test_the_reason_that_tells_more_is_given(name):
    refusal = REFUSALS[name]
    text = text_of(refusal.update, refusal.output, state=refusal.state).replace("<<", "").replace(">>", "")
    found = algebra.derive(parse_spec(text, "written.yaml")).no_chunk_form
    # Of several states, the stages say which of them need each other.
    stages = "no state can be run before the others: h needs z, and z needs h"
    assert found is not None and found.reason == (stages if "a cycle" in name else refusal.reason)


# --------------------------------------------------------------------------------------------------- mistakes are found


def mutants(form: ScanForm) -> Iterator[tuple[str, ScanForm]]:
    """`form` with one mistake each."""
    for place, part in enumerate(form.update):
        if not isinstance(part, Scan):
            continue
        name = part.state.name
        doubled = Call("logaddexp", (part.term, part.term)) if part.kind == "logaddexp" else Negate(part.term)
        changes = {"term": doubled}
        if part.factor != ONE or part.kind == "logaddexp":
            changes["factor"] = ONE if part.factor != ONE else Negate(ONE)
        for field, value in changes.items():
            update = (*form.update[:place], replace(part, **{field: value}), *form.update[place + 1 :])
            yield f"{field} of {name}", replace(form, update=update)
        if part.kind in ("maximum", "phase"):
            update = (*form.update[:place], replace(part, kind="affine"), *form.update[place + 1 :])
            yield f"kind of {name}", replace(form, update=update)
    for place, assign in enumerate(form.outputs):
        swapped = _swapped(assign.value)
        if swapped != assign.value:
            outputs = (*form.outputs[:place], replace(assign, value=swapped), *form.outputs[place + 1 :])
            yield f"states before for states after in {assign.target}", replace(form, outputs=outputs)


def _swapped(expr):
    if isinstance(expr, StateRead):
        return replace(expr, previous=not expr.previous)
    return map_children(expr, _swapped)


@pytest.mark.parametrize("name", NAMES)
def test_a_wrong_form_does_not_pass(name):
    form = scan_form(spec_of(name))
    wrong = list(mutants(form))
    assert wrong
    for what, mutant in wrong:
        with pytest.raises(InternalError, match="is not the recurrence's"):
            scan_proof.prove(mutant)
            pytest.fail(f"passed with another {what}")


@pytest.mark.parametrize("name", ["hgrn", "rwkv4"])
def test_a_wrong_product_does_not_pass(name, monkeypatch):
    joined = scan_proof._joined
    monkeypatch.setattr(scan_proof, "_joined", lambda first, second: joined(second, first))
    with pytest.raises(InternalError, match="is not the recurrence's"):
        scan_proof.prove(scan_form(spec_of(name)))


def test_turns_that_keep_their_whole_do_not_pass(monkeypatch):
    monkeypatch.setattr(scan_proof, "_without_turns", lambda element: element)
    with pytest.raises(InternalError, match="is not the recurrence's"):
        scan_proof.prove(scan_form(spec_of("turning")))


def test_a_wrong_derivative_of_a_maximum_does_not_pass(monkeypatch):
    monkeypatch.setattr(Scan, "slope", ONE)
    with pytest.raises(InternalError, match="is not the recurrence's derivative"):
        scan_proof.prove(scan_form(spec_of("peaks")))


def test_ties_are_shared_as_the_recurrence_does(monkeypatch):
    """Of whole numbers many are equal."""
    form = scan_form(recurrence("m = maximum(m + q, k)", "o = m", state="m: [K]"))
    monkeypatch.setattr(Oracle, "rational", lambda self, *_: mpq(self.random.choice((-1, 0, 1))))
    scan_proof.prove(form)
    (scan,) = form.scans
    monkeypatch.setattr(Scan, "slope", Call("relu", (Call("sign", (Binary("-", scan.decayed, scan.term),)),)))
    with pytest.raises(InternalError, match="is not the recurrence's derivative"):
        scan_proof.prove(form)


@pytest.mark.parametrize("name", ["rwkv4", "two_matrices", "turning", "peaks"])
def test_a_wrong_slope_does_not_pass(name, monkeypatch):
    """Gradients are looked at, too: those of the states before a token go missing."""
    pull = scan_proof._Reverse._pull

    def without_previous(self, part, after):
        for gradient in self.gradients:
            for index in after:
                gradient[self.place[f"{part.state.name}_prev", index]] *= 0
        return pull(self, part, after)

    monkeypatch.setattr(scan_proof._Reverse, "_pull", without_previous)
    with pytest.raises(InternalError, match="is not the recurrence's derivative"):
        scan_proof.prove(scan_form(spec_of(name)))
