"""Times of a grid's networks, from rows whose answer is known."""

import pandas as pd
import pytest

from study.analysis.complexity import network_costs
from study.analysis.timing import latency_quartiles, timing_table
from tests.analysis.synthetic import arrange, draw_study

SECONDS = {
    ("hard", "training"): (2.0, 4.0, 3.0),
    ("soft", "training"): (3.0, 5.0, 3.0),
    ("hard", "inference"): (0.5, 0.25, 1.0),
    ("bicubic", "inference"): (0.05, 0.05, 0.05),
}


@pytest.fixture
def rows() -> pd.DataFrame:
    body = [
        {"model": model, "phase": phase, "variant": "as it is", "repeat": repeat, "seconds": seconds}
        | {"operations": float("nan") if model == "bicubic" else 1e9, "matrix_rate": 1e9 * (1 + repeat)}
        for (model, phase), times in SECONDS.items()
        for repeat, seconds in enumerate(times)
    ]
    return pd.DataFrame(body).iloc[::-1]  # in any order


def test_shares_are_paired_by_repeat(rows: pd.DataFrame) -> None:
    table = timing_table(rows, {"device": "one GPU", "commit": "0123456789"}, "hard")
    assert [f"{column.group} {column.heading}".strip() for column in table.columns] == [
        "cell",
        "step time (ms)",
        "step × baseline",
        "step × floor",
        "inference time (ms)",
        "inference × baseline",
        "inference × floor",
    ]
    found = {row[0].value: row[1:] for row in table.entries()}
    assert [entry.value for entry in found["hard"]] == [3000, 1, 8, 500, 1, 0.5]  # 2 · 1, 4 · 2, 3 · 3; 0.5, 0.5, 3
    assert [entry.value for entry in found["soft"]] == [3000, 1.25, 9, None, None, None]  # 1.5, 1.25, 1
    assert found["soft"][1].suffix == "(1.00–1.50)"
    assert [entry.value for entry in found["bicubic"]] == [None, None, None, 50, 0.1, None]
    assert table.caption.endswith("measured in turn; on one GPU, commit 0123456.")
    without = timing_table(rows.query("model != 'hard'"), {}, "hard")
    soft = next(row for row in without.entries() if row[0].value == "soft")
    assert [entry.value for entry in soft[1:4]] == [3000, None, 9]
    assert timing_table(rows, {"commit": "0123456789", "dirty": True}, "hard").caption.endswith("uncommitted changes.")
    untrained = timing_table(rows.query("phase == 'inference'"), {}, "hard")
    assert [column.group for column in untrained.columns] == ["", "inference", "inference", "inference"]


def test_measured_in_turn_takes_the_place_of_the_runs_own(rows: pd.DataFrame, tmp_path) -> None:
    quartiles = latency_quartiles(rows)
    assert quartiles["hard"] == pytest.approx((375, 500, 750))
    assert "soft" not in quartiles
    results = arrange(draw_study(tmp_path))
    before = network_costs(results)
    after = network_costs(results, {"bicubic": quartiles["bicubic"]})
    place = list(results.cells).index("bicubic")
    assert after["latency_median"][place] == pytest.approx(50)
    assert before["latency_median"][place] != pytest.approx(50)
    assert (after["latency_median"] == before["latency_median"]).sum() == len(results.cells) - 1
    assert latency_quartiles(pd.DataFrame(columns=["model"])) == {}
