import math
import time
from dataclasses import replace

import numpy as np
import pytest

from study.analysis.comparisons import compare_declared
from study.analysis.results import Deltas
from study.analysis.scepticism import examine, overturned_by, power_table, scepticism_table
from study.analysis.statistics import CLAIMS, correct
from study.analysis.verdicts import decide
from tests.analysis.synthetic import GRID, arrange, draw_study

FIVE = GRID.replace("seeds: 2", "seeds: 5")


def scrutinise(tmp_path, text=FIVE, change=None, **options):
    study = draw_study(tmp_path, text, **options)
    if change is not None:
        change(study)
    results = arrange(study)
    return examine(results, compare_declared(results))


def shift(study, cell, amount, **place):
    """Adds `amount` to a cell's values at a place: an image, a protocol, a seed."""
    frame = study.records.images
    runs = [run for (name, seed), run in study.ids.items() if name == cell and place.get("seed", seed) == seed]
    rows = frame["run"].isin(runs) & (frame["metric"] == "psnr")
    for column in ("image", "protocol"):
        if column in place:
            rows &= frame[column] == place[column]
    frame.loc[rows, "value"] += amount


@pytest.mark.parametrize("claim", list(CLAIMS))
def test_leaving_out_is_the_study_without_it(tmp_path, claim):
    text = FIVE.replace("analysis:\n", f"analysis:\n  claim: {claim}\n")
    found = scrutinise(tmp_path, text, effects={"soft, count=16": 0.05})
    tables = [scrutiny.comparison.deltas.values for scrutiny in found]
    for axis, kind in ((1, "images"), (0, "seeds")):
        for index in range(tables[0].shape[axis]):
            less = [np.delete(table, index, axis=axis) for table in tables]
            tests = [CLAIMS[claim](table, 0.05, 0.02) for table in less]
            p = correct([test.p for test in tests], "holm")
            p_equivalent = correct([test.p_equivalent for test in tests], "holm")
            for k, scrutiny in enumerate(found):
                change = getattr(scrutiny, kind)[index]
                assert change.mean == pytest.approx(less[k].mean())
                remade = replace(
                    scrutiny.comparison,
                    test=tests[k],
                    mean=change.mean,
                    p_corrected=float(p[k]),
                    p_equivalent=float(p_equivalent[k]),
                    smallest_p=3 * tests[k].smallest_p,
                )
                assert change.verdict == decide(remade)


def test_a_large_effect_holds(tmp_path):
    found = scrutinise(tmp_path, effects={"soft, count=16": 0.5, "soft, count=32": 1.0, "hard, count=8": -0.5})
    assert overturned_by(found[0]) == "No single image, seed or protocol changes the verdict 'better'."
    entries = scepticism_table(found).entries()
    assert [row[1].value for row in entries] == ["better", "better", "worse"]
    assert {row[column].value for row in entries for column in (3, 5, 7)} == {"holds"}


def test_one_seed_that_spoils_it_is_named(tmp_path):
    def change(study):
        shift(study, "soft, count=16", -0.8, seed=3)

    found = scrutinise(tmp_path, change=change, effects={"soft, count=16": 0.4, "soft, count=32": 1.0})[0]
    assert found.verdict == "inconclusive"
    assert overturned_by(found).startswith("The verdict 'inconclusive' becomes 'better' without seed 3.")
    row = scepticism_table([found]).entries()[0]
    assert (row[4].suffix, row[5].value) == ("(most: seed 3)", "1 of 5: better")


def test_the_image_that_moves_the_mean_most_is_named(tmp_path):
    found = scrutinise(tmp_path, change=lambda study: shift(study, "soft, count=16", 2.0, image="image_07"))
    row = scepticism_table(found[:1]).entries()[0]
    assert row[2].suffix == "(most: image_07)"
    means = [change.mean for change in found[0].images]
    assert min(means) == pytest.approx(found[0].images[7].mean)
    assert row[2].order == pytest.approx(max(means) - min(means))


