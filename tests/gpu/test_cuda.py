"""What must hold on a CUDA device too; skipped without one."""

import pytest
import torch

from study.grid.models import CATANet, FrequencyPrior, Hard, Prototypes, Soft
from study.grid.schema import Run
from study.models import build

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

ASSIGNMENTS = [Hard(), Soft(), Soft(support="topk", top_k=4), Soft(prior=FrequencyPrior(kind="shuffled"))]


def network(assignment: Hard | Soft) -> torch.nn.Module:
    size = CATANet(width=24, blocks=2, qk_width=24, mlp_width=48, assignment=assignment)
    return build(Run(scale=2, model=size.model_copy(update={"prototypes": Prototypes(count=(16, 32))})))


@pytest.mark.parametrize("assignment", ASSIGNMENTS, ids=lambda a: f"{a.kind}")
def test_float64_training_step_agrees_with_the_cpu(assignment: Hard | Soft) -> None:
    x = torch.rand(2, 3, 40, 36, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    results = []
    for device in ("cpu", "cuda"):
        model = network(assignment).to(device, torch.float64).train()
        loss = model(x.to(device), torch.arange(2, device=device)).abs().mean()
        loss.backward()
        norm = torch.nn.utils.get_total_norm([p.grad for p in model.parameters() if p.grad is not None])
        results.append((loss.item(), norm.item()))
    assert results[1] == pytest.approx(results[0], rel=1e-9)


@pytest.mark.parametrize("assignment", ASSIGNMENTS, ids=lambda a: f"{a.kind}")
def test_bf16_step_is_finite_and_near_fp32(assignment: Hard | Soft) -> None:
    x = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)).cuda()
    model = network(assignment).cuda().train()
    model(x)
    model.eval()
    with torch.inference_mode():
        exact = model(x)
        with torch.autocast("cuda", torch.bfloat16):
            rough = model(x).float()
    assert torch.isfinite(rough).all()
    assert (rough - exact).abs().mean() < 0.02 * exact.std()
