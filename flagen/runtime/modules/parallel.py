"""How modules are laid out over a one-dimensional device mesh: styles for torch's parallelize_module.

Linear maps take torch's own ColwiseParallel and RowwiseParallel.
"""

from typing import Any

from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Placement, Replicate, Shard, distribute_module
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


class SwiGLULinearParallel(ParallelStyle):
    """SwiGLULinear of channels that are split: each rank has its slice of the gates and of the weight's columns.

    Args:
        input_layouts: of the gates; Shard(-1) by default.
        output_layouts: of the output; Replicate() by default.
        use_local_output: whether the output is the local tensor, not the DTensor.
    """

    def __init__(
        self,
        *,
        input_layouts: Placement | None = None,
        output_layouts: Placement | None = None,
        use_local_output: bool = True,
    ) -> None:
        super().__init__()
        self.input_layouts = input_layouts or Shard(-1)
        self.output_layouts = output_layouts or Replicate()
        self.use_local_output = use_local_output

    def _inputs(self, module: nn.Module, inputs: tuple[Any, ...], mesh: DeviceMesh) -> tuple[Any, ...]:
        x, y, weight, bias = inputs
        return (
            as_placed(x, mesh, self.input_layouts, Shard(-1)),
            as_placed(y, mesh, self.input_layouts, Shard(-1)),
            as_placed(weight, mesh, Shard(1), Shard(1)),
            None if bias is None else as_placed(bias, mesh, Replicate(), Replicate()),
        )

    def _outputs(self, module: nn.Module, outputs: DTensor, mesh: DeviceMesh) -> Tensor:
        spread = as_placed(outputs, mesh, self.output_layouts, self.output_layouts)
        return spread.to_local() if self.use_local_output else spread

    def _apply(self, module: nn.Module, device_mesh: DeviceMesh) -> nn.Module:
        return distribute_module(module, device_mesh, None, self._inputs, self._outputs)  # type: ignore[arg-type]


class LinearLossParallel(ParallelStyle):
    """FusedLinearCrossEntropyLoss of a sequence that is split: each rank has its tokens and the whole weight.

    What comes out is each rank's own loss, over its own tokens.

    Args:
        sequence_dim: the dim of the inputs that is the sequence.
        use_local_output: whether a DTensor that comes out is made local.
    """

    def __init__(self, *, sequence_dim: int = 1, use_local_output: bool = False) -> None:
        super().__init__()
        self.sequence_sharding = Shard(sequence_dim)
        self.use_local_output = use_local_output

    def _inputs(self, module: nn.Module, inputs: tuple[Any, ...], mesh: DeviceMesh) -> tuple[Any, ...]:
        x, target, weight, *rest = inputs
        split, whole = self.sequence_sharding, Replicate()
        return (
            as_placed(x, mesh, split, split).to_local(),
            as_placed(target, mesh, whole, split).to_local(),
            as_placed(weight, mesh, whole, whole).to_local(),
            *(None if bias is None else as_placed(bias, mesh, whole, whole).to_local() for bias in rest),
        )

    def _outputs(self, module: nn.Module, outputs: Tensor, mesh: DeviceMesh) -> Tensor:
        return outputs.to_local() if self.use_local_output and isinstance(outputs, DTensor) else outputs

    def _apply(self, module: nn.Module, device_mesh: DeviceMesh) -> nn.Module:
        return distribute_module(module, device_mesh, None, self._inputs, self._outputs)  # type: ignore[arg-type]


__all__ = ["LinearLossParallel", "NormParallel", "PrepareModuleWeight", "SwiGLULinearParallel"]
