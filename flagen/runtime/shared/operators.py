"""How the functions with kernels become operators of torch: with a name, a fake for tracing, and gradients."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from .arguments import Arguments, Call
from .autocast import no_autocast
from .chunks import largest_matrix

NOTHING, PREPARED, STATES = range(3)
"""What a forward call keeps for its gradient: nothing; what would have to be prepared again; the states as well."""


Schema = Mapping[str, str]
"""Arguments of an operator and their types, as torch writes them."""


@dataclass(frozen=True)
class Result:
    """What is returned for every token: its dims behind [batch, tokens, HV], and its dtype, or the input whose dtype it
    takes; by default what the PyTorch forms compute in."""

    dims: tuple[str, ...] = ()
    like: str | torch.dtype | None = None


@dataclass
class Operator:
    """A function with kernels, as torch knows it: an operator with a fake for tracing, and one for its gradients.

    Both take the tensors that can have a gradient, each state to start from on its own, then `cu_seqlens`, then the
    settings. They return the results, the final states, and what is kept for the gradient; where there is no kernel,
    the PyTorch form runs.

    Args:
        module: the `__name__` of the module that it is in.
        name: what it is called there.
        call: what the function takes.
        initials: the names of the states to start from.
        settings: what it takes beside tensors; the last says what is kept, if anything is.
        results: what it returns for every token.
        form: the PyTorch form, called as the function is.
        launch: launches the kernels, given the sizes of the call and the arguments of the operator.
        backward: the gradients by kernels, from those of what was returned; None where kernels go forward only.
        wanted: the keyword of `backward` that says which gradients are asked for.
        kept: the names of what is kept.
        room: empty tensors like those that are kept, given what `launch` is.
        handed_on: keywords of `backward`, given what says how much was kept, then the first of what was returned if
            `outputs` is 1, then what was kept.
        outputs: how many results `handed_on` takes.
        needs_kept: whether `backward` cannot do without.
        most_steps: for how many micro-steps a token there are kernels.
        most_pairs: of a dim of pairs, for how many.
        matrices: the dims of matrices that a program has all of, which have to be as small as the device asks.
    """

    module: str
    name: str
    call: Call[Any]
    settings: Schema
    results: tuple[Result, ...]
    form: Callable[..., Any]
    launch: Callable[..., tuple[Tensor | None, ...]]
    backward: Callable[..., tuple[Tensor | None, ...]] | None = None
    wanted: str = "wanted"
    initials: tuple[str, ...] = ("initial_state",)
    kept: tuple[str, ...] = ()
    room: Callable[..., tuple[Tensor | None, ...]] | None = None
    handed_on: Callable[..., dict[str, Any]] | None = None
    outputs: int = 0
    needs_kept: bool = False
    most_steps: int | None = None
    most_pairs: tuple[str, int] | None = None
    matrices: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        optional = {*self.call.optional, *self.initials}
        tensors = {name: "Tensor?" if name in optional else "Tensor" for name in self.differentiated}
        given: Schema = {**tensors, "cu_seqlens": "Tensor?", **self.settings}
        self.arguments = tuple(given)
        self.forward = _register(self, self.name, self.run, given, len(self.results) + self.states + len(self.kept))
        cotangents = {f"_cotangent_{number}": "Tensor?" for number in range(len(self.results) + self.states)}
        arrays = {f"_kept_{number}": "Tensor" for number in range(self.outputs + len(self.kept))}
        wanted = {"_wanted": "bool[]"}
        back: Schema = {**given, **cotangents, **arrays, **wanted}
        self.gradient = _register(self, f"{self.name}_backward", self.run_backward, back, len(tensors))
        self.forward.register_fake(self.allocate)
        _differentiate(self.forward, self.gradient, len(tensors), self.outputs, len(self.kept))

    @property
    def differentiated(self) -> tuple[str, ...]:
        """The arguments that can have a gradient."""
        return (*self.call.inputs, *self.call.params, *self.initials)

    @property
    def states(self) -> int:
        return len(self.initials)

    def __call__(
        self,
        args: Arguments,
        tensors: tuple[Tensor | None, ...],
        initial_state: Tensor | tuple[Tensor, ...] | None,
        *settings: Any,
        save_states: bool = False,
    ) -> tuple[Any, ...]:
        """The results and the final state, which may be several: what the function returns for these arguments, which
        agree on `args`. The first of the settings is `cu_seqlens`."""
        several = self.states > 1
        initials = (initial_state or (None,) * self.states) if several else (initial_state,)
        given: tuple[Any, ...] = (*tensors, *initials)
        wants = wants_gradient(*given)
        if self.kept:
            keep = NOTHING if not wants else STATES if save_states else PREPARED
            settings = (*settings, keep)
        run: Callable[..., tuple[Tensor, ...]] = self.forward
        in_pytorch = (wants and self.backward is None) or not self.has_kernel(args, settings)
        if in_pytorch and not torch.compiler.is_compiling():
            run = self.in_pytorch
        else:
            no_tangents(*given)
        returned = run(*given, *settings)
        outputs = len(self.results)
        final = returned[outputs : outputs + self.states] if several else returned[outputs]
        wanted = settings[list(self.settings).index("output_final_state") + 1]
        return (*returned[:outputs], final if wanted else None)

    def run(self, *given: Any) -> tuple[Tensor, ...]:
        """What torch.compile traces: a name, behind which the kernels run, or the PyTorch form where there are none."""
        args = self._check(given)
        if not self.has_kernel(args, given[len(self.differentiated) :]):
            return self.in_pytorch(*given)
        return results(*self.launch(args, *given))

    def in_pytorch(self, *given: Any) -> tuple[Tensor, ...]:
        """The PyTorch form, called as the operator is."""
        positional, keywords = self._passed(given)
        *returned, final = self.form(*positional, **keywords)
        args = self._check(given, shapes_only=True)
        narrowed = (x.to(self._dtype(result, args, given)) for x, result in zip(returned, self.results, strict=True))
        finals = (final or (None,) * self.states) if self.states > 1 else (final,)
        return results(*narrowed, *finals, *[None] * len(self.kept))

    def allocate(self, *given: Any) -> tuple[Tensor, ...]:
        """Results like the operator's, without the numbers: all that tracing needs."""
        return results(*self.empty(self._check(given, shapes_only=True), *given))

    def empty(self, args: Arguments, *given: Any) -> tuple[Tensor | None, ...]:
        """Room for what the operator returns, None for what is not wanted."""
        named = dict(zip(self.arguments, given, strict=True))

        def room(dims: Sequence[str], dtype: torch.dtype) -> Tensor:
            return torch.empty([getattr(args, dim) for dim in dims], dtype=dtype, device=args.device)

        per_token = [
            room(("batch", "tokens", "HV", *result.dims), self._dtype(result, args, given)) for result in self.results
        ]
        wanted = named["output_final_state"]
        finals = [room(("runs", *state.axes[1:]), args.dtype) if wanted else None for state in args.states]
        kept: tuple[Tensor | None, ...] = (None,) * len(self.kept)
        if self.room is not None and given[-1] and self.has_kernel(args, given[len(self.differentiated) :]):
            kept = self.room(args, *given)
        return (*per_token, *finals, *kept)

    def run_backward(self, *arguments: Any) -> tuple[Tensor, ...]:
        """The gradients that are wanted of the tensors; without kernels, the PyTorch form's."""
        *others, wanted = arguments
        given, others = others[: len(self.arguments)], others[len(self.arguments) :]
        ends = len(self.results) + self.states
        cotangents, kept = others[:ends], others[ends:]
        args = self._check(given)
        tensors, rest = given[: len(self.differentiated)], given[len(self.differentiated) :]
        kernels = self.has_kernel(args, rest) and (given[-1] or not self.needs_kept)
        if self.backward is None or not kernels:
            return gradients(lambda *varied: self.in_pytorch(*varied, *rest), tensors, cotangents, wanted)
        positional, keywords = self._passed(given)
        del keywords["output_final_state"]
        if self.handed_on is not None:
            keywords |= self.handed_on(given[-1], *kept)
        keywords[self.wanted] = asked(self.differentiated, wanted)
        return results(*self.backward(*cotangents, *positional, **keywords))

    def has_kernel(self, args: Arguments, settings: Sequence[Any]) -> bool:
        """Whether kernels run for such arguments; `settings` begin with `cu_seqlens`."""
        if self.most_steps is not None and self._steps(settings) > self.most_steps:
            return False
        if self.most_pairs is not None and getattr(args, self.most_pairs[0]) > self.most_pairs[1]:
            return False
        return has_kernel(args) and all(getattr(args, dim) <= largest_matrix() for dim in self.matrices)

    def _steps(self, settings: Sequence[Any]) -> int:
        """The number of micro-steps a token."""
        steps: int = settings[list(self.settings).index(self.call.steps) + 1] if self.call.steps else 1
        return steps

    def _check(self, given: Sequence[Any], shapes_only: bool = False) -> Any:
        """The sizes that the arguments of the operator agree on."""
        named = dict(zip(self.arguments, given, strict=True))
        return self.call.check(
            *(named[name] for name in (*self.call.inputs, *self.call.params)),
            initial_state=self._initial(named),
            cu_seqlens=named["cu_seqlens"],
            steps=named[self.call.steps] if self.call.steps else 1,
            shapes_only=shapes_only,
        )

    def _initial(self, named: Mapping[str, Any]) -> Any:
        """The argument `initial_state` from the states that the operator is handed."""
        states = tuple(named[name] for name in self.initials)
        if len(states) == 1:
            return states[0]
        return None if states[0] is None else states

    def _passed(self, given: Sequence[Any]) -> tuple[list[Any], dict[str, Any]]:
        """The arguments of the function from those of the operator."""
        named = dict(zip(self.arguments, given, strict=True))
        required = [x for x in (*self.call.inputs, *self.call.params) if x not in self.call.optional]
        others = [*self.call.optional, *(list(self.settings)[:-1] if self.kept else self.settings)]
        keywords = {name: named[name] for name in others}
        packed = {"initial_state": self._initial(named), "cu_seqlens": named["cu_seqlens"]}
        return [named[name] for name in required], {**keywords, **packed}

    def _dtype(self, result: Result, args: Arguments, given: Sequence[Any]) -> torch.dtype:
        if isinstance(result.like, torch.dtype):
            return result.like
        if result.like is None:
            return args.dtype
        dtype: torch.dtype = given[self.arguments.index(result.like)].dtype
        return dtype


