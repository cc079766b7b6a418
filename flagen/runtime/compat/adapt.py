"""What the functions of fla.ops have in common, and these operators have not: layouts, gates, norms, refusals."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from importlib import import_module
from typing import Any, ParamSpec, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from ..shared import functional
from ..shared.forms import Form, Forms, has_triton, kernels_run, say_once

P = ParamSpec("P")
R = TypeVar("R")

PACKAGES = __name__.rpartition(".")[0].rpartition(".")[0]

HINTS = {
    "head_first": "inputs are [B, T, H, ...]: transpose those that are [B, H, T, ...]",
    "transpose_state_layout": "states are [N, H, K, V] here",
    "state_v_first": "states are [N, H, K, V] here",
    "cp_context": "a sequence is not split over devices",
    "return_intermediate_states": "only the final state is returned",
    "output_attentions": "no matrix of attention is ever formed",
    "use_graph": "there is no graph mode",
    "max_num_seqs": "there is no graph mode",
    "gv": "these operators decay by head or by key channel",
}


@dataclass(frozen=True, kw_only=True)
class EveryForm(Forms):
    """The forms of an operator of which none is absent."""

    naive_recurrent: Form
    naive_chunk: Form
    fused_recurrent: Form
    chunk: Form


def forms(package: str) -> EveryForm:
    """Import a package of operators. Without Triton its PyTorch forms stand in for the kernels, as they do on a CPU;
    and for kernels that it has not, what layers take then."""
    module = import_module(f"{PACKAGES}.{package}")
    naive_chunk, naive_recurrent = (getattr(module, f"naive_{kind}_{package}") for kind in ("chunk", "recurrent"))
    if has_triton():
        fused_recurrent = getattr(module, f"fused_recurrent_{package}", naive_recurrent)
        chunk = getattr(module, f"chunk_{package}", None) or _without_chunk_kernels(fused_recurrent, naive_chunk)
    else:
        chunk, fused_recurrent = _in_pytorch(naive_chunk), _in_pytorch(naive_recurrent)
    return EveryForm(
        naive_recurrent=naive_recurrent, naive_chunk=naive_chunk, fused_recurrent=fused_recurrent, chunk=chunk
    )


def _in_pytorch(form: Form) -> Form:
    """A PyTorch form with the signature of the kernel's; the first call of one says that it is slow."""

    @wraps(form)
    def run(*inputs: Tensor, save_states: bool = False, **options: Any) -> tuple[Tensor, Any]:
        say_once()
        return form(*inputs, **options)

    return run


def _without_chunk_kernels(fused_recurrent: Form, naive_chunk: Form) -> Form:
    """The kernel that goes token by token where kernels run, and elsewhere the chunk form in PyTorch."""

    @wraps(naive_chunk)
    def run(*inputs: Tensor, **options: Any) -> tuple[Tensor, Any]:
        return (fused_recurrent if kernels_run(inputs[0]) else naive_chunk)(*inputs, **options)

    return run


def drop_in(function: Callable[P, R]) -> Callable[P, R]:
    """Refuse a keyword that the signature does not have, with a hint where it is a known one of fla's."""
    known = inspect.signature(function).parameters

    @wraps(function)
    def checked(*args: P.args, **kwargs: P.kwargs) -> R:
        for name in kwargs:
            if name not in known:
                hint = f": {HINTS[name]}" if name in HINTS else f"; it takes {', '.join(known)}"
                raise TypeError(f"{function.__name__} has no argument {name!r}{hint}")
        return function(*args, **kwargs)

    return checked


def refuse(function: str, **given: object) -> None:
    """Raise for the first argument that is given and that these operators have nothing for.

    Raises:
        NotImplementedError: it is neither None nor False.
    """
    for name, value in given.items():
        if value is not None and value is not False:
            hint = f": {HINTS[name]}" if name in HINTS else ""
            raise NotImplementedError(f"{function}: {name} is not supported{hint}")


def run(
    form: Form,
    *inputs: Tensor,
    like: Tensor,
    initial_state: Any = None,
    cu_seqlens: Tensor | None = None,
    v_first: bool = False,
    reverse: bool = False,
    chunk_size: int | None = None,
    **options: Any,
) -> tuple[Tensor, Any]:
    """Call an operator with fla's conventions.

    Args:
        form: the operator.
        inputs: its inputs, [B, T, ...] each.
        like: whose dtype the output gets.
        initial_state: one state or a tuple of them, [N, ...] each.
        cu_seqlens: [N + 1] offsets of packed sequences.
        v_first: states come and go as [N, H, V, K].
        reverse: run from the last token to the first, in each sequence.
        chunk_size: passed on if there is one.
        options: what else the operator takes.
    """
    if chunk_size is not None:
        options["chunk_size"] = chunk_size
    if reverse:
        inputs = tuple(x.flip(1) for x in inputs)
        if cu_seqlens is not None:  # All of the row is turned round, so the last sequence comes first.
            cu_seqlens = inputs[0].shape[1] - cu_seqlens.flip(0)
            initial_state = _each(lambda state: state.flip(0), initial_state)
    if v_first:
        initial_state = _each(_transposed, initial_state)
    o, final_state = form(*inputs, initial_state=initial_state, cu_seqlens=cu_seqlens, **options)
    if v_first:
        final_state = _each(_transposed, final_state)
    if reverse:
        o = o.flip(1)
        if cu_seqlens is not None:
            final_state = _each(lambda state: state.flip(0), final_state)
    return o.to(like.dtype), final_state


