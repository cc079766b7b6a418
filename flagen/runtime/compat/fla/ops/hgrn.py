"""fla.ops.hgrn: channels that decay by themselves."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ....shared.forms import Form
from ...adapt import drop_in, forms, run

__all__ = ["chunk_hgrn", "fused_recurrent_hgrn", "naive_chunk_hgrn", "naive_recurrent_hgrn"]

_hgrn = forms("hgrn")


def _run(
    form: Form, x: Tensor, g: Tensor, initial_state: Tensor | None, output_final_state: bool, **options: Any
) -> tuple[Tensor, Tensor | None]:
    """Run the operator, which has heads, on channels: [B, T, D], states [N, D]."""
    o, state = run(
        form,
        *(x.unsqueeze(2), g.unsqueeze(2)),
        like=x,
        initial_state=None if initial_state is None else initial_state.unsqueeze(1),
        output_final_state=output_final_state,
        **options,
    )
    return o.squeeze(2), None if state is None else state.squeeze(1)


@drop_in
def chunk_hgrn(
    x: Tensor, g: Tensor, initial_state: Tensor | None = None, output_final_state: bool = False
) -> tuple[Tensor, Tensor | None]:
    """HGRN in chunks.

    Args:
        x: [B, T, D].
        g: log decay, [B, T, D].
        initial_state: [B, D].
        output_final_state: also return the state after the last token.

    Returns:
        o, [B, T, D] in x's dtype; the final state in float32, or None.

    Raises:
        ValueError: a shape, dtype or device that does not fit, named.
    """
    return _run(_hgrn.chunk, x, g, initial_state, output_final_state)


@drop_in
def fused_recurrent_hgrn(
    x: Tensor,
    g: Tensor,
    initial_state: Tensor | None = None,
    output_final_state: bool = False,
    cu_seqlens: Tensor | None = None,
) -> tuple[Tensor, Tensor | None]:
    """HGRN token by token; arguments as of `chunk_hgrn`, and packed sequences.

    Returns:
        o, [B, T, D], and the final state, [N, D], or None, both in x's dtype.
    """
    o, state = _run(_hgrn.fused_recurrent, x, g, initial_state, output_final_state, cu_seqlens=cu_seqlens)
    return o, None if state is None else state.to(x.dtype)


@drop_in
def naive_recurrent_hgrn(
    x: Tensor, g: Tensor, initial_state: Tensor | None = None, output_final_state: bool | None = False
) -> tuple[Tensor, Tensor | None]:
    """The recurrence as it is written, in PyTorch; arguments as of `chunk_hgrn`."""
    return _run(_hgrn.naive_recurrent, x, g, initial_state, bool(output_final_state))


@drop_in
def naive_chunk_hgrn(
    x: Tensor,
    g: Tensor,
    initial_state: Tensor | None = None,
    output_final_state: bool | None = False,
    chunk_size: int = 64,
) -> tuple[Tensor, Tensor | None]:
    """The chunk form in PyTorch; arguments as of `chunk_hgrn`."""
    return _run(_hgrn.naive_chunk, x, g, initial_state, bool(output_final_state), chunk_size=chunk_size)