def _register(
    operator: Operator, name: str, function: Callable[..., tuple[Tensor, ...]], given: Schema, returned: int
) -> Any:
    """Make `function` an operator of torch; where its name is taken, as after a reload, it gets a number.

    The namespace says where the package was imported from: two copies of it in one process are two sets of operators.
    """
    namespace = "flagen_" + re.sub(r"\W", "_", operator.module.rpartition(".")[0], flags=re.ASCII)
    known = getattr(torch.ops, namespace)
    names = (name if number == 1 else f"{name}_{number}" for number in count(1))
    free = next(candidate for candidate in names if not hasattr(known, candidate))
    types = ("Ellipsis", "NoneType")  # To torch's parser, and so no names.
    arguments = ", ".join(f"{kind} {name}{'_' if name in types else ''}" for name, kind in given.items())
    schema = f"({arguments}) -> ({', '.join(['Tensor'] * returned)})"
    return torch.library.custom_op(f"{namespace}::{free}", function, mutates_args=(), schema=schema)


def _differentiate(forward: Any, backward: Any, tensors: int, outputs: int, kept: int) -> None:
    """Let `backward` give the gradients of `forward`, whose first `tensors` arguments can have one.

    `backward` takes what `forward` takes, then a cotangent of each result, or None, the first `outputs` results and
    the last `kept` of `forward`, of which these are there for nothing else, and which gradients are wanted.
    """
    given = tensors + 1  # cu_seqlens follows the tensors with gradients.

    def keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.save_for_backward(*inputs[:given], *output[:outputs], *output[len(output) - kept :])
        ctx.settings = inputs[given:]
        ctx.set_materialize_grads(False)

    def go_back(ctx: Any, *cotangents: Tensor | None) -> tuple[Tensor | None, ...]:
        wanted = list(ctx.needs_input_grad[:tensors])
        saved = ctx.saved_tensors  # Once: checkpoints compute them when they are asked for.
        inputs, arrays = saved[:given], saved[given:]
        of_results = cotangents[: len(cotangents) - kept]
        found = backward(*inputs, *ctx.settings, *of_results, *arrays, wanted)
        others = [None] * (1 + len(ctx.settings))
        return (*(x if asked else None for x, asked in zip(found, wanted, strict=True)), *others)

    def allocate(*arguments: Any) -> tuple[Tensor, ...]:
        given = zip(arguments[:tensors], arguments[-1], strict=True)
        return results(*(torch.empty_like(x) if asked else None for x, asked in given))

    forward.register_autograd(go_back, setup_context=keep)
    backward.register_fake(allocate)


