"""Who works on a run: claims that hold between any processes that share a folder, on one machine or over NFS.

A claim is a numbered file in `<run>/claims/`, and the highest number counts. A process takes over by creating the next
number, which only one can: `link` is atomic on every file system, NFS included. No claim is ever removed and a
released one is only marked, so that numbers grow for ever and whoever was passed over can tell. The owner touches its
claim every `HEARTBEAT_S`; the file system's own clock decides whether it is late, so clocks that differ or jump do no
harm.

A process that was suspended for longer than `STALE_S` may find itself passed over: it is told at its next heartbeat and
stops. Before it writes results it asks (`Claim.lost`), so that its successor's files stay as they are.
"""

import contextlib
import json
import os
import platform
import threading
import time
import uuid
from collections.abc import Generator
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

HEARTBEAT_S = 15.0
STALE_S = 120.0  # without a heartbeat a claim of another machine is taken over
FOLDER = "claims"


@dataclass(frozen=True)
class Owner:
    """A process, told from all others.

    Attributes:
        machine: host, boot and process namespace; inside one of them a process that is gone is known to be.
        pid: its number.
        started: when it started, in the machine's own ticks: numbers are used again.
        token: of this claim alone.
    """

    machine: str
    pid: int
    started: str
    token: str


@dataclass
class Claim:
    """A run that this process owns, until it leaves the `with` block.

    Attributes:
        path: the claim's file.
        owner: this process.
        passed_over: set once a heartbeat has found that another process has taken over.
    """

    path: Path
    owner: Owner
    passed_over: threading.Event = field(default_factory=threading.Event)
    _ended: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread | None = None

    def lost(self) -> bool:
        """Whether another process has taken over."""
        names = _numbers(self.path.parent)
        return not names or names[-1] != self.path.name

    def __enter__(self) -> Self:
        self._thread = threading.Thread(target=self._beat, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self._ended.set()
        if self._thread is not None:
            self._thread.join()
        release(self)

    def _beat(self) -> None:
        while not self._ended.wait(HEARTBEAT_S):
            with contextlib.suppress(OSError):  # a server that is away for a while: the next beat may reach it
                os.utime(self.path)
                if self.lost():
                    self.passed_over.set()
                    return


def take(run: Path, stale_s: float = STALE_S) -> Claim | None:
    """Claims a run's folder, which exists; None where a living process holds it, or another one was quicker."""
    steps = take_steps(run, stale_s)
    try:
        while True:
            next(steps)
    except StopIteration as end:
        return end.value


def take_steps(run: Path, stale_s: float = STALE_S) -> Generator[str, None, Claim | None]:
    """As `take`; stops before every access to the disk, so that a test can try every order of several."""
    folder = run / FOLDER
    yield "make the folder"
    folder.mkdir(exist_ok=True)
    yield "list"
    names = _numbers(folder)
    if names:
        yield "read the last"
        if _alive(folder / names[-1], stale_s):
            return None
    owner = Owner(_machine(), os.getpid(), _started(os.getpid()), uuid.uuid4().hex)
    claim = folder / f"{int(names[-1]) + 1 if names else 1:06d}"
    draft = folder / f".{owner.token}"
    yield "write a draft"
    try:
        draft.write_text(json.dumps(owner.__dict__), encoding="utf-8")
        yield "link"
        os.link(draft, claim)
    except FileExistsError:
        # Over NFS a link may be made and its answer lost: then the draft has two names.
        if draft.stat().st_nlink < 2:
            return None
    except OSError as error:
        error.filename = error.filename or str(draft)  # a write that fails names none
        raise
    finally:
        draft.unlink(missing_ok=True)
    return Claim(claim, owner)


def release(claim: Claim) -> None:
    """Marks a claim as given back, by emptying it, which works on a full disk too; the number stays taken."""
    if not claim.lost():
        os.truncate(claim.path, 0)


def held(run: Path, stale_s: float = STALE_S) -> bool:
    """Whether a living process owns a run."""
    names = _numbers(run / FOLDER)
    return bool(names) and _alive(run / FOLDER / names[-1], stale_s)


def _numbers(folder: Path) -> list[str]:
    try:
        return sorted(path.name for path in folder.iterdir() if path.name.isdigit())
    except FileNotFoundError:
        return []


def _alive(claim: Path, stale_s: float) -> bool:
    content = claim.read_text(encoding="utf-8", errors="replace")
    if not content:  # given back; or its machine crashed before a byte of it was on the disk
        return False
    try:
        owner = Owner(**json.loads(content))
    except (ValueError, TypeError):  # torn by a crash of its machine, or of another version: its age decides
        owner = None
    if owner is not None and owner.machine == _machine():
        return bool(owner.started) and _started(owner.pid) == owner.started
    return _now(claim.parent) - claim.stat().st_mtime <= stale_s


def _now(folder: Path) -> float:
    """The time by the clock of the file system, s."""
    probe = folder / f".{uuid.uuid4().hex}"
    try:
        probe.touch()
        return probe.stat().st_mtime
    except OSError:  # whoever may only read, or finds the disk full, has this machine's clock
        return time.time()
    finally:
        with contextlib.suppress(OSError):
            probe.unlink()


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8")
    except OSError:
        return ""


def _machine() -> str:
    try:
        namespace = Path("/proc/self/ns/pid").readlink()  # containers of one host number their processes apart
    except OSError:
        namespace = ""
    return f"{platform.node()} {_read('/proc/sys/kernel/random/boot_id').strip()} {namespace}"


def _started(pid: int) -> str:
    """When a process started; empty where there is none, `?` where the system does not tell but it is there."""
    if not Path("/proc/self/stat").exists():
        try:
            os.kill(pid, 0)
        except OSError:
            return ""
        return "?"
    fields = _read(f"/proc/{pid}/stat").rpartition(")")[2].split()
    return "" if not fields or fields[0] in "ZX" else fields[19]
