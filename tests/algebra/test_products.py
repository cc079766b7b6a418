"""States with a key of two dims: which have rows over pairs, what is refused and why, and that it is the recurrence."""

from __future__ import annotations

from dataclasses import replace

import pytest

from flagen.algebra import Derivation, derive, proof, prove
from flagen.algebra.adjoint import adjoint
from flagen.algebra.equations import Equation, System
from flagen.algebra.products import prove_pairs, with_pairs
from flagen.algebra.rewrite import map_children
from flagen.diagnostics import InternalError
from flagen.pipeline import make_plan, remarks_on
from flagen.spec import parse_spec, to_source
from flagen.spec.model import Pairs, Spec
from tests.algebra.cases import variant
from tests.numeric.problems import spec_of

INPUTS = """
inputs:
  q: [K]
  k: [K]
  r: [L]
  p: [L]
  x: [K, L]
  v: {dims: [V], heads: HV}
  g: {dims: [], heads: HV, range: [-.inf, 0]}
  gk: {dims: [K], heads: HV, range: [-.inf, 0]}
"""
WRITE = "S = exp(g) * S + outer(outer(k, p), v)"
READ = "o = (S.T @ q) @ r"


def spec(update: str = WRITE, output: str = READ, state: str = "S: [K, L, V]") -> Spec:
    """A spec of these statements, separated by semicolons, and of the inputs that they name."""
    statements = [f"  - {line}" for line in update.split("; ")]
    outputs = [f"  - {line}" for line in output.split("; ")]
    words = f" {update} {output} ".translate(str.maketrans("()+-*/,.;@=", "           ")).split()
    inputs = [line for line in INPUTS.splitlines() if not line.startswith("  ") or line.split(":")[0].strip() in words]
    text = ["flagen: 2", "name: example", f"state: {{{state}}}", *inputs]
    return parse_spec("\n".join((*text, "update:", *statements, "output:", *outputs, "")))


def proved(of: Spec) -> Derivation:
    found = derive(of)
    assert found.no_chunk_form is None, found.no_chunk_form
    prove(of, found)
    return found


def test_a_row_is_a_pair_of_vectors():
    found = proved(spec())
    nf = found.normal_form
    assert nf is not None and found.chunk_form is not None
    (write,) = nf.steps[0].writes
    assert (nf.key, nf.value, nf.decay_kind) == ("K_L", "V", "scalar")
    assert (to_source(write.k), to_source(write.v), to_source(nf.reads[0].q)) == ("pairs(k, p)", "v", "pairs(q, r)")
    (state,) = nf.spec.states
    assert (state.dims, state.declared) == (("K_L", "V"), ("K", "L", "V"))
    scores = str(found.chunk_form.system.equation("B0"))
    assert scores == "B0[t,m] = [m seen by q0, t] q0a[t,a] ka[m,a] q0b[t,b] kb[m,b] exp(Gq0[t] - Gk[m])"


WRITTEN = {
    "values first": ("S = S + outer(v, outer(k, p))", "o = (S @ r) @ q", "S: [V, K, L]", "[V, K_L]"),
    "numbers anywhere": ("S = 0.5 * S - outer(2 * outer(k, exp(g) * p), v / 3)", READ, "S: [K, L, V]", "[K_L, V]"),
    "a sum of two rows": ("S = S + outer(outer(k, p), v) + outer(outer(q, r), v)", READ, "S: [K, L, V]", "[K_L, V]"),
    "an erasure": ("S = S + outer(outer(k, p), v - (S.T @ k) @ p)", READ, "S: [K, L, V]", "[K_L, V]"),
    "a read before": ("S = S + outer(outer(k, p), v)", "o = (S_prev.T @ q) @ r", "S: [K, L, V]", "[K_L, V]"),
    "a read in parts": (WRITE, "a = S.T @ q; o = a @ r + v", "S: [K, L, V]", "[K_L, V]"),
    "two reads": (WRITE, "o = (S.T @ q) @ r + (S.T @ k) @ p", "S: [K, L, V]", "[K_L, V]"),
    "a read down to a number": (WRITE, "o = dot((S.T @ q) @ r, v) * v", "S: [K, L, V]", "[K_L, V]"),
    "a local in the update": (
        "a = (S.T @ k) @ p; S = S + outer(outer(k, p), v - a)",
        READ,
        "S: [K, L, V]",
        "[K_L, V]",
    ),
    "a normalizer": (
        f"{WRITE}; z = exp(g) * z + outer(k, p)",
        "o = ((S.T @ q) @ r) / (dot(z.T @ q, r) + 1)",
        "S: [K, L, V], z: [K, L]",
        "[K_L, V]",
    ),
}


