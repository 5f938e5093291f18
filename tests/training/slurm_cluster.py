"""A Slurm of one machine for tests: `munged`, `slurmctld` and `slurmd` of a folder of their own, as children."""

import contextlib
import os
import platform
import secrets
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import psutil

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "squeue", "scancel", "scontrol", "sinfo")

# cred_expire is also how long a requeued job waits before it starts again: two minutes where nothing is said.
CONFIGURATION = """\
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmctldPort={controller}
SlurmdPort={node}
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=6
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
JobRequeue=1
ReturnToService=2
GresTypes=gpu
KillWait=20
SchedulerParameters=sched_interval=2,bf_interval=2,sched_min_interval=0,batch_sched_delay=0
NodeName={host} NodeAddr=127.0.0.1 CPUs=2 Gres=gpu:2 State=UNKNOWN
PartitionName=work Nodes={host} Default=YES MaxTime=INFINITE State=UP
"""


def obstacle() -> str | None:
    """Why no Slurm can be started here, if so."""
    missing = [name for name in PROGRAMS if shutil.which(name) is None]
    if missing:
        return f"needs {', '.join(missing)} (apt-get install slurm-wlm munge)"
    return None if os.geteuid() == 0 else "needs root: slurmd starts jobs for other users"


@contextlib.contextmanager
def cluster(folder: Path) -> Iterator[dict[str, str]]:
    """Runs a Slurm of two CPUs and two GPUs, which only it believes in, and stops it with all its jobs.

    Args:
        folder: empty; its path has to be short, for it holds a socket.

    Yields:
        What the environment of its clients holds.
    """
    ports = _free_ports(2)
    host = platform.node().partition(".")[0]
    configuration = folder / "slurm.conf"
    configuration.write_text(CONFIGURATION.format(folder=folder, host=host, controller=ports[0], node=ports[1]))
    (folder / "gres.conf").write_text("".join(f"Name=gpu File={path}\n" for path in ("/dev/null", "/dev/zero")))
    environment = {"SLURM_CONF": str(configuration)}
    key = folder / "munge.key"
    key.touch(0o600)
    key.write_bytes(secrets.token_bytes(64))
    for name in ("state", "spool"):
        (folder / name).mkdir()
    munge = ["munged", "--foreground", "--force", f"--socket={folder}/munge.socket", f"--key-file={key}"]
    munge += [f"--{name}-file={folder}/munged.{name}" for name in ("pid", "log", "seed")]
    with ExitStack() as stack:
        stack.enter_context(_child(munge, folder))
        _wait(lambda: (folder / "munge.socket").exists(), "munged makes its socket", folder)
        stack.enter_context(_child(["slurmctld", "-D", "-i", "-f", str(configuration)], folder))
        stack.enter_context(_child(["slurmd", "-D", "-f", str(configuration)], folder))
        _wait(lambda: _ask(["sinfo", "-h", "-o", "%T"], environment) == "idle", "the node is idle", folder)
        try:
            yield environment
        finally:
            _ask(["scancel", "--partition=work"], environment)
            with contextlib.suppress(TimeoutError):
                _wait(lambda: not _ask(["squeue", "-h"], environment), "all jobs are gone", folder)
            _end_jobs(configuration)


def _ask(command: list[str], environment: dict[str, str]) -> str:
    done = subprocess.run(command, env=os.environ | environment, capture_output=True, text=True, check=False)
    return done.stdout.strip() if done.returncode == 0 else f"error: {done.stderr}"


@contextlib.contextmanager
def _child(command: list[str], folder: Path) -> Iterator[None]:
    with (folder / f"{command[0]}.out").open("w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
        try:
            yield
        finally:
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _wait(happened: Callable[[], bool], what: str, folder: Path, seconds: float = 40) -> None:
    deadline = time.monotonic() + seconds
    while not happened():
        if time.monotonic() > deadline:
            said = "\n".join(f"{path.name}: {path.read_text()[-600:]}" for path in sorted(folder.glob("*.log")))
            raise TimeoutError(f"not after {seconds} s: {what}\n{said}")
        time.sleep(0.1)


def _end_jobs(configuration: Path) -> None:
    """Ends what jobs left behind: processes, with their keepers, that were given this cluster's configuration."""
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.pid != os.getpid() and process.environ().get("SLURM_CONF") == str(configuration):
                process.kill()


def _free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(closing(socket.socket())) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]
