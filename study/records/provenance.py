"""Where a result comes from: commit, packages, machine, command."""

import hashlib
import platform
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from study.records.store import RecordError, read_json, write_json

PACKAGES = (
    "torch",
    "accelerate",
    "numpy",
    "pyiqa",
    "datasets",
    "pyarrow",
    "pandas",
    "scipy",
    "statsmodels",
    "spandrel",
)


def describe(device: str, fingerprints: dict[str, str]) -> dict[str, Any]:
    """What a run's `provenance.json` holds.

    Args:
        device: the accelerator in words.
        fingerprints: name of each image set -> hash of its content.
    """
    return {
        **_code(),
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: found for name in PACKAGES if (found := _version(name))},
        "device": device,
        "data": fingerprints,
    }


def keep(path: Path, record: dict[str, Any]) -> None:
    """Writes an attempt's record over the one before it.

    Where attempts differ, `earlier` lists what each of them had otherwise than the next one, the first attempt first.
    """
    try:
        before = read_json(path)
    except RecordError:  # the first attempt, or torn
        before = {}
    earlier = before.pop("earlier", [])
    changed = {key: value for key, value in before.items() if record.get(key) != value}
    earlier += [changed] if changed else []
    write_json(path, {**record, **({"earlier": earlier} if earlier else {})})


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _code() -> dict[str, Any]:
    """Commit of the code that runs, and whether it was changed since (with a hash of the change)."""
    folder = Path(__file__).resolve().parents[2]
    commit = _git(folder, "rev-parse", "HEAD")
    if commit is None:
        return {"commit": None, "dirty": None, "diff_sha256": None}
    diff = _git(folder, "diff", "HEAD", "--", "study") or ""
    digest = hashlib.sha256(diff.encode()).hexdigest() if diff else None
    return {"commit": commit.strip(), "dirty": bool(diff), "diff_sha256": digest}


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None
