import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.lines import Line2D
from PIL import Image

from study import StudyError
from study.analysis.results import Measure
from study.analysis.seal import CaseScores, case_scores, cases_table, check_figure, check_metric, draw_cases, save_cases

NAMES = ("ours", "bicubic", "strong")


def scores(gains: list[float], spans: list[float], metric: str = "psnr", noise: float = 0.05) -> CaseScores:
    """Cases on an acceptance line of 16, from differences that binary fractions hold exactly."""
    line = np.full(len(gains), 16.0)
    sign = -1 if metric == "gmsd" else 1
    return CaseScores(
        Measure("Set5", "uint8_y", metric), line + sign * np.array(gains), line, line + sign * np.array(spans), noise
    )


def ydata(line: Line2D) -> list[float]:
    return np.asarray(line.get_ydata()).tolist()


def test_the_ratio_is_a_half_on_the_acceptance_line_and_the_sigmoid_of_one_on_the_excellence_line() -> None:
    one = scores([0.0, 0.5, -0.5, 1.0], [0.5, 0.5, 0.5, 0.5])
    expected = [0.5, 1 / (1 + math.exp(-1)), 1 / (1 + math.e), 1 / (1 + math.exp(-2))]
    assert one.ratios == pytest.approx(expected)
    assert one.verdicts == ["rejected", "accepted", "rejected", "accepted"]  # on the line is not above it


def test_numbers_by_hand() -> None:
    gains, spans = [1.0, 2.0, -1.0, 3.0, 9.0, 9.0], [1.0, 1.0, 1.0, 1.0, 0.0625, -1.0]
    one = scores(gains, spans)
    assert one.verdicts == ["accepted", "accepted", "rejected", "accepted", "undecided", "inverted"]
    summary = one.summary()
    sigmoid = [1 / (1 + math.exp(-x)) for x in (-1, 1, 2, 3)]
    assert summary["acceptance_rate"] == 3 / 4
    assert summary["rpr_accepted"] == pytest.approx(sum(sigmoid[1:]) / 3)
    assert summary["rpr"] == pytest.approx(sum(sigmoid) / 4)
    low = sigmoid[0] + 0.75 * (sigmoid[1] - sigmoid[0])
    high = sigmoid[2] + 0.25 * (sigmoid[3] - sigmoid[2])
    assert summary["rpr_low_quartile"] == pytest.approx(low)
    assert summary["rpr_high_quartile"] == pytest.approx(high)
    assert summary["rpr_interquartile_range"] == pytest.approx(high - low)
    counts = {key: summary[key] for key in ("accepted", "decided", "undecided", "inverted")}
    assert counts == {"accepted": 3, "decided": 4, "undecided": 2, "inverted": 1}


def test_twice_the_noise_is_still_undecided_on_both_sides() -> None:
    one = scores([1.0] * 4, [0.5, 0.5625, -0.5, -0.5625], noise=0.25)
    assert one.verdicts == ["undecided", "accepted", "undecided", "inverted"]


def test_where_lower_is_better_all_is_the_same_with_the_sign_flipped() -> None:
    gains, spans = [1.0, -0.25, 0.5, 0.5], [0.5, 0.5, 0.0625, -0.5]
    high, low = scores(gains, spans), scores(gains, spans, "gmsd")
    assert (low.measured < low.acceptance).tolist() == (high.measured > high.acceptance).tolist()
    assert low.summary() == high.summary()
    assert low.verdicts == high.verdicts == ["accepted", "rejected", "undecided", "inverted"]


def test_without_a_decided_case_there_is_no_number() -> None:
    one = scores([1.0, -1.0], [0.0, -3.0])
    summary = one.summary()
    assert [key for key, value in summary.items() if value is None] == [
        "acceptance_rate", "rpr_accepted", "rpr", "rpr_low_quartile", "rpr_high_quartile", "rpr_interquartile_range"
    ]  # fmt: skip
    assert (summary["undecided"], summary["inverted"]) == (2, 1)
    assert [case["rpr"] for case in one.per_case()] == [None, None]
    assert cases_table([one]).rows == (("Set5", None, None, None, None, "0 of 0", "2", "1"),)
    draw_cases([one], NAMES).draw_without_rendering()


