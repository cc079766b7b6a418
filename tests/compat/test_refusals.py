"""What the drop-in does not support, it names."""

from __future__ import annotations

import pytest
import torch

from tests.compat.calls import (
    HV,
    B,
    K,
    T,
    beta,
    decay,
    fla,
    qkv,
)

pytestmark = pytest.mark.usefixtures("pytorch_forms")


class TestRefusals:
    @pytest.mark.parametrize(
        ("name", "argument"),
        [
            ("gated_delta_rule.chunk_gated_delta_rule", "cp_context"),
            ("kda.chunk_kda", "cp_context"),
            ("kda.chunk_kda", "return_intermediate_states"),
            ("kda.chunk_kda", "use_graph"),
            ("kda.chunk_kda", "max_num_seqs"),
            ("gdn2.chunk_gdn2", "return_intermediate_states"),
            ("gated_delta_product.chunk_gated_delta_product", "cp_context"),
            ("generalized_delta_rule.chunk_dplr_delta_rule", "cp_context"),
            ("rwkv7.chunk_rwkv7", "cp_context"),
            ("gla.fused_recurrent_gla", "gv"),
            ("precond_kda.chunk_precond_kda", "return_intermediate_states"),
        ],
    )
    def test_named(self, name: str, argument: str) -> None:
        required = [
            p.name for p in __import__("inspect").signature(fla(name)).parameters.values() if p.default is p.empty
        ]
        with pytest.raises(NotImplementedError, match=rf"{name.split('.')[1]}: {argument} is not supported: "):
            fla(name)(*[torch.zeros(1)] * len(required), **{argument: 3})

    def test_bad_shapes_are_the_operators_to_name(self) -> None:
        q, k, v = qkv()
        with pytest.raises(ValueError, match=r"beta: expected shape \[B, T, HV\]"):
            fla("gated_delta_rule.fused_recurrent_gated_delta_rule")(q, k, v, decay(B, T, HV), beta=torch.rand_like(v))

    def test_lower_bound(self) -> None:
        q, k, v = qkv()
        with pytest.raises(ValueError, match=r"safe_gate=True expects a lower_bound in \[-5, 0\), got None"):
            fla("kda.chunk_kda")(q, k, v, decay(B, T, HV, K), beta(), use_gate_in_kernel=True, safe_gate=True)
        with pytest.raises(ValueError, match=r"chunk_rwkv7: lower_bound: expected a number below 0, got 0\.5"):
            fla("rwkv7.chunk_rwkv7")(q, k, k, v, k, k, lower_bound=0.5)