def gradients(
    form: Callable[..., tuple[Tensor, ...]],
    tensors: Sequence[Tensor | None],
    cotangents: Sequence[Tensor | None],
    wanted: Sequence[bool],
) -> tuple[Tensor, ...]:
    """The gradients of a PyTorch form, which is run again for them; empty ones where they are not wanted."""
    places = [place for place, asked in enumerate(wanted) if asked]

    def of_wanted(*varied: Tensor) -> tuple[Tensor, ...]:
        varying = dict(zip(places, varied, strict=True))
        outputs = form(*(varying.get(place, x) for place, x in enumerate(tensors)))
        return outputs[: len(cotangents)]  # What is kept for the gradient comes after, and has none.

    # An operator runs where autograd is off; torch.func has its own.
    outputs, pull_back, *_ = torch.func.vjp(of_wanted, *(tensors[place] for place in places))
    along = tuple(torch.zeros_like(o) if x is None else x for o, x in zip(outputs, cotangents, strict=True))
    with no_autocast(outputs[0].device):
        found = dict(zip(places, pull_back(along), strict=True))
    # Copies, for one tensor may be two gradients, or a cotangent.
    copies = {place: x.clone(memory_format=torch.contiguous_format) for place, x in found.items()}
    return results(*(copies.get(place) for place in range(len(tensors))))


