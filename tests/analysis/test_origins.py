import re
from dataclasses import replace

import numpy as np
import pytest

from study.analysis import origins
from study.analysis.comparisons import compare, compare_declared
from study.analysis.results import Measure
from study.analysis.statistics import mean_interval
from tests.analysis.synthetic import GRID, arrange, draw_study

PSNR = Measure("bundled", "uint8_y", "psnr")


@pytest.fixture
def study(tmp_path):
    return draw_study(tmp_path, GRID.replace("seeds: 2", "seeds: 8"))


def test_a_mean_names_its_seeds_images_interval_and_runs(study):
    results = arrange(study)
    lines = origins.of_mean(results, "soft, count=16", PSNR).split("\n")
    means = results.means("soft, count=16", PSNR)
    _, low, high = mean_interval(means, 0.05)
    shown = ", ".join(f"{mean:.3f}" for mean in means[:6])
    assert lines[0] == "8 seeds × 10 images."
    assert lines[1] == f"Per seed: {shown} and 2 more; 95% t interval over seeds [{low:.3f}, {high:.3f}]."
    ids = [study.ids["soft, count=16", seed] for seed in range(6)]
    assert lines[2] == f"runs {', '.join(ids)} and 2 more."


def test_of_an_untrained_cell_there_are_no_seeds(study):
    text = origins.of_mean(arrange(study), "bicubic", PSNR)
    assert text == f"10 images, nothing trained.\nrun {study.ids['bicubic', 0]}."


def test_a_single_seed_has_no_interval(tmp_path):
    study = draw_study(tmp_path, GRID.replace("seeds: 2", "seeds: 1"))
    text = origins.of_mean(arrange(study), "soft, count=16", PSNR)
    assert text.startswith("1 seed × 10 images.\nPer seed: ")
    assert "interval" not in text


def test_a_comparison_names_both_sides(study):
    results = arrange(study)
    comparison = compare_declared(results)[0]
    lines = origins.of_comparison(results, comparison).split("\n")
    assert lines[0] == "8 seeds × 10 images."
    assert re.fullmatch(r"95% interval \[[+−]0\.\d{3}, [+−]0\.\d{3}\] \(paired t on seed means\)\.", lines[1])
    numbers = re.findall(r"[+−]\d\.\d{3}", lines[2])
    means = comparison.deltas.values.mean(axis=1)[:6]
    np.testing.assert_allclose([float(number.replace("−", "-")) for number in numbers], means, atol=5.1e-4)
    assert lines[3].startswith(f"soft, count=16: runs {study.ids['soft, count=16', 0]}, ")
    assert lines[4].startswith(f"hard, count=16: runs {study.ids['hard, count=16', 0]}, ")


def test_an_untrained_side_is_its_one_run(study):
    results = arrange(study)
    comparison = compare(results, "soft, count=16", "bicubic", PSNR, "same_images")
    assert origins.of_comparison(results, comparison).endswith(f"\nbicubic: run {study.ids['bicubic', 0]}.")


def test_without_values_there_is_nothing_to_say(study):
    for seed in range(8):
        study.statuses[study.ids["soft, count=16", seed]]["state"] = "failed"
    results = arrange(study)
    assert origins.of_comparison(results, compare_declared(results)[0]) == ""


def test_signed_means_have_a_typographic_minus(study):
    frame = study.records.images.query("protocol == 'uint8_y' and metric == 'psnr'")
    study.records = replace(study.records, images=frame.assign(protocol="rgb", metric="high_band", value=-0.25))
    text = origins.of_mean(arrange(study), "soft, count=16", Measure("bundled", "rgb", "high_band"))
    assert "Per seed: −0.250, −0.250, " in text
    assert text.split("\n")[1].endswith("t interval over seeds [−0.250, −0.250].")
