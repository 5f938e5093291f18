import errno
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from study.records.schemas import TABLES
from study.records.store import POINTS, RecordError, read, read_json, read_table, replace, write_json, write_table

ROWS = [{"dataset": "Set5", "image": "baby", "protocol": "uint8_y", "metric": "psnr", "value": 31.25}]


def test_a_table_comes_back_as_it_was_written(tmp_path: Path) -> None:
    write_table(tmp_path, "images", ROWS)
    assert read_table(tmp_path, "images").to_dict("records") == ROWS


def test_equal_rows_give_equal_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_table(tmp_path / name, "images", ROWS)
    assert (tmp_path / "a" / "images.parquet").read_bytes() == (tmp_path / "b" / "images.parquet").read_bytes()


def test_every_field_says_what_it_means_and_in_which_unit() -> None:
    for schema in TABLES.values():
        for field in schema:
            assert set(field.metadata) == {b"meaning", b"unit"}
            assert field.metadata[b"meaning"]


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    replace(path, b"old")

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "no space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="no space") as failed:
        replace(path, b"new")
    assert failed.value.filename == str(path)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_one_reader_over_many_runs(tmp_path: Path) -> None:
    for run in ("one", "two"):
        write_table(tmp_path / run, "images", ROWS)
    write_table(tmp_path / "two", "costs", [{"name": "parameters", "value": 3.0, "unit": "1"}])
    records = read(tmp_path, ["one", "two", "unstarted"])
    assert records.images.run.tolist() == ["one", "two"]
    assert list(records.images.columns) == ["run", *TABLES["images"].names]
    assert records.costs.run.tolist() == ["two"]
    assert records.scalars.empty


def test_a_long_curve_is_averaged_in_bins(tmp_path: Path) -> None:
    rows = [{"step": step, "name": name, "value": float(step % 7)} for step in range(1, 951) for name in ("a", "b")]
    rows += [{"step": step, "name": "short", "value": float(step)} for step in (300, 600, 950)]
    rows[200]["value"] = float("nan")
    write_table(tmp_path / "one", "scalars", rows)
    read_back = read(tmp_path, ["one"]).scalars
    assert read_back.dtypes["step"] == "int64"
    assert read_back[read_back["name"] == "short"]["value"].tolist() == [300, 600, 950]
    curve = read_back[read_back["name"] == "b"]
    assert len(curve) == POINTS
    edges = [950 * k // POINTS for k in range(POINTS + 1)]
    assert curve["step"].tolist() == edges[1:]
    values = [step % 7 for step in range(1, 951)]
    assert curve["value"].tolist() == pytest.approx([sum(values[i:j]) / (j - i) for i, j in pairwise(edges)])
    assert read_back.query("name == 'a'")["value"].isna().tolist().count(True) == 1


def test_a_changed_bit_is_told_and_never_read_as_another_value(tmp_path: Path) -> None:
    rows = [{**ROWS[0], "image": f"image_{n % 7}", "value": float(n)} for n in range(60)]
    write_table(tmp_path / "run", "images", rows)
    path = tmp_path / "run" / "images.parquet"
    content = path.read_bytes()
    right = read(tmp_path, ["run"]).images
    told = silent = 0
    for place in range(4, len(content), 5):
        damaged = bytearray(content)
        damaged[place] ^= 1 << place % 8
        path.write_bytes(damaged)
        try:
            found = read(tmp_path, ["run"]).images
        except RecordError as error:
            told += "images.parquet" in str(error)
            silent += "images.parquet" not in str(error)
        else:  # a bit of the description, which says nothing of the rows
            pd.testing.assert_frame_equal(found, right)
    for end in range(0, len(content), 101):
        path.write_bytes(content[:end])
        with pytest.raises(RecordError, match=r"images\.parquet is not a readable parquet file"):
            read_table(path.parent, "images")
    assert told > 100
    assert not silent


def test_json_without_end_is_told(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text("[" * 100_000)
    with pytest.raises(RecordError, match=r"run\.json is not valid JSON"):
        read_json(tmp_path / "run.json")


def test_what_is_broken_or_absent_is_named(tmp_path: Path) -> None:
    with pytest.raises(RecordError, match=r"images\.parquet is missing"):
        read_table(tmp_path, "images")
    (tmp_path / "images.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(RecordError, match=r"images\.parquet is not a readable parquet file"):
        read_table(tmp_path, "images")
    pd.DataFrame({"a": [1]}).to_parquet(tmp_path / "images.parquet")
    with pytest.raises(RecordError, match=r"images\.parquet has columns \['a'\]"):
        read_table(tmp_path, "images")
    (tmp_path / "run.json").write_text("{")
    with pytest.raises(RecordError, match=r"run\.json is not valid JSON"):
        read_json(tmp_path / "run.json")
    with pytest.raises(RecordError, match=r"status\.json is missing"):
        read_json(tmp_path / "status.json")
    write_json(tmp_path / "run.json", {"ü": 1})
    assert read_json(tmp_path / "run.json") == {"ü": 1}


def test_writers_of_one_file_do_not_disturb_each_other(tmp_path: Path) -> None:
    contents = [bytes([65 + n]) * 20_000 for n in range(4)]
    with ThreadPoolExecutor(4) as pool:
        for part in [pool.submit(lambda c=c: [replace(tmp_path / "one", c) for _ in range(40)]) for c in contents]:
            part.result()
    assert (tmp_path / "one").read_bytes() in contents
    assert [path.name for path in tmp_path.iterdir()] == ["one"]


def test_a_stale_handle_is_asked_for_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_json(tmp_path / "a.json", {"x": 1})
    read_text, calls = Path.read_text, []

    def once(self: Path, *given: Any, **named: Any) -> str:
        calls.append(self)
        if len(calls) == 1:
            raise OSError(errno.ESTALE, "Stale file handle")
        return read_text(self, *given, **named)

    monkeypatch.setattr(Path, "read_text", once)
    assert read_json(tmp_path / "a.json") == {"x": 1}
