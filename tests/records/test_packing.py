from pathlib import Path

import pandas as pd
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
    command = ["study", "run", "g.yaml", "--data-root", "/home/me/images", "--cpu", "--results=/mnt/all"]
    write_json(folder / "provenance.json", {"commit": "abc", "command": command})
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
    assert (other / "runs" / NAMES[1] / "packages-0123.txt").read_text() == "torch 2.11\n"
    assert not list((other / "runs" / NAMES[2]).glob("packages*"))
    assert not list(other.rglob("weights*"))
    assert (other / "declared" / "grid.json").read_bytes() == (results / "declared" / "grid.json").read_bytes()
    assert unpack(folder, other) == []


def test_nothing_of_the_machine_is_packed(results: Path, tmp_path: Path) -> None:
    pack(results, "grid", NAMES, tmp_path / "reference")
    unpack(tmp_path / "reference", tmp_path / "other")
    run = tmp_path / "other" / "runs" / NAMES[3]
    kept = ["study", "run", "g.yaml", "--data-root", "…", "--cpu", "--results=…"]
    assert read_json(run / "provenance.json") == {"commit": "abc", "command": kept}
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
    costs.unlink()
    with pytest.raises(RecordError, match=rf"{costs.name} is missing"):
        unpack(folder, tmp_path / "other")
    assert not list((tmp_path / "other" / "runs").glob("*/DONE"))
