"""Learning rate and sample numbers as functions of the step alone, so that a resume needs no state of theirs."""

import math
from collections.abc import Iterator

from study.grid.schema import Optimisation


def learning_rate(optimisation: Optimisation, step: int) -> float:
    """Learning rate of optimiser step `step` (0-based): linear warm-up, then the declared schedule over all steps."""
    schedule, steps = optimisation.schedule, optimisation.steps
    rate = optimisation.optimiser.lr
    if step < optimisation.warmup_steps:
        rate *= (step + 1) / optimisation.warmup_steps
    if schedule.kind == "multistep":
        return rate * schedule.gamma ** sum(step >= round(milestone * steps) for milestone in schedule.milestones)
    if schedule.kind == "cosine":
        done = step / max(steps - 1, 1)
        return rate * (schedule.final + (1 - schedule.final) * (1 + math.cos(math.pi * done)) / 2)
    return rate


def sample_numbers(optimisation: Optimisation, start: int, rank: int, world: int) -> Iterator[list[int]]:
    """Sample numbers of every micro-batch of this process, from optimiser step `start` on.

    A global micro-batch holds consecutive numbers; process `rank` of `world` takes the rank-th of equal parts.

    Raises:
        ValueError: the micro-batch does not divide among the processes.
    """
    micro = optimisation.batch // optimisation.accumulate
    if micro % world:
        raise ValueError(
            f"optimisation.batch {optimisation.batch} in {optimisation.accumulate} micro-batches does not divide "
            f"among {world} processes"
        )
    share = micro // world
    first = start * optimisation.batch
    for number in range(first, optimisation.steps * optimisation.batch, micro):
        yield list(range(number + rank * share, number + (rank + 1) * share))


def validation_steps(optimisation: Optimisation, validations: int) -> set[int]:
    """The numbers of steps done at which validation happens: rows of the curve, evenly spread, the last at the end."""
    steps, every = optimisation.steps, optimisation.log_every
    spread = (steps * (index + 1) / validations for index in range(validations))
    return {min(steps, every * math.ceil(step / every)) for step in spread}
