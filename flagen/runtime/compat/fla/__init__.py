"""flash-linear-attention's names: `fla.ops`, `fla.modules`, `fla.layers`, `fla.models`."""

__version__ = "0.6.0"
__all__: list[str] = []