def _each(change: Callable[[Tensor], Tensor], states: Any) -> Any:
    if states is None:
        return None
    return change(states) if isinstance(states, Tensor) else tuple(change(state) for state in states)


def _transposed(state: Tensor) -> Tensor:
    return state.transpose(-1, -2).contiguous()


def v_first(function: str, state_v_first: bool, transpose_state_layout: bool | None) -> bool:
    """Whether states are [N, H, V, K], from the argument that says so and its old name.

    Raises:
        ValueError: both say so.
    """
    if transpose_state_layout is None:
        return state_v_first
    if state_v_first:
        raise ValueError(f"{function}: transpose_state_layout is the old name of state_v_first: pass only the latter")
    warnings.warn("transpose_state_layout is now called state_v_first", DeprecationWarning, stacklevel=4)
    return transpose_state_layout


def computing(*tensors: Tensor | None) -> torch.dtype:
    """The dtype that gates and norms are computed in: float64 where a tensor is, else float32."""
    return torch.float64 if any(x is not None and x.dtype == torch.float64 for x in tensors) else torch.float32


def l2norm(x: Tensor, *, keep: bool = False, eps: float = 1e-6) -> Tensor:
    """`x` over its length, the root of the sum of squares and `eps`, in float32 inside.

    With `keep` it stays so: kernels that take no matrix products read it as it is, and nothing is rounded.
    """
    return functional.l2norm(x, eps, computing(x) if keep else x.dtype)


def scalar_gate(function: str, g: Tensor | None, A_log: Tensor | None, dt_bias: Tensor | None) -> Tensor:
    """-exp(A_log) softplus(g + dt_bias) in float32: the log decay of a head.

    Args:
        function: who asks, for messages.
        g: what is projected from the token, [B, T, HV].
        A_log: log of the rate of decay, [HV].
        dt_bias: [HV].

    Raises:
        ValueError: g or A_log is missing.
    """
    if g is None or A_log is None:
        raise ValueError(f"{function}: use_gate_in_kernel=True needs g and A_log, got {_missing(g=g, A_log=A_log)}")
    wide = computing(g, A_log)
    x = g.to(wide) if dt_bias is None else g.to(wide) + dt_bias.to(wide)
    return -A_log.to(wide).exp() * F.softplus(x)


def channel_gate(
    function: str, g: Tensor, A_log: Tensor | None, dt_bias: Tensor | None, lower_bound: float | None
) -> Tensor:
    """-exp(A_log) softplus(g + dt_bias), or lower_bound sigmoid(exp(A_log) (g + dt_bias)): log decays of key channels.

    Args:
        function: who asks, for messages.
        g: what is projected from the token, [B, T, HV, K].
        A_log: [HV]; may be None with a lower bound.
        dt_bias: [HV * K].
        lower_bound: what the log decay stays above, below 0.

    Raises:
        ValueError: A_log and lower_bound are missing.
    """
    if A_log is None and lower_bound is None:
        raise ValueError(f"{function}: use_gate_in_kernel=True needs A_log or lower_bound, got neither")
    heads, wide = g.shape[-2], computing(g, A_log)
    x = g.to(wide) if dt_bias is None else g.to(wide) + dt_bias.to(wide).view(heads, -1)
    rate = 1.0 if A_log is None else A_log.to(wide).view(heads, 1).exp()
    return -rate * F.softplus(x) if lower_bound is None else lower_bound * torch.sigmoid(rate * x)


def check_bound(function: str, use_gate_in_kernel: bool, safe_gate: bool, lower_bound: float | None) -> None:
    """Check what `safe_gate` promises of the gate.

    Raises:
        ValueError: with both flags, lower_bound is missing or not in [-5, 0).
    """
    if safe_gate and use_gate_in_kernel and not (lower_bound is not None and -5 <= lower_bound < 0):
        raise ValueError(f"{function}: safe_gate=True expects a lower_bound in [-5, 0), got {lower_bound}")


def write_strength(function: str, beta: Tensor, use_beta_sigmoid_in_kernel: bool, allow_neg_eigval: bool) -> Tensor:
    """sigmoid(beta), or twice that where eigenvalues may be negative, in float32; `beta` itself where not asked.

    Raises:
        ValueError: allow_neg_eigval without use_beta_sigmoid_in_kernel.
    """
    if not use_beta_sigmoid_in_kernel:
        if allow_neg_eigval:
            raise ValueError(f"{function}: allow_neg_eigval=True needs use_beta_sigmoid_in_kernel=True")
        return beta
    strength = beta.to(computing(beta)).sigmoid()
    return 2 * strength if allow_neg_eigval else strength


def of_groups(groups: int, *tensors: Tensor, dim: int = 2) -> tuple[Tensor, ...]:
    """Each head as often as there are heads in a group."""
    return tensors if groups == 1 else tuple(x.repeat_interleave(groups, dim) for x in tensors)


def _missing(**given: object) -> str:
    return ", ".join(f"{name}=None" for name, value in given.items() if value is None)