def asked(names: Sequence[str], wanted: Sequence[bool]) -> set[str]:
    """The names of those that are wanted."""
    return {name for name, is_wanted in zip(names, wanted, strict=True) if is_wanted}


def results(*tensors: Tensor | None) -> tuple[Tensor, ...]:
    """What an operator may return: contiguous tensors, and an empty one in the place of each that is missing."""
    some = next(x for x in tensors if x is not None)
    return tuple(some.new_empty(0) if x is None else x.contiguous() for x in tensors)


def wants_gradient(*tensors: Tensor | None) -> bool:
    return torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in tensors)


def no_tangents(*tensors: Tensor | None) -> None:
    """Raise where torch.func.jvp or forward_ad ask for tangents, which a kernel would leave out without a word."""
    if torch.compiler.is_compiling():
        return
    if any(x is not None and _has_tangent(x) for x in tensors):
        raise RuntimeError("kernels have no forward-mode derivatives: call the naive_* form")


def _has_tangent(x: Tensor) -> bool:
    return forward_ad.unpack_dual(x).tangent is not None  # type: ignore[no-untyped-call]


def has_kernel(args: Arguments) -> bool:
    """Kernels run on a GPU, or in Triton's interpreter, and compute in float32."""
    runs = args.device.type == "cuda" or os.environ.get("TRITON_INTERPRET") == "1"
    return runs and args.dtype != torch.float64
