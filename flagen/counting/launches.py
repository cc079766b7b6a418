"""Programs of a launch, by the way that they take through a kernel: found from what the kernel was launched with."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise
from typing import Any, TypeVar

import torch
from torch import Tensor

from flagen.counting.standing import NOWHERE, Launch, Place, Standing, Way
from flagen.kernel.ir import (
    Choose,
    Condition,
    FirstBlock,
    If,
    Kernel,
    Load,
    Loop,
    Space,
    Statement,
    accesses_in,
    statements_in,
    values_of,
)
from flagen.kernel.sizes import Sizes
from flagen.plan.rows import BETWEEN, MEMBER, ROW, TOKEN, WRITTEN
from flagen.plan.tiles import Once

Programs = TypeVar("Programs", bound=Standing)


def launch_of(kernel: Kernel, count: int, values: Mapping[str, Any], dtype: torch.dtype = torch.float32) -> Launch:
    """A launch of `count` programs of a kernel, whose parameters have these `values`."""
    pointers = {array.name: values[f"{array.name}_ptr"] for array in kernel.arrays}
    arrays = {name: tensor for name, tensor in pointers.items() if tensor is not None}
    numbers = {name: values[name] for name in kernel.numbers}
    words = {name: value for name, value in values.items() if not name.endswith("_ptr") and name not in numbers}
    sizes = _sizes(kernel, count, words, arrays.get("cu_seqlens"))
    _check_borders(arrays, sizes)
    return Launch(kernel, arrays, numbers, sizes, words, dtype)


def programs_of(launch: Launch, count: int, make: type[Programs]) -> Iterator[Programs]:
    """All programs, by the way that they take.

    Raises:
        AssertionError: so many programs there are not, or arrays say of packed sequences what is not so.
    """
    ran = 0
    for programs in _groups(launch, make):
        ran += len(programs.block)
        yield programs
    assert ran == count, f"{launch.kernel.name}: {count} programs are launched, and there are {ran}"


def splits_blocks(kernel: Kernel) -> bool:
    """Whether the first block does what others do not."""
    conditions = (c for s in statements_in(kernel.body) for c in _conditions(s))
    once = any(isinstance(s, Load) and s.once for s in statements_in(kernel.body))
    once = once or any(isinstance(tile, Once) for tile in values_of(kernel.body))
    return once or any(isinstance(condition, FirstBlock) for condition in conditions)


def _conditions(statement: Statement) -> tuple[Condition, ...]:
    match statement:
        case If(conditions):
            return conditions
        case Choose(condition):
            return (condition,)
    return ()


# --------------------------------------------------------------------------------------------------------------- sizes


def _sizes(kernel: Kernel, count: int, words: Mapping[str, Any], cu_seqlens: Tensor | None) -> Sizes:
    """The sizes of a launch of so many programs."""
    named = {dim for array in kernel.arrays for dim in array.dims} | {*kernel.order}
    dims = {dim: words[dim] for dim in named if dim in words}
    blocks = {dim: words[f"BLOCK_{dim}"] for dim in dims if f"BLOCK_{dim}" in words}
    if "CHUNK" in words:
        blocks |= dict.fromkeys((TOKEN, BETWEEN, WRITTEN), words["CHUNK"])
    if kernel.steps:
        tokens = words["CHUNK"] // words[kernel.steps]
        blocks |= {ROW: words["CHUNK"], TOKEN: words.get("BLOCK_TOKENS", tokens)}
    if "MEMBERS" in words:
        blocks[MEMBER] = words["MEMBERS"]
    symbol, HV = _steps(kernel), words["HV"]
    steps = {symbol: words[symbol]} if symbol else {}
    pairs, length = dict(kernel.pairs), {"LENGTH": words["LENGTH"]} if "LENGTH" in words else {}
    empty = Sizes((), words.get("H", HV), HV, dims, blocks, steps, words.get("SEGMENT", 1), words=length, pairs=pairs)
    heads = empty.H if kernel.of_key_heads else HV
    runs = count // (heads * empty.blocks_of(kernel.block_of))
    return replace(empty, lengths=_lengths(kernel, runs, words["T"], empty, cu_seqlens))


def _steps(kernel: Kernel) -> str:
    """What micro-steps are called, if there are any."""
    spaces = (space for access in accesses_in(kernel.body) for space in access.array.spaces)
    loops = (s.over for s in statements_in(kernel.body) if isinstance(s, Loop))
    return kernel.steps or (kernel.sizes[0] if "micro_step" in (*spaces, *loops) else "")


def _lengths(kernel: Kernel, runs: int, T: int, sizes: Sizes, cu_seqlens: Tensor | None) -> tuple[int, ...]:
    """The length of each sequence: of those that are packed, or as many as there are programs for."""
    if cu_seqlens is not None:
        return tuple(end - start for start, end in pairwise(cu_seqlens.tolist()))
    if kernel.run == "stretch":
        return (T,) * (runs // (T // sizes.chunk + 1))
    tokens = {"sequence": max(T, 1), "segment": sizes.segment, "chunk": sizes.chunk if TOKEN in sizes.blocks else 1}
    return (T,) * (runs // max(1, -(-T // tokens[kernel.run])))


def _check_borders(arrays: Mapping[str, Tensor], sizes: Sizes) -> None:
    """What arrays say of where sequences begin is so."""
    segments = sizes.segments
    expected = {"first_segment": [sum(segments[:place]) for place in range(len(segments))]}
    expected["segment_sequence"] = _repeated(segments)
    if TOKEN in sizes.blocks:
        expected["first_chunk"] = list(sizes.first_chunks[:-1])
        expected["first_stretch"] = list(sizes.first_stretches[:-1])
        expected["stretch_sequence"] = _repeated([end - start for start, end in pairwise(sizes.first_stretches)])
        expected["chunk_sequence"] = _repeated([end - start for start, end in pairwise(sizes.first_chunks)])
    for name, numbers in expected.items():
        assert name not in arrays or arrays[name].tolist()[: len(numbers)] == numbers, name


def _repeated(counts: Sequence[int]) -> list[int]:
    return [number for number, count in enumerate(counts) for _ in range(count)]


# ------------------------------------------------------------------------------------------------------------ programs


@dataclass(frozen=True)
class _Run:
    """A sequence, or a segment, a chunk or a stretch of one: its first token, its number among all, and in its
    sequence; the tokens that it has, and those of the chunk behind it."""

    sequence: int
    start: int
    number: int
    within: int
    tokens: int
    behind: int = 0


def _groups(launch: Launch, make: type[Programs]) -> Iterator[Programs]:
    kernel, sizes = launch.kernel, launch.sizes
    runs: dict[Way, list[_Run]] = {}
    for way, run in _runs(launch):
        runs.setdefault(way, []).append(run)
    count = sizes.blocks_of(kernel.block_of)
    for way, those in runs.items():
        for blocks in [range(1), range(1, count)] if splits_blocks(kernel) else [range(count)]:
            if blocks:
                yield _programs(launch, way, those, torch.tensor(blocks), make)


def count_before(launch: Launch) -> Tensor | None:
    """How many tokens there were before each sequence and head, where chunks are counted from those."""
    statements = tuple(statements_in(launch.kernel.body))
    counted = {s.aligned for s in statements if isinstance(s, Loop) and s.aligned}
    loads = (s.source.array for s in statements if isinstance(s, Load) and s.target in counted)
    return next((launch.arrays.get(array.name) for array in loads if array.life == "argument"), None)


def _begun(launch: Launch) -> list[int]:
    """How many tokens of its first chunk there were before each sequence, where chunks are counted from those."""
    before = count_before(launch)
    if before is None:
        return [0] * len(launch.sizes.lengths)
    count = before.round().long()
    assert torch.equal(count, count[:, :1].expand_as(count)), "heads of a sequence have had as many tokens"
    begun: list[int] = (count[:, 0] % launch.sizes.words["LENGTH"]).tolist()
    return begun


def _runs(launch: Launch) -> Iterator[tuple[Way, _Run]]:
    """What programs walk, and what each has in common with others."""
    kernel, sizes, begun, number = launch.kernel, launch.sizes, _begun(launch), 0
    shares = any(isinstance(s, Loop) and s.over in ("earlier", "later") for s in statements_in(kernel.body))
    for sequence, (start, length) in enumerate(zip(sizes.borders, sizes.lengths, strict=False)):
        if kernel.run == "sequence":
            yield Way(length, begun=begun[sequence]), _Run(sequence, start, sequence, 0, length)
            continue
        if kernel.run == "stretch":
            starts = range(0, length + 1, sizes.chunk)
            for within, first in enumerate(starts):
                way = Way(start=not within, end=first == starts[-1])
                yield way, _Run(sequence, start + first, number, within, min(sizes.chunk, length - first))
                number += 1
            continue
        size = sizes.segment if kernel.run == "segment" else sizes.chunk
        tokens = [min(size, length - first) for first in range(0, length, size)]
        for within, here in enumerate(tokens):
            behind = sum(tokens[within + 1 : within + 2])
            way = Way(here, not behind) if kernel.run == "segment" else Way()
            if shares:
                way = Way(earlier=within % 2 == 1, later=within % 2 == 0 and behind > 0)
            yield way, _Run(sequence, start + within * size, number, within, here, behind)
            number += 1


def _programs(launch: Launch, way: Way, runs: Sequence[_Run], blocks: Tensor, make: type[Programs]) -> Programs:
    kernel, sizes = launch.kernel, launch.sizes
    heads = torch.arange(sizes.H if kernel.of_key_heads else sizes.HV)
    run, head, block = torch.cartesian_prod(torch.arange(len(runs)), heads, blocks).reshape(-1, 3).unbind(1)
    columns = torch.tensor([(r.sequence, r.start, r.number, r.within, r.tokens, r.behind) for r in runs])
    sequence, start, number, within, tokens, behind = columns[run].unbind(1)
    places: dict[Space, Tensor] = {"sequence": sequence, "block": block, "key_head": head}
    if not kernel.of_key_heads:
        places |= {"head": head, "key_head": head // (sizes.HV // sizes.H)}
    first_segment = torch.tensor([0, *accumulate(sizes.segments)])
    places["segment"] = number if kernel.run == "segment" else first_segment[sequence]
    places["stretch"] = number
    chunks = NOWHERE
    if TOKEN in sizes.blocks:
        first_chunk = torch.tensor(sizes.first_chunks)
        chunks = first_chunk[sequence + 1] - first_chunk[sequence]
        places["counted_chunk"] = first_chunk[sequence] + within
        places["slot"] = (first_chunk[sequence] + sequence) // 2 + within // 2
        length = sizes.words.get("LENGTH")
        places["chunk"] = start // length + 2 * sequence if length else start // sizes.blocks[TOKEN] + sequence
    at: dict[Space, Place] = {space: (place, 0) for space, place in places.items()}
    lengths = torch.tensor(sizes.lengths)[sequence]
    return make(launch, way, at, start, block, within, chunks, (tokens, behind), lengths)
