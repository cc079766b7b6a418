"""mamba_ssm's names: the selective scans of Mamba and Mamba-2."""

from __future__ import annotations

from importlib import import_module
from typing import Any

__version__ = "2.2.6"
__all__ = ["mamba_inner_fn", "selective_scan_fn"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"mamba_ssm has no {name!r} here")
    return getattr(import_module(".ops.selective_scan_interface", __name__), name)
