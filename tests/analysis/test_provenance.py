import re

from study.analysis.provenance import provenance_table, training_codes
from tests.analysis.synthetic import arrange, draw_study, write_provenance


def test_what_runs_agree_on_is_said_once(tmp_path):
    study = draw_study(tmp_path)
    write_provenance(study)
    table = provenance_table(arrange(study), study.runs)
    rows = {row[0].value: row[1].value for row in table.entries()}
    assert rows == {"commit": "0123abc", "dirty": "false", "device": "cpu, 2 threads", "packages.torch": "2.15.0"}
    assert table.notes[0].startswith("Read from 13 of 13 runs.")


def test_disagreement_comes_first(tmp_path):
    study = draw_study(tmp_path)
    write_provenance(study, device="NVIDIA H200", packages={"torch": "2.15.0", "numpy": "2.4"})
    rows = provenance_table(arrange(study), study.runs).entries()
    assert [row[0].value for row in rows[:2]] == ["device", "packages.numpy"]
    assert rows[0][1].value == "NVIDIA H200 (1); cpu, 2 threads (12)"
    assert rows[1][1].value == "2.4 (1); absent (12)"
    assert rows[0][1].suffix == "runs differ"


def test_runs_without_provenance_are_counted(tmp_path):
    study = draw_study(tmp_path)
    table = provenance_table(arrange(study), study.runs)
    assert table.rows == ()
    assert table.notes[0].startswith("Read from 0 of 13 runs.")


def test_the_code_of_every_training_is_named_with_its_cells(tmp_path):
    study = draw_study(tmp_path)
    assert training_codes(arrange(study), study.runs) == []
    write_provenance(study, training_sha256="abcdef0123456789")
    codes = training_codes(arrange(study), study.runs)
    assert len(codes) == 2
    assert sorted(code.partition(":")[0] for code in codes) == ["abcdef012345", "not recorded"]
    assert sum(int(count) for code in codes for count in re.findall(r"\((\d+)\)", code)) == 12  # bicubic trains nothing
