"""A folder of very many runs at a glance: what each is and how it stands, without reading again what has not changed.

What is read of a finished run is remembered in `runs/.survey.json`, under the sizes and times of the files it was read
from and of the folder that holds them, and under a hash of the code that read it. The file may be deleted at any time.
"""

import contextlib
import hashlib
import json
import os
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from study.grid import identity
from study.grid.identity import sources, specification
from study.grid.plan import Cell
from study.grid.schema import SCHEMA_VERSION, Run
from study.records import index
from study.records.store import RecordError, read_json, replace

MEMORY = ".survey.json"
READ = ("run.json", "status.json", "DONE")
SETTLED_S = 2.0  # a file changed since may change again without its time changing: it is not remembered


@dataclass(frozen=True)
class Stored:
    """A run folder.

    Attributes:
        settings: hash of all that can change the run's result but its images (`identity.specification`), and the seed;
            empty where `run.json` is broken or of another schema.
        images: hash of the sources of images that the run names.
        state: as `index.status` gives it.
        tables: files outside its folder that hold its tables, relative to the folder of runs (see `compaction`).
    """

    settings: str
    images: str
    state: Mapping[str, Any]
    tables: tuple[str, ...] = ()


def survey(runs: Path) -> dict[str, Stored]:
    """Every folder below `runs` that has a `run.json`, by its id, sorted."""
    try:
        names = sorted(entry.name for entry in os.scandir(runs) if entry.is_dir())
    except FileNotFoundError:
        return {}
    code, remembered = _code(), _remembered(runs)
    alike: dict[str, tuple[str, bool, str]] = {}
    there = cache(lambda path: (runs / path).exists())
    found, kept, changed = {}, {}, False
    now = time.time()
    for name in names:
        stamp = _stamp(f"{runs}/{name}")
        if stamp is None:
            continue
        known = remembered.get(name)
        if known is not None and known[0] == stamp and all(there(path) for path in known[1]["tables"]):
            found[name], kept[name] = Stored(**{**known[1], "tables": tuple(known[1]["tables"])}), known
            continue
        one = _read(runs, name, alike)
        found[name] = one
        settled = max(*stamp[1::3], *stamp[2::3]) < (now - SETTLED_S) * 1e9
        if one.settings and one.state["state"] == "done" and settled:
            kept[name], changed = [stamp, asdict(one)], True
    if changed or len(kept) < len(remembered):
        _remember(runs, {"code": code, "runs": kept})
    return found


def keys(cell: Cell) -> list[tuple[str, str]]:
    """What `Stored` calls `settings` and `images`, of each run of a cell; what their seeds share is done once."""
    first = cell.runs[0]
    shared = [name for name in Run.model_fields if name != "seed"]
    settings, takes_seed = _unseeded(first)
    images = _images(first)
    return [
        (_key(settings, run.seed if takes_seed else None), images)
        if all(getattr(run, name) is getattr(first, name) for name in shared)
        else _key_of(run)
        for run in cell.runs
    ]


def _key_of(run: Run) -> tuple[str, str]:
    settings, takes_seed = _unseeded(run)
    return _key(settings, run.seed if takes_seed else None), _images(run)


def _images(run: Run) -> str:
    return _hash([source.model_dump(mode="json") for source in sources(run)])


def _unseeded(run: Run) -> tuple[str, bool]:
    """Hash of the specification without its seed, and whether there is one in it."""
    body = json.loads(specification(run))
    takes_seed = body["run"].pop("seed", None) is not None
    return _hash(body), takes_seed


def _key(settings: str, seed: int | None) -> str:
    return settings if seed is None else f"{settings}-{seed}"


def _hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:32]


def _stamp(folder: str) -> list[int] | None:
    """Sizes and times of a run's folder and of what is read in it; None where it holds no run."""
    stamp: list[int] = []
    for path in (folder, *(f"{folder}/{name}" for name in READ)):
        try:
            status = os.stat(path)  # noqa: PTH116 -- of forty thousand files, twice as fast as by a Path
            stamp += [status.st_size, status.st_mtime_ns, status.st_ctime_ns]
        except OSError:
            if path.endswith(READ[0]):
                return None
            stamp += [-1, 0, 0]
    return stamp


def _read(runs: Path, name: str, known: dict[str, tuple[str, bool, str]]) -> Stored:
    """Reads a run folder; `known` holds what was found for runs of other seeds."""
    settings = images = ""
    try:
        body = read_json(runs / name / "run.json")
        if body["schema_version"] == SCHEMA_VERSION:
            settings, images = _keys(body["run"], known)
    except (ValidationError, KeyError, TypeError, RecordError):
        pass
    state = index.status(runs, name)
    links = [path for path in (runs / name).glob("*.parquet") if path.is_symlink()]
    return Stored(
        settings, images, state, tuple(sorted(os.path.normpath(Path(name) / path.readlink()) for path in links))
    )


def _keys(declared: Any, known: dict[str, tuple[str, bool, str]]) -> tuple[str, str]:
    seed = declared.get("seed") if isinstance(declared, dict) else None
    if type(seed) is not int or seed < 0:
        return _key_of(Run.model_validate(declared))
    rest = json.dumps({**declared, "seed": 0})
    if rest not in known:
        run = Run.model_validate(declared)
        known[rest] = (*_unseeded(run), _images(run))
    settings, takes_seed, images = known[rest]
    return _key(settings, seed if takes_seed else None), images


@cache
def _code() -> str:
    """Hash of the code that says what a run is."""
    files = [*sorted(Path(identity.__file__).parent.glob("*.py")), Path(__file__), Path(index.__file__)]
    digest = hashlib.sha256()
    for file in files:
        digest.update(file.read_bytes())
    return digest.hexdigest()


def _remembered(runs: Path) -> dict[str, Any]:
    try:
        memory = read_json(runs / MEMORY)
        return memory["runs"] if memory["code"] == _code() else {}
    except (RecordError, OSError, KeyError, TypeError):
        return {}


def _remember(runs: Path, memory: Mapping[str, Any]) -> None:
    with contextlib.suppress(OSError):  # a folder that may only be read is read in full each time
        replace(runs / MEMORY, json.dumps(memory).encode())
