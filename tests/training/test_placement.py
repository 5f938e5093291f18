"""What `--placement` takes, and what becomes of processes that share a device."""

import os
import signal
import time
from collections.abc import Callable
from functools import partial
from multiprocessing import get_context, resource_tracker
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from study import StudyError
from study.training import placement as placing
from study.training.placement import STOPPING, Placement, Processes, Signals, pack, read_placement, separate


@pytest.mark.parametrize(
    ("text", "placement"),
    [
        ("run-per-process", Placement()),
        ("packed:1", Placement()),
        ("packed:4", Placement(packed=4)),
        ("ddp", Placement(ddp=True)),
    ],
)
def test_a_placement_is_read(text: str, placement: Placement) -> None:
    assert read_placement(text) == placement


@pytest.mark.parametrize(
    ("text", "said"),
    [
        *((text, "as a number from 1") for text in ("packed", "packed:", "packed:0", "packed:-2", "packed:x")),
        *((text, "with ddp all processes share every run") for text in ("ddp:2", "ddp,packed:2")),
        ("spread", "one of run-per-process, packed:K"),
    ],
)
def test_any_other_is_refused_with_what_would_be_right(text: str, said: str) -> None:
    with pytest.raises(StudyError, match=f"--placement '{text}'.*{said}"):
        read_placement(text)


def write_threads(folder: Path, stop: Callable[[], bool]) -> None:
    """The first of two processes to get here waits to be stopped; the other writes what it has, and is killed."""
    assert not stop()
    try:
        (folder / "first").mkdir()
    except FileExistsError:
        (folder / "second").write_text(f"{torch.get_num_threads()} {os.environ['OMP_NUM_THREADS']}")
        os.kill(os.getpid(), signal.SIGKILL)
    while not stop():
        time.sleep(0.01)
    (folder / "first" / "stopped").touch()


def test_processes_on_a_device_divide_its_threads_and_outlive_one_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 6)
    monkeypatch.setenv("OMP_NUM_THREADS", "6")
    signals = Signals()

    def stop(number: int, frame: object) -> None:
        if (tmp_path / "second").exists() and not all(child.is_alive() for child in signals.children):
            signal.setitimer(signal.ITIMER_REAL, 0)
            for _ in range(2):  # as when a terminal and a launcher both ask
                signals.stop_children()

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, 0.1, 0.1)
    try:
        codes = pack(partial(write_threads, tmp_path), 2, signals)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert sorted(codes) == [-signal.SIGKILL, 0]
    assert (tmp_path / "second").read_text() == "3 3"
    assert (tmp_path / "first" / "stopped").exists()
    assert os.environ["OMP_NUM_THREADS"] == "6"
    assert not signal.pthread_sigmask(signal.SIG_BLOCK, ()) & set(STOPPING)


def test_the_second_request_stops_children_at_once() -> None:
    signals = Signals()
    resource_tracker.ensure_running()  # which unblocks signals when a first child makes it start
    child = get_context("spawn").Process(target=time.sleep, args=(60,))
    with signals.caught():
        before = signal.pthread_sigmask(signal.SIG_BLOCK, STOPPING)  # inherited: the child does not heed the first
        child.start()
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        signals.children = [child]
        signal.raise_signal(signal.SIGINT)
        assert signals.requested
        child.join(0.2)
        assert child.is_alive()
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        child.join(10)
    assert child.exitcode == -signal.SIGKILL
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_process_whose_launch_was_killed_stops(monkeypatch: pytest.MonkeyPatch) -> None:
    alive = iter([True, False])
    monkeypatch.setattr(placing, "parent_process", lambda: SimpleNamespace(is_alive=lambda: next(alive)))
    said: list[bool] = []
    with Signals().caught():  # puts the handlers back
        placing._packed(lambda stop: said.extend([stop(), stop()]), torch.get_num_threads())
    assert said == [False, True]


def test_more_processes_than_devices_share_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(os, "environ", {**os.environ})
    separate(Processes(rank=5, world=8, local_rank=5))
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "1"
