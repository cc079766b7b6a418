"""bfloat16 and tf32 rounding, against torch and against ties worked by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from flagen.triton_cpu.rounding import from_bfloat16, to_bfloat16, truncated_to_tf32


def _torch_bits(values: np.ndarray) -> np.ndarray:
    return torch.from_numpy(values).to(torch.bfloat16).view(torch.int16).numpy().view(np.uint16)


def test_every_bfloat16_survives_the_round_trip() -> None:
    bits = np.arange(2**16, dtype=np.uint16)
    values = from_bfloat16(bits)
    numbers = ~np.isnan(values)
    assert np.array_equal(to_bfloat16(values)[numbers], bits[numbers])
    assert np.isnan(from_bfloat16(to_bfloat16(values))[~numbers]).all()
    assert np.array_equal(
        values[numbers], torch.arange(2**16).to(torch.int16).view(torch.bfloat16).float().numpy()[numbers]
    )


def test_float32_rounds_as_torch_does() -> None:
    bits = np.random.default_rng(0).integers(0, 2**32, 200_000, dtype=np.uint32)
    ties = (bits[:1000] & np.uint32(0xFFFF0000)) | np.uint32(0x8000)
    values = np.concatenate([bits, ties]).view(np.float32)
    values = values[~np.isnan(values)]
    assert np.array_equal(to_bfloat16(values), _torch_bits(values))


@pytest.mark.parametrize(
    ("value", "nearest", "toward_zero"),
    [
        (1 + 2**-8, 1.0, 1.0),  # a tie, to even below
        (1 + 3 * 2**-8, 1 + 2**-6, 1 + 2**-7),  # a tie, to even above
        (1 + 2**-8 + 2**-40, 1 + 2**-7, 1.0),  # above a tie by less than float32 can tell
        (1 + 3 * 2**-8 - 2**-40, 1 + 2**-7, 1 + 2**-7),  # below one
        (-(1 + 2**-8 + 2**-40), -(1 + 2**-7), -1.0),
        (1e300, np.inf, 3.3895313892515355e38),
        (2.0**-140, 0.0, 0.0),
        (-np.inf, -np.inf, -np.inf),
    ],
)
def test_float64_rounds_once(value: float, nearest: float, toward_zero: float) -> None:
    values = np.array([value])
    assert from_bfloat16(to_bfloat16(values)) == [nearest]
    assert from_bfloat16(to_bfloat16(values, toward_zero=True)) == [toward_zero]


def test_shapes_and_integers_and_nan() -> None:
    assert to_bfloat16(np.float32(1.5)).shape == ()
    assert to_bfloat16(np.ones((3, 2)).T).shape == (2, 3)
    assert from_bfloat16(to_bfloat16(np.array([257, -258, 3], dtype=np.int64))).tolist() == [256, -258, 3]
    assert np.isnan(from_bfloat16(to_bfloat16(np.array([np.nan]))))


def test_tf32_keeps_ten_bits() -> None:
    values = np.array([1 + 2**-10, 1 + 2**-10 + 2**-11 + 2**-23, -(1 + 2**-11)], dtype=np.float32)
    assert truncated_to_tf32(values).tolist() == [1 + 2**-10, 1 + 2**-10, -1.0]
