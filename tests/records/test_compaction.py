import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from study.records import claims, compaction
from study.records.claims import release, take
from study.records.compaction import FOLDER, compact, separate
from study.records.index import finished
from study.records.schemas import RUN_TABLES
from study.records.store import RecordError, Records, read, read_table, write_json, write_table
from study.records.survey import survey

NAMES = [f"run-{index}" for index in range(5)]


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """Five finished runs, of which the third has no scalars, and one that is not finished."""
    folder = tmp_path / "runs"
    for index, name in enumerate([*NAMES, "begun"]):
        write_json(folder / name / "run.json", {"schema_version": 1, "run": {}})
        rows = [
            {"dataset": "Set5", "image": f"i{n}", "protocol": "rgb", "metric": "psnr", "value": n + index}
            for n in range(index)
        ]
        write_table(folder / name, "images", rows)
        write_table(folder / name, "costs", [{"name": f"own_{index}", "value": 1.0, "unit": "s"}])
        tables = ["images.parquet", "costs.parquet"]
        if index != 2:
            write_table(folder / name, "scalars", [{"step": n, "name": "ab"[n % 2], "value": n} for n in range(300)])
            tables.append("scalars.parquet")
        if name != "begun":
            (folder / name / "DONE").write_text("\n".join(["run.json", *tables]))
    return folder


def same(one: Records, other: Records) -> None:
    for name in RUN_TABLES:
        pd.testing.assert_frame_equal(getattr(one, name), getattr(other, name))


def test_readers_see_no_difference(runs: Path) -> None:
    order = [NAMES[3], NAMES[0], NAMES[2], "begun", NAMES[4]]
    before, single = read(runs, order), read_table(runs / NAMES[3], "images")
    sizes = {path: path.read_bytes() for path in runs.glob("*/*.parquet")}
    ended = compact(runs)
    assert (ended.merged, ended.before, ended.left) == (NAMES, [], {"begun": "not finished"})
    assert sum(path.is_symlink() for path in runs.glob("run-*/*.parquet")) == 14
    assert len(list((runs / FOLDER).glob("*/*.parquet"))) == 3
    same(read(runs, order), before)
    pd.testing.assert_frame_equal(read_table(runs / NAMES[3], "images"), single)
    assert all(finished(runs / name) for name in NAMES)
    again = compact(runs)
    assert (again.merged, again.before) == ([], NAMES)
    assert separate(runs) == NAMES
    assert {path: path.read_bytes() for path in runs.glob("*/*.parquet")} == sizes
    assert not list((runs / FOLDER).glob("*/*.parquet"))


def test_a_merged_table_is_plain_parquet(runs: Path) -> None:
    compact(runs)
    frame = pd.read_parquet(runs / FOLDER / "costs")
    assert frame[["run", "name"]].to_numpy().tolist() == [[name, f"own_{index}"] for index, name in enumerate(NAMES)]


class Killed(Exception):
    pass


@pytest.mark.parametrize("step", range(24))
def test_a_kill_at_any_step_loses_nothing(runs: Path, monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    """Dies before the step-th change of the disk: before a merged file is there, between two links, or after all."""
    before = read(runs, NAMES)
    left = [step]

    def counted(change: Callable[..., Any]) -> Callable[..., Any]:
        def run(*arguments: Any, **options: Any) -> Any:
            left[0] -= 1
            if left[0] < 0:
                raise Killed
            return change(*arguments, **options)

        return run

    with monkeypatch.context() as patched:
        patched.setattr(compaction, "replace", counted(compaction.replace))
        patched.setattr(compaction, "_to_disk", counted(compaction._to_disk))
        patched.setattr(Path, "symlink_to", counted(Path.symlink_to))
        patched.setattr(claims, "release", lambda claim: None)
        died = False
        try:
            compact(runs)
        except Killed:
            died = True
    assert died == (step < 20)
    same(read(runs, NAMES), before)
    assert all(finished(runs / name) for name in NAMES)
    for claim in runs.glob("*/claims/*"):
        claim.write_text("")  # as of a process that is gone
    ended = compact(runs)
    assert sorted(ended.merged + ended.before) == NAMES
    same(read(runs, NAMES), before)
    used = {os.path.realpath(path) for path in runs.glob("run-*/*.parquet")}
    assert {str(path) for path in (runs / FOLDER).resolve().glob("*/*.parquet")} == used


def test_a_run_that_somebody_holds_is_left(runs: Path) -> None:
    claim = take(runs / NAMES[1])
    assert claim is not None
    assert compact(runs).left[NAMES[1]] == "running"
    assert not (runs / NAMES[1] / "images.parquet").is_symlink()
    release(claim)
    assert compact(runs).merged == [NAMES[1]]


def test_a_broken_table_is_left_and_named(runs: Path) -> None:
    (runs / NAMES[1] / "costs.parquet").write_bytes(b"PAR1")
    ended = compact(runs)
    assert "run-1/costs.parquet is not a readable parquet file" in ended.left[NAMES[1]]
    assert ended.merged == [name for name in NAMES if name != NAMES[1]]


def test_a_new_evaluation_replaces_the_link_alone(runs: Path) -> None:
    compact(runs)
    write_table(runs / NAMES[1], "costs", [{"name": "anew", "value": 2.0, "unit": "s"}])
    assert read(runs, NAMES).costs["name"].tolist() == ["own_0", "anew", "own_2", "own_3", "own_4"]
    assert compact(runs).merged == [NAMES[1]]
    assert read(runs, NAMES).costs["name"].tolist() == ["own_0", "anew", "own_2", "own_3", "own_4"]


def test_what_was_merged_and_is_gone_or_broken_is_told(runs: Path) -> None:
    compact(runs)
    assert survey(runs)[NAMES[0]].state["state"] == "done"
    part = next((runs / FOLDER / "costs").iterdir())
    content = part.read_bytes()
    part.write_bytes(content[:-20])
    with pytest.raises(RecordError, match=r"costs\.parquet is not a readable"):
        read(runs, NAMES)
    part.unlink()
    assert not finished(runs / NAMES[0])
    assert survey(runs)[NAMES[0]].state["state"] == "pending"
    with pytest.raises(RecordError, match=r"run-0/costs\.parquet is missing"):
        read_table(runs / NAMES[0], "costs")


def test_a_run_that_was_taken_over_meanwhile_keeps_its_own_tables(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = read(runs, NAMES)
    monkeypatch.setattr(claims.Claim, "lost", lambda self: self.path.parents[1].name == NAMES[2])
    ended = compact(runs)
    assert ended.left[NAMES[2]] == "taken over by another process"
    assert NAMES[2] not in ended.merged
    assert len(ended.merged) == len(NAMES) - 1
    assert not any(path.is_symlink() for path in (runs / NAMES[2]).glob("*.parquet"))
    same(read(runs, NAMES), before)


def test_undo_leaves_a_run_that_somebody_writes(runs: Path) -> None:
    compact(runs)
    claim = take(runs / NAMES[0])
    assert claim is not None
    with pytest.raises(RecordError, match=f"{NAMES[0]} is being written by another process"):
        separate(runs)
    release(claim)
    assert separate(runs) == NAMES
