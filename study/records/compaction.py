"""Finished runs' tables merged into few files, which open faster than one of each run.

`runs/.tables/<table>/<hash>.parquet` holds the rows of many runs, one row group each, under a first column `run`; a
run's own `<table>.parquet` becomes a symbolic link to it. Each link replaces its file in one step, after the merged
file has been read back and is on the disk: a crash at any time leaves every row where a reader finds it. A run that is
evaluated anew writes a file of its own over the link.
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout

from study.records.claims import Claim, take
from study.records.index import finished
from study.records.store import MERGED, RecordError, Tables, name_partial, replace

if TYPE_CHECKING:
    import pyarrow as pa

FOLDER = ".tables"
TOGETHER = 256  # runs of a merged file


@dataclass
class Compaction:
    """What was done.

    Attributes:
        merged: runs whose tables were merged.
        before: finished runs that had been merged earlier.
        left: runs that were not touched -> why.
    """

    merged: list[str] = field(default_factory=list)
    before: list[str] = field(default_factory=list)
    left: dict[str, str] = field(default_factory=dict)


def compact(runs: Path, on_progress: Callable[[int, int], Any] = lambda done, total: None) -> Compaction:
    """Merges the tables of every finished run below `runs` that nobody works on.

    Args:
        runs: folder of the run folders.
        on_progress: called with how many runs have been seen to, of how many.

    Raises:
        RecordError: another compaction of the folder is going on, or links cannot be made there.
    """
    ended = Compaction()
    names = sorted(path.parent.name for path in runs.glob("*/run.json"))
    with _alone(runs):
        for start in range(0, len(names), TOGETHER):
            on_progress(start, len(names))
            _compact(runs, names[start : start + TOGETHER], ended)
        _sweep(runs)
    return ended


def separate(runs: Path) -> list[str]:
    """Gives every merged run files of its own again, so that its folder can be moved; returns the runs' ids."""
    changed = []
    with _alone(runs), Tables() as files:
        for run in sorted({path.parent for path in runs.glob("*/*.parquet") if path.is_symlink()}):
            claim = take(run)
            if claim is None:
                raise RecordError(f"{run} is being written by another process; the runs before it have files again")
            with claim:
                for path in sorted(path for path in run.glob("*.parquet") if path.is_symlink()):
                    table = files.read(path, _schema(path.stem))
                    replace(path, _parquet(table.replace_schema_metadata(None)))
            changed.append(run.name)
        _sweep(runs)
    return changed


@contextmanager
def _alone(runs: Path) -> Iterator[None]:
    """Keeps other compactions of a folder out."""
    (runs / FOLDER).mkdir(parents=True, exist_ok=True)
    lock = FileLock(runs / FOLDER / ".lock", timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise RecordError(f"{runs / FOLDER} is being written by another `study compact`") from None
    try:
        yield
    finally:
        lock.release()


def _compact(runs: Path, names: Sequence[str], ended: Compaction) -> None:
    with ExitStack() as held:
        claims = {name: claim for name in names if (claim := _claim(runs / name, held, ended))}
        parts = _read(runs, list(claims), ended)
        for table, content in parts.items():
            _merge(runs, table, content, claims)
        merged = sorted({name for content in parts.values() for name in content})
        lost = [name for name in merged if claims[name].lost()]
        ended.left.update(dict.fromkeys(lost, "taken over by another process"))
        ended.merged += [name for name in merged if name not in lost]


def _claim(run: Path, held: ExitStack, ended: Compaction) -> Claim | None:
    """Claims a finished run that has tables of its own, until `held` is left."""
    if not finished(run):
        ended.left[run.name] = "not finished"
        return None
    if all(path.is_symlink() for path in run.glob("*.parquet")):
        ended.before.append(run.name)
        return None
    claim = take(run)
    if claim is None:
        ended.left[run.name] = "running"
        return None
    held.enter_context(claim)
    if not finished(run):  # taken up between the two
        ended.left[run.name] = "not finished"
        return None
    return claim


def _read(runs: Path, names: Sequence[str], ended: Compaction) -> "dict[str, dict[str, pa.Table]]":
    """Tables by name and run; a run with a broken one is left as it is."""
    from study.records.schemas import RUN_TABLES

    parts: dict[str, dict[str, pa.Table]] = {table: {} for table in RUN_TABLES}
    with Tables() as files:
        for name in names:
            try:
                own = {
                    table: files.read(path, RUN_TABLES[table])
                    for table in RUN_TABLES
                    if (path := runs / name / f"{table}.parquet").exists() and not path.is_symlink()
                }
            except RecordError as error:
                ended.left[name] = str(error)
                continue
            for table, content in own.items():
                parts[table][name] = content
    return {table: content for table, content in parts.items() if content}


def _merge(runs: Path, table: str, content: "Mapping[str, pa.Table]", claims: Mapping[str, Claim]) -> None:
    """Writes the merged file, reads it back, and links the runs to it that are still claimed."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    own = pa.field("run", pa.string(), nullable=False)
    schema = pa.schema([own, *_schema(table)], {MERGED: json.dumps(list(content)).encode()})
    sink = pa.BufferOutputStream()
    with pq.ParquetWriter(sink, schema, compression="zstd", write_page_checksum=True) as writer:
        for name, rows in content.items():
            column = pa.array([name] * len(rows), pa.string())
            writer.write_table(rows.add_column(0, own, column).cast(schema), row_group_size=max(len(rows), 1))
    body = sink.getvalue().to_pybytes()
    path = runs / FOLDER / table / f"{hashlib.sha256(body).hexdigest()[:16]}.parquet"
    replace(path, body)
    _to_disk(path.parent)
    with pq.ParquetFile(path) as file:
        for index, (name, rows) in enumerate(content.items()):
            if not file.read_row_group(index, columns=rows.schema.names, use_threads=False).equals(rows):
                raise RecordError(f"{path} does not give back the rows of {name}; its own file stays")
    for name in content:
        if claims[name].lost():
            continue
        link = runs / name / f"{table}.parquet"
        draft = name_partial(link)
        draft.symlink_to(Path("..") / path.relative_to(runs))
        draft.replace(link)


def _to_disk(folder: Path) -> None:
    """Makes a rename inside a folder outlive a loss of power."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _sweep(runs: Path) -> None:
    """Removes merged files that no run is linked to: of a compaction that was killed, or of runs since removed."""
    used = {path.resolve() for path in runs.glob("*/*.parquet") if path.is_symlink()}
    for path in (runs / FOLDER).glob("*/*.parquet"):
        if path.resolve() not in used:
            path.unlink()


def _schema(table: str) -> "pa.Schema":
    from study.records.schemas import RUN_TABLES

    return RUN_TABLES[table]


def _parquet(table: "pa.Table") -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd", write_page_checksum=True)
    return sink.getvalue().to_pybytes()
