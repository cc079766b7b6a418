"""Which family of chunk kernels a chunk form gets, and what keeps it from having any.

flagen.plan.chunk_kernel    one decay of all channels, or none; one read of the state after its update
flagen.plan.key_kernel      decays of each key channel, reads before the update, right reads; and what of the first kind
                            has a backward only here
flagen.plan.expansion       everything else: the rows of tokens, evaluated first, as the tokens of one of these
"""

from __future__ import annotations

import math

from flagen.algebra.chunk import chunk_form
from flagen.algebra.normal_form import NormalForm
from flagen.plan import chunk_kernel
from flagen.plan.backward_families import plan_chunk_backward
from flagen.plan.chunk import ChunkPlan, plan_chunk
from flagen.plan.chunk_kernel import ChunkKernelPlan
from flagen.plan.expansion import ExpandedPlan, expand
from flagen.plan.key_kernel import KeyKernelPlan, plan_key_decay
from flagen.plan.row_planner import NoKernel, others_of
from flagen.plan.unavailable import Unavailable

SIZES = (16, 32, 64)
"""Rows of a chunk that the kernels are made for: tiles of matrix instructions, and an inverse by blocks of 16."""


def sizes_in_words() -> str:
    """`16, 32 or 64`."""
    *most, last = map(str, SIZES)
    return f"{', '.join(most)} or {last}"


def plan_chunk_kernel(chunk: ChunkPlan) -> ChunkKernelPlan | KeyKernelPlan | ExpandedPlan | Unavailable:
    """The kernels of `chunk`: its own, else those of its rows; or why there are none yet."""
    mixed = bool(chunk.normal_form.registers)
    try:
        return _of_registers(chunk) if mixed else _own_kernels(chunk)
    except NoKernel as missing:
        own = missing
    if chunk.normal_form.spec.pairs:
        reason = f"{own.reason}, and rows over pairs of keys are too long to be kept in memory"
        return Unavailable(reason, own.span)
    if mixed:
        return Unavailable(own.reason, own.span)
    try:
        return expand(chunk, own, _own_kernels)
    except NoKernel as missing:
        return Unavailable(missing.reason, missing.span)


def _of_registers(chunk: ChunkPlan) -> ChunkKernelPlan:
    """The kernels of states that numbers mix.

    Raises:
        NoKernel: they are mixed, read or written in more ways than kernels have numbers for.
    """
    nf = chunk.normal_form
    _check(nf)
    span = nf.registers[0].span
    names = " and ".join(f"`{state.name}`" for state in nf.registers)
    if nf.decay_kind != "none":
        raise NoKernel(f"{names} are mixed by numbers, and decay by channel besides", span)
    if nf.transposed:
        raise NoKernel(f"{names} are mixed by numbers, and read along {nf.key}, their second dim", span)
    if nf.slots > 1:
        raise NoKernel(f"{names} are mixed by numbers, and a token has several rows of one kind", span)
    if len(nf.reads) > 1:
        raise NoKernel(f"{names} are mixed by numbers, and read in several ways", nf.spec.output[-1].span)
    if not chunk_kernel.fits(nf):
        raise NoKernel(f"{names} are mixed by numbers, and not read by keys behind the update", nf.spec.output[-1].span)
    return chunk_kernel.plan_scalar_decay(chunk, _size(chunk))


def plan_rider(nf: NormalForm) -> ChunkKernelPlan | None:
    """The kernels of a spec of two states, one of which rides on the other; None where something keeps it out."""
    chunk = plan_chunk(chunk_form(nf))
    try:
        _check(nf)
        return chunk_kernel.plan_scalar_decay(chunk, _size(chunk)) if chunk_kernel.fits(nf) else None
    except NoKernel:
        return None


def _own_kernels(chunk: ChunkPlan) -> ChunkKernelPlan | KeyKernelPlan:
    """The kernels of a family that evaluate what they need themselves.

    Raises:
        NoKernel: no family takes `chunk`.
    """
    nf, size = chunk.normal_form, _size(chunk)
    _check(nf)
    if not chunk_kernel.fits(nf):
        return plan_key_decay(chunk, size)
    try:
        kernels = chunk_kernel.plan_scalar_decay(chunk, size)
    except NoKernel:
        _check_dims(nf, allowed=False)
        raise
    if others_of(nf) or _has_backward(kernels):
        return kernels
    return _with_backward(chunk, size) or kernels


def _size(chunk: ChunkPlan) -> int:
    """How many rows a chunk has, at most."""
    return max(size for size in SIZES if size <= max(chunk.size, SIZES[0]))


def _with_backward(chunk: ChunkPlan, size: int) -> KeyKernelPlan | None:
    """Kernels for decays of each key channel, which take one decay for all channels as well, where these have a
    backward: a value head may have keys of its own, which those for a single decay share among the heads of a key."""
    try:
        kernels = plan_key_decay(chunk, size)
    except NoKernel:
        return None
    return kernels if _has_backward(kernels) else None


def _has_backward(kernels: ChunkKernelPlan | KeyKernelPlan) -> bool:
    return not isinstance(plan_chunk_backward(kernels), Unavailable)


def _check(nf: NormalForm) -> None:
    """What no family takes."""
    spec, state, output = nf.spec, nf.spec.states[0], nf.spec.output[-1]
    if len(spec.states) != (len(nf.registers) or (1 if nf.column is None else 2)):
        raise NoKernel("there are more states than the matrix and a vector that rides on it", state.span)
    _check_dims(nf, allowed=chunk_kernel.takes_others(nf))
    if not all(math.isfinite(state.init) for state in spec.states):
        raise NoKernel("the state starts at an infinity", state.span)
    if not (nf.has_delta or nf.has_write):
        raise NoKernel("nothing is written", state.span)
    if len(spec.output_dims) != 1:
        raise NoKernel("the output is no vector", output.span)


def _check_dims(nf: NormalForm, *, allowed: bool) -> None:
    """Whether rows may be made of vectors over dims that the state does not have."""
    others, state = sorted(others_of(nf)), nf.spec.states[0]
    if others and not allowed:
        raise NoKernel(f"`{others[0]}` is no dim of the state `{state.name}`", state.span)
