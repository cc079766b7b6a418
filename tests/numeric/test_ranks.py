"""Tokens of several rows, as authors may write them: every form against the recurrence in float64, gradients too."""

from __future__ import annotations

from textwrap import dedent

import torch

from flagen.spec import parse_spec
from flagen.spec.model import Spec
from tests.fuzz.packages import imported, written
from tests.fuzz.packages import planned as plan_of
from tests.margins import beyond
from tests.numeric.problems import cotangent, rms_ratio
from tests.tiers import tiered

HEADS, SIZES = {"H": 2, "HV": 4}, {"R": 3, "K": 6, "V": 5}
LENGTHS = (9, 0, 1, 14)
SPECS = {
    "a_decay_of_each_key": """
        inputs:
          {q: [R, K], k: [R, K], v: {dims: [V], heads: HV}, g: {dims: [K], range: [-.inf, 0]},
           b: {dims: [R], heads: HV}}
        params: {up: {dims: [R, V], per: head}, down: {dims: [R, V], per: head}}
        update: ["S = exp(g) * S", "S = S + k.T @ (b * (v * up))"]
        output: o = sum(q @ S * down, R)
    """,
    "rows_of_two_kinds": """
        inputs:
          {q: [R, K], p: [K], k: [R, K], l: [K], v: {dims: [R, V], heads: HV}, w: {dims: [V], heads: HV},
           a: {dims: [], range: [0.1, 1]}}
        update: ["S = a * S + k.T @ v", "S = 0.5 * (S - outer(l, w))"]
        output: o = (S.T @ p) * w + sum(q @ S, R)
    """,
    "reads_from_the_right": """
        inputs: {q: [R, V], k: [R, K], v: {dims: [R, V], heads: HV}, g: {dims: [], heads: HV, range: [-.inf, 0]}}
        params: {scale: {dims: [K], per: head}}
        update: S = exp(g) * S + k.T @ v
        output: o = sum(scale * (q @ S.T), R)
    """,
    "more_reads_than_rows": """
        inputs: {q: [R, K], k: [K], v: {dims: [V], heads: HV}}
        params: {rate: {per: head, range: [-.inf, 0]}, out: {dims: [R], per: head}}
        update: S = exp(rate) * S + outer(k, v)
        output: o = out @ tanh(q @ S)
    """,
    "more_rows_than_reads": """
        inputs: {q: [K], v: {dims: [R, V], heads: HV}, t: {dims: [], heads: HV, range: [0.1, 1]}}
        params: {keys: {dims: [R, K], per: head}}
        update: S = t * S + keys.T @ v
        output: o = S.T @ q
    """,
}


def spec_of(name: str) -> Spec:
    text = dedent(SPECS[name])
    return parse_spec(f"flagen: 2\nname: {name}\nstate: {{S: [K, V]}}\n{text}\n")


def arguments(spec: Spec, generator: torch.Generator) -> dict[str, torch.Tensor]:
    def drawn(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    def of(decl, *leading: int) -> torch.Tensor:
        x, (low, high) = drawn(*leading, *(SIZES[dim] for dim in decl.dims)), (decl.range.low, decl.range.high)
        return low + (high - low) * x.sigmoid() if low > -torch.inf else high - x.square() if high < torch.inf else x

    given = {decl.name: of(decl, 1, sum(LENGTHS), HEADS[decl.heads]) for decl in spec.inputs}
    heads = HEADS["HV"]
    given |= {decl.name: of(decl, heads) for decl in spec.params}
    return given | {"initial_state": drawn(len(LENGTHS), heads, SIZES["K"], SIZES["V"])}


def results(function, given: dict[str, torch.Tensor], **modes: object) -> dict[str, torch.Tensor]:
    leaves = {name: x.detach().requires_grad_() for name, x in given.items()}
    offsets = torch.tensor([0, *torch.tensor(LENGTHS).cumsum(0)])
    o, final = function(**leaves, cu_seqlens=offsets, output_final_state=True, **modes)
    loss = (o * cotangent("o", o)).sum() + (final * cotangent("S", final)).sum()
    gradients = torch.autograd.grad(loss, list(leaves.values()))
    return {"o": o, "S": final} | {f"d {name}": x for name, x in zip(leaves, gradients, strict=True)}


SEEN = ("rows_of_two_kinds", "reads_from_the_right")
"""A decay for all channels, and one read of each kind; the kernels of decays of each channel."""


@tiered("name", ((name,) for name in SPECS), SEEN.__contains__)
def test_every_form_is_the_recurrence(name, kernels):
    spec = spec_of(name)
    plan = plan_of(spec)
    assert plan.derivation.ranks is not None
    with imported(written(plan)) as package:
        given = arguments(spec, torch.Generator().manual_seed(0))
        expected = results(getattr(package, f"naive_recurrent_{name}"), given)
        single = {key: x.float() for key, x in given.items()}
        chunk, naive, fused = (
            getattr(package, f"{kind}_{name}") for kind in ("chunk", "naive_chunk", "fused_recurrent")
        )
        for got, bound in (
            (results(naive, given, chunk_size=16), 1e-12),
            (results(chunk, single, chunk_size=16), 1e-5),
            (results(chunk, single, chunk_size=32, save_states=True), 1e-5),
            (results(fused, single), 1e-5),
        ):
            for key, x in expected.items():
                failure = beyond(key, rms_ratio(x, got[key]), bound)
                assert not failure, failure
