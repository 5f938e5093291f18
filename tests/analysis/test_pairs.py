import numpy as np
import pandas as pd
import pytest
from scipy import stats

from study import StudyError
from study.analysis.pairs import compare_pair, pair_table
from study.analysis.verdicts import decide
from study.grid.schema import Run

RUN = Run()
BICUBIC = Run.model_validate({"model": {"kind": "bicubic"}})
SETTINGS = {"metric": "psnr", "protocol": "uint8_y", "margin_db": 0.02}


def draw(shift: float, seed: int, sets=(("Set5", 5), ("B100", 20)), noise: float = 0.05, metrics=("psnr",)):
    """Per-image values: the same difficulty for every seed, a shift, and noise."""
    rng, difficulty = np.random.default_rng(seed), np.random.default_rng(99)
    return pd.DataFrame(
        [
            {"dataset": name, "image": f"i{i:02d}", "protocol": "uint8_y", "metric": metric, "value": value}
            for name, count in sets
            for i in range(count)
            for metric in metrics
            for value in [difficulty.normal(28, 3) + shift + rng.normal(0, noise)]
        ]
    )


def compare(first, second, names=("a", "b"), runs=(RUN, RUN), **changes):
    return compare_pair(names, runs, (first, second), SETTINGS | changes)


def delta(first, second, dataset):
    one, other = (frame[frame.dataset == dataset].set_index("image")["value"] for frame in (first, second))
    return (one - other).dropna().to_numpy()


def test_numbers_are_those_of_a_direct_computation():
    first, second = draw(0.03, 1), draw(0.0, 2)
    small, large = compare(first, second)
    assert [one.measure.dataset for one in (small, large)] == ["Set5", "B100"]
    raw = [float(np.asarray(stats.wilcoxon(delta(first, second, name)))[1]) for name in ("Set5", "B100")]
    holm = np.minimum(1, [max(2 * min(raw), p) if p > min(raw) else 2 * p for p in raw])
    for one, p, corrected in zip((small, large), raw, holm, strict=True):
        expected = delta(first, second, one.measure.dataset)
        assert one.mean == pytest.approx(expected.mean(), abs=1e-12)
        assert one.test.p == pytest.approx(p, rel=1e-9)
        assert one.p_corrected == pytest.approx(corrected, rel=1e-9)
        assert one.share_improved == pytest.approx((expected > 0).mean())
        assert one.family == 2
        assert one.claim == "these_weights"


def test_the_second_minus_the_first_is_the_negative():
    first, second = draw(0.03, 1), draw(0.0, 2)
    for one, other in zip(compare(first, second), compare(second, first, names=("b", "a")), strict=True):
        assert one.mean == pytest.approx(-other.mean, abs=1e-12)
        assert one.p_corrected == pytest.approx(other.p_corrected)


def test_images_are_paired_by_name_and_those_of_one_side_are_left_out_and_counted():
    first, second = draw(0.03, 1), draw(0.0, 2).sample(frac=1, random_state=0)
    assert compare(first, second)[1].mean == pytest.approx(compare(first, second.sort_index())[1].mean, abs=1e-12)
    fewer = second[~((second.dataset == "B100") & (second.image == "i03"))]
    large = compare(first, fewer)[1]
    assert large.mean == pytest.approx(delta(first, fewer, "B100").mean(), abs=1e-12)
    assert large.deltas.images_missing == ("i03",)
    assert pair_table([large]).notes[0].endswith("Preliminary: images left out, value absent or not finite: i03.")


def test_seeds_of_the_two_need_not_agree_and_one_may_be_untrained():
    first, second = draw(0.03, 1), draw(0.0, 2)
    expected = [one.mean for one in compare(first, second)]
    other = RUN.model_copy(update={"seed": 7})
    assert [one.mean for one in compare(first, second, runs=(RUN, other))] == expected
    assert [one.mean for one in compare(first, second, runs=(RUN, BICUBIC))] == expected
    assert [one.mean for one in compare(first, second, runs=(BICUBIC, BICUBIC))] == expected


def test_two_of_one_name_are_told_apart():
    first, second = draw(0.5, 1), draw(0.0, 2)
    found = compare(first, second, names=("imdn", "imdn"))
    assert found[0].label == "imdn vs imdn (second)"
    assert found[0].mean == pytest.approx(delta(first, second, "Set5").mean(), abs=1e-12)


def test_the_table_gives_a_verdict_per_image_set_and_says_it_in_words():
    table = pair_table(compare(draw(0.5, 1), draw(0.0, 2)))
    verdict = [column.name for column in table.columns].index("verdict")
    small, large = table.entries()
    assert (small[0].value, large[0].value) == ("Set5", "B100")
    assert small[verdict].value == "n too small"  # five images: no p below 0.0625
    assert large[verdict].value == "better"
    assert table.caption == "a vs b: the first minus the second, PSNR."
    assert any(note.startswith("B100: ") and "these trained weights" in note for note in table.notes)


def test_equal_networks_are_equivalent():
    rows = draw(0.0, 1)
    large = compare(rows, rows)[1]
    assert (large.mean, large.test.p) == (0, 1)
    assert "equivalent" in [entry.value for entry in pair_table([large]).entries()[0]]


def test_only_the_asked_metric_and_shared_sets_are_compared():
    first = draw(0.03, 1, metrics=("psnr", "ssim"))
    second = draw(0.0, 2, sets=(("B100", 20),), metrics=("psnr", "ssim"))
    assert [one.measure.dataset for one in compare(first, second)] == ["B100"]
    assert [one.measure.metric for one in compare(first, second, metric="ssim")] == ["ssim"]


@pytest.mark.parametrize(
    ("second", "changes", "said"),
    [
        (draw(0, 2), {"protocol": "rgb"}, "no image with psnr under rgb in common; they have psnr under uint8_y"),
        (draw(0, 2), {"metric": "ssim"}, "no image with ssim under uint8_y in common; they have psnr under uint8_y"),
        (draw(0, 2, sets=(("Urban100", 4),)), {}, "no image with psnr under uint8_y in common; they have nothing else"),
    ],
)
def test_nothing_in_common_is_refused(second, changes, said):
    with pytest.raises(StudyError, match=f"^a and b have {said}$"):
        compare(draw(0, 1), second, **changes)


def test_sets_of_different_size_have_each_the_smallest_p_that_it_could_reach():
    one = draw(0.0, 1, (("A", 100), ("B", 100), ("C", 100), ("D", 7)))
    other = one.assign(value=one["value"] - 0.3 - np.random.default_rng(0).uniform(0, 0.01, len(one)))
    found = {c.measure.dataset: c for c in compare(one, other)}
    assert found["D"].smallest_p == found["D"].p_corrected == 2.0**-6
    assert {decide(c) for c in found.values()} == {"better"}
