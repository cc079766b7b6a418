"""Specs with a factor of every kind in every role of every family of kernels.

A family is a spec with places for factors and for decays. Its spec of some number has the factor of that number in the
first place, the next factor in the next place, and so on: as many specs as there are factors have each in every place.
"""

from __future__ import annotations

import re
from itertools import count

FACTORS = (
    "a",
    "(1 - a)",
    "(a + b)",
    "a / (1 + b)",
    "(-(1 - a))",
    "(1 + b) ** A",
    "a * b",
    "2 ** (-head)",
    "(b - 1)",
    "(A - a)",
    "(1 - a) ** 2",
    "(1 - 2 ** (-1 - head) * b)",
    "A",
    "(r - 1)",
)
"""Numbers of a token, of a value head, or of both."""

SHARED = ("(b - 1)", "b", "(1 - b) ** 2", "(-b)", "b / (1 + b)")
"""Numbers that value heads share."""

SUMS = ("sum(k)", "mean(q)", "(b + sum(q * k))", "(1 - mean(e))")
"""The same, summed over the keys."""

CONSTANTS = ("2 ** (-head)", "(1 - r)", "(1 - 2 ** (-1 - head))", "r ** 2", "(-(r + 1))")
"""Numbers that have no gradient."""

DECAYS = (
    "exp(g)",
    "exp((a + b) * g)",
    "exp(g - a)",
    "(1 - a * b)",
    "a / (1 + b)",
    "exp(-(1 - a))",
    "(1 - 2 ** (-1 - head))",
    "sigmoid(A + b)",
    "exp(-(1 + b) ** A)",
)
"""Factors of a state, in [0, 1]."""

KEY_DECAYS = (
    "exp(gk)",
    "exp((a + b) * gk)",
    "exp(gk - a)",
    "(1 - a * sigmoid(gk))",
    "exp(gk / (1 + b))",
    "exp((1 + b) ** A * gk)",
    "exp(-(1 - a) * sigmoid(gk))",
)
"""The same, one for each key."""

INPUTS = {
    "q": "[K]",
    "k": "[K]",
    "e": "[K]",
    "v": "{dims: [V], heads: HV}",
    "c": "[V]",
    "l": "[L]",
    "a": "{dims: [], heads: HV, range: [0.1, 0.9]}",
    "b": "{dims: [], range: [0, 1]}",
    "g": "{dims: [], heads: HV, range: [-1, 0]}",
    "gk": "{dims: [K], range: [-1, 0]}",
    "gv": "{dims: [V], heads: HV, range: [-1, 0]}",
    "x": "{dims: [K], heads: HV}",
    "X": "[K, V]",
    "ks": "{dims: [K], per: step}",
    "vs": "{dims: [V], per: step, heads: HV}",
}
PARAMS = {"A": "{per: head, range: [-1, 1]}", "W": "{dims: [K, V]}", "r": "{range: [0, 1]}"}

