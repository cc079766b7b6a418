"""Search for faster tiles of kernels over chunks on the GPU at hand: only where it is asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

Tiles = tuple[dict[str, int], ...]
"""The tiles and warps of each kernel."""
Table = dict[tuple[object, ...], Tiles]
"""Tiles by device, sizes and dtype: those that ship, or what a search found."""
Results = Sequence[Tensor | None]
Bench = Callable[[Callable[[], Results]], float]

WARPS, STAGES = (4, 8), (1, 2, 3)
KEYS, VALUES = (16, 32, 64), (32, 64, 128)
OF_RESULTS, OF_GRADIENTS = (1e-5, 5e-3), (1e-4, 2e-2)
"""How large the root mean square of an error may be against that of the values: in float32, and where an argument has
16 bits."""


@dataclass(frozen=True)
class Search:
    """What is searched for.

    Args:
        form: the function whose kernels get tiles; exact: the PyTorch form of it.
        table: where the kernels look their tiles up; of_gradients: the same of the kernels of the backward.
        keys, values: what the blocks of key and value channels are called.
        of_kernels: the keywords of `form` that `exact` does not take.
    """

    form: Callable[..., Any]
    exact: Callable[..., Any]
    table: Table
    of_gradients: Table | None
    keys: str
    values: str
    of_kernels: tuple[str, ...] = ()

    @property
    def choices(self) -> Mapping[str, tuple[int, ...]]:
        """What is tried out for each number."""
        return {"num_warps": WARPS, "num_stages": STAGES, self.keys: KEYS, self.values: VALUES}


def tune(search: Search, arguments: Sequence[Any], keywords: Mapping[str, Any], bench: Bench | None = None) -> Tiles:
    """The fastest tiles for this call of the form, then those of its gradients, if it has any with kernels; calls like
    it take them from now on.

    Raises:
        ValueError: an argument that does not fit, named.
        RuntimeError: no kernel ran, or the tiles that ship are wrong on this device.
    """
    bench = bench or _do_bench
    plain = {name: x for name, x in keywords.items() if name not in search.of_kernels}
    low = any(isinstance(x, Tensor) and x.element_size() == 2 for x in tree_leaves((arguments, keywords)))

    def run() -> Results:
        if search.of_gradients is not None:
            return tree_leaves(search.form(*arguments, **keywords))
        with torch.no_grad():
            return tree_leaves(search.form(*arguments, **keywords))

    with torch.no_grad():
        expected: Results = tree_leaves(search.exact(*tree_map(_double, arguments), **tree_map(_double, plain)))
    found = _tuned(search, search.table, expected, run, bench, OF_RESULTS[low])
    if search.of_gradients is None:
        return found
    leaves, results = _differentiated(search.form, arguments, keywords)
    if not results:
        return found
    exact = _differentiated(search.exact, *tree_map(_double, (arguments, plain)))
    generator = torch.Generator().manual_seed(0)
    cotangents = [torch.randn(x.shape, generator=generator).to(x) for x in results]
    expected = _gradients(*exact, [x.double() for x in cotangents])

    def gradients() -> Results:
        return _gradients(leaves, results, cotangents)

    return found + _tuned(search, search.of_gradients, expected, gradients, bench, OF_GRADIENTS[low])


def _differentiated(
    form: Callable[..., Any], arguments: Sequence[Any], keywords: Mapping[str, Any]
) -> tuple[list[Tensor], list[Tensor]]:
    """The arguments that require a gradient, as leaves of a graph, and what `form` makes of them."""
    leaves: list[Tensor] = []

    def leaf(x: Any) -> Any:
        if isinstance(x, Tensor) and x.requires_grad:
            leaves.append(x.detach().requires_grad_())
            return leaves[-1]
        return x

    given, named = tree_map(leaf, (tuple(arguments), dict(keywords)))
    return leaves, [x for x in tree_leaves(form(*given, **named)) if x is not None and x.requires_grad]


def _gradients(leaves: list[Tensor], results: list[Tensor], cotangents: list[Tensor]) -> Results:
    return torch.autograd.grad(results, leaves, cotangents, retain_graph=True, allow_unused=True)


def _tuned(
    search: Search, table: Table, expected: Results, run: Callable[[], Results], bench: Bench, bound: float
) -> Tiles:
    """The fastest tiles of the kernels that look them up in `table` when `run` runs; they are in it from then on."""
    form = search.form.__name__
    others = dict(table)
    table.clear()
    try:
        found = run()
        if not table:
            raise RuntimeError(f"{form} ran no kernel for these arguments: there is nothing to tune")
        ((call, shipped),) = table.items()
        if not _same(expected, found, bound):
            raise RuntimeError(f"{form} is wrong on this device with the tiles that ship, {shipped}")
        others[call] = _fastest(search, table, call, expected, run, bench, bound)
    finally:
        table.clear()
        table.update(others)
    return others[call]


def _fastest(
    search: Search,
    table: Table,
    call: tuple[object, ...],
    expected: Results,
    run: Callable[[], Results],
    bench: Bench,
    bound: float,
) -> Tiles:
    best = table[call]
    shortest = bench(run)
    keys = max(tiles[search.keys] for tiles in best)
    for kernel in range(len(best)):
        for tiles in _choices(search, best[kernel], keys):
            table[call] = (*best[:kernel], tiles, *best[kernel + 1 :])
            try:
                milliseconds = bench(run) if _same(expected, run(), bound) else float("inf")
            except Exception:  # A compiler has many ways to refuse tiles, and none of them is a reason to stop.
                continue
            if milliseconds < shortest:
                best, shortest = table[call], milliseconds
    return best


def _choices(search: Search, tiles: dict[str, int], keys: int) -> Iterator[dict[str, int]]:
    """Other tiles and warps for one kernel: one of its sizes differs, or both warps and stages do. A block of `keys`,
    which has all of them, is what the kernel needs, and stays."""
    for name, sizes in search.choices.items():
        if name in tiles and not (name == search.keys and tiles[name] == keys):
            yield from ({**tiles, name: size} for size in sizes if size != tiles[name])
    for warps in WARPS:
        if warps != tiles["num_warps"]:
            yield from ({**tiles, "num_warps": warps, "num_stages": stages} for stages in STAGES)


def _do_bench(run: Callable[[], Results]) -> float:
    from triton.testing import do_bench

    return float(do_bench(run))


def _double(x: Any) -> Any:
    """x in float64, with a gradient of its own where x has one."""
    return x.detach().double().requires_grad_(x.requires_grad) if isinstance(x, Tensor) and x.is_floating_point() else x


def _same(expected: Results, found: Results, bound: float) -> bool:
    """Whether the root mean square of every error is small against that of the values."""
    for right, got in zip(expected, found, strict=True):
        if right is not None and got is not None:
            error = (got.detach().double() - right).square().mean().sqrt()
            if not error <= bound * right.square().mean().sqrt() + 1e-6:  # NaN is not small.
                return False
    return True
