"""The check that every form of an operator makes of its arguments, by a table of what they are."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from .offsets import read_offsets

Axes = tuple[str, ...]
"""What the axes of a tensor are called, such as ("B", "T", "HV", "K"); "T * n" has n rows a token."""


@dataclass(frozen=True)
class State:
    """A state of the recurrence: its axes, of which the first counts sequences, and what each sequence starts from."""

    axes: Axes
    init: float = 0.0


@dataclass(frozen=True)
class Size:
    """The size of a dim that follows from others.

    Args:
        formula: what it is, in words.
        of: the sizes that it is made of.
        quotient: two integers from these, of which one over the other is the size.
    """

    formula: str
    of: Axes
    quotient: Callable[..., tuple[int, int]]


@dataclass(frozen=True)
class Arguments:
    """The sizes that the arguments of a call agree on; a variant adds those of its own dims.

    `runs` is the number of sequences: the batch size, or that of the packed sequences whose token `offsets` are given.
    `dtype` is what the PyTorch forms compute in: float64 where an input is, else float32.
    """

    batch: int
    tokens: int
    runs: int
    H: int
    HV: int
    offsets: tuple[int, ...] | None
    dtype: torch.dtype
    device: torch.device
    states: tuple[State, ...]

    def promote(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Inputs [batch, rows, heads, ...] in the computing dtype, a key head repeated for its group of value heads."""
        promoted = (x.to(self.dtype) for x in tensors)
        return tuple(
            x if x.shape[2] == self.HV else x.repeat_interleave(self.HV // x.shape[2], dim=2) for x in promoted
        )

    def by_step(self, steps: int, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Inputs [batch, tokens * steps, ...] as [batch, tokens, steps, ...]."""
        return tuple(x.reshape(x.shape[0], self.tokens, steps, *x.shape[2:]) for x in tensors)

    def by_token(self, tokens: slice, *tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
        """The rows of one token after another: unbound, for slicing would make each backward step as long as T."""
        return zip(*(x[:, tokens].unbind(1) for x in tensors), strict=True)

    def sequences(self, initial_state: Any) -> Iterator[tuple[slice, Any]]:
        """The tokens and the first state of every run: of the whole batch, or of one packed sequence after another.

        Of several states, `initial_state` and what is yielded are tuples.
        """
        several, states = len(self.states) > 1, self.first(initial_state)
        if self.offsets is None:
            yield slice(0, self.tokens), states if several else states[0]
            return
        for run, (start, stop) in enumerate(pairwise(self.offsets)):
            own = tuple(state[run : run + 1] for state in states)
            yield slice(start, stop), own if several else own[0]

    def first(self, initial_state: Any) -> tuple[Tensor, ...]:
        """What each state is before the first token, in the computing dtype."""
        if initial_state is None:
            return tuple(map(self._first, self.states))
        given = tuple(initial_state) if len(self.states) > 1 else (initial_state,)
        return tuple(state.to(self.dtype) for state in given)

    def _first(self, state: State) -> Tensor:
        shape = (self.runs, *(getattr(self, axis) for axis in state.axes[1:]))
        return torch.full(shape, state.init, dtype=self.dtype, device=self.device)


Sizes = TypeVar("Sizes", bound=Arguments)


@dataclass(frozen=True)
class Call(Generic[Sizes]):
    """What a call of an operator takes, and what its `check` returns.

    Args:
        sizes: what `check` returns.
        inputs, params: the axes of each tensor, by name, in the order of the signature.
        states: each state, by name.
        optional: the params that may be None.
        steps: what the number of micro-steps a token is called, where there are such.
        ranges: the values that inputs and params are declared to have.
        written: what messages call axes that are sizes under another name.
        following: the sizes that follow from others, each behind those it follows from.
    """

    sizes: type[Sizes]
    inputs: Mapping[str, Axes]
    states: Mapping[str, State]
    params: Mapping[str, Axes] = field(default_factory=dict)
    optional: frozenset[str] = frozenset()
    steps: str = ""
    ranges: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    written: Mapping[str, str] = field(default_factory=dict)
    following: Mapping[str, Size] = field(default_factory=dict)

    def check(
        self,
        *tensors: Tensor | None,
        initial_state: Tensor | tuple[Tensor, ...] | None,
        cu_seqlens: Tensor | None,
        steps: int = 1,
        shapes_only: bool = False,
    ) -> Sizes:
        """Check that the arguments fit together and return what they agree on; inputs come first, then params.

        With `shapes_only` the numbers in `cu_seqlens` stay unread and `offsets` None: all that torch.compile can trace.

        Raises:
            ValueError: a shape, dtype, device or head count that does not fit, with its name and what was expected; a
                size that follows from others and is no positive int.
        """
        if self.steps and (not isinstance(steps, int | torch.SymInt) or steps < 1):
            raise ValueError(f"{self.steps}: expected a positive int, got {steps!r}")
        named = dict(zip((*self.inputs, *self.params), tensors, strict=True))
        sizes: dict[str, int] = {}
        for name, axes in self.inputs.items():
            self._fit(sizes, name, named[name], axes, steps)
        self._fit_heads(sizes)
        for name, axes in self.params.items():
            if named[name] is not None or name not in self.optional:
                self._fit(sizes, name, named[name], axes)
        given = {name: tensor for name, tensor in named.items() if tensor is not None}
        for dim in self.following:
            self._follow(sizes, dim, given)
        first = next(iter(self.inputs))
        device = given[first].device
        for name, tensor in given.items():
            _check_device(name, tensor, device, first)
        batch, tokens = (sizes[axis] for axis in self.leading)
        offsets = None
        runs = batch
        if cu_seqlens is not None:
            self._check_packing(cu_seqlens, batch, device, first)
            offsets = None if shapes_only else self._offsets(cu_seqlens, tokens)
            runs = cu_seqlens.shape[0] - 1
        if initial_state is not None:
            self._check_states({**sizes, self.sequences: runs}, initial_state, device, first)
        return self.sizes(
            batch=batch,
            tokens=tokens,
            runs=runs,
            offsets=offsets,
            dtype=torch.float64 if any(x.dtype == torch.float64 for x in given.values()) else torch.float32,
            device=device,
            states=tuple(self.states.values()),
            **{axis: size for axis, size in sizes.items() if axis not in self.leading},
        )

    def size(self, dim: str, /, **sizes: int) -> int:
        """The size of a dim that follows from others, from these.

        Raises:
            ValueError: it is no positive int.
        """
        rule = self.following[dim]
        over, under = rule.quotient(*[sizes[name] for name in rule.of])
        if under == 0 or over % under or over // under < 1:
            value = f"is {over / under}" if under else "has no value"
            known = ", ".join(f"{self.layout((name,))} = {sizes[name]}" for name in rule.of)
            expected = f"{self.layout((dim,))}: expected a positive int"
            raise ValueError(f"{expected}; it is {rule.formula}, which {value} for {known}")
        return over // under

    @property
    def leading(self) -> tuple[str, str]:
        """What the axes of batch and tokens are called."""
        batch, tokens, *_ = next(iter(self.inputs.values()))
        return batch, tokens.split(" ")[0]

    @property
    def sequences(self) -> str:
        """What the axis of sequences is called."""
        return next(iter(self.states.values())).axes[0]

    def check_ranges(self, asked: bool | None, /, **given: Tensor | float | None) -> None:
        """Raise where a value is outside its range by more than rounding, if that is asked for; NaN is not outside."""
        if asked is None:
            asked = os.environ.get("FLAGEN_CHECK_RANGES") == "1"
        if not asked:
            return
        for name, values in given.items():
            if values is None:
                continue
            low, high = self.ranges[name]
            x = values.detach() if isinstance(values, Tensor) else torch.tensor(float(values), dtype=torch.float64)
            rounding = torch.finfo(x.dtype).eps
            outside = (x < low - rounding * abs(low)) | (x > high + rounding * abs(high))
            if outside.any():
                place = outside.nonzero()[0].tolist()
                at = f" at {place}" if place else ""
                raise ValueError(f"{name}: expected values in [{low:g}, {high:g}], got {x[tuple(place)].item():g}{at}")

    def layout(self, axes: Axes) -> str:
        """Axes as messages show them."""
        return ", ".join(self.written.get(axis, axis) for axis in axes)

    def _fit(self, sizes: dict[str, int], name: str, tensor: object, axes: Axes, steps: int = 1) -> Tensor:
        """Check `tensor` against the sizes known so far, learn the others from it, and return it.

        `steps` counts the rows of a token, where the axes say that there are several.
        """
        if not isinstance(tensor, Tensor):
            raise ValueError(f"{name}: expected a tensor [{self.layout(axes)}], got {type(tensor).__name__}")
        if not tensor.is_floating_point():
            raise ValueError(f"{name}: expected a floating dtype, got {tensor.dtype}")
        shape = tuple(tensor.shape)
        if len(shape) != len(axes):
            raise ValueError(f"{name}: expected shape [{self.layout(axes)}], got {shape}")
        for axis, size in zip(axes, shape, strict=True):
            counted, _, per_token = axis.partition(" * ")
            if per_token:
                if size % steps:
                    raise ValueError(f"{name}: expected a multiple of {steps} rows ({axis}), got shape {shape}")
                size //= steps
            known = sizes.setdefault(counted, size)
            if size != known:
                differs = f"{self.layout((counted,))} = {known}"
                raise ValueError(f"{name}: expected shape [{self.layout(axes)}] with {differs}, got {shape}")
            if axis in ("H", "HV") and size == 0:
                raise ValueError(f"{name}: expected at least one head ({axis}), got shape {shape}")
        return tensor

    def _follow(self, sizes: dict[str, int], dim: str, given: Mapping[str, Tensor]) -> None:
        """Learn the size of a dim that follows from others; that of a tensor which has it must be the same."""
        size = self.size(dim, **sizes)
        if sizes.setdefault(dim, size) != size:
            tensors = {**self.inputs, **self.params}
            name = next(name for name in given if dim in tensors[name])
            formula = self.following[dim].formula
            known = f"{formula} = {size}" if formula != str(size) else formula
            expected = f"[{self.layout(tensors[name])}] with {self.layout((dim,))} = {known}"
            raise ValueError(f"{name}: expected shape {expected}, got {tuple(given[name].shape)}")

    def _fit_heads(self, sizes: dict[str, int]) -> None:
        """Learn H and HV, where inputs have only one of them; else the first must divide the other."""
        if "H" not in sizes or "HV" not in sizes:
            sizes["H"] = sizes["HV"] = sizes["HV"] if "HV" in sizes else sizes["H"]
        elif sizes["HV"] % sizes["H"]:
            name = next(name for name, axes in self.inputs.items() if axes[2] == "HV")
            raise ValueError(f"{name}: expected HV to be a multiple of H = {sizes['H']}, got HV = {sizes['HV']}")

    def _check_states(
        self, sizes: dict[str, int], initial_state: Tensor | tuple[Tensor, ...], device: torch.device, first: str
    ) -> None:
        given: dict[str, object]
        if len(self.states) == 1:
            given = {"initial_state": initial_state}
        elif isinstance(initial_state, tuple | list) and len(initial_state) == len(self.states):
            given = {f"initial_state ({name})": x for name, x in zip(self.states, initial_state, strict=True)}
        else:
            names = ", ".join(self.states)
            raise ValueError(f"initial_state: expected a tuple of {len(self.states)} tensors ({names})")
        for (name, tensor), state in zip(given.items(), self.states.values(), strict=True):
            _check_device(name, self._fit(sizes, name, tensor, state.axes), device, first)

    def _check_packing(self, cu_seqlens: Tensor, batch: int, device: torch.device, first: str) -> None:
        """Check what can be told of `cu_seqlens` without reading it."""
        runs = self.sequences
        if not isinstance(cu_seqlens, Tensor):
            raise ValueError(f"cu_seqlens: expected a tensor [{runs} + 1], got {type(cu_seqlens).__name__}")
        if cu_seqlens.ndim != 1 or cu_seqlens.dtype not in (torch.int32, torch.int64) or cu_seqlens.numel() < 2:
            found = f"{cu_seqlens.dtype} of shape {tuple(cu_seqlens.shape)}"
            raise ValueError(f"cu_seqlens: expected [{runs} + 1] token offsets in int32 or int64, got {found}")
        _check_device("cu_seqlens", cu_seqlens, device, first)
        if batch != 1:
            raise ValueError(f"cu_seqlens: expected packed sequences in a batch of 1, got a batch of {batch}")

    def _offsets(self, cu_seqlens: Tensor, tokens: int) -> tuple[int, ...]:
        """The tokens at which packed sequences start and end, read from the device."""
        if torch.compiler.is_dynamo_compiling():
            raise RuntimeError(
                "cu_seqlens: torch.compile cannot trace reading it; without fullgraph, the graph breaks here"
            )
        offsets = read_offsets(cu_seqlens)
        if offsets[0] != 0 or offsets[-1] != tokens or any(a > b for a, b in pairwise(offsets)):
            expected = f"non-decreasing offsets from 0 to {self.leading[1]} = {tokens}"
            raise ValueError(f"cu_seqlens: expected {expected}, got {list(offsets)}")
        return offsets


def _check_device(name: str, tensor: Tensor, device: torch.device, first: str) -> None:
    if tensor.device != device:
        raise ValueError(f"{name}: expected device {device} as {first}, got {tensor.device}")
