import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from study.records import claims
from study.records.claims import Claim, Owner, held, release, take, take_steps

PRIVATE = ("make the folder", "write a draft")  # steps that no other process can tell the order of
ELSEWHERE = Owner("another machine", 1, "1", "x")


def leave(run: Path, owner: Owner | None, age_s: float = 0.0, number: int = 1) -> Path:
    """A claim that somebody has left; without an owner a released one."""
    path = run / "claims" / f"{number:06d}"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(owner.__dict__) if owner else "")
    now = time.time()
    os.utime(path, (now - age_s, now - age_s))
    return path


def dead() -> Owner:
    """Of a process of this machine that is no more."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return Owner(claims._machine(), process.pid, "1", "dead")


def taking(run: Path, ended: list[Claim | None]) -> Iterator[None]:
    """One process that wants the run; stops before each step that others can see."""
    steps = take_steps(run)
    while True:
        try:
            while next(steps) in PRIVATE:
                pass
        except StopIteration as end:
            ended.append(end.value)
            return
        yield


def orders(lengths: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
    """Every order in which processes can take so many steps each."""
    if not any(lengths):
        yield ()
    for which, left in enumerate(lengths):
        if left:
            rest = tuple(n - (k == which) for k, n in enumerate(lengths))
            yield from ((which, *order) for order in orders(rest))


@pytest.mark.parametrize(
    ("before", "winners"),
    [("nothing", 1), ("released", 1), ("dead", 1), ("late", 1), ("torn and old", 1), ("living", 0), ("in time", 0)],
)
def test_in_every_order_of_three_exactly_one_takes_what_is_free(tmp_path: Path, before: str, winners: int) -> None:
    gone = dead()
    here = Owner(claims._machine(), os.getpid(), claims._started(os.getpid()), "me")
    steps = 3 if before == "nothing" else 4
    for index, order in enumerate(orders((steps, steps, steps) if before == "nothing" else (steps, steps))):
        run = tmp_path / f"{index}"
        run.mkdir()
        if before in ("released", "dead", "living"):
            leave(run, {"released": None, "dead": gone, "living": here}[before])
        elif before in ("late", "in time"):
            leave(run, ELSEWHERE, age_s=claims.STALE_S + 5 if before == "late" else 0)
        elif before == "torn and old":
            leave(run, ELSEWHERE, age_s=claims.STALE_S + 5).write_text("{")
            os.utime(run / "claims" / "000001", (1, 1))
        ended: list[Claim | None] = []
        processes = [taking(run, ended) for _ in range(max(order) + 1)]
        for which in order:
            next(processes[which], None)
        assert len(ended) == len(processes)
        assert sum(claim is not None for claim in ended) == winners, order
        assert held(run)
        assert not [path for path in (run / "claims").iterdir() if path.name.startswith(".")]


def test_nobody_takes_before_the_owner_has_released(tmp_path: Path) -> None:
    for index, order in enumerate(orders((4, 4, 1))):
        run = tmp_path / f"{index}"
        run.mkdir()
        owned = take(run)
        assert owned is not None
        ended: list[Claim | None] = []
        processes = [taking(run, ended) for _ in range(2)]
        released = False
        for which in order:
            if which == 2:
                release(owned)
                released = True
            else:
                next(processes[which], None)
            assert released or not any(ended), order
        assert sum(claim is not None for claim in ended) <= 1, order


def test_a_late_owner_finds_itself_passed_over_and_leaves_the_successor_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(claims, "HEARTBEAT_S", 0.01)
    first = take(tmp_path)
    assert first is not None
    with first:
        begun = first.path.stat().st_mtime_ns
        assert wait_for(lambda: first.path.stat().st_mtime_ns > begun)
        assert not first.passed_over.is_set()
        os.utime(first.path, (1, 1))
        leave(tmp_path, ELSEWHERE, number=2)  # as another machine would
        assert wait_for(first.passed_over.is_set)
    assert held(tmp_path)
    assert json.loads((tmp_path / "claims" / "000002").read_text()) == ELSEWHERE.__dict__


def test_what_is_released_is_free_and_numbers_grow(tmp_path: Path) -> None:
    for number in range(1, 4):
        claim = take(tmp_path)
        assert claim is not None
        assert claim.path.name == f"{number:06d}"
        with claim:
            assert held(tmp_path)
            assert take(tmp_path) is None
        assert not held(tmp_path)


def test_a_link_whose_answer_was_lost_is_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    link = os.link

    def lossy(source: Path, target: Path) -> None:
        link(source, target)
        raise FileExistsError

    monkeypatch.setattr(os, "link", lossy)
    assert take(tmp_path) is not None


def test_a_clock_that_was_set_back_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "time", lambda: 0.0)
    leave(tmp_path, ELSEWHERE, age_s=-time.monotonic())
    path = tmp_path / "claims" / "000001"
    now = claims._now(path.parent)
    os.utime(path, (now - 1, now - 1))
    assert held(tmp_path)
    os.utime(path, (now - claims.STALE_S - 5, now - claims.STALE_S - 5))
    assert not held(tmp_path)


def wait_for(what: Callable[[], bool], seconds: float = 5.0) -> bool:
    end = time.monotonic() + seconds
    while not what():
        if time.monotonic() > end:
            return False
        time.sleep(0.005)
    return True


WORKER = """
import os, random, sys, time
from pathlib import Path
from study.records.claims import _started, take

runs = [Path(name) for name in sorted(os.listdir("."))]
random.seed(os.getpid())
while left := [run for run in runs if not (run / "DONE").exists()]:
    run = random.choice(left)
    claim = take(run)
    if claim is None or (run / "DONE").exists():
        continue
    with claim:
        working = run / "working"  # whoever finds another's at work has taken what was not free
        if working.exists() and _started(int(working.read_text() or 0)):
            (run / "two owners").touch()
        working.write_text(str(os.getpid()))
        time.sleep(0.02)
        working.unlink()
        (run / "part").write_text("result")
        os.link(run / "part", run / "DONE")  # fails where it was done before
"""


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="watches processes through /proc")
def test_workers_that_are_killed_lose_nothing_and_do_nothing_twice(tmp_path: Path) -> None:
    for index in range(60):
        (tmp_path / f"{index:03d}").mkdir()

    def start() -> subprocess.Popen[bytes]:
        return subprocess.Popen([sys.executable, "-c", WORKER], cwd=tmp_path, stderr=subprocess.PIPE)

    rng = random.Random(0)
    workers = [start() for _ in range(4)]
    ended: list[subprocess.Popen[bytes]] = []
    deadline = time.monotonic() + 60
    while True:
        assert time.monotonic() < deadline
        time.sleep(0.15)
        if all((tmp_path / f"{index:03d}" / "DONE").exists() for index in range(60)):
            break
        victim = rng.choice(workers)
        victim.send_signal(signal.SIGKILL)
        workers.remove(victim)
        ended.append(victim)
        workers.append(start())
    for worker in workers:
        assert worker.wait(20) == 0, worker.stderr and worker.stderr.read()
    for process in (*workers, *ended):
        process.wait()
        assert process.stderr is not None
        process.stderr.close()
    assert len(ended) >= 3
    assert not list(tmp_path.glob("*/two owners"))


def test_who_may_only_read_can_tell_who_is_alive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Path, *_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied", str(self))

    leave(tmp_path, ELSEWHERE)
    monkeypatch.setattr(Path, "touch", refuse)
    assert held(tmp_path)
    leave(tmp_path, ELSEWHERE, age_s=claims.STALE_S + 5)
    assert not held(tmp_path)
