"""The tests tested by simulation: rejection under no effect, coverage and power of each claim, on seeded grids.

A simulated grid is a seeds × images table of paired differences between two networks, in dB. Per-image difficulty
cancels in it exactly. Four models of the rest:

- `independent`: a seed effect and noise, normal, with the variances of a noise-floor run;
- `as measured`: seeds drawn with that run's covariance over its images, and images drawn from its own, so that images
  which answer a seed more strongly than others stay as they were measured;
- `quiet`: as `independent`, with smaller variances (`QUIET_DB`), against which an image's persistent effect shows;
- `unlike networks`: the differences of two networks that have little in common, images drawn from theirs, so that a few
  images answer many times as strongly as most; seed effect and noise normal, with their variances.

On top of the first three comes a persistent image × arm effect. The truth that a claim is about: for `same_images` the
expected difference over the seeds, mean of these images; for `new_images` its mean over the population of images; for
`these_weights` the pseudo-median over the population of images, of what these weights give there.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats
from statsmodels.stats.proportion import proportion_confint

import study
from study import StudyError
from study.analysis.comparisons import CLAIM_NAMES, TEST_NAMES
from study.analysis.resampling import Interval, seed_bootstrap, studentised_bootstrap, two_level_bootstrap
from study.analysis.statistics import Array, MeanSquares, crossed_variance, mean_squares, walsh_interval
from study.analysis.tables import Column, Entry, Table, Value
from study.records.schemas import TABLES
from study.records.store import read_table, write_table

NOISE_FLOOR = Path(study.__file__).parents[1] / "results" / "reference" / "noise_floor"
GRIDS = 20_000  # per design

SEEDS, IMAGES = (3, 5, 10), (5, 14, 100)
INTERACTIONS_DB = (0.0, 0.02, 0.05, 0.1)
QUIET_DB = (0.03, 0.05)  # seed effect, noise
UNLIKE = "unlike networks"
MODELS = ("independent", "as measured", "quiet", UNLIKE)
EFFECTS_DB = {"independent": 0.3, "as measured": 0.3, "quiet": 0.05, UNLIKE: 0.3}  # what power is measured at
ALPHA = 0.05
CHUNKS = 10  # what cannot be vectorised over all grids sees the first of so many parts
JITTER_DB = 1e-5  # keeps an image that is drawn twice from being a tie
MOST_REJECTED, LEAST_COVERED = 0.06, 0.94  # of a test in use


@dataclass(frozen=True)
class Components:
    """What a noise-floor run says of the difference between two networks that differ in their seed alone.

    Attributes:
        unlike: (seeds, images) differences of two networks that have little in common, less their mean.
        seed_db: standard deviation of the seed effect on a difference.
        noise_db: standard deviation of a difference's seed × image residual.
        difficulty_db: standard deviation of the images' own level, which a difference is free of.
        residuals: (seeds, images) of the run, each image's mean taken off.
    """

    seed_db: float
    noise_db: float
    difficulty_db: float
    residuals: Array
    unlike: Array = field(default_factory=lambda: np.zeros((0, 0)))

    @property
    def unlike_db(self) -> float:
        """Standard deviation over images of what `unlike` is on average over its seeds, to two digits."""
        return round(float(self.unlike.mean(axis=0).std(ddof=1)), 2)


def variance_components(frame: pd.DataFrame) -> Components:
    """Components from the per-image values of one network trained with several seeds (two-way random effects, ANOVA).

    The difference of two of its seeds has no effect in it, and twice a single run's variances.

    Args:
        frame: columns `seed`, `image` and `psnr`, of one dataset.

    Raises:
        StudyError: fewer than three seeds or images, or one of them lacks a value.
    """
    table = frame.pivot(index="seed", columns="image", values="psnr").to_numpy(float)
    seeds, images = table.shape
    if min(seeds, images) < 3 or not np.isfinite(table).all():
        raise StudyError(
            f"a noise floor needs a finite value for every one of at least 3 seeds and 3 images; there are {seeds} "
            f"seeds, {images} images and {int((~np.isfinite(table)).sum())} values missing"
        )
    squares = mean_squares(table)
    seed, difficulty = (
        max(0.0, float(part - squares.residual)) / count
        for part, count in ((squares.seeds, images), (squares.images, seeds))
    )
    return Components(
        float(np.sqrt(2 * seed)),
        float(np.sqrt(2 * squares.residual)),
        float(np.sqrt(difficulty)),
        table - table.mean(axis=0),
    )


def read_noise_floor(folder: Path) -> tuple[str, Components]:
    """Name and components of the dataset with the most images in a folder's `noise_floor` and `differences` tables."""
    frame = read_table(folder, "noise_floor")
    name = str(frame.groupby("dataset")["image"].nunique().idxmax())
    pairs = where(read_table(folder, "differences"), dataset=name)
    unlike = pairs.pivot(index="seed", columns="image", values="difference").to_numpy(float)
    return name, replace(variance_components(where(frame, dataset=name)), unlike=unlike - unlike.mean())


