"""The PyTorch backend: the argument check, the recurrence as it is defined, the chunk form, and the module."""

from __future__ import annotations

from flagen.backends.protocol import Rendering
from flagen.backends.torch_.arguments import arguments_file
from flagen.backends.torch_.chunk import chunk_file
from flagen.backends.torch_.module import module_file, package_file
from flagen.backends.torch_.naive import naive_file
from flagen.plan.model import Plan, Unavailable


class TorchBackend:
    """Emits what runs anywhere PyTorch does."""

    name = "torch"

    def renderings(self, plan: Plan) -> tuple[Rendering, ...]:
        chunk = () if isinstance(plan.chunk, Unavailable) else (chunk_file(plan, plan.chunk),)
        return (arguments_file(plan), naive_file(plan), *chunk, module_file(plan), package_file(plan))