def test_the_table_shows_percent_and_says_what_undecided_means() -> None:
    table = cases_table([scores([1.0, 1.0, -1.0, 0.0], [1.0, 1.0, 1.0, 0.0])])
    assert table.rows[0][:2] == ("Set5", pytest.approx(100 * 2 / 3))
    assert table.rows[0][-3:] == ("2 of 3", "1", "0")
    assert "0.10 dB" in table.notes[1]
    assert len(table.notes) == 2


def test_the_table_says_where_the_excellence_line_is_not_one() -> None:
    table = cases_table([scores([1.0] * 3, [1.0, 0.0, -1.0]), scores([1.0] * 2, [1.0, 0.0])])
    assert table.notes[2].startswith("Most cases are undecided (Set5): the excellence line needs")


def test_a_frame_becomes_scores_by_dataset_in_its_order() -> None:
    frame = pd.DataFrame({"dataset": ["b", "b", "a"], "case": [0, 1, 0], "measured": [3.0, 4.0, 9.0]})
    frame = frame.assign(acceptance=[1.0, 2.0, 8.0], excellence=[5.0, 6.0, 7.0])
    b, a = case_scores(frame, "uint8_y", "psnr", 0.05)
    assert (b.measure.dataset, a.measure.dataset) == ("b", "a")
    assert b.gain.tolist() == [2.0, 2.0]
    assert a.span.tolist() == [-1.0]


def test_the_figure_sorts_cases_and_marks_each_once(tmp_path: Path) -> None:
    acceptance = np.array([25.0, 21.0, 23.0])
    one = CaseScores(
        Measure("Set5", "uint8_y", "psnr"), acceptance + np.array([0.5, -0.5, 0.5]), acceptance, acceptance + 1, 0.05
    )
    figure = draw_cases([one, one], NAMES)
    assert len(figure.axes) == 4
    lines = {str(line.get_label()): line for line in figure.axes[0].get_lines()}
    assert ydata(lines["acceptance: bicubic"]) == [21.0, 23.0, 25.0]
    assert ydata(lines["excellence: strong"]) == [22.0, 24.0, 26.0]
    assert np.asarray(lines["ours, accepted"].get_xdata()).tolist() == [2, 3]
    assert ydata(lines["ours, rejected"]) == [20.5]
    assert "(dB)" in figure.axes[0].get_title()
    save_cases([one], NAMES, tmp_path / "new" / "cases.png")
    with Image.open(tmp_path / "new" / "cases.png") as drawn:
        assert drawn.width > 1000


def test_lower_is_better_sorts_from_the_worst_too() -> None:
    acceptance = np.array([0.2, 0.4, 0.3])
    one = CaseScores(Measure("Set5", "rgb", "gmsd"), acceptance, acceptance, acceptance - 0.1, 0.01)
    lines = {str(line.get_label()): line for line in draw_cases([one], NAMES).axes[0].get_lines()}
    assert ydata(lines["acceptance: bicubic"]) == [0.4, 0.3, 0.2]


@pytest.mark.parametrize(
    ("metrics", "noise", "said"),
    [
        (["psnrr"], None, "did you mean 'psnr'"),
        (["psnr", "ssim"], None, "psnr, ssim: --protocol seal takes one metric"),
        (["high_band"], 0.1, "neither end of high_band is best"),
        (["diversity"], 0.1, "neither end of diversity is best"),
        (["ssim"], None, "--noise: say how far ssim can be off"),
        (["psnr"], -0.1, "--noise -0.1"),
        (["psnr"], math.nan, "--noise nan"),
    ],
)
def test_a_metric_without_lines_is_refused(metrics: list[str], noise: float | None, said: str) -> None:
    with pytest.raises(StudyError, match=said):
        check_metric(metrics, noise)


def test_noise_is_known_for_psnr_and_can_be_given() -> None:
    assert check_metric(["psnr"], None) == ("psnr", 0.05)
    assert check_metric(["psnr"], 0.0) == ("psnr", 0.0)
    assert check_metric(["lpips"], 0.01) == ("lpips", 0.01)


def test_a_figure_is_png() -> None:
    check_figure(None)
    with pytest.raises(StudyError, match=r"cases\.pdf: the cases are drawn as PNG"):
        check_figure(Path("cases.pdf"))
