import io
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow.parquet as pq
import pytest

from study.records import packing
from study.records.index import finished
from study.records.packing import pack, packed, unpack
from study.records.schemas import RUN_TABLES
from study.records.store import RecordError, Records, read, read_json, write_json, write_table

NAMES = [f"run-{index}" for index in range(5)]


def write_run(folder: Path, index: int) -> None:
    for file in ("run", "digests"):
        write_json(folder / f"{file}.json", {"file": file, "of": index, "ö": "−"})
    command = ["study", "run", "sub/g.yaml", "--data-root", "/home/me/images", "--cpu", "--results=/mnt/all/r"]
    write_json(folder / "provenance.json", {"commit": "abc", "command": command, "earlier": [{"command": command[3:]}]})
    write_json(folder / "status.json", {"state": "done", "host": "box", "process": 7, "step": index})
    write_table(
        folder,
        "images",
        [
            {"dataset": "Set5", "image": f"i{n}", "protocol": "rgb", "metric": "psnr", "value": n / 3}
            for n in range(index + 1)
        ],
    )
    write_table(folder, "costs", [{"name": f"own_{index}", "value": 1.0, "unit": "s"}])
    files = ["run.json", "images.parquet", "costs.parquet"]
    if index != 2:
        write_table(folder, "scalars", [{"step": n, "name": "ab"[n % 2], "value": n / 7} for n in range(300)])
        (folder / "weights.safetensors").write_bytes(b"large")
        (folder / "packages-0123.txt").write_text("torch 2.11\n")
        (folder / "packages-4567.txt").write_text("torch 2.12\n")
        (folder / "code-89ab.diff").write_text("+x\n")
        write_json(folder / "not_computed.json", {"lpips": "no weights"})
        files += ["scalars.parquet", "weights.safetensors"]
    (folder / "DONE").write_text("\n".join(files))


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """Five finished runs, of which the third trains nothing, and one that is not finished."""
    for index, name in enumerate(NAMES):
        write_run(tmp_path / "results" / "runs" / name, index)
    write_json(tmp_path / "results" / "runs" / "begun" / "run.json", {})
    write_json(tmp_path / "results" / "declared" / "grid.json", {"question": "?"})
    return tmp_path / "results"


def same(one: Records, other: Records) -> None:
    for name in RUN_TABLES:
        pd.testing.assert_frame_equal(getattr(one, name), getattr(other, name))


def test_what_is_unpacked_reads_as_what_was_packed(results: Path, tmp_path: Path) -> None:
    folder, other = tmp_path / "reference", tmp_path / "other"
    assert pack(results, "grid", NAMES, folder) == NAMES
    assert unpack(folder, other) == NAMES
    same(read(other / "runs", NAMES), read(results / "runs", NAMES))
    for name in NAMES:
        assert finished(other / "runs" / name)
        for file in ("run.json", "digests.json"):
            assert (other / "runs" / name / file).read_bytes() == (results / "runs" / name / file).read_bytes()
    texts = {path.name for path in (other / "runs" / NAMES[1]).iterdir() if path.suffix != ".parquet"}
    assert texts == {path.name for path in (results / "runs" / NAMES[1]).iterdir() if path.suffix != ".parquet"} - {
        "weights.safetensors"
    }
    for name in ("packages-0123.txt", "packages-4567.txt", "code-89ab.diff", "not_computed.json"):
        assert (other / "runs" / NAMES[1] / name).read_bytes() == (results / "runs" / NAMES[1] / name).read_bytes()
        assert not (other / "runs" / NAMES[2] / name).exists()
    assert not list(other.rglob("weights*"))
    assert (other / "declared" / "grid.json").read_bytes() == (results / "declared" / "grid.json").read_bytes()
    assert unpack(folder, other) == []


def test_nothing_of_the_machine_is_packed(results: Path, tmp_path: Path) -> None:
    pack(results, "grid", NAMES, tmp_path / "reference")
    unpack(tmp_path / "reference", tmp_path / "other")
    run = tmp_path / "other" / "runs" / NAMES[3]
    kept = ["study", "run", "sub/g.yaml", "--data-root", "…/images", "--cpu", "--results=…/r"]
    assert read_json(run / "provenance.json") == {"commit": "abc", "command": kept, "earlier": [{"command": kept[3:]}]}
    assert read_json(run / "status.json") == {"state": "done", "host": None, "process": None, "step": 3}


def test_packing_again_adds_files_and_touches_none(
    results: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packing, "TOGETHER", 2)
    folder = tmp_path / "reference"
    assert pack(results, "grid", NAMES[:3], folder) == NAMES[:3]
    before = {path: path.read_bytes() for path in folder.glob("*.parquet")}
    assert len(before) == 8
    assert pack(results, "grid", NAMES, folder) == NAMES[3:]
    after = {path: path.read_bytes() for path in folder.glob("*.parquet")}
    assert {path: after[path] for path in before} == before
    assert len(after) == 12
    assert sorted(packed(folder)) == NAMES
    assert sorted(unpack(folder, tmp_path / "other")) == NAMES


