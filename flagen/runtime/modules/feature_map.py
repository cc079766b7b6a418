"""Feature maps of linear attention: what queries and keys go through in the place of softmax's exp."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .activations import fast_gelu_impl, sigmoid, sqrelu, swish
from .layernorm import normalize
from .precision import upcast


def products(x: Tensor, y: Tensor, offset: int) -> Tensor:
    """x_i * y_j for the i, j with j >= i + offset, row by row: [..., D] and [..., D] to [..., their number]."""
    i, j = torch.triu_indices(x.shape[-1], x.shape[-1], offset, device=x.device)
    return x[..., i] * y[..., j]


def flatten_diag_outer_product(x: Tensor, y: Tensor) -> Tensor:
    """The upper triangle of the outer product, with its diagonal: [..., D] and [..., D] to [..., D (D + 1) / 2]."""
    return products(x, y, 0)


def flatten_diag_outer_product_off1(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """The upper triangle of the outer product less its diagonal, [..., D (D - 1) / 2], and the diagonal, [..., D]."""
    return products(x, y, 1), x * y


def is_power_of_2(n: int) -> bool:
    """Whether n is 1, 2, 4, ..."""
    return n > 0 and n & (n - 1) == 0


class HedgehogFeatureMap(nn.Module):
    """softmax(cat(2 y, -2 y)) of y = W x + b, W the identity and b zero at first: D channels to 2 D.

    Zhang et al. 2024, https://arxiv.org/abs/2402.04347.
    """

    def __init__(self, head_dim: int) -> None:
        super().__init__()
        self.layer = nn.Linear(head_dim, head_dim)
        self.init_weights_()

    def init_weights_(self) -> None:
        """The identity and zero."""
        nn.init.eye_(self.layer.weight)
        nn.init.zeros_(self.layer.bias)

    def forward(self, x: Tensor) -> Tensor:
        """[..., D] to [..., 2 D]."""
        y = 2 * self.layer(x)
        return torch.cat([y, -y], dim=-1).softmax(-1)


class T2RFeatureMap(nn.Module):
    """relu(W x + b): D channels to dot_dim, which is D by default.

    Kasai et al. 2021, https://arxiv.org/abs/2103.13076.
    """

    def __init__(self, head_dim: int, dot_dim: int | None = None, bias: bool | None = False) -> None:
        super().__init__()
        self.head_dim = head_dim
        self.dot_dim = head_dim if dot_dim is None else dot_dim
        self.bias = bias
        self.layer = nn.Linear(head_dim, self.dot_dim, bias=bool(bias))

    def forward(self, x: Tensor) -> Tensor:
        """[..., D] to [..., dot_dim]."""
        return F.relu(self.layer(x))


class DPFPFeatureMap(nn.Module):
    """r * roll(r, j) of r = cat(relu(x), relu(-x)), for j = 1 to nu: D channels to 2 nu D.

    Schlag et al. 2021, https://arxiv.org/abs/2102.11174.
    """

    def __init__(self, head_dim: int, nu: int = 4) -> None:
        super().__init__()
        self.nu = nu

    def forward(self, x: Tensor) -> Tensor:
        """[..., D] to [..., 2 nu D]."""
        r = torch.cat([F.relu(x), F.relu(-x)], dim=-1)
        return torch.cat([r * r.roll(j, dims=-1) for j in range(1, self.nu + 1)], dim=-1)


class HadamardFeatureMap(nn.Module):
    """(W1 x + b1) * (W2 x + b2): D channels to D."""

    def __init__(self, head_dim: int) -> None:
        super().__init__()
        self.layer1 = nn.Linear(head_dim, head_dim)
        self.layer2 = nn.Linear(head_dim, head_dim)

    def forward(self, x: Tensor) -> Tensor:
        """[..., D] to [..., D]."""
        out: Tensor = self.layer1(x) * self.layer2(x)
        return out


class LearnableOuterProductFeatureMap(nn.Module):
    """The upper triangle of the outer product of W1 x and W2 x: D channels to F (F + 1) / 2, F feature_dim."""

    def __init__(self, head_dim: int, feature_dim: int) -> None:
        super().__init__()
        self.layer1 = nn.Linear(head_dim, feature_dim, bias=False)
        self.layer2 = nn.Linear(head_dim, feature_dim, bias=False)
        self.normalizer = feature_dim**-0.5

    def forward(self, x: Tensor) -> Tensor:
        """[..., D] to [..., F (F + 1) / 2]."""
        return flatten_diag_outer_product(self.layer1(x), self.layer2(x))


class LearnablePolySketchNonNegativeFeatureMap(nn.Module):
    """A learned sketch of the polynomial of the given degree: layer norm, products of linear maps, the outer square.

    D channels become S (S + 1) / 2, S sketch_size, which is D by default. After PolySketchFormer, Kacham et al. 2023,
    https://arxiv.org/abs/2310.01655, whose sketches are other ones.

    Raises:
        ValueError: degree is no power of 2, or below 2.
    """

    def __init__(self, head_dim: int, sketch_size: int | None = None, degree: int = 2) -> None:
        super().__init__()
        if degree < 2 or not is_power_of_2(degree):
            raise ValueError(f"degree: expected 2, 4, 8, ..., got {degree}")
        size = head_dim if sketch_size is None else sketch_size
        self.head_dim = head_dim
        self.sketch_size = size
        self.degree = degree
        self.gamma = nn.Parameter(torch.ones(head_dim))
        self.beta = nn.Parameter(torch.zeros(head_dim))
        inputs = [head_dim] + [size] * (int(math.log2(degree)) - 2)
        self.sketches1 = nn.ModuleList(nn.Linear(width, size, bias=False) for width in inputs)
        self.sketches2 = nn.ModuleList(nn.Linear(width, size, bias=False) for width in inputs)

    def forward(self, x: Tensor) -> Tensor:
        """[..., D] to [..., S (S + 1) / 2]."""
        x = normalize(upcast(x), self.gamma, self.beta, 1e-5, is_rms_norm=False).to(x.dtype)
        for first, second in zip(self.sketches1, self.sketches2, strict=True):
            x = first(x) * second(x) * self.head_dim**-0.5
        return flatten_diag_outer_product(x, x)


class TaylorFeatureMap(nn.Module):
    """The Taylor series of exp(q k / sqrt(D)) to the second order: D channels to 1 + D + D (D + 1) / 2.

    Based, Arora et al. 2024, https://arxiv.org/abs/2402.18668.
    """

    def __init__(self, head_dim: int) -> None:
        super().__init__()
        self.head_dim = head_dim

    def forward(self, x: Tensor) -> Tensor:
        """[..., D] to [..., 1 + D + D (D + 1) / 2]."""
        mixed, squares = flatten_diag_outer_product_off1(x, x)
        root = math.sqrt(self.head_dim)
        parts = [torch.ones_like(x[..., :1]), x / math.sqrt(root), squares / (root * math.sqrt(2)), mixed / root]
        return torch.cat(parts, dim=-1)


class Affine(nn.Module):
    """gamma * norm(x) + beta, gamma 1 and beta 0 at first: D channels to D.

    Args:
        head_dim: D.
        use_gamma: whether there is a gamma.
        use_beta: whether there is a beta.
        normalize: whether there is a layer norm.
    """

    def __init__(
        self,
        head_dim: int,
        use_gamma: bool | None = True,
        use_beta: bool | None = True,
        normalize: bool | None = True,
    ) -> None:
        super().__init__()
        self.head_dim = head_dim
        self.use_gamma = use_gamma
        self.use_beta = use_beta
        self.normalize = normalize
        self.gamma = nn.Parameter(torch.ones(head_dim)) if use_gamma else None
        self.beta = nn.Parameter(torch.zeros(head_dim)) if use_beta else None

    def forward(self, x: Tensor) -> Tensor:
        """[..., D] to [..., D]."""
        if self.normalize:
            return normalize(upcast(x), self.gamma, self.beta, 1e-5, is_rms_norm=False).to(x.dtype)
        x = x if self.gamma is None else x * self.gamma
        return x if self.beta is None else x + self.beta


class RebasedFeatureMap(Affine):
    """The outer square of gamma * norm(x) + beta: D channels to D (D + 1) / 2.

    Aksenov et al. 2024, https://arxiv.org/abs/2402.10644.

    Args:
        head_dim: D.
        use_gamma: whether there is a gamma.
        use_beta: whether there is a beta.
        normalize: whether there is a layer norm.

    Raises:
        ValueError: neither normalize nor use_gamma.
    """

    def __init__(
        self,
        head_dim: int,
        use_gamma: bool | None = True,
        use_beta: bool | None = True,
        normalize: bool | None = True,
    ) -> None:
        if not normalize and not use_gamma:
            raise ValueError("use_gamma, normalize: expected one of the two at least, got neither")
        super().__init__(head_dim, use_gamma, use_beta, normalize)

    def forward(self, x: Tensor, flatten: bool | None = True) -> Tensor:
        """[..., D] to [..., D (D + 1) / 2], or to [..., D], before the square, without flatten."""
        x = super().forward(x)
        if not flatten:
            return x
        mixed, squares = flatten_diag_outer_product_off1(x, x)
        return torch.cat([squares * self.head_dim**-0.5, mixed * (2 / self.head_dim) ** 0.5], dim=-1)


class ReLUFeatureMap(nn.Module):
    """relu(x)."""

    def forward(self, x: Tensor) -> Tensor:
        """[..., D] to [..., D]."""
        return F.relu(x)


class SquaredReLUFeatureMap(nn.Module):
    """relu(x)^2."""

    def forward(self, x: Tensor) -> Tensor:
        """[..., D] to [..., D]."""
        return sqrelu(x)


class GELUFeatureMap(nn.Module):
    """gelu(x), by its tanh approximation."""

    def forward(self, x: Tensor) -> Tensor:
        """[..., D] to [..., D]."""
        return fast_gelu_impl(x)


class SwishFeatureMap(nn.Module):
    """x * sigmoid(x)."""

    def forward(self, x: Tensor) -> Tensor:
        """[..., D] to [..., D]."""
        return swish(x)


class SigmoidFeatureMap(nn.Module):
    """sigmoid(x)."""

    def forward(self, x: Tensor) -> Tensor:
        """[..., D] to [..., D]."""
        return sigmoid(x)


__all__ = [
    "DPFPFeatureMap",
    "GELUFeatureMap",
    "HadamardFeatureMap",
    "HedgehogFeatureMap",
    "LearnableOuterProductFeatureMap",
    "LearnablePolySketchNonNegativeFeatureMap",
    "ReLUFeatureMap",
    "RebasedFeatureMap",
    "SigmoidFeatureMap",
    "SquaredReLUFeatureMap",
    "SwishFeatureMap",
    "T2RFeatureMap",
    "TaylorFeatureMap",
    "flatten_diag_outer_product",
    "flatten_diag_outer_product_off1",
    "is_power_of_2",
]
