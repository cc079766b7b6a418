"""Systems of equations with a matrix state: solved for the matrix of one token, or for all tokens at once by steps that
ask for nothing but what the matrices make of a vector each."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.autograd.function import once_differentiable

Applied = Callable[[Tensor], Tensor]
"""What symmetric positive definite matrices make of a vector each, [..., channels]."""


def direct(A: Tensor, right: Tensor, shift: Tensor | float = 0.0) -> Tensor:
    """The x with `A @ x + shift * x = right`, [..., channels].

    Raises:
        torch.linalg.LinAlgError: a matrix has no inverse.
    """
    channels = A.shape[-1]
    added = shift if isinstance(shift, Tensor) else torch.full((1,), shift, dtype=A.dtype, device=A.device)
    matrix = A + torch.diag_embed(added.expand(*added.shape[:-1], channels))
    x: Tensor = torch.linalg.solve(matrix, right.expand(*matrix.shape[:-1])[..., None])
    return x[..., 0]


def solution(applied: Applied, right: Tensor, steps: int) -> Tensor:
    """The x with `applied(x) = right`, by as many steps of conjugate gradients; its derivatives are those of the exact
    solution, by as many steps for a system of the same matrices."""
    solve = partial(_solved, applied, steps=steps)
    x = solve(right)
    residual = right - applied(x)  # Of a fixed x: it has all that x depends on.
    along = forward_ad.unpack_dual(residual).tangent  # type: ignore[no-untyped-call]
    if along is not None:
        dual: Tensor = forward_ad.make_dual(x, solve(along))  # type: ignore[no-untyped-call]
        return dual
    if not residual.requires_grad:
        return x
    solved: Tensor = _Solution.apply(residual, x, solve)  # type: ignore[no-untyped-call]
    return solved


def _solved(applied: Applied, right: Tensor, steps: int) -> Tensor:
    """The same, which depends on nothing."""
    with torch.no_grad():
        return conjugate_gradients(applied, right, steps).detach()


class _Solution(torch.autograd.Function):
    """The solution, given its residual: the gradient of that is what solves the same system for the solution's."""

    @staticmethod
    def forward(residual: Tensor, x: Tensor, solve: Applied) -> Tensor:
        return x.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Applied], output: Tensor) -> None:
        *_, ctx.solve = inputs

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        return ctx.solve(gradient), None, None


def conjugate_gradients(applied: Applied, right: Tensor, steps: int) -> Tensor:
    """`steps` steps from 0. Right sides are scaled to a largest element of 1; a system takes no more steps once its
    residual is nothing beside that, be it 0 from the start: what is next would be quotients of 0 and 0."""
    largest = right.abs().amax(-1, keepdim=True)
    r = torch.where(largest == 0, 0.0, right / largest)
    x, p, left = torch.zeros_like(r), r, _squared(r)
    nothing = torch.finfo(right.dtype).eps ** 4
    for _ in range(steps):
        product = applied(p)
        step = torch.where(left > nothing, left / (p * product).sum(-1, keepdim=True), 0.0)
        x, r = x + step * p, r - step * product
        left, before = _squared(r), left
        p = torch.where(left > nothing, r + left / before * p, p)
    return x * largest


def _squared(x: Tensor) -> Tensor:
    return (x * x).sum(-1, keepdim=True)
