"""The target languages. A backend turns a plan into named template contexts; `flagen.emit` renders them."""

from __future__ import annotations

from flagen.backends.markdown_ import MarkdownBackend
from flagen.backends.protocol import Backend, Rendering
from flagen.backends.torch_ import TorchBackend
from flagen.backends.triton_ import TritonBackend

BACKENDS: tuple[Backend, ...] = (TorchBackend(), TritonBackend(), MarkdownBackend())

__all__ = ["BACKENDS", "Backend", "Rendering"]
