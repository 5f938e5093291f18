import itertools

import pytest

from study.grid.schema import Optimisation
from study.training.schedule import sample_numbers, validation_steps


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
