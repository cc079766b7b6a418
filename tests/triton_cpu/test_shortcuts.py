"""What the interpreter leaves out does not show in what it computes."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
import triton
import triton.language as tl

from flagen.triton_cpu import border, shortcuts
from flagen.triton_cpu.border import interpreter


@triton.jit
def scaled_sum(x, BLOCK: tl.constexpr):
    return tl.sum(x, axis=0) + tl.zeros([BLOCK], tl.float32)


@triton.jit
def join(sum_before, sum_to, before, to):
    """Two runs of rows as one."""
    return sum_to + before, sum_to + to * 0.5


@triton.jit
def larger(x, y):
    return tl.maximum(x, y)


@triton.jit
def every_kind_kernel(x, y, n, offset, scale, BLOCK: tl.constexpr):
    r = tl.arange(0, BLOCK)
    tile = tl.load(x + r[:, None] * BLOCK + r[None, :], mask=(r[:, None] < n) & (r[None, :] < n), other=0.0)
    low = tile.to(tl.bfloat16) * scale
    around = (r * 1103515245 + offset) % 7  # Wraps around, as 32 bits do.
    product = tl.dot(low.to(tl.float32), tl.trans(tile)) + around[None, :]
    for i in range(3):
        product += scaled_sum(product, BLOCK)[None, :] * (i + 1)
    before, to = tl.associative_scan((tl.zeros_like(product), product), 0, join)
    low_before, low_to = tl.associative_scan((low, low), 1, join, reverse=True)
    product += before + to + tl.associative_scan(tile, 1, larger) + (low_before * low_to).to(tl.float32)
    # Rows with columns, numbers with tensors of every kind, on either side; one type with another; no block at all.
    row, column = tl.load(x + r)[None, :], tl.load(x + (16 + r))[:, None]
    product += (row - column) * (column + 2 * row) / (3 + row * row) + (1 - row / 3) + r[:, None] * row
    product += ((r[:, None] // 3) % 5 - (7 - r[None, :]) % (1 + r[:, None])).to(tl.float32) + r / 4
    product += (low / 3).to(tl.float32) + (low * row).to(tl.float32) + (low - 1)
    product += ((low.to(tl.float16) + 0.1) * low.to(tl.float16)).to(tl.float32) + tl.minimum(row, column)
    product = tl.where((row > column) & (r[:, None] != 3) | (row == 0), tl.maximum(product, 0.25), -product)
    product = tl.where(n > 12, product, row) + tl.where(row > 0.0, 1.0, -0.0) + tl.where(column < 0, row, column)
    product += offset * scale + (offset - 5) // 2 + (offset.to(tl.int64) << 3) % 11
    tl.store(y + r[:, None] * BLOCK + r[None, :], tl.where(r[:, None] >= r[None, :], product, -1.0))


def launched() -> torch.Tensor:
    x = torch.randn(16, 16, generator=torch.Generator().manual_seed(0))
    y = torch.empty(16, 16)
    every_kind_kernel[(1,)](x, y, 13, 12345, 0.3, BLOCK=16)
    return y


@pytest.fixture
def without_shortcuts() -> Iterator[None]:
    """Patches take what is in force for stock: undone, by giving back what they were made from."""
    undone = [border.Patch(p.owner, p.name, _made_from(p)) for p in _in_force()]
    with border.patched(undone):
        yield


def _in_force() -> list[border.Patch]:
    return [border.Patch(p.owner, p.name, getattr(p.owner, p.name)) for p in shortcuts.patches()]


def _made_from(patch: border.Patch) -> object:
    cells = patch.replacement.__closure__ or ()
    (stock,) = (cell.cell_contents for cell in cells if callable(cell.cell_contents))
    return stock


def test_results_are_those_of_the_long_way(without_shortcuts: None) -> None:
    assert not any(patch.replacement.__module__ == shortcuts.__name__ for patch in _in_force())
    with_all_checks = launched()
    assert with_all_checks.isfinite().all() and with_all_checks.std() > 0
    with border.patched(shortcuts.patches()):
        assert torch.equal(launched(), with_all_checks)


def test_they_are_in_force() -> None:
    assert all(patch.replacement.__module__ == shortcuts.__name__ for patch in _in_force())


def test_types_are_told_apart() -> None:
    wide, narrow = tl.block_type(tl.float32, [4, 8]), tl.block_type(tl.float16, [4, 8])
    assert wide == tl.block_type(tl.float32, [tl.constexpr(4), 8])
    assert wide != narrow and wide != tl.block_type(tl.float32, [8, 4])
    assert wide != tl.float32 and tl.float32 != tl.float16
    assert wide.with_element_ty(tl.float16) == narrow
    assert tl.block_type(tl.pointer_type(tl.float32), [4]) != tl.block_type(tl.pointer_type(tl.float16), [4])
    with pytest.raises(ValueError, match="power of 2"):
        tl.block_type(tl.float32, [3])


def test_tensors_have_what_their_type_tells_and_their_own_numbers() -> None:
    kind = tl.block_type(tl.float32, [4, 8])
    handles = [interpreter.TensorHandle(np.full((4, 8), x, np.float32), tl.float32) for x in (1, 2)]
    one, two = (tl.tensor(handle, kind) for handle in handles)
    assert [x.handle for x in (one, two)] == handles
    assert [int(size.value) for size in one.shape] == [int(size.value) for size in two.shape] == [4, 8]
    assert one.dtype == tl.float32 and one.numel.value == 32