@dataclass(frozen=True)
class Design:
    """What is simulated together."""

    model: str
    seeds: int
    images: int
    interaction_db: float

    def draw(
        self, components: Components, grids: int, rng: np.random.Generator, weights: bool = True
    ) -> tuple[Array, dict[str, Array]]:
        """(grids, seeds, images) tables over a population of images with mean zero, and each claim's truth, (grids,).

        Without `weights` there is none for `these_weights`, which takes longest.
        """
        if self.model == "as measured":
            rows, population = components.residuals.shape
            whole = rng.standard_normal((grids, self.seeds, rows)) @ (components.residuals * np.sqrt(2 / (rows - 1)))
            own = rng.standard_normal((grids, population)) * self.interaction_db
            own -= own.mean(axis=1, keepdims=True)
            return self._draw_images(whole, own, rng, weights)
        if self.model == UNLIKE:
            level, answer = components.unlike.mean(axis=1), components.unlike.mean(axis=0)
            rest = components.unlike - level[:, None] - answer
            noise_db = np.sqrt((rest**2).sum() / ((len(level) - 1) * (len(answer) - 1)))
            whole = rng.normal(0, level.std(ddof=1), (grids, self.seeds, 1))
            whole = whole + rng.normal(0, noise_db, (grids, self.seeds, len(answer)))
            return self._draw_images(whole, np.tile(answer, (grids, 1)), rng, weights)
        seed_db, noise_db = QUIET_DB if self.model == "quiet" else (components.seed_db, components.noise_db)
        seeds = rng.normal(0, seed_db, (grids, self.seeds, 1))
        own = rng.normal(0, 1, (grids, 1, self.images)) * self.interaction_db
        tables = rng.standard_normal((grids, self.seeds, self.images))
        tables *= noise_db
        tables += seeds
        tables += own
        truths = {"same_images": own.mean(axis=(1, 2)), "new_images": np.zeros(grids)}
        return tables, {**truths, "these_weights": seeds.mean(axis=(1, 2))}  # symmetric about it

    def _draw_images(
        self, whole: Array, own: Array, rng: np.random.Generator, weights: bool
    ) -> tuple[Array, dict[str, Array]]:
        """As `draw`, images taken from a population: `whole` (grids, seeds, population) of it, and its own effects."""
        grids, population = own.shape
        chosen = rng.integers(0, population, (grids, self.images))
        kept = np.take_along_axis(own, chosen, axis=1)
        tables = np.take_along_axis(whole, chosen[:, None], axis=2) + kept[:, None]
        tables += rng.normal(0, JITTER_DB, tables.shape)
        truths = {"same_images": kept.mean(axis=1), "new_images": np.zeros(grids)}
        if weights:
            given = whole.mean(axis=1) + own
            first, second = np.triu_indices(population)
            truths["these_weights"] = np.median(given[:, first] + given[:, second], axis=1) / 2
        return tables, truths


