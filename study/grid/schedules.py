"""Learning rate as a function of the step alone, so that a resume needs no state of it."""

import math

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
