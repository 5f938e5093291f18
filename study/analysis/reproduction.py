"""A measured value beside a published one, and the verdict on whether it was reproduced."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from scipy import stats

from study.analysis.published import IMAGES, MARKS, Cited, contradictions, select
from study.analysis.statistics import Array
from study.grid.models import CFSR, IMDN, SPIN, CATANet, External
from study.grid.schema import Run

METHODS: Mapping[str, str] = {"catanet": "CATANet", "spin": "SPIN", "imdn": "IMDN", "cfsr": "CFSR"}

VERDICTS = {
    "reproduced": "equal to the last printed digit or, of trained networks, the interval lies inside the tolerance",
    "not reproduced": "another last digit or, of trained networks, the interval lies outside the tolerance",
    "inconclusive": "the interval reaches over an edge of the tolerance, or one seed gives none",
    "not comparable": "another budget, data or protocol",
    "not run": "nothing was measured",
}
TONES = {"reproduced": "good", "not reproduced": "bad"}
# Ours, about the spread of papers' own re-runs; other metrics have those that a paper's tables declare.
TOLERANCES: Mapping[str, float] = {"psnr": 0.05, "ssim": 0.001}


@dataclass(frozen=True)
class Reproduction:
    """What was measured, what was published, and what follows.

    Attributes:
        cited: the published number; None where there is none.
        mean: over seeds and images; NaN where nothing was measured.
        low: lower end of the interval of the difference to `cited`; NaN without seeds.
        high: its upper end.
        seeds: measured trainings; 0 for weights that were not trained here.
        verdict: key of `VERDICTS`; empty without a published number.
        reason: why it is not run, not comparable or inconclusive.
    """

    cited: Cited | None
    mean: float
    low: float = np.nan
    high: float = np.nan
    seeds: int = 0
    verdict: str = ""
    reason: str = ""

    @property
    def difference(self) -> float:
        """Measured minus published; NaN where one is missing."""
        return self.mean - self.cited.number if self.cited else np.nan


def reproduce(
    means: Array,
    cited: Cited | None,
    *,
    trained: bool,
    alpha: float = 0.05,
    problem: str = "",
    tolerance: float | None = None,
) -> Reproduction:
    """Compares measured means with a published number.

    Weights that were not trained here give one exact value: it is equal to the last printed digit, or not. Of a
    network trained here the published number is one more training, with a seed noise of its own, so the interval of
    the difference is that of one further run, mean ± t s √(1 + 1/n) (a prediction interval). The images are the same
    on both sides and add nothing. The published number's rounding widens the tolerance by half its last digit.

    Args:
        means: (seeds,) means over images; empty where nothing was measured.
        cited: the published number, or None.
        trained: whether the means come from trainings of our own.
        alpha: the interval has coverage 1 − alpha.
        problem: why the two are not comparable, or why nothing was measured; empty where they are.
        tolerance: of a trained network, in the metric's unit; without one its number is not judged.
    """
    count = len(means) if trained else 0
    if not len(means):
        return Reproduction(cited, np.nan, verdict="not run" if cited else "", reason=problem or "not run")
    mean = float(np.mean(means))
    if cited is None:
        return Reproduction(None, mean, seeds=count, reason=problem)
    if not np.isfinite(means).all():
        problem = problem or "an image's value is absent or not finite"
    elif trained and tolerance is None:
        problem = problem or "no tolerance is declared for this metric"
    low, high = _interval(means, cited, alpha) if trained and len(means) > 1 else (np.nan, np.nan)
    if problem:
        return Reproduction(cited, mean, low, high, count, "not comparable", problem)
    if not trained:
        same = format(mean, f".{cited.digits}f") == cited.value
        reason = "" if same else f"measured {mean:.{cited.digits + 2}f}"
        return Reproduction(cited, mean, verdict="reproduced" if same else "not reproduced", reason=reason)
    if count < 2:
        return Reproduction(cited, mean, seeds=count, verdict="inconclusive", reason="one seed gives no interval")
    assert tolerance is not None
    edge = tolerance + 0.5 * 10.0**-cited.digits
    inside, outside = -edge <= low and high <= edge, high < -edge or low > edge
    verdict = "reproduced" if inside else "not reproduced" if outside else "inconclusive"
    reason = f"the interval reaches over ±{edge:g}" if verdict == "inconclusive" else ""
    return Reproduction(cited, mean, low, high, count, verdict, reason)


def _interval(means: Array, cited: Cited, alpha: float) -> tuple[float, float]:
    """Of measured minus published, the latter being one further training."""
    n = len(means)
    half = float(stats.t.isf(alpha / 2, n - 1) * np.std(means, ddof=1) * np.sqrt(1 + 1 / n))
    centre = float(np.mean(means)) - cited.number
    return centre - half, centre + half


def method_of(run: Run) -> str | None:
    """The published method whose weights a run's network can hold: one of `METHODS` at its published size."""
    model = run.model.network if isinstance(run.model, External) else run.model
    if not isinstance(model, CATANet | SPIN | IMDN | CFSR) or model != type(model)():
        return None
    return METHODS[model.kind] + ("+" if run.evaluation.self_ensemble else "")


def cite(numbers: Iterable[Cited], method: str, scale: int, dataset: str, metric: str) -> Cited | None:
    """The surest published number: by confidence, then the method's own paper; None without one."""
    numbers = list(numbers)
    flagged = contradictions(numbers)
    order = list(MARKS)
    found = select(numbers, method=method, scale=scale, dataset=dataset, metric=metric)
    found = [one for one in found if one not in flagged]
    return min(found, key=lambda one: (order.index(one.confidence), one.paper != method), default=None)


def reproduce_weights(
    run: Run, dataset: str, protocol: str, metric: str, mean: float, images: int, numbers: Iterable[Cited]
) -> Reproduction | None:
    """The verdict on published weights, evaluated once.

    Returns:
        None where nothing is cited for them, or under another protocol.
    """
    method = method_of(run)
    cited = cite(numbers, method, run.scale, dataset, metric) if method else None
    if cited is None or cited.protocol not in (protocol, "unknown"):
        return None
    whole = IMAGES.get(dataset, images)
    problem = "" if images == whole else f"another image set: {images} images, {dataset} has {whole}"
    return reproduce(np.array([mean]), cited, trained=False, problem=problem)
