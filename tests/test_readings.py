"""What reports/findings.yaml says of single trainings, held against the packed results that it was written of.

Verdicts and the numbers inside sentences are checked and computed by `make reports`; this is the rest.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from study.analysis.campaign import order_agreement
from study.analysis.comparisons import compare_declared
from study.analysis.results import Measure, Results
from study.analysis.scepticism import examine
from study.cli.options import stored_grid
from study.records.packing import unpack

ROOT = Path(__file__).parents[1]
Study = Callable[[str], Results]


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Study:
    folder = tmp_path_factory.mktemp("packed")
    unpack(ROOT / "results" / "reference" / "study", folder)
    found: dict[str, Results] = {}

    def read(grid: str) -> Results:
        if grid not in found:
            found[grid] = Results(*stored_grid(ROOT / "ablations" / f"{grid}.yaml", "reduced", folder))
        return found[grid]

    return read


def deltas(results: Results, label: str) -> np.ndarray:
    """Differences of a declared comparison, seed by seed."""
    return next(one for one in compare_declared(results) if one.label == label).deltas.values.mean(axis=1)


def means(results: Results, cell: str, metric: str = "") -> np.ndarray:
    protocol = results.primary.protocol
    return results.means(cell, Measure("B100", protocol, metric) if metric else results.primary)


def test_assignment(study: Study) -> None:
    soft = deltas(study("assignment"), "soft vs hard")
    assert soft.argmin() == 2
    assert soft.mean() < 0 < np.delete(soft, 2).mean()


def test_architectures(study: Study) -> None:
    results = study("architectures")
    ahead = deltas(results, "CATANet vs SPIN")
    assert all(ahead > 0)
    spin = means(results, "SPIN")
    assert sorted(np.argsort(spin)[:2]) == [1, 2]
    assert spin[[1, 2]].max() < spin[[0, 3, 4]].min() - 0.2
    assert ahead[0] == ahead[[0, 3, 4]].min()
    assert ahead[3] == ahead[[0, 3, 4]].max()


def test_own_rate(study: Study) -> None:
    own, common = study("own_rate"), study("architectures")
    bicubic = own.mean("bicubic", own.primary)
    assert (means(own, "SPIN") < bicubic).sum() == 4
    gain = means(common, "SPIN") - means(own, "SPIN")
    assert (gain > 0.1).sum() == 4
    assert 0 < gain.min() < 0.0055


def test_prior_and_guidance(study: Study) -> None:
    prior = study("frequency_prior")
    cells = [name for name in prior.cells if name not in prior.untrained]
    mean = [means(prior, name).mean() for name in cells]
    assert max(mean) - min(mean) < min(means(prior, name).std(ddof=1) for name in cells)
    guidance = study("guidance")
    none = means(guidance, "none")
    assert none.argmin() == 2
    lowest = {name: means(guidance, name).mean() for name in guidance.cells if name not in guidance.untrained}
    assert min(lowest, key=lambda name: lowest[name]) == "loss, shuffled"
    biggest = sorted(compare_declared(guidance), key=lambda one: -abs(one.mean))[:3]
    assert {one.cell.partition(",")[0] for one in biggest} == {"loss", "feature"}
    feature, loss = (deltas(guidance, f"{way}, frequency vs none") for way in ("feature", "loss"))
    assert feature[:2].mean() < 0.001
    assert loss[:2].mean() < loss.mean() < 0
    for name in ("frequency", "shuffled"):  # no second evidence
        assert np.array_equal(means(guidance, f"bias, {name}"), means(prior, f"prior={name}")[:3])


def test_groups_and_parts(study: Study) -> None:
    size = study("group_size")
    assert all(one.mean > 0 for one in compare_declared(size))
    parts = study("catanet_parts")
    for label in ("intra-group only", "inter-group only", "own group only"):
        assert deltas(parts, f"{label} vs published").mean() > 0
    assert not deltas(parts, "averaged blend vs published").any()


def test_batch_size(study: Study) -> None:
    results = study("batch_size")
    assert all(means(results, "batch 64") < results.mean("bicubic", results.primary))
    assert {len(means(results, cell)) for cell in ("batch 8", "batch 16", "batch 64")} == {3}
    for one in examine(results, compare_declared(results)):
        assert {change.verdict for change in one.seeds} == {"inconclusive"}


def test_scale_2(study: Study) -> None:
    results = study("scale_2")
    for label in ("soft vs hard", "none vs hard", "hard vs IMDN", "hard vs CFSR"):
        assert all(deltas(results, label) > 0)
    assert len(set(np.sign(deltas(results, "soft + frequency vs soft + shuffled")))) == 2
    spin, spread = deltas(results, "hard vs SPIN"), means(results, "SPIN").std(ddof=1)
    assert spread < 0.1 < means(study("architectures"), "SPIN").std(ddof=1)
    for other in ("IMDN", "CFSR"):
        assert deltas(results, f"hard vs {other}").mean() > spin.mean()
        assert deltas(results, f"hard vs {other}").std() > spin.std()
    lost = next(one for one in examine(results, compare_declared(results)) if one.comparison.reference == "SPIN")
    assert {change.verdict for change in lost.seeds} == {"inconclusive"}


def test_one_step(study: Study) -> None:
    results = study("one_step")
    for reference in ("CT", "CT continued"):
        assert all(deltas(results, f"CT + DTM vs {reference}") > 0)
    assert all(means(results, "CT continued") < means(results, "CT"))
    assert all(deltas(results, "CT + DTM + AMD vs CT + DTM") < 0)
    amd, bicubic = means(results, "CT + DTM + AMD"), results.mean("bicubic", results.primary)
    assert (amd < bicubic).sum() == 1
    for protocol in ("rgb", "uint8_y"):
        psnr = Measure("B100", protocol, "psnr")
        assert all(results.means("CT + DTM + AMD", psnr) < results.mean("bicubic", psnr))
    trained = [name for name in results.cells if name not in results.untrained]
    for metric in ("spectral_slope", "high_band"):
        away = {name: np.abs(means(results, name, metric)) for name in trained}
        assert all(away["CT + DTM"] > away["CT"])
        assert all(away["CT + DTM + AMD"] == np.min(list(away.values()), axis=0))
    distance = {name: means(results, name, "swd").mean() for name in trained}
    assert max(distance, key=lambda name: distance[name]) == "CT + DTM + AMD"


def test_lengths(study: Study) -> None:
    results = study("training_length")
    table = {
        (name, steps): means(results, f"{name}, steps={steps}")
        for name in ("CATANet", "soft", "none", "SPIN", "IMDN", "CFSR")
        for steps in (200, 400, 800)
    }
    mean = {key: values.mean() for key, values in table.items()}
    names = {name for name, _ in mean}
    gains = {name: mean[name, 800] - mean[name, 400] for name in names}
    assert all(mean[name, 200] < mean[name, 400] < mean[name, 800] for name in names)
    assert set(sorted(gains, key=lambda name: -gains[name])[:3]) == {"CATANet", "soft", "none"}
    for steps in (200, 400, 800):
        assert max(names, key=lambda name: mean[name, steps]) == "none"
    assert [one.exchanged for one in order_agreement(results)][1] == ("soft and CATANet",)
    assert abs(mean["CATANet", 800] - mean["soft", 800]) < 0.001
    for steps in (400, 800):
        assert mean["SPIN", steps] > max(mean["IMDN", steps], mean["CFSR", steps])
    assert not all(table["SPIN", 800] > table["CFSR", 800])
    assert sorted(mean[name, 200] for name in names).index(mean["SPIN", 200]) == 1
