"""Whether a training can be repeated to the bit, and what of the machine decides it."""

import os
import platform
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

import torch

REQUEST = "STUDY_DETERMINISTIC"
CUBLAS = "CUBLAS_WORKSPACE_CONFIG"


def request_determinism() -> None:
    """Asks for it in this process and those that it starts; has to come before CUDA is initialised.

    It is no part of a run's identity: it chooses one of the roundings that the device may give anyway.
    """
    os.environ[REQUEST] = "1"
    os.environ.setdefault(CUBLAS, ":4096:8")  # without it cuBLAS may take another workspace, and another sum


def heed_request() -> bool:
    """Sets torch's flags as `request_determinism`, here or in the process above, asked; returns whether it did."""
    wanted = os.environ.get(REQUEST, "") not in ("", "0")
    if wanted:
        os.environ.setdefault(CUBLAS, ":4096:8")
        torch.use_deterministic_algorithms(True)
        torch.backends.cudnn.deterministic = True
        torch.backends.cudnn.benchmark = False
    return wanted


def describe_machine(device: torch.device, processes: int = 1) -> dict[str, dict[str, Any]]:
    """`hardware` and `settings` of a provenance record: all of the machine that can change the last bits of a result.

    Args:
        device: where the networks are.
        processes: how many share the run.
    """
    gpu = device.type == "cuda"
    hardware = {
        "accelerator": torch.cuda.get_device_name(device) if gpu else device.type,
        "driver": _driver() if gpu else None,
        "cuda": torch.version.cuda if gpu else None,
        "cudnn": torch.backends.cudnn.version() if gpu else None,
        "cpu": _cpu(),
        "cpu_instructions": torch.backends.cpu.get_cpu_capability(),
    }
    settings = {
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "processes": processes,
        "threads": torch.get_num_threads(),
        "matmul_precision": torch.get_float32_matmul_precision(),
        "tf32_matmul": torch.backends.cuda.matmul.allow_tf32,
        "tf32_convolution": torch.backends.cudnn.allow_tf32,
        "cudnn_deterministic": torch.backends.cudnn.deterministic,
        "cudnn_benchmark": torch.backends.cudnn.benchmark,
        "cublas_workspace": os.environ.get(CUBLAS),
    }
    return {"hardware": hardware, "settings": settings}


@cache
def _driver() -> str | None:
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return (done.stdout.splitlines() or [None])[0] if done.returncode == 0 else None


@cache
def _cpu() -> str:
    """The processor's name, where the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())
