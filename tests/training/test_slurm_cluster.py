"""A grid on a real Slurm of this machine: cancelled, warned, requeued, finished, and equal to a local run."""

import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from study.grid.expand import load_plan
from study.records.location import locate
from study.records.store import read_table
from tests.training import slurm_cluster
from tests.training.conftest import grid_writer


@pytest.fixture(scope="module")
def cluster() -> Iterator[dict[str, str]]:
    pytest.importorskip("submitit")
    obstacle = slurm_cluster.obstacle()
    if obstacle:
        pytest.skip(obstacle)
    with tempfile.TemporaryDirectory(prefix="slurm-") as folder, slurm_cluster.cluster(Path(folder)) as environment:
        yield {**os.environ, **environment, "OMP_NUM_THREADS": "1", "COLUMNS": "200"}


class Desk:
    """Somebody who types commands beside a cluster."""

    def __init__(self, root: Path, steps: int, environment: dict[str, str]) -> None:
        text = "variants: {hard: {}, soft: {model.assignment: {kind: soft}}}"
        changes = (("steps: 12", f"steps: {steps}"), ("log_every: 2", "log_every: 20"), ("seeds: 2", "seeds: 1"))
        self.root, self.environment = root, environment
        self.grid = grid_writer(root)(text, *changes)
        (root / "p.yaml").write_text("cpus: 1\n")

    def begin(self, *words: str) -> subprocess.Popen[str]:
        output: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
        return subprocess.Popen(words, env=self.environment, text=True, **output)

    def end(self, process: subprocess.Popen[str]) -> str:
        said = process.communicate(timeout=120)[0]
        assert process.returncode == 0, said
        return said

    def call(self, *words: str) -> str:
        return self.end(self.begin(*words))

    def words(self, verb: str, *more: str, results: str = "results") -> list[str]:
        words = [sys.executable, "-W", "ignore", "-m", "study", verb, str(self.grid), "--results"]
        data = ["--data-root", str(self.root / "images"), "--cpu"] if verb == "run" else []
        return [*words, str(self.root / results), *data, *more]

    def study(self, verb: str, *more: str) -> str:
        return self.call(*self.words(verb, *more))

    def submit(self, *more: str) -> str:
        return self.study("run", "--slurm", str(self.root / "p.yaml"), *more)

    def status(self, kind: str) -> dict[str, Any]:
        paths = list((self.root / "results" / "runs").glob(f"catanet-{kind}-*/status.json"))
        return json.loads(paths[0].read_text()) if paths else {"state": "pending"}

    def queue(self) -> dict[str, str]:
        lines = self.call("squeue", "--noheader", "--array", "--format=%i %T").splitlines()
        return dict(line.split() for line in lines)

    def wait(self, happened: Callable[[], bool], seconds: float = 60) -> None:
        deadline = time.monotonic() + seconds
        while not happened():
            assert time.monotonic() < deadline, (self.queue(), [self.status(kind) for kind in ("hard", "soft")])
            time.sleep(0.05)


@pytest.mark.slow
def test_an_array_with_a_cancelled_and_a_warned_task_ends_as_a_local_run_does(
    cluster: dict[str, str], tmp_path: Path
) -> None:
    desk = Desk(tmp_path, 240, cluster)
    local = desk.begin(*desk.words("run", results="local"))
    said = desk.submit("--detach")
    job = re.findall(r"submitted 2 runs as job (\d+), 2 tasks", said)[0]
    desk.wait(lambda: desk.status("hard").get("step", 0) >= 20 and desk.status("soft").get("step", 0) >= 20)
    desk.call("scancel", f"{job}_0")
    desk.call("scancel", "--signal=USR1", f"{job}_1")
    desk.wait(lambda: desk.status("hard")["state"] == "interrupted" == desk.status("soft")["state"])
    steps = {kind: desk.status(kind)["step"] for kind in ("hard", "soft")}
    assert all(20 <= step < 240 for step in steps.values())
    desk.wait(lambda: f"{job}_0" not in desk.queue())
    desk.wait(lambda: desk.queue()[f"{job}_1"] == "PENDING")  # it put itself back
    desk.call("scontrol", "requeue", f"{job}_0")
    assert f"soft, seed 0: pending as {job}_1" in desk.study("status")
    said = desk.submit()  # follows
    assert "submitted" not in said
    assert "2 done" in said
    assert all(desk.status(kind)["attempt"] == 2 for kind in ("hard", "soft"))
    assert "2 done" in desk.end(local)
    same_as_local(desk)
    declared = [json.loads((tmp_path / name / "declared" / "grid.json").read_text()) for name in ("results", "local")]
    assert declared[0] == declared[1]


def same_as_local(desk: Desk) -> None:
    folders = [desk.root / name / "runs" for name in ("results", "local")]
    ids = [set(locate(folder, load_plan(desk.grid)).values()) for folder in folders]
    assert ids[0] == ids[1]
    assert len(ids[0]) == 2
    for run_id in ids[0]:
        for name in ("images.parquet", "scalars.parquet", "weights.safetensors"):
            assert (folders[0] / run_id / name).read_bytes() == (folders[1] / run_id / name).read_bytes(), (
                run_id,
                name,
            )
        costs = [read_table(folder / run_id, "costs") for folder in folders]
        costs = [rows[rows["unit"] == "1"].reset_index(drop=True) for rows in costs]
        assert costs[0].equals(costs[1])


@pytest.mark.slow
def test_cancel_stops_what_was_submitted_and_the_next_command_goes_on(cluster: dict[str, str], tmp_path: Path) -> None:
    desk = Desk(tmp_path, 200, cluster)
    (tmp_path / "p.yaml").write_text("cpus: 1\nat_once: 1\n")
    desk.submit("--detach")
    desk.wait(lambda: desk.status("hard").get("step", 0) >= 20)
    said = desk.study("cancel")
    assert re.search(r"cancelled: running as \d+_0: hard, seed 0\n", said)
    assert re.search(r"cancelled: pending as \d+_1 \(\w+\): soft, seed 0\n", said)
    assert desk.queue() == {}
    assert desk.status("hard")["state"] == "interrupted"
    assert desk.status("soft")["state"] == "pending"
    (tmp_path / "p.yaml").write_text("cpus: 1\ngpus: 2\n")  # one task, which is no array; a process for each GPU
    job = re.findall(r"submitted 2 runs as job (\d+), 1 tasks", desk.submit("--detach"))[0]
    desk.wait(lambda: all(desk.status(kind)["state"] == "running" for kind in ("hard", "soft")))
    assert desk.status("hard")["attempt"] == 2
    assert desk.status("hard")["process"] != desk.status("soft")["process"]
    assert desk.queue() == {job: "RUNNING"}
    assert "in the queue before: 1 running" in desk.submit("--detach")