@pytest.mark.parametrize(("update", "output", "state", "dims"), WRITTEN.values(), ids=WRITTEN)
def test_what_has_a_chunk_form(update, output, state, dims):
    flat = proved(spec(update, output, state)).spec
    assert f"[{', '.join(flat.states[0].dims)}]" == dims


REFUSED = {
    "a row of a matrix": ("S = S + outer(<<x>>, v)", READ, "a row does not factor over K and L"),
    "a read by a matrix": (WRITE, "o = sum(sum(<<x>> * S, L), K)", "a row does not factor over K and L"),
    "a decay of each key": (
        "S = <<exp(gk) * S>> + outer(outer(k, p), v)",
        READ,
        "S decays otherwise for each K, and its keys are pairs",
    ),
    "what is the same for all keys": ("S = <<S + g>>", f"{READ} + v", "what is written to S is the same for every K"),
    "a read by one key": (
        WRITE,
        "a = exp(<<S.T @ q>>); o = a @ r",
        "a state with a key of two dims is read by one alone: L is left",
    ),
    "a part of a read, too late": (
        "a = S.T @ k; S = exp(g) * S; S = S + outer(outer(k, p), v - <<a>> @ p)",
        READ,
        "a is a part of a read of a state that is another one by now",
    ),
}


@pytest.mark.parametrize(("update", "output", "reason"), REFUSED.values(), ids=REFUSED)
def test_what_is_refused_says_why_and_where(update, output, reason):
    marked = f"{update};{output}"
    text = marked[marked.index("<<") + 2 : marked.index(">>")]
    of = spec(*(part.replace("<<", "").replace(">>", "") for part in (update, output)))
    found = derive(of)
    assert found.no_chunk_form is not None
    line = of.source.text.splitlines()[found.no_chunk_form.span.line - 1]
    start = found.no_chunk_form.span.column - 1
    place = line[start : start + found.no_chunk_form.span.length]
    assert (found.no_chunk_form.reason, place) == (reason, text)
    remarks = remarks_on(make_plan(of, found))
    assert [remark.code for remark in remarks] == ["no-chunk-form", "no-kernel"]
    assert "`S + outer(outer(k, l), v)`" in remarks[0].hint


def test_every_variant_with_pairs_is_proved():
    for name in ("based", "rebased", "power_attn"):
        whole = spec_of(name)
        flat = with_pairs(whole)
        assert all(state.declared == old.dims for state, old in zip(flat.states, whole.states, strict=True))
        prove_pairs(whole, flat)


def test_pairs_in_the_wrong_order_are_seen():
    whole = spec()
    flat = with_pairs(whole)

    def swapped(assign):
        return replace(assign, value=in_other_order(assign.value))

    def in_other_order(expr):
        if isinstance(expr, Pairs):
            return replace(expr, left=expr.right, right=expr.left)
        return map_children(expr, in_other_order)

    with pytest.raises(InternalError, match=r"with pairs for keys after token|of pairs is not"):
        prove_pairs(whole, replace(flat, update=tuple(map(swapped, flat.update))))


def mistakes(system: System) -> list[System]:
    """The system with one side of a score of pairs taken for the other, or left out."""
    found = []
    for number, statement in enumerate(system.statements):
        for place, term in enumerate(statement.terms if isinstance(statement, Equation) else ()):
            sides = [f for f in term.factors if f.index[-1:] in (("a",), ("b",))]
            for factor in sides:
                others = tuple(f for f in term.factors if f != factor)
                terms = (*statement.terms[:place], replace(term, factors=others), *statement.terms[place + 1 :])
                changed = replace(statement, terms=terms)
                found.append(
                    replace(system, statements=(*system.statements[:number], changed, *system.statements[number + 1 :]))
                )
    return found


def test_a_mistake_in_a_score_of_pairs_is_seen():
    found = variant("power_attn").stages[0]
    chunk = found.chunk_form
    assert chunk is not None
    wrong = mistakes(chunk.system)
    assert len(wrong) == 4
    for system in wrong:
        form = replace(chunk, system=system)
        with pytest.raises(InternalError, match=r"is not the recurrence.s|meet one row in every term"):
            proof.prove(form, adjoint(form))
    of_gradients = adjoint(chunk)
    for system in mistakes(of_gradients.system):
        with pytest.raises(InternalError, match="is not the recurrence's"):
            proof.prove(chunk, replace(of_gradients, system=system))
