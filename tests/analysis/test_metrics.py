from dataclasses import replace

import pandas as pd
import pytest

from study.analysis.metrics import not_computed, other_metrics_table, stored_measures
from study.analysis.results import Measure
from study.records.store import RecordError, write_json
from tests.analysis.generative import REASON, draw_generative
from tests.analysis.synthetic import arrange, draw_study

SAID = REASON.removeprefix("not computed: ")


def table(study):
    results = arrange(study)
    return other_metrics_table(results, not_computed(results, study.runs))


@pytest.fixture
def study(tmp_path):
    return draw_generative(tmp_path)


def test_every_stored_metric_beside_the_main_ones(tmp_path):
    study = draw_study(tmp_path)
    assert table(study) is None
    rows = study.records.images.query("metric == 'psnr' and protocol == 'uint8_y'")
    extra = [rows.assign(metric=name, protocol="rgb") for name in ("lpips", "fsim")]
    study.records = replace(study.records, images=pd.concat([study.records.images, *extra], ignore_index=True))
    found = table(study)
    assert found is not None
    assert [(c.name, c.best) for c in found.columns[1:]] == [("LPIPS", "low"), ("FSIM", "high")] * 2
    assert found.notes == ("Means are over 2 seeds. FSIM: higher is better; LPIPS: lower is better.",)


def test_the_declared_protocol_is_preferred(study):
    rows = study.records.images.query("metric == 'swd'").assign(protocol="uint8_y")
    study.records = replace(study.records, images=pd.concat([study.records.images, rows], ignore_index=True))
    found = [measure for measure in stored_measures(arrange(study)) if measure.metric in ("swd", "niqe")]
    assert found == [
        Measure("bundled", "rgb", "niqe"), Measure("bundled", "uint8_y", "swd"),
        Measure("Set5", "rgb", "niqe"), Measure("Set5", "uint8_y", "swd"),
    ]  # fmt: skip


def test_what_no_run_could_compute_has_a_column_and_its_reason(study):
    found = table(study)
    assert found is not None
    places = [j for j, column in enumerate(found.columns) if column.name == "LPIPS"]
    assert [found.columns[j].group for j in places] == ["bundled", "Set5"]
    assert {row[j].value for row in found.entries() for j in places} == {"not computed"}
    assert found.notes[1:] == (f"Not computed: LPIPS: {SAID}",)
    assert "spectral slope, high band: difference to HR, zero is best" in found.notes[0]


def test_values_stand_beside_what_was_not_computed(study):
    niqe = study.records.images.query("metric == 'niqe' and dataset == 'bundled'")
    extra = niqe[niqe["run"] == study.ids["CT", 0]].assign(metric="lpips", value=0.25)
    study.records = replace(study.records, images=pd.concat([study.records.images, extra], ignore_index=True))
    found = table(study)
    assert found is not None
    place = next(j for j, column in enumerate(found.columns) if column.name == "LPIPS")
    one, other = found.entries()[:2]
    assert (one[place].value, one[place].suffix, one[place].tone) == (0.25, "(n = 1)", "warn")
    assert other[place].value == "not computed"


def test_reasons_are_said_once_and_only_of_finished_runs(study):
    for seed in (0, 1, 2):
        run = study.runs / study.ids["CT + DTM", seed]
        write_json(run / "not_computed.json", {"musiq": "no network", "maniqa": "no network"})
    write_json(study.runs / study.ids["CT", 0] / "not_computed.json", {"vif": "never"})
    study.statuses[study.ids["CT", 0]]["state"] = "failed"
    missing = not_computed(arrange(study), study.runs)
    assert list(missing["CT"]) == ["lpips"]
    found = table(study)
    assert found is not None
    assert found.notes[1:] == (f"Not computed: LPIPS: {SAID}", "Not computed: MUSIQ, MANIQA: no network")
    assert "VIF" not in [column.name for column in found.columns]
    musiq = next(j for j, column in enumerate(found.columns) if column.name == "MUSIQ")
    assert [row[musiq].value for row in found.entries()] == [None, "not computed", None, None, None]


def test_a_broken_file_is_named(study):
    path = study.runs / study.ids["CT", 1] / "not_computed.json"
    path.write_text("{")
    with pytest.raises(RecordError, match=r"not_computed.json is not valid JSON"):
        not_computed(arrange(study), study.runs)


def test_marks_of_signed_differences_follow_their_size(study):
    found = table(study)
    assert found is not None
    place = next(j for j, column in enumerate(found.columns) if column.name == "high band")
    values = [value for row in found.entries() if isinstance(value := row[place].value, float)]
    assert len(values) == 5
    assert max(values) < 0
    assert found.marks()[values.index(max(values)), place] == "best"
