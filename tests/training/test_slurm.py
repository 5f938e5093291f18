"""Slurm without a cluster: profiles, submissions, the queue, and what a task does that is told to stop."""

import json
import pickle
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from study.cli import app
from study.cli.slurm import Launch, _ended, _identify
from study.grid.expand import load_plan
from study.grid.loading import GridError
from study.grid.plan import Plan, title
from study.training import slurm, slurm_queue
from study.training.placement import Signals
from study.training.slurm import Profile, Task, go_back, group, read_profile, restrict, submit
from study.training.slurm_queue import Queued, SlurmError, Submission, parse, queue, submissions

Write = Callable[..., Path]
STARTED = """\
variants:
  first: {}
  second: {start: first}
  third: {start: first, optimisation.steps: 14}
  alone: {model.assignment: {kind: soft}}"""


def programs(folder: Path, monkeypatch: pytest.MonkeyPatch, **scripts: str) -> Path:
    """Stands in for Slurm's programs; each notes its words in a file and does what its script says."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, script in scripts.items():
        path = folder / name
        path.write_text(f'#!/bin/sh\necho "{name} $*" >> {folder}/called\n{script}\n')
        path.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    return folder / "called"


def launch(grid: Path, **changes: Any) -> Launch:
    given = {
        "placement": "run-per-process",
        "cpu": True,
        "workers": None,
        "deterministic": False,
        "trackers": (),
        **changes,
    }
    return Launch(grid.parent / "results", grid.parent / "images", **given)


def task(plan: Plan, ids: tuple[str, ...], root: Path) -> Task:
    return Task(plan, ids, root / "results", root / "images", "run-per-process", True, None, False, (), 3, 1)


# The profile


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("partition: long\ntiem: 60\n", ["p.yaml:2", "tiem: unknown key", "did you mean 'time'"]),
        ("time: 4h\n", ["p.yaml:1", "time: '4h' is no time of Slurm's", "hours:minutes:seconds"]),
        ("time: 0\n", ["p.yaml:1", "time"]),
        ("cpus: 0\n", ["p.yaml:1", "cpus", "greater than 0"]),
        ("gpus: 1\nnodes: two\n", ["p.yaml:2", "nodes", "'two'"]),
        ("extra: {array: 0-3}\n", ["p.yaml:1", "array is set by the submission itself"]),
        ("extra:\n  --mem: 4G\n", ["p.yaml:1", "key of its own", "memory_gb"]),
        ("extra: {gpus-per-node: 2}\n", ["key of its own", "gpus"]),
        ('qos: "a\\nb"\n', ["p.yaml:1", "qos"]),
    ],
)
def test_a_profile_that_cannot_be_used_is_refused_with_file_line_and_key(
    tmp_path: Path, text: str, words: list[str]
) -> None:
    (tmp_path / "p.yaml").write_text(text)
    with pytest.raises(SlurmError) as error:
        read_profile(tmp_path / "p.yaml")
    for word in words:
        assert word in str(error.value)


def test_a_profile_that_is_absent_is_refused(tmp_path: Path) -> None:
    with pytest.raises(GridError, match=r"p\.yaml: No such file"):
        read_profile(tmp_path / "p.yaml")


def test_an_empty_profile_asks_for_nothing_but_one_process(tmp_path: Path) -> None:
    (tmp_path / "p.yaml").write_text("{}\n")
    given = read_profile(tmp_path / "p.yaml").parameters("name", 7)
    kept = {key: value for key, value in given.items() if value is not None}
    assert kept == {
        "job_name": "name",
        "setup": [],
        "nodes": 1,
        "ntasks_per_node": 1,
        "array_parallelism": 7,
        "signal_delay_s": 90,
        "additional_parameters": {"requeue": True},
    }


@pytest.mark.parametrize("time", ["60", "60:00", "4:00:00", "2-12", "2-12:30", "2-12:30:00", 90])
def test_every_time_that_slurm_writes_is_taken(time: str | int) -> None:
    assert Profile(time=time).parameters("name", 1)["time"] == time


def test_a_profile_becomes_options_of_sbatch(tmp_path: Path) -> None:
    (tmp_path / "p.yaml").write_text(
        "partition: long\ntime: 1-0\ngpus: 2\ncpus: 8\nmemory_gb: 1.5\nnodes: 2\nat_once: 3\n"
        "setup: [module load cuda]\nextra: {--mail-type: FAIL, exclusive: true}\n"
    )
    profile = read_profile(tmp_path / "p.yaml")
    assert profile.processes == 4
    given = profile.parameters("name", 7)
    assert (given["gpus_per_node"], given["ntasks_per_node"], given["nodes"]) == (2, 2, 2)
    assert (given["mem"], given["array_parallelism"]) == ("1536M", 3)
    assert given["srun_args"] == ["--cpus-per-task=8"]  # srun no longer takes it over from sbatch
    assert given["setup"] == ['export OMP_NUM_THREADS="${OMP_NUM_THREADS:-8}"', "module load cuda"]
    assert given["additional_parameters"] == {"requeue": True, "mail-type": "FAIL", "exclusive": True}


# What each task takes


def test_runs_that_start_from_another_are_in_its_task_and_after_it() -> None:
    starts = {"b": "a", "c": "b", "d": "a", "y": "x"}
    assert group(["c", "z", "b", "y", "d", "a", "x"], starts, 1) == [("a", "b", "c", "d"), ("z",), ("x", "y")]
    assert group(["c"], {"c": "b"}, 1) == [("b", "c")]  # another task has b, and this one waits for it
    assert group(list("abcde"), {}, 2) == [("a", "b"), ("c", "d"), ("e",)]
    assert group(["b", "p", "a", "q"], {"b": "a"}, 3) == [("a", "b", "p"), ("q",)]


def test_a_restricted_plan_keeps_ids_and_titles_and_the_order_of_cells(write_grid: Write) -> None:
    grid = write_grid(STARTED, ("baseline: hard", "baseline: first"))
    plan = load_plan(grid)
    members, starts = _identify(plan, Profile(), launch(grid))
    names = {run_id: title(*member) for run_id, member in members.items()}
    by_name = {name: run_id for run_id, name in names.items()}
    assert starts[by_name["second, seed 1"]] == by_name["first, seed 1"]
    kept = [by_name[name] for name in ("first, seed 1", "second, seed 1", "first, seed 0")]
    small = restrict(plan, [members[run_id] for run_id in kept])
    again, _ = _identify(small, Profile(), launch(grid))
    assert {run_id: title(*member) for run_id, member in again.items()} == {run_id: names[run_id] for run_id in kept}
    assert small.name == plan.name
    assert [cell.name for cell in plan.cells] == ["first", "second", "third", "alone"]


def test_a_task_is_read_without_torch_and_carries_its_own_runs_alone(write_grid: Write, tmp_path: Path) -> None:
    many = "variants:\n" + "".join(f"  v{n}: {{optimisation.steps: {n}}}\n" for n in range(12, 212))
    grid = write_grid(many, ("baseline: hard", "baseline: v12"))
    plan = load_plan(grid)
    small = restrict(plan, [next(iter(plan.runs()))])
    (tmp_path / "task.pkl").write_bytes(pickle.dumps(task(small, ("a",), tmp_path)))
    assert (tmp_path / "task.pkl").stat().st_size < 10_000
    code = "import pickle, sys; pickle.load(open(sys.argv[1], 'rb')); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code, str(tmp_path / "task.pkl")], check=False).returncode == 0


def test_a_task_whose_images_have_changed_is_refused(write_grid: Write) -> None:
    pytest.importorskip("submitit")
    grid = write_grid()
    plan = load_plan(grid)
    with pytest.raises(Exception, match=r"catanet-hard-0123456789: their images have changed since"):
        task(restrict(plan, [next(iter(plan.runs()))]), ("catanet-hard-0123456789",), grid.parent)()


# What was submitted


def test_what_is_submitted_is_kept_and_known_by_its_name(
    write_grid: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("submitit")
    called = programs(tmp_path / "bin", monkeypatch, sbatch="echo Submitted batch job 12", srun="", squeue="")
    plan = load_plan(write_grid())
    titles = {"a": "hard, seed 0", "b": "soft, seed 0"}
    home = slurm_queue.home(tmp_path / "results", plan.name)
    tasks = [task(restrict(plan, [member]), (name,), tmp_path) for name, member in zip("ab", plan.runs(), strict=False)]
    first = submit(tasks, titles, Profile(time=30), home)
    single = submit(tasks[:1], titles, Profile(), home)
    assert [one.folder.name for one in submissions(home)] == ["0001", "0002"]
    assert submissions(home) == [first, single]
    assert first.job == "12"
    assert first.tasks == ({"a": "hard, seed 0"}, {"b": "soft, seed 0"})
    assert first.name != single.name
    script = (first.folder / "12_submission.sh").read_text()
    assert "#SBATCH --array=0-1%2\n" in script
    assert "#SBATCH --time=30\n" in script
    assert "wckey" not in script
    assert "--time" not in (single.folder / "12_submission.sh").read_text()  # the partition's own
    assert len(called.read_text().splitlines()) == 2
    (first.folder / slurm_queue.FILE).write_text('{"name": ')  # torn
    assert submissions(home) == [single]


@pytest.mark.parametrize("words", ["invalid partition specified: nope", "Invalid job array specification"])
def test_where_sbatch_refuses_its_words_are_shown_and_nothing_is_kept(
    write_grid: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], words: str
) -> None:
    pytest.importorskip("submitit")
    programs(tmp_path / "bin", monkeypatch, sbatch=f"echo sbatch: error: {words} >&2; exit 1", srun="", squeue="")
    plan = load_plan(write_grid())
    with pytest.raises(SlurmError, match="nothing was submitted") as error:
        submit([task(plan, ("a",), tmp_path)], {"a": "hard"}, Profile(), tmp_path / "home")
    assert words in str(error.value)
    assert ("runs_per_task" in str(error.value)) == ("array" in words)
    assert not list((tmp_path / "home").iterdir())
    assert capfd.readouterr().err == ""


def test_what_is_missing_is_named(write_grid: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "p.yaml").write_text("{}\n")
    grid = write_grid()
    words = ["run", str(grid), "--results", str(tmp_path / "results"), "--slurm", str(tmp_path / "p.yaml")]
    monkeypatch.setitem(sys.modules, "submitit", None)
    error = CliRunner().invoke(app, words).exception
    assert isinstance(error, SlurmError)
    assert "study[slurm]" in str(error)
    monkeypatch.undo()
    pytest.importorskip("submitit")
    programs(tmp_path / "bin", monkeypatch)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    error = CliRunner().invoke(app, words).exception
    assert isinstance(error, SlurmError)
    assert "sbatch is not on the PATH" in str(error)
    assert not (tmp_path / "results").exists()
    error = CliRunner().invoke(app, [*words[:4], "--detach"]).exception
    assert "--slurm" in str(error)


# The queue


def known(folder: Path) -> list[Submission]:
    tasks = ({"a": "hard, seed 0", "b": "hard, seed 1"}, {"c": "soft, seed 0"}, {"d": "soft, seed 1"})
    made = [
        Submission(folder / "0001", "study-grid-aa", "2026-01-01T00:00:00+00:00", tasks, "12"),
        Submission(folder / "0002", "study-grid-bb", "2026-01-02T00:00:00+00:00", ({"e": "bicubic"},), "15"),
    ]
    for one in made:
        one.write()
    return made


def test_the_queue_tells_which_runs_wait_and_passes_over_what_is_not_ours(tmp_path: Path) -> None:
    text = (
        "12_0|study-grid-aa|RUNNING|None\n12_2|study-grid-aa|PENDING|Resources\n15|study-grid-bb|COMPLETING|None\n"
        "16_0|another|RUNNING|None\n12_9|study-grid-aa|RUNNING|None\nslurm_load_jobs error\n"
    )
    found = parse(text, known(tmp_path))
    assert [(one.job, list(one.runs)) for one in found] == [("12_0", ["a", "b"]), ("12_2", ["d"]), ("15", ["e"])]
    assert [one.describe() for one in found][:2] == ["running as 12_0", "pending as 12_2 (Resources)"]
    assert [one.ending for one in found] == [False, False, True]
    assert slurm_queue.spell([*found, found[1]]) == "1 running, 2 pending, 1 completing"


def test_nobody_is_asked_about_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    assert queue([]) == []


def test_status_and_cancel_say_what_is_on_slurm(
    write_grid: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    grid = write_grid()
    known(slurm_queue.home(tmp_path / "results", "grid"))
    listed = "12_0|study-grid-aa|RUNNING|None\\n12_2|study-grid-aa|PENDING|Resources"
    queued = f'test -e {tmp_path}/gone || printf "{listed}\\n"'
    called = programs(tmp_path / "bin", monkeypatch, squeue=queued, scancel=f"touch {tmp_path}/gone")
    words = [str(grid), "--results", str(tmp_path / "results")]
    page = CliRunner(env={"COLUMNS": "200"}).invoke(app, ["status", *words]).output
    assert "on Slurm: 1 running, 1 pending" in page
    assert "hard, seed 0; hard, seed 1: running as 12_0" in page
    assert "soft, seed 1: pending as 12_2 (Resources)" in page
    page = CliRunner(env={"COLUMNS": "200"}).invoke(app, ["cancel", *words]).output
    assert "cancelled: running as 12_0: hard, seed 0; hard, seed 1" in page
    assert [line for line in called.read_text().splitlines() if line.startswith("scancel")] == ["scancel 12"]
    assert "nothing of grid is on Slurm" in CliRunner().invoke(app, ["cancel", *words]).output
    programs(tmp_path / "bin", monkeypatch, squeue="echo no contact >&2; exit 1")
    page = CliRunner(env={"COLUMNS": "200"}).invoke(app, ["status", *words])
    assert page.exit_code == 0
    assert "not known: squeue refuses: no contact" in page.output


def test_a_log_is_told_by_its_last_line_that_says_something(tmp_path: Path) -> None:
    log = known(tmp_path)[0].log(1)
    assert log == tmp_path / "0001" / "12_1_0_log.err"
    assert slurm_queue.last_words(log) == "it wrote nothing"
    log.write_text("Traceback\nModuleNotFoundError: No module named 'torch'\nsubmitit ERROR - triggered\n\n")
    assert slurm_queue.last_words(log) == "ModuleNotFoundError: No module named 'torch'"


def test_runs_that_no_task_finished_are_told_with_what_their_log_says(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = known(tmp_path / "slurm")
    made[1].log(0).write_text("[Errno 12] Cannot allocate memory\n")
    for run_id, state in (("a", "failed"), ("b", "running")):
        (tmp_path / "runs" / run_id).mkdir(parents=True)
        (tmp_path / "runs" / run_id / "status.json").write_text(json.dumps({"state": state}))
    ended = _ended(tmp_path / "runs", {"a": "hard, seed 0", "e": "bicubic"}, made)
    assert ended == {"a": "failed", "e": "interrupted"}
    assert capsys.readouterr().out == f"not finished: {made[1].log(0)}: [Errno 12] Cannot allocate memory\n"


def test_a_cluster_that_does_not_answer_for_a_while_is_asked_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = iter([SlurmError("squeue refuses: no contact"), [Queued("15", "RUNNING", "", {"e": "bicubic"})], []])

    def ask(_: object) -> list[Queued]:
        answer = next(answers)
        if isinstance(answer, SlurmError):
            raise answer
        return answer

    monkeypatch.setattr(slurm_queue, "queue", ask)
    monkeypatch.setattr(slurm_queue.time, "sleep", lambda _: None)
    slurm_queue.follow("grid", {}, tmp_path, known(tmp_path), {})
    assert next(answers, None) is None
    answers = iter([SlurmError("squeue refuses: no contact")] * 2)
    monkeypatch.setattr(slurm_queue, "SILENT_S", -1.0)
    with pytest.raises(SlurmError, match=r"no contact; jobs are no longer followed"):
        slurm_queue.follow("grid", {}, tmp_path, known(tmp_path), {})


# A task that is asked to stop


@pytest.mark.parametrize(
    ("state", "restarts", "said", "requeued"),
    [
        ("RUNNING", 2, "12_1 goes back into the queue", True),
        ("COMPLETING", 0, "Slurm has 12_1 as completing", False),  # cancelled, or requeued by Slurm itself
        ("", 0, "Slurm has 12_1 as ended", False),
        ("RUNNING", 3, "restarted 3 times", False),
    ],
)
def test_a_task_goes_back_into_the_queue_unless_slurm_is_ending_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, state: str, restarts: int, said: str, requeued: bool
) -> None:
    pytest.importorskip("submitit")
    called = programs(tmp_path, monkeypatch, squeue=f"echo {state}", scontrol="")
    for name, value in (("SUBMITIT_EXECUTOR", "slurm"), ("SLURM_ARRAY_JOB_ID", "12"), ("SLURM_ARRAY_TASK_ID", "1")):
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("SLURM_JOB_ID", "14")
    monkeypatch.setenv("SLURM_RESTART_COUNT", str(restarts))
    assert said in go_back(restarts=3)
    assert ("scontrol requeue 12_1" in called.read_text()) == requeued


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGUSR2, signal.SIGTERM])
def test_a_task_that_is_told_before_it_trains_goes_back_at_once(
    write_grid: Write, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    grid = write_grid()
    plan = load_plan(grid)
    one = task(plan, (), grid.parent)

    def run(_: Task) -> None:
        signal.raise_signal(number)

    monkeypatch.setattr(Task, "_run", run)
    monkeypatch.setattr(slurm, "go_back", lambda restarts: f"goes back, {restarts}")
    before = signal.getsignal(number)
    with pytest.raises(SystemExit, match="goes back, 3"):
        one()
    assert signal.getsignal(number) is before


def test_a_task_that_ended_is_not_put_back(write_grid: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    grid = write_grid()
    monkeypatch.setattr(Task, "_run", lambda _: ({"a": "failed"}, False))
    monkeypatch.setattr(slurm, "go_back", lambda _: pytest.fail("it was put back"))
    assert task(load_plan(grid), (), grid.parent)() == {"a": "failed"}


def test_inside_a_job_all_of_slurms_signals_are_one_request(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "12")
    signals = Signals()
    before = len(Signals.received)
    with signals.caught():
        for number in (signal.SIGTERM, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2):
            signal.raise_signal(number)
        assert signals.requested
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert len(Signals.received) == before + 5
