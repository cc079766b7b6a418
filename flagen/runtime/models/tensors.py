"""A checkpoint's tensors on disk, as the field keeps them."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

SAFE, PICKLED = "model.safetensors", "pytorch_model.bin"


def save_tensors(directory: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write the tensors, whole or not at all."""
    safetensors = _safetensors()
    name = PICKLED if safetensors is None else SAFE
    draft = directory / f".{name}.{os.getpid()}"
    try:
        if safetensors is None:
            torch.save(dict(tensors), draft)
        else:
            safetensors.save_file(dict(tensors), draft, metadata={"format": "pt"})
        draft.replace(directory / name)
    finally:
        draft.unlink(missing_ok=True)


def load_tensors(directory: Path) -> dict[str, Tensor]:
    """The tensors of a directory, from one file or from the shards that an index names.

    Raises:
        FileNotFoundError: there are none.
        ImportError: they are safetensors, and that library is not there.
    """
    for name in (SAFE, PICKLED):
        if (directory / name).is_file():
            return _read(directory / name)
        index = directory / f"{name}.index.json"
        if index.is_file():
            shards = sorted(set(json.loads(index.read_text())["weight_map"].values()))
            return {name: tensor for shard in shards for name, tensor in _read(directory / shard).items()}
    raise FileNotFoundError(f"{directory}: expected {SAFE} or {PICKLED}, or an index of such")


def _read(path: Path) -> dict[str, Tensor]:
    if path.suffix != ".safetensors":
        tensors: dict[str, Tensor] = torch.load(path, map_location="cpu", weights_only=True)
        return tensors
    safetensors = _safetensors()
    if safetensors is None:
        raise ImportError(f"{path}: reading it takes the library safetensors, which is not installed")
    loaded: dict[str, Tensor] = safetensors.load_file(path)
    return loaded


def _safetensors() -> Any:
    """The library, or None where it is not installed."""
    try:
        return import_module("safetensors.torch")
    except ImportError:
        return None
