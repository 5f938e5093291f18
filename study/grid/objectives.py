"""Declared objectives: what a run's `objective` may be. The losses themselves are in `study.objectives`."""

from typing import Annotated, Literal, Self

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from study.grid.fields import Declared, Fraction, Sequence

Reward = Literal["charbonnier", "lpips", "clipiqa", "musiq", "maniqa", "niqe"]


class L1(Declared):
    """Mean absolute error over all pixels and channels, images in [0, 1]."""

    kind: Literal["l1"] = "l1"


class Charbonnier(Declared):
    """Mean of sqrt(d^2 + epsilon^2), images in [0, 1]."""

    kind: Literal["charbonnier"] = "charbonnier"
    epsilon: PositiveFloat = 1e-3


class Distance(Declared):
    """Between two images in [-1, 1]: `mixture` is lpips_share of LPIPS (VGG) and the rest of Charbonnier."""

    kind: Literal["mixture", "charbonnier", "lpips", "squared"] = "mixture"
    lpips_share: Fraction = 0.5

    def ineffective(self) -> set[str]:
        return set() if self.kind == "mixture" else {"lpips_share"}

    @property
    def perceptual(self) -> bool:
        """Whether LPIPS, and so its weights, are needed."""
        return self.kind in ("mixture", "lpips")


class Consistency(Declared):
    """Consistency training along the path from LR to HR (CTMSR, You et al., ICCV 2025); defaults as published.

    Attributes:
        grid_points: times on the path at the first and at the last step of training, linear between.
        rho: their spacing, t_i = (i / (n - 1))^rho; above 1 the times crowd at the HR end.
        target_ema: decay of the target network; 0 takes the current weights.
        distance: between the outputs at neighbouring times.
    """

    kind: Literal["consistency"] = "consistency"
    grid_points: Annotated[tuple[int, int], Sequence] = (4, 3)
    rho: PositiveFloat = 1.0
    target_ema: Annotated[float, Field(ge=0, lt=1)] = 0.0
    distance: Distance = Distance()

    @model_validator(mode="after")
    def _grids_have_steps(self) -> Self:
        if min(self.grid_points) < 2:
            raise ValueError(f"grid_points {list(self.grid_points)}: a path needs at least 2 times, its ends")
        return self


class Trajectory(Consistency):
    """Distribution trajectory matching beside consistency training (CTMSR, DTM); defaults as published.

    Attributes:
        grid_points: as in `Consistency`; the number of times is fixed here.
        matching: `dtm` pulls along the difference of the frozen network's outputs; `sds` to its output (ours).
        matching_distance: between the output and the output moved by the pull.
        matching_weight: of the matching loss; published as 0.5 times 1.6.
        weighting: `inverse_error` divides each sample's loss by its mean error; `none` does not.
        time_range: fractions of the number of grid times between which the matching's time is drawn.
        refresh_every: steps between refreshes of the frozen network.
    """

    kind: Literal["trajectory"] = "trajectory"  # pyright: ignore[reportIncompatibleVariableOverride]
    grid_points: Annotated[tuple[int, int], Sequence] = (4, 4)
    matching: Literal["dtm", "sds"] = "dtm"
    matching_distance: Distance = Distance(kind="lpips")
    matching_weight: PositiveFloat = 0.8
    weighting: Literal["inverse_error", "none"] = "inverse_error"
    time_range: Annotated[tuple[float, float], Sequence] = (0.1, 0.5)
    refresh_every: PositiveInt = 1000

    def times(self, points: int) -> range:
        """Grid indices that the matching's time is drawn from."""
        low, high = self.time_range
        return range(max(1, int(low * points)), min(points, int(high * points)))

    @model_validator(mode="after")
    def _some_time_is_left(self) -> Self:
        for points in range(min(self.grid_points), max(self.grid_points) + 1):
            if not 0 <= self.time_range[0] <= self.time_range[1] <= 1 or not self.times(points):
                raise ValueError(
                    f"time_range {list(self.time_range)}: holds no time of a grid of {points}; it needs an index from "
                    f"max(1, {self.time_range[0]} * {points}) to {self.time_range[1]} * {points} - 1, rounded down"
                )
        return self


class Adaptive(Trajectory):
    """Adaptive matching on top of DTM (AMD, Bai et al. 2026, our reading); all switches off is `trajectory`.

    Attributes:
        split: pull and push are weighed by each sample's advantage.
        separate_fake: the push comes from a network of its own, trained on the outputs.
        sharpening: that network learns poor outputs more sharply.
        reward: what ranks the draws of one image; distances are to the HR image, negated.
        draws: noises per image.
        strength: how far the advantage tips the balance.
        sharpness: eta of the sharpening.
    """

    kind: Literal["adaptive"] = "adaptive"  # pyright: ignore[reportIncompatibleVariableOverride]
    split: bool = True
    separate_fake: bool = True
    sharpening: bool = True
    reward: Reward = "lpips"
    draws: Annotated[int, Field(ge=2)] = 4
    strength: Annotated[float, Field(gt=0, le=1)] = 0.5
    sharpness: PositiveFloat = 1.0

    @property
    def judged(self) -> bool:
        """Whether draws are compared at all."""
        return self.split or self.sharpening

    def ineffective(self) -> set[str]:
        drop = set() if self.judged else {"reward", "draws"}
        drop |= set() if self.split else {"strength"}
        return drop | (set() if self.sharpening else {"sharpness"})

    @model_validator(mode="after")
    def _sharpening_has_a_network(self) -> Self:
        if self.sharpening and not self.separate_fake:
            raise ValueError("sharpening: true trains the separate fake network; it needs separate_fake: true")
        if self.matching != "dtm":
            raise ValueError(f"matching {self.matching}: adaptive matching splits the direction of dtm; use that")
        return self


Objective = Annotated[L1 | Charbonnier | Consistency | Trajectory | Adaptive, Field(discriminator="kind")]
