"""Tables over several grids, from drawn results whose answers are known."""

from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from study.analysis.campaign import distance_table, lengths_table, order_agreement, throughput_table, weights_table
from study.analysis.published import load_published
from study.analysis.results import Measure, Results
from tests.analysis.synthetic import arrange, draw_study

LENGTHS = """
question: Does the order hold?
base:
  scale: 4
  evaluation: {datasets: {Set5: {kind: folder, path: Set5/HR}}, protocols: [uint8_y]}
variants:
  hard: {}
  soft: {model.assignment: {kind: soft}}
  IMDN: {model: {kind: imdn}}
axes:
  optimisation.steps: [400, 100, 200]
references:
  bicubic: {model: {kind: bicubic}}
seeds: 2
analysis: {baseline: "hard, steps=400", comparisons: []}
"""
# IMDN overtakes soft between 100 and 200 steps, and hard between 200 and 400.
LEVELS = {"hard": (1.0, 1.1, 1.2), "soft": (0.5, 0.6, 0.7), "IMDN": (0.1, 0.8, 2.0)}
EFFECTS = {
    f"{name}, steps={steps}": level
    for name, levels in LEVELS.items()
    for steps, level in zip((100, 200, 400), levels, strict=True)
}
WEIGHTS = """
question: Do published weights give their printed numbers?
base:
  scale: 4
  evaluation: {datasets: {Set5: {kind: folder, path: Set5/HR}}, protocols: [uint8_y], metrics: [psnr]}
variants:
  IMDN: {model: {kind: external, weights: a.pth, network: {kind: imdn}}}
  small: {model: {kind: external, weights: a.pth, network: {kind: imdn, width: 16}}}
  bicubic: {model: {kind: bicubic}}
analysis: {baseline: IMDN, comparisons: []}
"""


@pytest.fixture
def lengths(tmp_path: Path) -> Results:
    return arrange(draw_study(tmp_path, LENGTHS, EFFECTS, images=5, seed_noise_db=0, image_noise_db=0))


def test_order_of_networks_at_every_length(lengths: Results) -> None:
    table = lengths_table(lengths)
    assert [column.heading for column in table.columns] == [
        "network",
        "100 steps (dB)",
        "200 steps (dB)",
        "400 steps (dB)",
    ]
    hard, soft, imdn = table.rows
    assert hard[0] == "hard"
    assert [float(str(a)) - float(str(b)) for a, b in zip(hard[1:], imdn[1:], strict=True)] == pytest.approx(
        [0.9, 0.3, -0.8]
    )
    assert float(str(soft[3])) - float(str(soft[1])) == pytest.approx(0.2)
    first, second = order_agreement(lengths)
    assert (first.steps, first.longest, second.steps) == (100, 400, 200)
    assert first.tau == pytest.approx(-1 / 3)  # one pair of three agrees
    assert first.exchanged == ("IMDN and hard", "IMDN and soft")
    assert second.tau == pytest.approx(1 / 3)
    assert second.exchanged == ("IMDN and hard",)


def test_distance_is_to_the_papers_own_networks_under_their_own_protocol(tmp_path: Path) -> None:
    text = LENGTHS.replace("protocols: [uint8_y]", "protocols: [uint8_y, float_y]")
    results = arrange(draw_study(tmp_path, text, EFFECTS, images=5, seed_noise_db=0, image_noise_db=0))
    table = distance_table(results, load_published())
    cited = [(row[0], row[1], row[2], getattr(row[3], "value", None)) for row in table.rows]
    assert cited == [("hard", "Set5", "float_y", 32.58), ("IMDN", "Set5", "uint8_y", 32.21)]
    for row, cell in zip(table.rows, ("hard, steps=400", "IMDN, steps=400"), strict=True):
        mean = results.mean(cell, Measure("Set5", str(row[2]), "psnr"))
        assert row[6] == pytest.approx(mean - getattr(row[3], "value", 0))


def test_published_weights_are_judged_by_their_last_digit(tmp_path: Path) -> None:
    study = draw_study(tmp_path, WEIGHTS, images=5)
    images = study.records.images
    mine = (images["run"] == study.ids["IMDN", 0]) & (images["metric"] == "psnr")
    for value, verdict, shown in ((32.2149, "reproduced", "32.21"), (32.2151, "not reproduced", "32.2151")):
        images.loc[mine, "value"] = value
        rows = weights_table(arrange(study), load_published()).rows
        psnr = next(row for row in rows if row[2] == "PSNR")
        assert psnr[:4] == ("IMDN", "Set5, x4", "PSNR", shown)
        assert getattr(psnr[4], "value", "") == "32.21"
        assert getattr(psnr[5], "value", "") == verdict
        assert {row[0] for row in rows} == {"IMDN"}  # another size has no published number


def test_throughput_counts_each_run_once_and_knows_the_floor(lengths: Results) -> None:
    rows = []
    for cell, seed, run in lengths.runs():
        if cell.runs[0].trains:
            steps = cell.runs[0].optimisation.steps
            rows += [
                {"run": run, "name": name, "value": value, "unit": "s"}
                for name, value in (
                    ("training", steps / 2 + 10.0 + seed),
                    ("training_validation", 10.0 + seed),
                    ("evaluation", 3600.0 - steps / 2 - 10 - seed),
                )
            ]
    records = replace(lengths.records, costs=pd.DataFrame(rows))
    results = replace(lengths, records=records)
    # two steps a second of 64 crops
    operations = {"catanet": 30e6, "imdn": 6e6}
    rate = 2 * 64 * 30e6 / 0.25
    table = throughput_table([results, results], lambda run: operations[run.model.kind], rate)
    found = {row[0]: row[1:] for row in table.rows}
    assert list(found) == ["CATANet, hard, x4, batch 64", "CATANet, soft, x4, batch 64", "IMDN, x4, batch 64", "all"]
    assert found["CATANet, soft, x4, batch 64"] == (6, pytest.approx(2), pytest.approx(0.25), pytest.approx(6))
    assert found["IMDN, x4, batch 64"][2] == pytest.approx(0.05)
    assert found["all"][0] == 18
    assert found["all"][3] == pytest.approx(18)
