"""How modules are laid out over a one-dimensional device mesh: styles for torch's parallelize_module.

Linear maps take torch's own ColwiseParallel and RowwiseParallel.
"""

from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Placement, Replicate, distribute_module
from torch.distributed.tensor.parallel import ParallelStyle, SequenceParallel


class NormParallel(SequenceParallel):
    """torch's SequenceParallel: the norm's parameters are replicated, its inputs are split along the sequence.

    Args:
        sequence_dim: the dim of the inputs that is the sequence.
        use_local_output: whether the output is the local tensor, not the DTensor.
    """

    def __init__(self, *, sequence_dim: int = 1, use_local_output: bool = False) -> None:
        super().__init__(sequence_dim=sequence_dim, use_local_output=use_local_output)


class PrepareModuleWeight(ParallelStyle):
    """Makes DTensors of a module's own parameters, which have their layout already: nothing is sent.

    Args:
        layouts: Replicate() by default, where every rank has the same values; with a Shard, every rank has its slice.
    """

    def __init__(self, *, layouts: Placement | None = None) -> None:
        super().__init__()
        self.layouts = Replicate() if layouts is None else layouts

    def _wrap(self, name: str, module: nn.Module, device_mesh: DeviceMesh) -> None:
        for key, parameter in list(module.named_parameters(recurse=False)):
            spread = DTensor.from_local(parameter, device_mesh, [self.layouts], run_check=False)
            module.register_parameter(key, nn.Parameter(spread, requires_grad=parameter.requires_grad))

    def _apply(self, module: nn.Module, device_mesh: DeviceMesh) -> nn.Module:
        return distribute_module(module, device_mesh, self._wrap)


def as_placed(tensor: Tensor | DTensor, mesh: DeviceMesh, given: Placement, wanted: Placement) -> DTensor:
    """The tensor, which is a local one laid out as `given` or a DTensor, laid out as `wanted`."""
    spread = tensor if isinstance(tensor, DTensor) else DTensor.from_local(tensor, mesh, [given], run_check=False)
    return spread if spread.placements == (wanted,) else spread.redistribute(placements=[wanted], async_op=True)


__all__ = ["NormParallel", "PrepareModuleWeight"]