Errors = tuple[Array, Array | float]  # standard error of the grand mean, degrees of freedom


def _seed_means(squares: MeanSquares, seeds: int, images: int) -> Errors:
    return np.sqrt(squares.seeds / (seeds * images)), seeds - 1


def _quasi_f(squares: MeanSquares, seeds: int, images: int) -> Errors:
    variance, df = crossed_variance(squares, seeds, images)
    return np.sqrt(variance), df


def mixed_model(squares: MeanSquares, seeds: int, images: int) -> Errors:
    """Wald test of a mixed model with crossed random seeds and images, fitted by REML.

    On a complete table the likelihood is that of three independent mean squares, of which the residual's expectation is
    the smallest: the fit pools it with whatever falls below.
    """
    s, i, e = squares.seeds, squares.images, squares.residual
    df_s, df_i, df = seeds - 1.0, images - 1.0, (seeds - 1.0) * (images - 1.0)
    low, high = np.minimum(s, i), np.maximum(s, i)
    df_low, df_high = np.where(s <= i, df_s, df_i), np.where(s <= i, df_i, df_s)
    pooled = np.where(low < e, (df * e + df_low * low) / (df + df_low), e)
    df = np.where(low < e, df + df_low, df)
    pooled = np.where(high < pooled, (df * pooled + df_high * high) / (df + df_high), pooled)
    variance = np.maximum(s, pooled) + np.maximum(i, pooled) - pooled
    return np.sqrt(variance / (seeds * images)), np.inf


def _pooled(squares: MeanSquares, seeds: int, images: int) -> Errors:
    total = (seeds - 1) * squares.seeds + (images - 1) * squares.images + (seeds - 1) * (images - 1) * squares.residual
    n = seeds * images
    return np.sqrt(total / (n - 1) / n), n - 1


# Methods that are functions of a table's mean and mean squares; where there are several, the weakest decides.
ClosedForm = tuple[Callable[[MeanSquares, int, int], Errors], ...]
CLOSED: dict[tuple[str, str], ClosedForm] = {
    ("same_images", TEST_NAMES["same_images"]): (_seed_means,),
    ("same_images", "naive t over seeds × images"): (_pooled,),
    ("new_images", TEST_NAMES["new_images"]): (_seed_means, _quasi_f),
    ("new_images", "quasi-F alone"): (_quasi_f,),
    ("new_images", "paired t on seed means"): (_seed_means,),
    ("new_images", "mixed model (REML, Wald z)"): (mixed_model,),
    ("new_images", "naive t over seeds × images"): (_pooled,),
}


def _over_images(tables: Array, rng: np.random.Generator) -> Interval:
    values = tables.mean(axis=1)
    half = stats.t.isf(ALPHA / 2, values.shape[1] - 1) * stats.sem(values, axis=1)
    return values.mean(axis=1) - half, values.mean(axis=1) + half


def _ranks(tables: Array, rng: np.random.Generator) -> Interval:
    return walsh_interval(tables.mean(axis=1), ALPHA)[1:]


# Methods that need the tables themselves.
OPEN: dict[tuple[str, str], Callable[[Array, np.random.Generator], Interval]] = {
    ("same_images", "bootstrap over seeds, percentile"): lambda tables, rng: seed_bootstrap(tables, ALPHA, rng)[0],
    ("same_images", "bootstrap over seeds, studentised"): lambda tables, rng: seed_bootstrap(tables, ALPHA, rng)[1],
    ("new_images", "two-level bootstrap, percentile"): lambda tables, rng: two_level_bootstrap(tables, ALPHA, rng),
    ("new_images", "two-level bootstrap, studentised"): lambda tables, rng: studentised_bootstrap(tables, ALPHA, rng),
    ("new_images", "Wilcoxon over images"): _ranks,
    ("these_weights", TEST_NAMES["these_weights"]): _ranks,
    ("these_weights", "t over images"): _over_images,
}


