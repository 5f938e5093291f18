import math

import numpy as np
import pytest

from study.analysis.comparisons import compare_declared
from study.analysis.results import Measure
from study.analysis.verdicts import decide
from study.records.store import RecordError
from tests.analysis.generative import draw_generative
from tests.analysis.synthetic import arrange, draw_study

PSNR = Measure("bundled", "uint8_y", "psnr")


@pytest.fixture
def study(tmp_path):
    return draw_study(tmp_path, images=4)


def test_deltas_are_paired_by_seed_and_image(study):
    # Shuffled rows: pairing is by name, not by place.
    study.records.images.loc[:] = study.records.images.sample(frac=1, random_state=0).to_numpy()
    deltas = arrange(study).deltas("soft, count=16", "hard, count=16", PSNR)
    rows = study.records.images.query("dataset == 'bundled' and protocol == 'uint8_y' and metric == 'psnr'")
    value = rows.set_index(["run", "image"])["value"]
    for i, seed in enumerate(deltas.seeds):
        for j, image in enumerate(deltas.images):
            one = value[study.ids["soft, count=16", seed], image]
            assert deltas.values[i, j] == one - value[study.ids["hard, count=16", seed], image]
    assert deltas.values.shape == (2, 4)
    assert deltas.seeds_missing == deltas.images_missing == ()


def test_an_untrained_reference_serves_every_seed(study):
    deltas = arrange(study).deltas("hard, count=8", "bicubic", PSNR)
    assert deltas.seeds == (0, 1)
    assert deltas.values.mean() == pytest.approx(0.7, abs=0.15)
    assert arrange(study).deltas("bicubic", "bicubic", PSNR).values.shape == (1, 4)


def test_values_that_are_not_finite_are_left_out_and_named(study):
    frame = study.records.images
    run = study.ids["hard, count=16", 1]
    frame.loc[(frame["run"] == run) & (frame["image"] == "image_02"), "value"] = math.inf
    deltas = arrange(study).deltas("soft, count=16", "hard, count=16", PSNR)
    assert deltas.images_missing == ("image_02",)
    assert np.isfinite(deltas.values).all()
    assert deltas.values.shape == (2, 3)


def test_runs_that_are_not_done_do_not_count(study):
    study.statuses[study.ids["soft, count=16", 0]]["state"] = "failed"
    results = arrange(study)
    deltas = results.deltas("soft, count=16", "hard, count=16", PSNR)
    assert (deltas.seeds, deltas.seeds_missing) == ((1,), (0,))
    assert results.counts() == {"failed": 1, "done": 12}


def test_a_cell_without_values_gives_an_empty_table(study):
    del study.ids["soft, count=16", 0], study.ids["soft, count=16", 1]
    results = arrange(study)
    assert results.deltas("soft, count=16", "hard, count=16", PSNR).values.size == 0
    assert math.isnan(results.mean("soft, count=16", PSNR))
    assert results.counts() == {"pending": 2, "done": 11}


def test_a_row_stored_twice_is_refused_by_name(study):
    study.records.images.loc[len(study.records.images)] = study.records.images.iloc[3]
    with pytest.raises(RecordError, match=r"images.parquet has two rows for bundled/image_00"):
        arrange(study).values("hard, count=8", PSNR)


def test_the_primary_dataset_is_the_first(study):
    assert arrange(study).primary == PSNR
    assert arrange(study).datasets == ["bundled", "Set5"]
    assert arrange(study).untrained == ["bicubic"]


@pytest.mark.parametrize(
    ("metric", "best", "text"),
    [
        ("psnr", "high", "−0.31 dB"),
        ("swd", "low", "−0.310 levels"),
        ("spectral_slope", "zero", "−0.310"),
        ("high_band", "zero", "−0.31 dB"),
        ("diversity", None, "−0.310 levels"),
        ("maniqa", "high", "−0.3100"),
    ],
)
def test_a_metric_knows_its_best_end_and_how_it_is_printed(metric, best, text):
    measure = Measure("Set5", "rgb", metric)
    assert measure.best == best
    assert measure.text(-0.31) == text


def test_an_evaluated_start_pairs_by_seed(tmp_path):
    results = arrange(draw_generative(tmp_path))
    deltas = results.deltas("CT at 4 steps", "CT", PSNR)
    assert deltas.seeds == (0, 1, 2)
    assert deltas.values.std(axis=0).min() > 0
    cells = results.cells
    assert [results.start(cells[name].runs[1]) for name in ("CT + DTM", "CT at 4 steps", "CT")] == ["CT", "CT", ""]


IDENTICAL = """
question: Is there a difference where there is none?
base:
  scale: 2
  optimisation: {steps: 400, batch: 8}
  evaluation: {datasets: {bundled: {kind: bundled, split: test}}}
variants: {first: {}, second: {seed: 10}}
seeds: 5
analysis: {baseline: first}
"""


def test_other_seeds_are_paired_in_their_order(tmp_path):
    study = draw_study(tmp_path, IDENTICAL)
    results = arrange(study)
    assert [run.seed for run in results.cells["second"].runs] == [10, 11, 12, 13, 14]
    deltas = results.deltas("second", "first", results.primary)
    one, other = (results.values(name, results.primary).to_numpy() for name in ("second", "first"))
    assert (deltas.values == one - other).all()
    assert deltas.seeds == (10, 11, 12, 13, 14)
    assert not deltas.seeds_missing
    study.statuses[study.ids["first", 2]]["state"] = "failed"
    deltas = arrange(study).deltas("second", "first", results.primary)
    assert deltas.seeds == (10, 11, 13, 14)
    assert deltas.seeds_missing == (12,)


def test_variants_that_differ_in_their_seeds_alone_are_not_told_apart(tmp_path):
    verdicts = {}
    for margin in (0.001, 0.5):
        (tmp_path / f"{margin}").mkdir()
        study = draw_study(tmp_path / f"{margin}", IDENTICAL.replace("first}", f"first, margin_db: {margin}}}"))
        (comparison,) = compare_declared(arrange(study))
        verdicts[margin] = decide(comparison)
    assert verdicts == {0.001: "inconclusive", 0.5: "equivalent"}
