"""Every committed variant is the row of the normal form that its paper makes it."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from flagen.algebra.normal_form import MicroStep, NormalForm
from flagen.spec import to_source
from tests.algebra.cases import VARIANTS, variant


@dataclass(frozen=True)
class Row:
    """A variant of one block and one micro-step, its parts as source.

    decay: e^g and g; `kind` what g is over. delta: w, y, z, and when y reads. read: side, q, and when.
    """

    kind: str = "none"
    decay: tuple[str, str] | None = None
    delta: tuple[str, str, str, str] | None = None
    writes: tuple[tuple[str, str], ...] = ()
    read: tuple[str, str, str] = ("left", "q", "after the update")
    output: str = "scale * read0"
    repeated: bool = False
    decays_once: bool = False
    state: tuple[str, str] = ("K", "V")
    transposed: bool = False


KV = (("k", "v"),)

TABLE = {
    "linear_attn": Row(writes=KV),
    "retention": Row("scalar", ("alpha", "log1p(-2 ** (-5 - head))"), writes=KV),
    "lightning_attn": Row("scalar", ("alpha", "-8 / HV * clamp(1 - layer_idx / num_layers, 0, 1) * head"), writes=KV),
    "simple_gla": Row("scalar", ("alpha", "g"), writes=KV),
    "mamba2": Row(
        "scalar",
        ("alpha", "dt * A"),
        writes=(("B", "dt * x"),),
        read=("left", "C", "after the update"),
        output="read0 + D * x",
        state=("N", "P"),
    ),
    "gla": Row("key", ("alpha", "g"), writes=KV),
    "hgrn2": Row("key", ("alpha", "g"), writes=KV, output="read0"),
    "rwkv6": Row(
        "key",
        ("alpha", "w"),
        writes=KV,
        read=("left", "r", "before the update"),
        output="scale * (sum(u * k * r, K) * v + read0)",
    ),
    "delta_rule": Row(delta=("k", "-(beta * k)", "beta * v", "after")),
    "gated_delta_rule": Row("scalar", ("alpha", "g"), delta=("k", "-(beta * k)", "beta * v", "after")),
    "gated_delta_product": Row(
        "scalar", ("alpha", "g"), delta=("k", "-(b * k)", "b * v", "after"), repeated=True, decays_once=True
    ),
    "delta_product": Row(delta=("k", "-(beta * k)", "beta * v", "after"), repeated=True),
    "kda": Row("key", ("alpha", "g"), delta=("k", "-(beta * k)", "beta * v", "after")),
    "gdn2": Row("key", ("alpha", "g"), delta=("k", "-(b * k)", "w * v", "after")),
    "comba": Row("scalar", ("alpha", "g"), delta=("k", "-(beta * p)", "beta * v", "before")),
    # Without a decay there is no before and after.
    "iplr": Row(delta=("b", "a", "0", "after"), writes=KV),
    "dplr": Row("key", ("alpha", "gk"), delta=("b", "a", "0", "before"), writes=KV),
    "rwkv7": Row(
        "key",
        ("alpha", "w"),
        delta=("b", "a", "0", "before"),
        writes=KV,
        read=("left", "r", "after the update"),
    ),
    "oja": Row(
        "key",
        ("alpha", "g"),
        delta=("v", "-(beta * v)", "beta * k", "after"),
        read=("right", "q", "after the update"),
        state=("V", "K"),
        transposed=True,
    ),
}


@pytest.mark.parametrize("name", VARIANTS)
def test_normal_form(name):
    derivation = variant(name)
    if name not in TABLE:
        nf = derivation.normal_form
        # Those of registers are in tests/algebra/test_registers.py.
        assert nf is None or nf.registers, f"{name} has a normal form: say here which"
        return
    assert derivation.normal_form is not None, derivation.no_chunk_form
    assert row_of(derivation.normal_form) == TABLE[name]


def test_the_table_names_no_other_variant():
    assert TABLE.keys() <= set(VARIANTS)


def row_of(nf: NormalForm) -> Row:
    (block,) = nf.blocks
    (step,) = block.steps
    (read,) = nf.reads
    decay = block.lead or step.decay
    return Row(
        kind=nf.decay_kind,
        decay=None if decay is None else (to_source(decay.factor), to_source(decay.log)),
        delta=delta_of(step),
        writes=tuple((to_source(write.k), to_source(write.v)) for write in step.writes),
        read=(read.side, to_source(read.q), nf.describe(read.position)),
        output=to_source(nf.output),
        repeated=block.repeated,
        decays_once=block.lead is not None,
        state=(nf.key, nf.value),
        transposed=nf.transposed,
    )


def delta_of(step: MicroStep) -> tuple[str, str, str, str] | None:
    if not step.deltas:
        return None
    (row,) = step.deltas
    z = "0" if row.z is None else to_source(row.z)
    return to_source(row.w), to_source(row.y), z, "after" if row.after_decay else "before"