def test_packing_is_the_same_bytes_in_any_order(results: Path, tmp_path: Path) -> None:
    pack(results, "grid", NAMES, tmp_path / "one")
    pack(results, "grid", NAMES[::-1], tmp_path / "two")
    files = [path.relative_to(tmp_path / "one") for path in (tmp_path / "one").rglob("*.*")]
    assert len(files) == 5
    for path in files:
        assert (tmp_path / "one" / path).read_bytes() == (tmp_path / "two" / path).read_bytes()


def test_what_is_there_already_stays(results: Path, tmp_path: Path) -> None:
    pack(results, "grid", NAMES, tmp_path / "reference")
    (results / "runs" / NAMES[0] / "run.json").write_text("mine")
    (results / "declared" / "grid.json").write_text("mine")
    assert unpack(tmp_path / "reference", results) == []
    assert (results / "runs" / NAMES[0] / "run.json").read_text() == "mine"
    assert (results / "declared" / "grid.json").read_text() == "mine"


def test_what_was_first_declared_stays(results: Path, tmp_path: Path) -> None:
    folder = tmp_path / "reference"
    pack(results, "grid", NAMES[:2], folder)
    before = (folder / "declared" / "grid.json").read_bytes()
    write_json(results / "declared" / "grid.json", {"question": "another"})
    pack(results, "grid", NAMES, folder)
    assert (folder / "declared" / "grid.json").read_bytes() == before


def test_a_run_that_measured_something_else_since_is_refused(results: Path, tmp_path: Path) -> None:
    folder = tmp_path / "reference"
    pack(results, "grid", NAMES, folder)
    assert pack(results, "grid", NAMES, folder) == []
    row = {"dataset": "Set5", "image": "i0", "protocol": "rgb", "metric": "psnr", "value": 9.0}
    write_table(results / "runs" / NAMES[0], "images", [row])
    with pytest.raises(RecordError, match=r"run-0 has other values than in .*reference; pack into another"):
        pack(results, "grid", NAMES, folder)


def test_an_interrupted_unpacking_leaves_no_part_of_a_run(
    results: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, other = tmp_path / "reference", tmp_path / "other"
    pack(results, "grid", NAMES, folder)
    written = []

    def interrupted(*arguments: Any) -> None:
        written.append(arguments)
        if len(written) == 4:
            raise KeyboardInterrupt
        write_table(*arguments)

    monkeypatch.setattr(packing, "write_table", interrupted)
    with pytest.raises(KeyboardInterrupt):
        unpack(folder, other)
    assert [path.name for path in (other / "runs").iterdir()] == NAMES[:1]
    monkeypatch.undo()
    assert unpack(folder, other) == NAMES[1:]
    same(read(other / "runs", NAMES), read(results / "runs", NAMES))


def test_what_cannot_be_packed_or_unpacked_is_named(results: Path, tmp_path: Path) -> None:
    folder = tmp_path / "reference"
    with pytest.raises(RecordError, match=r"begun has not finished"):
        pack(results, "grid", ["begun", *NAMES], folder)
    assert not folder.exists()
    with pytest.raises(RecordError, match=r"reference holds no packed runs \(runs-….parquet\)"):
        unpack(folder, tmp_path / "other")
    pack(results, "grid", NAMES, folder)
    (costs,) = folder.glob("costs-*.parquet")
    content = costs.read_bytes()
    costs.write_bytes(content[:-9])
    with pytest.raises(RecordError, match=rf"{costs.name} is not a readable parquet file"):
        unpack(folder, tmp_path / "other")
    rows = pq.read_table(io.BytesIO(content))
    pq.write_table(rows.drop_columns("unit"), costs)
    with pytest.raises(RecordError, match=rf"{costs.name} has columns .*, expected .*unit"):
        unpack(folder, tmp_path / "other")
    costs.unlink()
    with pytest.raises(RecordError, match=rf"{costs.name} is missing"):
        unpack(folder, tmp_path / "other")
    assert not list((tmp_path / "other" / "runs").glob("*/DONE"))


def test_timings_go_along_without_the_machines_paths(results: Path, tmp_path: Path) -> None:
    folder, other, own = tmp_path / "reference", tmp_path / "other", results / "timings" / "grid"
    write_json(own / "networks.json", {"hard": "{}"})
    write_json(own / "provenance.json", {"device": "cpu", "command": ["study", "bench", "--results=/mnt/all/r"]})
    (own / "bench.parquet").write_bytes(b"rows")
    pack(results, "grid", NAMES, folder)
    unpack(folder, other)
    there = other / "timings" / "grid"
    assert (there / "bench.parquet").read_bytes() == b"rows"
    assert read_json(there / "networks.json") == {"hard": "{}"}
    assert read_json(there / "provenance.json") == {"device": "cpu", "command": ["study", "bench", "--results=…/r"]}
    (own / "bench.parquet").write_bytes(b"timed again")
    pack(results, "grid", NAMES, folder)
    assert (folder / "timings" / "grid" / "bench.parquet").read_bytes() == b"timed again"
    unpack(folder, other)
    assert (there / "bench.parquet").read_bytes() == b"rows"  # what a results folder holds stays