def test_a_protocol_that_turns_the_sign_is_named(tmp_path):
    def change(study):
        shift(study, "soft, count=16", -1.0, protocol="matlab_y")

    found = scrutinise(tmp_path, change=change, effects={"soft, count=16": 0.4, "soft, count=32": 1.0})[0]
    text = overturned_by(found)
    assert "The verdict 'better' becomes 'worse' under matlab_y." in text
    assert "No single image or seed changes it." in text
    assert text.endswith("The difference changes its sign under matlab_y.")


def test_two_seeds_leave_nothing_to_test(tmp_path):
    found = scrutinise(tmp_path, GRID)[0]
    assert "With one seed fewer nothing could be tested." in overturned_by(found)
    assert scepticism_table([found]).entries()[0][5].value == "not testable"


def test_without_a_verdict_nothing_is_overturned(tmp_path):
    found = scrutinise(tmp_path, GRID.replace("seeds: 2", "seeds: 1"))[0]
    assert overturned_by(found) == "There is no verdict to overturn: n too small."
    assert scepticism_table([found]).entries()[0][3].value == "no verdict"

    def fail(study):
        for seed in range(5):
            study.statuses[study.ids["soft, count=16", seed]]["state"] = "failed"

    found = scrutinise(tmp_path, change=fail)
    assert found[0].images == found[0].seeds == found[0].protocols == ()
    assert "not run" in overturned_by(found[0])
    assert len(scepticism_table(found).rows) == 1
    assert scepticism_table([]).rows == power_table([]).rows == ()


@pytest.mark.parametrize("claim", list(CLAIMS))
def test_a_large_table_is_quick(tmp_path, claim):
    scrutiny = scrutinise(tmp_path, FIVE.replace("analysis:\n", f"analysis:\n  claim: {claim}\n"))[0]
    values = np.random.default_rng(0).normal(0.02, 0.1, (10, 400))
    names = tuple(f"image {index}" for index in range(400))
    comparison = replace(scrutiny.comparison, deltas=Deltas(values, tuple(range(10)), names, (), ()))
    results = arrange(draw_study(tmp_path, FIVE))
    start = time.process_time()
    found = examine(results, [comparison])[0]
    assert time.process_time() - start < 1
    assert len(found.images) == 400


def test_the_power_table_says_what_it_takes(tmp_path):
    found = scrutinise(tmp_path)
    comparisons = [scrutiny.comparison for scrutiny in found]
    table = power_table(comparisons)
    row = table.entries()[0]
    sd = np.std(comparisons[0].deltas.values.mean(axis=1), ddof=1)
    assert [row[1].value, row[2].value] == [5, pytest.approx(sd)]
    assert row[3].value == pytest.approx(comparisons[0].detectable)
    assert row[4].value == f"about {comparisons[0].needed_to_find:.0f} seeds"
    assert "not attainable, needs about" in str(row[5].value)
    assert "power 0.8 at α = 0.05" in table.caption


def test_the_power_table_without_a_margin_or_a_spread(tmp_path):
    text = GRID.replace("analysis:\n", "analysis:\n  metric: ssim\n").replace("seeds: 2", "seeds: 1")
    table = power_table([scrutiny.comparison for scrutiny in scrutinise(tmp_path, text)])
    assert len(table.columns) == 4
    assert [entry.value for entry in table.entries()[0][1:]] == [1, None, None]


def test_images_are_counted_for_these_weights(tmp_path):
    text = FIVE.replace("analysis:\n", "analysis:\n  claim: these_weights\n")
    found = scrutinise(tmp_path, text)[0].comparison
    table = power_table([found])
    assert [column.name for column in table.columns[1:3]] == ["images", "sd over images"]
    assert table.entries()[0][1].value == 10
    assert table.entries()[0][4].value == f"about {found.needed_to_find:.0f} images"
    assert not math.isnan(found.detectable)
