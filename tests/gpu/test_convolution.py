"""A short convolution on a GPU, by the operator's kernels, is what PyTorch computes elsewhere."""

from __future__ import annotations

import copy

import pytest
import torch

from generated.modules import ShortConvolution


@pytest.mark.parametrize("width", [2, 3, 4])
@pytest.mark.parametrize("lengths", [(70, 0, 1, 129), None], ids=str)
def test_values_and_gradients(width, lengths):
    torch.manual_seed(0)
    module = ShortConvolution(200, width, bias=True)
    twin = copy.deepcopy(module).cuda()
    shape = (1, sum(lengths), 200) if lengths is not None else (2, 200, 200)
    bounds = None if lengths is None else torch.tensor([0, *lengths]).cumsum(0)
    x = torch.randn(shape, requires_grad=True)
    other = x.detach().cuda().requires_grad_()
    y, last = module(x, output_final_state=True, cu_seqlens=bounds)
    z, end = twin(other, output_final_state=True, cu_seqlens=None if bounds is None else bounds.cuda())
    cotangent = torch.randn_like(y)
    (y * cotangent).sum().backward()
    (z * cotangent.cuda()).sum().backward()
    torch.testing.assert_close(z.cpu(), y, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(end.cpu(), last, rtol=0, atol=0)
    for got, expected in zip((other, *twin.parameters()), (x, *module.parameters()), strict=True):
        torch.testing.assert_close(got.grad.cpu(), expected.grad, rtol=1e-4, atol=1e-4)
