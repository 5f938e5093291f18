"""Where a result comes from: commit and changes, packages, machine, settings, command.

`provenance.json` is short enough to be a report's table. What is long lies beside it, under a name that holds its
hash, so that the files of earlier attempts stay: `packages-<hash>.txt`, one `name==version` per installed
distribution, and `code-<hash>.diff`, what was changed since the commit.
"""

import hashlib
import platform
import subprocess
import sys
from collections.abc import Iterable, Mapping
from functools import cache
from importlib.metadata import PackageNotFoundError, distributions, version
from pathlib import Path
from typing import Any

from study.records.store import RecordError, read_json, replace, write_json

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
TRAINED_BY = (
    *("grid", "data", "models", "objectives"),
    *("evaluation/metrics.py", "training/schedule.py", "training/steps.py", "training/trainer.py"),
)
DIFF_LIMIT_BYTES = 256 * 1024
DIGESTS = "digests.json"
_PLAIN = ("--no-ext-diff", "--no-color")  # whatever the user's settings
_PACKAGE = Path(__file__).resolve().parents[1]


def describe(
    device: str, fingerprints: dict[str, str], machine: Mapping[str, Mapping[str, Any]] | None = None
) -> dict[str, Any]:
    """What a run's `provenance.json` holds; code and packages are those that this process met at its first call.

    Args:
        device: the accelerator in words.
        fingerprints: name of each image set -> hash of its content.
        machine: `hardware` and `settings`, as `study.training.determinism.describe_machine` gives them.
    """
    code, _ = _code()
    return {
        **code,
        "source_sha256": _source(),
        "training_sha256": training_code(),
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: found for name in PACKAGES if (found := _version(name))},
        "packages_file": f"packages-{_short(lock().encode())}.txt",
        "device": device,
        **(machine or {}),
        "data": fingerprints,
    }


def keep(path: Path, record: dict[str, Any]) -> None:
    """Writes an attempt's record over the one before it, and beside it the files that it names.

    Where attempts differ, `earlier` lists what each of them had otherwise than the next one, the first attempt first.
    """
    try:
        before = read_json(path)
    except RecordError:  # the first attempt, or torn
        before = {}
    earlier = before.pop("earlier", [])
    changed = {key: value for key, value in before.items() if record.get(key) != value}
    earlier += [changed] if changed else []
    for key, content in (("packages_file", lock().encode()), ("diff_file", _code()[1])):
        name = record.get(key)
        if name and not (path.parent / name).exists():
            replace(path.parent / name, content)
    write_json(path, {**record, **({"earlier": earlier} if earlier else {})})


@cache
def lock() -> str:
    """Every installed distribution as `name==version`, one a line, sorted."""
    found = {str(one.metadata["Name"]).lower().replace("_", "-"): one.version for one in distributions()}
    return "".join(f"{name}=={found[name]}\n" for name in sorted(found))


def write_digests(folder: Path, names: Iterable[str]) -> None:
    """Keeps the SHA-256 of a finished run's files, so that it can be told later whether one was changed."""
    write_json(folder / DIGESTS, {name: _digest(folder / name) for name in names})


def changed_files(folder: Path) -> dict[str, tuple[str, str]] | None:
    """Name of each file that is not what the run wrote -> SHA-256 recorded and found; None where none were recorded.

    A file that is gone has `absent` in place of the second. A table that was merged into another file is a link, and
    has no bytes of its own to compare. Raises `RecordError` where the record itself is broken.
    """
    if not (folder / DIGESTS).exists():
        return None
    recorded = {n: digest for n, digest in read_json(folder / DIGESTS).items() if not (folder / n).is_symlink()}
    found = {name: _digest(folder / name) if (folder / name).exists() else "absent" for name in recorded}
    return {name: (recorded[name], found[name]) for name in recorded if recorded[name] != found[name]}


def differences(one: Mapping[str, Any], other: Mapping[str, Any], keys: Iterable[str]) -> dict[str, tuple[Any, Any]]:
    """Dotted keys of two records that differ -> both values; of mappings, every entry. Keys absent in one are left out.

    Args:
        one: a `provenance.json`.
        other: another.
        keys: which top-level keys are compared.
    """
    found: dict[str, tuple[Any, Any]] = {}
    for key in keys:
        a, b = one.get(key), other.get(key)
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            found |= {f"{key}.{name}": pair for name, pair in differences(a, b, a).items()}
        elif key in one and key in other and a != b:
            found[key] = (a, b)
    return found


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


@cache
def _code() -> tuple[dict[str, Any], bytes]:
    """Commit of the code that runs, and whether it was changed since; the change itself, cut at `DIFF_LIMIT_BYTES`.

    Files of the package that git does not know count as changes. Kept for the life of the process: what is edited
    while it runs was not what ran.
    """
    commit = _git("rev-parse", "HEAD")
    if commit is None:
        return {"commit": None, "dirty": None, "diff_sha256": None}, b""
    diff = _git("diff", *_PLAIN, "HEAD", "--", _PACKAGE.name) or b""
    for name in (_git("ls-files", "--others", "--exclude-standard", "-z", "--", _PACKAGE.name) or b"").split(b"\0"):
        if name:
            added = name.decode(errors="surrogateescape")
            diff += _git("diff", *_PLAIN, "--no-index", "--", "/dev/null", added) or b""
    body = {"commit": commit.decode().strip(), "dirty": bool(diff), "diff_sha256": None}
    if not diff:
        return body, b""
    cut = len(diff) > DIFF_LIMIT_BYTES
    kept = diff[:DIFF_LIMIT_BYTES]
    kept += f"\n(cut: {DIFF_LIMIT_BYTES} of {len(diff)} bytes are here)\n".encode() if cut else b""
    body |= {"diff_sha256": hashlib.sha256(diff).hexdigest(), "diff_bytes": len(diff), "diff_cut": cut}
    return {**body, "diff_file": f"code-{_short(diff)}.diff"}, kept


@cache
def _source() -> str:
    """SHA-256 over the names and contents of the package's modules: tells versions apart where there is no git."""
    digest = hashlib.sha256()
    for path in sorted(_PACKAGE.rglob("*.py")):
        digest.update(f"{path.relative_to(_PACKAGE).as_posix()} {_digest(path)}\n".encode())
    return digest.hexdigest()


@cache
def training_code() -> str:
    """SHA-256 over the modules that decide what a training computes: equal, whatever else was edited."""
    digest = hashlib.sha256()
    for path in sorted(_PACKAGE.rglob("*.py")):
        name = path.relative_to(_PACKAGE)
        if name.parts[0] in TRAINED_BY or name.as_posix() in TRAINED_BY:
            digest.update(f"{name.as_posix()} {_digest(path)}\n".encode())
    return digest.hexdigest()


def trained_by_other_code(run: Path) -> bool:
    """Whether a run's folder records another `training_code`; not where it records none.

    Raises:
        RecordError: its provenance is broken.
    """
    path = run / "provenance.json"
    recorded = read_json(path).get("training_sha256") if path.exists() else None
    return recorded not in (None, training_code())


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _short(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:10]


def _git(*arguments: str) -> bytes | None:
    """What git prints in the package's repository; None where there is no git, or it fails."""
    try:
        done = subprocess.run(["git", *arguments], cwd=_PACKAGE.parent, capture_output=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    failed = done.returncode not in ((0, 1) if "--no-index" in arguments else (0,))  # 1: the files differ
    return None if failed else done.stdout
