import pytest
import torch

from study.grid.schedules import learning_rate
from study.grid.schema import Adam, Constant, Cosine, MultiStep, Optimisation


def rates(optimisation: Optimisation) -> list[float]:
    return [learning_rate(optimisation, step) for step in range(optimisation.steps)]


def test_multistep_agrees_with_torch() -> None:
    optimisation = Optimisation(steps=20, schedule=MultiStep(milestones=(0.5, 0.8), gamma=0.5), optimiser=Adam(lr=0.1))
    optimiser = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1)
    theirs = torch.optim.lr_scheduler.MultiStepLR(optimiser, [10, 16], gamma=0.5)
    expected = []
    for _ in range(20):
        expected.append(optimiser.param_groups[0]["lr"])
        optimiser.step()
        theirs.step()
    assert rates(optimisation) == pytest.approx(expected)


def test_cosine_ends_at_its_final_share_and_warmup_rises_linearly() -> None:
    optimisation = Optimisation(steps=11, schedule=Cosine(final=0.1), optimiser=Adam(lr=1.0), warmup_steps=2)
    values = rates(optimisation)
    assert values[-1] == pytest.approx(0.1)
    assert values[5] == pytest.approx(0.55)
    assert values[0] == pytest.approx(0.5)
    warm = Optimisation(steps=4, schedule=Constant(), optimiser=Adam(lr=1.0), warmup_steps=4)
    assert rates(warm) == pytest.approx([0.25, 0.5, 0.75, 1.0])
