"""The parallel styles on two processes of this machine, against one."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch.distributed

from tests.tiers import exhaustive

ROOT = Path(__file__).parents[2]

PROGRAM = """
import torch, torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Replicate, Shard
from torch.distributed.tensor.parallel import ColwiseParallel, PrepareModuleInput, parallelize_module
from generated.modules import FusedLinearCrossEntropyLoss, GatedMLP, RMSNorm
from generated.modules.fused_linear_cross_entropy import LinearLossParallel
from generated.modules.layernorm import NormParallel
from generated.modules.mlp import SwiGLULinearParallel
from generated.modules.parallel import PrepareModuleWeight

dist.init_process_group("gloo")
rank = dist.get_rank()
mesh = init_device_mesh("cpu", (2,))
torch.manual_seed(0)

def whole(tensor):
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor

mlp = GatedMLP(8, intermediate_size=6)
x = torch.randn(2, 4, 8)
expected = mlp(x)
expected.square().sum().backward()
grads = [parameter.grad.clone() for parameter in mlp.parameters()]
mlp.zero_grad()
parallelize_module(mlp, mesh, {
    "gate_proj": ColwiseParallel(use_local_output=False),
    "up_proj": ColwiseParallel(use_local_output=False),
    "down_proj": PrepareModuleWeight(layouts=Replicate()),
    "swiglu_linear": SwiGLULinearParallel(output_layouts=Replicate()),
})
mlp.down_proj.weight = torch.nn.Parameter(mlp.down_proj.weight.detach().redistribute(mesh, [Shard(1)]))
found = mlp(x)
torch.testing.assert_close(found, expected)
found.square().sum().backward()
for parameter, grad in zip(mlp.parameters(), grads, strict=True):
    torch.testing.assert_close(whole(parameter.grad), grad)

norm = RMSNorm(8)
torch.nn.init.normal_(norm.weight)
expected = norm(x)
expected.square().sum().backward()
grad = norm.weight.grad.clone()
norm.zero_grad()
parallelize_module(norm, mesh, NormParallel())
found = norm(x[:, 2 * rank : 2 * rank + 2])
torch.testing.assert_close(whole(found), expected)
found.square().sum().backward()
torch.testing.assert_close(whole(norm.weight.grad), grad)

loss = FusedLinearCrossEntropyLoss(reduction="sum")
weight = torch.randn(5, 8)
target = torch.randint(5, (2, 4))
expected = loss(x, target, weight)
parallelize_module(loss, mesh, LinearLossParallel())
found = loss(x[:, 2 * rank : 2 * rank + 2], target, weight)
dist.all_reduce(found)
torch.testing.assert_close(found, expected)
dist.destroy_process_group()
print("same", flush=True)
"""


@exhaustive
@pytest.mark.skipif(not torch.distributed.is_available(), reason="this torch is built without torch.distributed")
def test_two_processes(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(f"import sys\nsys.path.insert(0, {str(ROOT)!r})\n{textwrap.dedent(PROGRAM)}")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(program)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.stdout.count("same") == 2, done.stderr[-3000:]


def test_the_modules_do_not_import_dtensor() -> None:
    """It takes a second, and torch may be built without."""
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r}); import generated.modules, torch.distributed; "
    code += "import generated.modules.grpo, generated.modules.l2warp, generated.modules.feature_map; "
    code += "print('torch.distributed.tensor.parallel' in sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.split() == ["False"]
