"""Evidence about the generated kernels of a package, without a GPU: what they compile to, and what they move.

    record      what a package's operators launch: kernels, types, constants, configurations   (nothing is compiled)
    compile     registers, spills, shared memory and matrix instructions of every launch       (Triton's compiler)
    meter       bytes, flops, launches and programs of a call, and of its backward             (kernels as data)
    predict     the time of a call and of its backward, from compiled code and counted turns   (both)

Nothing here knows a variant or a kernel. A call is made up from the spec, and a kernel's signature is read off what its
launcher passes to it, so that an operator that gets kernels is inspected and metered from then on.

The compiler and the interpreter need processes of their own, and torch is to stay out of flagen's: `work` starts
`python -m flagen.inspection.worker`, as often as cores make worth it, and imports neither torch nor Triton.
"""

from __future__ import annotations

from flagen.inspection.devices import ARCHS, DEVICES, verdict
from flagen.inspection.model import (
    Compiled,
    Direction,
    Figures,
    Launched,
    Metered,
    MeteredGradients,
    Shape,
    Size,
    Timed,
)
from flagen.inspection.work import (
    METERED,
    OPERATORS,
    SIZES,
    TIMED,
    Package,
    compile_kernels,
    find_package,
    meter,
    meter_gradients,
    package_key,
    predict,
    record,
    triton_version,
)

__all__ = [
    "ARCHS",
    "DEVICES",
    "METERED",
    "OPERATORS",
    "SIZES",
    "TIMED",
    "Compiled",
    "Direction",
    "Figures",
    "Launched",
    "Metered",
    "MeteredGradients",
    "Package",
    "Shape",
    "Size",
    "Timed",
    "compile_kernels",
    "find_package",
    "meter",
    "meter_gradients",
    "package_key",
    "predict",
    "record",
    "triton_version",
    "verdict",
]
