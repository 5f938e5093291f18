import math
from dataclasses import replace

import pytest

from study.analysis.comparisons import Comparison, compare_declared
from study.analysis.results import Results
from study.analysis.verdicts import VERDICTS, coverage, decide, describe, interval, p_text, share, signed
from tests.analysis.synthetic import GRID, draw_study

FIVE = GRID.replace("seeds: 2", "seeds: 5")


def first(tmp_path, text=FIVE, **options) -> Comparison:
    study = draw_study(tmp_path, text, **options)
    return compare_declared(Results(study.plan, study.ids, study.records, study.statuses))[0]


def test_better(tmp_path):
    found = first(tmp_path, effects={"soft, count=16": 0.3})
    assert decide(found) == "better"
    text = describe(found)
    assert text.startswith(f"Mean difference {signed(found.mean, 'dB')} in PSNR on bundled (uint8_y), 95% interval [+")
    assert "over 5 seeds and 10 images. Claim 'retraining on these images' (paired t on seed means): better" in text
    assert "after correction over 3 comparisons" in text
    assert "100% of the images are better (rank-biserial +1.00)" in text


def test_worse(tmp_path):
    found = first(tmp_path, effects={"soft, count=16": -0.3})
    assert decide(found) == "worse"
    assert "0% of the images are better (rank-biserial −1.00)" in describe(found)


def test_equivalent_beats_a_small_difference(tmp_path):
    found = first(tmp_path, effects={"soft, count=16": 0.01}, seed_noise_db=0.0005, image_noise_db=0.0005)
    assert found.p_corrected < 0.05
    assert decide(found) == "equivalent"
    assert "inside the margin of 0.02 dB" in describe(found)
    assert "too small to matter" in describe(found)


def test_inconclusive_says_what_it_would_take(tmp_path):
    found = first(tmp_path, GRID)
    assert decide(found) == "inconclusive"
    assert f"The smallest effect this design finds with power 0.8 is about {found.detectable:.3f} dB." in describe(
        found
    )
    assert f"not attainable, needs about {found.needed:.0f} seeds" in describe(found)


def test_one_seed_is_too_small(tmp_path):
    found = first(tmp_path, GRID.replace("seeds: 2", "seeds: 1"))
    assert decide(found) == "n too small"
    assert "over 1 seed and 10 images" in describe(found)
    assert "one seed says nothing about retraining" in describe(found)


def test_five_images_are_too_few_for_wilcoxon(tmp_path):
    text = GRID.replace("analysis:\n", "analysis:\n  claim: these_weights\n")
    found = first(tmp_path, text, images=5, effects={"soft, count=16": 0.5})
    assert decide(found) == "n too small"
    assert "with 5 images is 0.19, above α = 0.05" in describe(found)


def test_these_weights_name_the_pseudo_median(tmp_path):
    text = GRID.replace("analysis:\n", "analysis:\n  claim: these_weights\n")
    found = first(tmp_path, text, images=12, effects={"soft, count=16": 0.5})
    assert decide(found) == "better"
    assert f"interval of the pseudo-median {signed(found.test.estimate, 'dB')}" in describe(found)


def test_not_run_and_not_comparable(tmp_path):
    study = draw_study(tmp_path)
    for seed in (0, 1):
        study.statuses[study.ids["soft, count=16", seed]]["state"] = "failed"
    found = compare_declared(Results(study.plan, study.ids, study.records, study.statuses))[0]
    assert decide(found) == "not run"
    assert "missing seeds: 0, 1" in describe(found)
    assert decide(replace(found, comparable=False)) == "not comparable"


def test_another_scale_is_not_comparable(tmp_path):
    text = GRID.replace("model.prototypes.count: {8: [8], 16: [16], 32: [32]}", "scale: [2, 4]")
    text = text.replace(", count=16", ", scale=2").replace(", count=32", ", scale=4").replace(", count=8", ", scale=4")
    text = text.replace("curve: model.prototypes.count", "curve: scale")
    study = draw_study(tmp_path, text)
    family = compare_declared(Results(study.plan, study.ids, study.records, study.statuses))
    assert [decide(comparison) for comparison in family[1:]] == ["not comparable"] * 2


def test_seeds_that_change_nothing_are_found_out(tmp_path):
    found = first(tmp_path, effects={"soft, count=16": 0.1}, seed_noise_db=0, image_noise_db=0)
    assert decide(found) == "no variance"
    assert "all seeds give the same difference" in describe(found)


def test_gaps_make_it_preliminary(tmp_path):
    study = draw_study(tmp_path, FIVE)
    study.statuses[study.ids["soft, count=16", 3]]["state"] = "failed"
    frame = study.records.images
    frame.loc[frame["image"] == "image_04", "value"] = math.nan
    found = compare_declared(Results(study.plan, study.ids, study.records, study.statuses))[0]
    assert not found.complete
    assert "Preliminary: seed 3 missing on one side." in describe(found)
    assert "Preliminary: images left out, value absent or not finite: image_04." in describe(found)


def test_a_gain_below_the_protocols_spread_says_so(tmp_path):
    found = replace(first(tmp_path), mean=0.01, protocol_spread=0.03)
    assert "smaller than its own spread over evaluation protocols (0.030 dB)" in describe(found)


def test_every_verdict_has_a_meaning(tmp_path):
    assert decide(first(tmp_path)) in VERDICTS


@pytest.mark.parametrize(
    ("p", "text"), [(0.5, "0.50"), (0.0123, "0.012"), (3e-9, "< 0.0001"), (math.nan, "—"), (1.0, "1.00")]
)
def test_p_text(p, text):
    assert p_text(p) == text


def test_signs_and_intervals():
    assert signed(-0.0421, "dB") == "−0.042 dB"
    assert interval(-math.inf, math.inf) == "[−∞, ∞]"
    assert interval(math.nan, 1) == "—"


def test_of_a_metric_that_falls_as_images_improve_the_lower_is_better(tmp_path):
    study = draw_study(tmp_path, FIVE, effects={"soft, count=16": 0.3})
    analysis = study.plan.grid.analysis.model_copy(update={"metric": "gmsd"})
    plan = replace(study.plan, grid=study.plan.grid.model_copy(update={"analysis": analysis}))
    images = study.records.images.replace({"metric": {"psnr": "gmsd"}})
    found = compare_declared(Results(plan, study.ids, replace(study.records, images=images), study.statuses))[0]
    assert decide(found) == "worse"
    assert found.share_improved == 0
    assert found.rank_biserial == -1
    assert "in GMSD on bundled (uint8_y), where lower is better" in describe(found)


def test_words_for_numbers_never_round_to_what_they_are_not():
    assert [coverage(alpha) for alpha in (0.05, 0.005, 0.001, 0.025)] == ["95%", "99.5%", "99.9%", "97.5%"]
    assert [share(part) for part in (0.0, 0.0003, 0.5, 2990 / 3000, 1.0)] == ["0%", "1%", "50%", "99%", "100%"]
    assert [p_text(p) for p in (0.0499, 0.05, 0.0504)] == ["0.0499", "0.05", "0.0504"]
