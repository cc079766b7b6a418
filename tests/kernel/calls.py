"""Calls that are proved again and again, each time with another mistake in a kernel: what stays the same is found out
once."""

from __future__ import annotations

import random
from collections.abc import Hashable
from copy import copy

from flagen.kernel.call import Call
from flagen.kernel.elementary import Elementary
from flagen.kernel.settings import Setting
from flagen.kernel.sizes import Sizes
from flagen.spec.model import Spec


class KnownCalls:
    """Makes calls as `Call` does. The first at a point keeps what it finds: its numbers, what the recurrence makes of
    them, and what launches of kernels leave behind. Those after it begin with that."""

    def __init__(self) -> None:
        self._known: dict[Hashable, Call] = {}

    def __call__(
        self,
        spec: Spec,
        setting: Setting,
        sizes: Sizes,
        random_numbers: random.Random,
        functions: type[Elementary] = Elementary,
    ) -> Call:
        point = spec.name, setting, functions, random_numbers.getstate()
        if point not in self._known:
            self._known[point] = Call(spec, setting, sizes, random_numbers, functions)
            return self._known[point]
        call = copy(self._known[point])
        call.machine = call.machine.again()
        return call
