import itertools

import pytest
import torch

from study.grid.schema import Adam, Constant, Cosine, MultiStep, Optimisation
from study.training.schedule import learning_rate, sample_numbers, validation_steps


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


@pytest.mark.parametrize(("accumulate", "world"), [(1, 1), (1, 2), (3, 2), (2, 4)])
def test_every_sample_is_taken_once_in_order_whatever_the_processes(accumulate: int, world: int) -> None:
    optimisation = Optimisation(steps=3, batch=24, accumulate=accumulate)
    shares = [list(sample_numbers(optimisation, 0, rank, world)) for rank in range(world)]
    together = [list(itertools.chain(*micro)) for micro in zip(*shares, strict=True)]
    assert list(itertools.chain(*together)) == list(range(72))
    assert all(len(micro) == 24 // accumulate for micro in together)


def test_a_resume_takes_up_where_it_was_left() -> None:
    optimisation = Optimisation(steps=5, batch=4, accumulate=2)
    assert list(sample_numbers(optimisation, 3, 0, 1)) == list(sample_numbers(optimisation, 0, 0, 1))[6:]


def test_a_batch_that_does_not_divide_is_refused() -> None:
    with pytest.raises(ValueError, match="batch 6 in 1 micro-batches does not divide among 4 processes"):
        next(sample_numbers(Optimisation(batch=6), 0, 0, 4))


def test_validation_falls_on_rows_of_the_curve_and_on_the_end() -> None:
    assert validation_steps(Optimisation(steps=95, log_every=10), 3) == {40, 70, 95}
    assert validation_steps(Optimisation(steps=4, log_every=10), 3) == {4}
    assert validation_steps(Optimisation(steps=4), 0) == set()
