"""What the modules of all operators share: the state that one call can leave for the next, and the choice of a form."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn

from .arguments import Arguments, Call
from .forms import SHORT, SHORT_WITH_GRADIENTS
from .inference import usable

Carried = TypeVar("Carried", bound=Tensor | tuple[Tensor, ...])


class Recurrence(nn.Module, Generic[Carried]):
    """An operator as a module that can carry its state from call to call.

    Attributes:
        state: what the next call that carries starts from, or None.
    """

    _call: Call[Any]
    """What a call of the operator takes."""
    _keywords: tuple[str, ...] = ()
    """Which attributes a call gets by name, beside the params that may be None."""
    _settings: tuple[str, ...] = ()
    """The names of what the module was made with."""

    def __init__(self, carry_state: bool) -> None:
        super().__init__()
        self.carry_state = carry_state
        self._state: Carried | None = None

    @property
    def state(self) -> Carried | None:
        self._state = usable(self._state)
        return self._state

    @state.setter
    def state(self, state: Carried | None) -> None:
        self._state = state

    def reset_state(self) -> None:
        """Forget the carried state: the next call starts new sequences."""
        self.state = None

    def extra_repr(self) -> str:
        return ", ".join(f"{name}={getattr(self, name)}" for name in self._settings)

    def _is_long(self, x: Tensor, steps: int = 1) -> bool:
        """Whether whole chunks are faster than one token after another."""
        return x.shape[1] > (SHORT_WITH_GRADIENTS if torch.is_grad_enabled() else SHORT) * steps

    def _run(
        self,
        form: Callable[..., tuple[Tensor, Carried | None]],
        *inputs: Tensor,
        initial_state: Carried | None,
        output_final_state: bool,
        cu_seqlens: Tensor | None,
        carry_state: bool | None,
    ) -> tuple[Tensor, Carried | None]:
        """Call `form`: from the carried state, and leaving the last one there, if this call carries."""
        carries = self._carries(carry_state, initial_state, *inputs)
        params = {name: getattr(self, name) for name in self._call.params}
        if carries and initial_state is None:
            steps = getattr(self, self._call.steps) if self._call.steps else 1
            tensors = (*inputs, *params.values())
            args = self._call.check(*tensors, steps=steps, initial_state=None, cu_seqlens=cu_seqlens, shapes_only=True)
            initial_state = self._carried(args)
        optional = {name: x for name, x in params.items() if name in self._call.optional}
        o, final = form(
            *inputs,
            *(x for name, x in params.items() if name not in optional),
            **optional,
            **{name: getattr(self, name) for name in self._keywords},
            initial_state=initial_state,
            output_final_state=output_final_state or carries,
            cu_seqlens=cu_seqlens,
        )
        if carries:
            self.state = final
        return o, final if output_final_state else None

    def _carries(self, asked: bool | None, initial_state: Carried | None, *inputs: Tensor) -> bool:
        """Whether a call carries the state. With an `initial_state` it does not where gradients are recorded."""
        if not (self.carry_state if asked is None else asked):
            return False
        if getattr(self, "_is_replica", False):
            raise RuntimeError("carry_state: a replica of the module is gone after the call, and its state with it")
        given = () if initial_state is None else _parts(initial_state)
        tensors = (*inputs, *self.parameters(), *given)
        recorded = torch.is_grad_enabled() and any(isinstance(x, Tensor) and x.requires_grad for x in tensors)
        # A checkpoint runs the call again in the backward pass, and by then the state has moved on.
        recomputed = torch._C._current_graph_task_id() != -1
        if not (recorded or recomputed):
            return True
        if asked or initial_state is None:
            raise RuntimeError(
                "carry_state: gradients are recorded here, or computed, and none goes through the carried state; "
                "pass initial_state instead, or call under torch.no_grad()"
            )
        return False

    def _carried(self, args: Arguments) -> Carried | None:
        """The state to start from, after a check that it is one of the sequences in this call."""
        state = self.state
        if state is not None:
            for (name, layout), part in zip(self._call.states.items(), _parts(state), strict=True):
                shape = (args.runs, *(getattr(args, axis) for axis in layout.axes[1:]))
                if tuple(part.shape) != shape or part.device != args.device:
                    which = "carried state" if len(self._call.states) == 1 else f"carried state ({name})"
                    expected = f"shape [{self._call.layout(layout.axes)}] = {shape} on {args.device} as the inputs"
                    raise ValueError(
                        f"{which}: expected {expected}, got {tuple(part.shape)} on {part.device}; "
                        "reset_state() forgets it and starts new sequences"
                    )
        return state

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> nn.Module:
        """What moves the params, as `.to` does, takes the state along; only the params change their dtype."""
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        if self._state is not None:
            device = fn(_parts(self._state)[0].new_empty(0)).device
            self._state = _each(lambda part: part.to(device), self._state)
        return self


def _parts(state: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return (state,) if isinstance(state, Tensor) else tuple(state)


def _each(change: Callable[[Tensor], Tensor], state: Carried) -> Carried:
    changed: Any = change(state) if isinstance(state, Tensor) else tuple(map(change, state))
    return changed  # type: ignore[no-any-return]