def _closed(parts: ClosedForm, mean: Array, squares: MeanSquares, seeds: int, images: int) -> Interval:
    errors = [part(squares, seeds, images) for part in parts]
    half = np.max([stats.t.isf(ALPHA / 2, df) * error for error, df in errors], axis=0)
    return mean - half, mean + half


def simulate(design: Design, components: Components, grids: int) -> pd.DataFrame:
    """How often each method rejects, covers and finds, on two independent sets of grids: without and with an effect."""
    key = [MODELS.index(design.model), design.seeds, design.images, round(1000 * design.interaction_db)]
    rng = np.random.default_rng(key)
    size = (design.seeds, design.images)
    counts: dict[tuple[str, str, str, float], list[int]] = {}

    def count(name: tuple[str, str], interval: Interval, truth: Array, effect: float) -> None:
        low, high = (end - truth + effect for end in interval)
        found = {"power": (low > 0) | (high < 0), "coverage": (low <= effect) & (effect <= high)}
        for what, hits in found.items() if effect else [("rejection", found["power"])]:
            entry = counts.setdefault((*name, what, effect), [0, 0])
            entry[0] += int(hits.sum())
            entry[1] += len(hits)

    for effect in (0.0, EFFECTS_DB[design.model]):
        for chunk in range(CHUNKS):
            tables, truths = design.draw(components, grids // CHUNKS, rng, weights=chunk == 0)
            mean, squares = tables.mean(axis=(1, 2)), mean_squares(tables)
            for name, parts in CLOSED.items():
                count(name, _closed(parts, mean, squares, *size), truths[name[0]], effect)
            for name, method in OPEN.items() if chunk == 0 else ():
                count(name, method(tables, rng), truths[name[0]], effect)
    nominal = {"rejection": ALPHA, "coverage": 1 - ALPHA, "power": np.nan}
    rows = [
        (claim, method, design.model, *size, design.interaction_db, effect, what, hits, total, nominal[what])
        for (claim, method, what, effect), (hits, total) in counts.items()
    ]
    columns = ["claim", "method", "model", "seeds", "images", "interaction_db", "effect_db", "what", "hits", "grids"]
    return pd.DataFrame(rows, columns=[*columns, "nominal"])


def calibrate(
    grids: int, on_progress: Callable[[int, int], None] | None = None, folder: Path = NOISE_FLOOR
) -> pd.DataFrame:
    """Simulates every design under every model.

    Args:
        grids: per design, for what has a closed form; rank tests and bootstraps see a tenth of them.
        on_progress: told how many designs are done, and of how many.
        folder: of `noise_floor.parquet` and `differences.parquet`.

    Returns:
        One row per claim, method, model, design and question (`rejection`, `coverage`, `power`): the rate, and its 95%
        interval (Clopper–Pearson).
    """
    if grids < 100 * CHUNKS:
        raise StudyError(f"calibration needs at least {100 * CHUNKS} grids, got {grids}")
    _, components = read_noise_floor(folder)
    designs = [Design(*parts) for parts in product(MODELS[:-1], SEEDS, IMAGES, INTERACTIONS_DB)]
    designs += [Design(UNLIKE, seeds, images, components.unlike_db) for seeds, images in product(SEEDS, IMAGES)]
    frames = []
    for done, design in enumerate(designs, 1):
        frames.append(simulate(design, components, grids))
        if on_progress is not None:
            on_progress(done, len(designs))
    rows = pd.concat(frames, ignore_index=True)
    low, high = proportion_confint(rows["hits"], rows["grids"], method="beta")
    rows = rows.assign(rate=rows["hits"] / rows["grids"], low=low, high=high)
    return rows.filter(TABLES["calibration"].names)


def save_calibration(rows: pd.DataFrame, folder: Path) -> None:
    """Writes `calibration.parquet` into a folder."""
    write_table(folder, "calibration", rows.to_dict("records"))  # type: ignore[arg-type]


def calibration_tables(rows: pd.DataFrame) -> list[Table]:
    """Rejection under no effect, coverage of the methods in use, and their power; in percent."""
    return [_rejection_table(rows), _coverage_table(rows), _power_table(rows)]


def _designs() -> tuple[Column, ...]:
    return tuple(Column(f"{images}", "", ".1f", group=f"{seeds} seeds") for seeds in SEEDS for images in IMAGES)


def where(rows: pd.DataFrame, **wanted: Any) -> pd.DataFrame:
    """The rows that have these values in the columns of these names."""
    for name in wanted:
        rows = rows.query(f"{name} == @wanted[@name]")
    return rows


def _worst(part: pd.DataFrame, worst: str) -> list[float]:
    """The worst rate of each design, in percent."""
    rates = part.groupby(["seeds", "images"])["rate"].agg(worst)
    return [100 * float(rates.loc[(seeds, images)]) for seeds in SEEDS for images in IMAGES]


def _rejection_table(rows: pd.DataFrame) -> Table:
    part = where(rows, what="rejection")
    body: list[tuple[Value, ...]] = []
    for claim, name in CLAIM_NAMES.items():
        for method in where(part, claim=claim)["method"].unique():
            group = where(part, claim=claim, method=method)
            rates = [Entry(rate, tone="bad" if rate > 100 * MOST_REJECTED else "") for rate in _worst(group, "max")]
            body.append((name, Entry(str(method), "(used)" if TEST_NAMES[claim] == method else ""), *rates))
    return Table(
        "calibration_rejection",
        f"Rejection under no effect, %, nominal {100 * ALPHA:g}: the worst of models and interactions.",
        (Column("claim"), Column("method"), *_designs()),
        tuple(body),
        ("Columns: images. Interaction: a persistent effect of an image on an arm, "
         f"{', '.join(f'{value:g}' for value in INTERACTIONS_DB)} dB, and that of two unlike networks.",),
    )  # fmt: skip


def _used(rows: pd.DataFrame, what: str) -> pd.DataFrame:
    return rows.query("what == @what and method == claim.map(@TEST_NAMES)")


def _coverage_table(rows: pd.DataFrame) -> Table:
    body: list[tuple[Value, ...]] = []
    part = _used(rows, "coverage")
    for claim, name in CLAIM_NAMES.items():
        for model in MODELS:
            group = where(part, claim=claim, model=model)
            rates = [Entry(rate, tone="bad" if rate < 100 * LEAST_COVERED else "") for rate in _worst(group, "min")]
            body.append((name, model, *rates))
    caption = f"Coverage of the intervals in use, %, nominal {100 * (1 - ALPHA):g}: the worst of the interactions."
    return Table("calibration_coverage", caption, (Column("claim"), Column("model"), *_designs()), tuple(body))


def _power_table(rows: pd.DataFrame) -> Table:
    body: list[tuple[Value, ...]] = []
    part = _used(rows, "power")
    for claim, name in CLAIM_NAMES.items():
        # These images' persistent effects are part of what `same_images` estimates: they change nothing.
        shown = INTERACTIONS_DB[:1] if claim == "same_images" else (INTERACTIONS_DB[0], INTERACTIONS_DB[-1])
        own = where(part, claim=claim, model=UNLIKE)["interaction_db"].unique()
        for model, interaction in (*product(MODELS[:-1], shown), *product([UNLIKE], own)):
            group = where(part, claim=claim, model=model, interaction_db=interaction)
            body.append((name, model, EFFECTS_DB[model], interaction, *_worst(group, "min")))
    columns = (Column("claim"), Column("model"), Column("effect", "dB", "g"), Column("interaction", "dB", "g"))
    caption = f"Power of the tests in use, %, at α = {ALPHA:g} without correction."
    return Table("calibration_power", caption, (*columns, *_designs()), tuple(body))