MATRIX = "state: {S: [K, V]}"
READ = "output: o = {n} * (S.T @ (q + {s})) + {f} * v"
GATED = "output: o = {f} * (S.T @ ({f} * q)) + {s} * v"
KERNELS: dict[tuple[str, str, str], dict[str, str]] = {
    ("ChunkKernelPlan", "ChunkBackwardPlan", "FusedBackwardPlan"): {
        "additive, a decay": f"""
{MATRIX}
update: S = {{d}} * S + {{f}} * outer({{t}} * k, {{f}} * v)
{READ}
""",
        "delta, a decay": f"""
{MATRIX}
update:
  - S = {{d}} * S
  - S = S + outer({{t}} * k, {{f}} * v - {{f}} * (S.T @ ({{t}} * k)))
{READ}
""",
        "delta, a decay, another erase key": f"""
{MATRIX}
update:
  - S = {{d}} * S
  - S = S + {{f}} * outer(k, v - S.T @ ({{t}} * e + {{s}}))
{READ}
""",
        "delta, a decay, an erase key that is a sum": f"""
{MATRIX}
update:
  - S = {{d}} * S
  - S = S + {{f}} * outer(k, {{f}} * v - S.T @ ({{t}} - e))
output: o = S.T @ q
""",
        "delta and writes, a decay": f"""
{MATRIX}
update:
  - S = {{d}} * S
  - S = S + {{f}} * outer({{t}} * e + {{s}}, S.T @ ({{t}} * k)) + outer({{t}} * k, {{f}} * v)
{READ}
""",
        "delta, a decay, rows that have names": f"""
{MATRIX}
let: {{read: "{{f}} * q", key: "{{f}} * k", erased: "-({{t}} * ({{f}} * k))", value: "{{f}} * v"}}
update:
  - S = {{d}} * S
  - S = S + {{f}} * outer(key, {{f}} * value - S.T @ erased)
output: o = {{n}} * (S.T @ read) + {{f}} * v
""",
        "delta, erased before a decay": f"""
{MATRIX}
update: S = {{d}} * S + {{f}} * outer({{t}} * k, {{f}} * v - {{f}} * (S_prev.T @ ({{t}} * k)))
{READ}
""",
        "delta and writes, erased before a decay": f"""
{MATRIX}
update: S = {{d}} * S + {{f}} * outer(e, S_prev.T @ ({{t}} * k + {{s}})) + outer({{t}} * k, {{f}} * v)
{READ}
""",
        "additive, no decay": f"""
{MATRIX}
update: S = S + {{f}} * outer({{t}} * k, {{f}} * v)
{READ}
""",
        "delta, no decay": f"""
{MATRIX}
update: S = S + outer({{t}} * k, {{f}} * v - {{f}} * (S.T @ k))
{READ}
""",
        "micro-steps": f"""
{MATRIX}
steps: {{n: count, default: 2}}
update:
  - S = {{d}} * S
  - repeat: n
    do:
      - S = S + {{f}} * outer(ks, {{f}} * vs - {{f}} * (S.T @ ({{f}} * ks)))
{READ}
""",
    },
    ("ChunkKernelPlan", "ChunkBackwardPlan", "ReversePlan"): {
        "a vector that rides along": """
state: {S: [K, V], z: [K]}
let: {key: "{t} * k", alpha: "{d}"}
update:
  - z = alpha * z + {f} * key
  - S = alpha * S + outer(key, {f} * v)
output: o = ({n} * (S.T @ q)) / (1 + abs(dot(z, q)))
""",
        "a vector that rides along, weighed like the values": """
state: {S: [K, V], z: [K]}
let: {weight: "{f}", alpha: "{d}"}
update:
  - z = alpha * z + weight * k
  - S = alpha * S + outer(weight * k, v)
output: o = ({n} * (S.T @ q)) / (1 + abs(dot(z, q)))
""",
    },
    ("ChunkKernelPlan", "Unavailable", "FusedBackwardPlan"): {
        "a gate on the output, a decay": f"""
{MATRIX}
update: S = {{d}} * S + outer({{t}} * k - {{s}} * e, {{f}} * v)
{GATED}
""",
    },
    ("KeyKernelPlan", "KeyBackwardPlan", "FusedBackwardPlan"): {
        "additive, a decay, sums": f"""
{MATRIX}
update: S = {{d}} * S + {{s}} * outer(e, {{f}} * v)
{READ}
""",
        "delta, a decay, keys of a value head": f"""
{MATRIX}
update:
  - S = {{d}} * S
  - S = S + {{s}} * outer({{f}} * k - {{f}} * e, {{f}} * v - S.T @ ({{f}} - k))
output: o = {{n}} * (S.T @ ({{f}} - q))
""",
        "additive, a decay of each key": f"""
{MATRIX}
update: S = {{dk}} * S + {{s}} * outer({{s}} * k, {{f}} * v)
output: o = {{n}} * (S.T @ ({{n}} * q)) + {{f}} * v
""",
        "delta, a decay of each key": f"""
{MATRIX}
update:
  - S = {{dk}} * S
  - S = S + outer({{s}} * k, {{f}} * v - {{s}} * (S.T @ ({{s}} * k)))
output: o = {{n}} * (S.T @ ({{n}} * q)) + {{f}} * v
""",
        "delta and writes, a decay of each key": f"""
{MATRIX}
update: S = {{dk}} * S + {{s}} * outer(e, S_prev.T @ ({{s}} * k)) + outer({{s}} * k, {{f}} * v)
output: o = {{n}} * (S.T @ ({{n}} * q)) + {{f}} * v
""",
        "read before the update": f"""
{MATRIX}
update: S = {{dk}} * S + {{s}} * outer({{f}} * k, v)
output: o = {{n}} * ((S_prev + outer({{s}} * k, {{f}} * v)).T @ q)
""",
    },
    ("KeyKernelPlan", "RightBackwardPlan", "FusedBackwardPlan"): {
        "erased from the right": f"""
{MATRIX}
update:
  - S = {{d}} * S
  - S = exp(gv) * S
  - S = S + {{f}} * outer({{f}} * k - {{f}} * (S @ v), v)
output: o = {{n}} * (S.T @ ({{n}} * q))
""",
        "read from the right": f"""
{MATRIX}
update: S = {{dk}} * S + {{f}} * outer({{f}} * k, {{f}} * v)
output: o = {{n}} * (S @ ({{n}} * c))
""",
    },
    ("KeyKernelPlan", "Unavailable", "FusedBackwardPlan"): {
        "a gate on the output, a decay of each key": f"""
{MATRIX}
update:
  - S = {{dk}} * S
  - S = S + outer(k, {{s}} * v - {{s}} * (S.T @ (k - {{f}} * e)))
{GATED}
""",
    },
    ("ScanKernelPlan", "ScanBackwardPlan", "ReversePlan"): {
        "a scan": """
state: {u: [K]}
update: u = {d} * u + {s} * x + {f} * k
output: o = {s} * u + {f} * x
""",
        "a scan with a decay of each channel": """
state: {u: [K]}
update: u = {dk} * u + {f} * x
output: o = {s} * u + {f} * k
""",
    },
    ("StagedPlan", "StagedPlan", "ReversePlan"): {
        "stages": """
state: {Z: [K, L], S: [L, V]}
update:
  - Z = {d} * Z + {s} * outer(k, {f} * l)
  - p = l2norm({f} * (Z.T @ q))
  - S = {d} * S + outer({f} * l, {f} * v)
output: o = {f} * (S.T @ p)
""",
    },
    ("ExpandedPlan", "Unavailable", "FusedBackwardPlan"): {
        "matrices": f"""
{MATRIX}
update: S = {{dk}} * S + {{s}} * outer(sum(X, V) + {{f}} * k, mean(X, K))
output: o = {{f}} * (S.T @ (q + sum(W, V))) + {{s}} * mean(W, K)
""",
    },
    ("Unavailable", "Unavailable", "ReversePlan"): {
        "no normal form": f"""
{MATRIX}
update: S = tanh({{d}} * S + {{s}} * outer({{f}} * k, {{f}} * v))
{GATED}
""",
    },
}
"""The families by the plans of their kernels: those over chunks, their gradients, those of the recurrent form."""

FAMILIES = {family: text for families in KERNELS.values() for family, text in families.items()}


def spec_text(family: str, number: int) -> str:
    """The spec of this number of a family."""
    options = {"f": FACTORS, "s": SUMS, "t": SHARED, "n": CONSTANTS, "d": DECAYS, "dk": KEY_DECAYS}
    numbers = {kind: count(number) for kind in options}

    def choice(place: re.Match[str]) -> str:
        kind = place[1]
        return options[kind][next(numbers[kind]) % len(options[kind])]

    body = re.sub(r"\{([fstn]|dk?)\}", choice, FAMILIES[family])
    used = set(re.findall(r"\w+", body))
    inputs = ", ".join(f"{name}: {decl}" for name, decl in INPUTS.items() if name in used)
    params = ", ".join(f"{name}: {decl}" for name, decl in PARAMS.items() if name in used)
    return f"flagen: 1\nname: factors\ninputs: {{{inputs}}}\n{f'params: {{{params}}}' if params else ''}{body}"
