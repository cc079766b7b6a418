"""States beyond the range of float16, behind outputs and gradients that it has room for."""

from __future__ import annotations

import inspect

import torch

from tests.margins import beyond
from tests.numeric.problems import VARIANTS, Problem, Shape, cotangent, form, make, named_results, rms_ratio, with_form
from tests.tiers import represents, tiered

SAVING = "save_states"
READ = {"mamba2": "C", "rwkv6": "r", "rwkv7": "r"}
"""What reads the state, where that is not q."""
PAIRED = ("based", "rebased", "power_attn")
WRITTEN = {"mamba2": "x", **dict.fromkeys(("oja", "gsa", "abc_attn", "linear_attn_normalized", "mlstm", *PAIRED), "k")}
"""What the state is linear in, where that is not v."""
LINEAR = {
    "momentum_delta_rule": {"S_initial", "M_initial"},
    "mlstm": {"S_initial", "n_initial"},
    **{name: {"Sk_initial"} for name in ("gsa", "abc_attn")},
    **{name: {"S_initial", "z_initial"} for name in ("linear_attn_normalized", "rebased", "power_attn")},
    "based": {f"{state}_initial" for state in ("S0", "z0", "S1", "S2", "z2")},
    **{name: {"S_initial"} for name in ("log_linear_attn", "log_linear_gated_delta_rule")},
    **{name: {"S_initial"} for name in ("mamba3", "mamba3_mimo")},
    **{name: {"S_initial"} for name in ("lightnet", "mesa_net", "precond_gated_delta_rule", "precond_kda")},
}
"""The states that are so, where there are several."""
SOFTMAX = ("gsa", "abc_attn")
ELEMENTWISE = ("hgrn", "rwkv4", "mamba", "short_convolution")
TRAINED = ("ttt_linear", "titans_linear")
"""What they read of their states goes through a layer norm, so that they are linear in nothing."""
NORMED = ("cyfa",)
"""Their queries go through a norm, so that what is read is as large as the state."""
FORMS = [
    (kind, name)
    for kind in ("chunk", "fused_recurrent")
    for name in with_form(kind)
    if name not in (*ELEMENTWISE, *TRAINED, *NORMED)
]
SMALLEST, LARGEST = 2.0**-14, 65504.0


def beyond_float16(name: str) -> Problem:
    """A problem in float16 that starts from states of some 2^18, and reads them with as little as they need."""
    problem = make(name, Shape(T=20, K=16, V=16, groups=2))
    states = LINEAR.get(name, {"initial_state"})
    factors = {READ.get(name, "q"): 2.0 ** (-16 if name in SOFTMAX else -8), WRITTEN.get(name, "v"): 2.0**8}
    problem = problem.map(lambda key, x: x * factors.get(key, 1.0)).to(torch.float16)
    problem = problem.map(lambda key, x: x * 2.0**18 if key in states else x)  # They are float32.
    assert all(problem.leaves[state].abs().max() > LARGEST for state in states)
    return problem


def results(problem: Problem, kind: str, **keywords: object) -> dict[str, torch.Tensor]:
    """The output and the states; and the gradients of all under a small one of the output."""
    problem = problem.map(lambda _, x: x.detach().requires_grad_())
    found = named_results(problem.name, *problem.call(form(kind, problem.name), **keywords))
    gradient = (cotangent("o", found["o"]) / 64).to(found["o"].dtype)
    leaves = problem.leaves
    of_leaves = torch.autograd.grad(found["o"], list(leaves.values()), gradient, allow_unused=True)
    zeros = (torch.zeros_like(x) if d is None else d for x, d in zip(leaves.values(), of_leaves, strict=True))
    return {**found, **{f"d {key}": x for key, x in zip(leaves, zeros, strict=True)}}


def rms(x: torch.Tensor) -> float:
    return x.double().square().mean().sqrt().item()


@tiered(("kind", "name"), FORMS, lambda kind, name: represents(name) and kind == "chunk")
def test_states_beyond_float16(kind, name):
    problem = beyond_float16(name)
    expected = results(problem.to(torch.float64), "naive_recurrent")
    sizes = {"chunk_size": 16} if kind == "chunk" else {}
    saving = SAVING in inspect.signature(form(kind, name)).parameters
    for modes in ({}, {SAVING: True}) if saving else ({},):
        got = results(problem, kind, **sizes, **modes)
        for key, x in expected.items():
            if got[key].dtype == torch.float16 and not (rms(x) >= SMALLEST and x.abs().max() <= LARGEST):
                continue  # What float16 itself has no digits for.
            gates = x.dim() < 4 or key.removeprefix("d ") in VARIANTS[name].gates
            bound = 5e-3 if not key.startswith("d ") else 2e-2 if gates else 8e-3
            failure = beyond(f"{key} {modes}", rms_ratio(x, got[key]), bound)
            assert not failure, failure
