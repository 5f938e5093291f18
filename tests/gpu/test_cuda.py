"""What must hold on a CUDA device too; skipped without one."""

import pytest
import torch

from study.data.draws import hashed, normal
from study.grid.models import CATANet, FrequencyPrior, Hard, Prototypes, Soft, UNet
from study.grid.objectives import Adaptive, Consistency, Distance, Trajectory
from study.grid.schema import Optimisation, Run
from study.models import build
from study.objectives import OBJECTIVES
from study.objectives.objective import Batch

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


PLAIN = Distance(kind="charbonnier")
GENERATIVE = [
    Consistency(distance=PLAIN, target_ema=0.9),
    Trajectory(distance=PLAIN, matching_distance=PLAIN),
    Adaptive(distance=PLAIN, matching_distance=PLAIN, reward="charbonnier", draws=2),
]


def test_draws_are_those_of_the_cpu() -> None:
    keys = torch.arange(-3, 4)
    assert torch.equal(hashed(keys.cuda(), 99).cpu(), hashed(keys, 99))
    torch.testing.assert_close(
        normal(keys.cuda(), (3, 9, 9), torch.float64).cpu(), normal(keys, (3, 9, 9), torch.float64)
    )


@pytest.mark.parametrize("objective", GENERATIVE, ids=lambda o: o.kind)
def test_two_float64_steps_of_one_step_generation_agree_with_the_cpu(objective: Consistency) -> None:
    size = UNet(width=16, multipliers=(1, 2), blocks=1, window=4, attention_width=16, heads=2, mlp_ratio=2, dropout=0)
    run = Run(scale=2, model=size, objective=objective)
    images = torch.Generator().manual_seed(0)
    lr, hr = (torch.rand(2, 3, side, side, generator=images, dtype=torch.float64) for side in (12, 24))
    results = []
    for device in ("cpu", "cuda"):
        model = build(run).to(device, torch.float64).train()
        loss = OBJECTIVES[objective.kind](objective)
        loss.begin(model, Optimisation())
        optimiser = torch.optim.Adam(model.parameters(), lr=1e-3)
        values = []
        for step in range(2):
            total = loss(model, Batch(lr.to(device), hr.to(device), torch.arange(2, device=device), step, 2))
            total.backward()
            optimiser.step()
            optimiser.zero_grad()
            loss.settle(model, step + 1)
            values += [total.item(), *loss.diagnostics().values()]
        results.append(values)
    assert results[1] == pytest.approx(results[0], rel=1e-6)
