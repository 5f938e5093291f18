"""Finished runs in few small files that go into a repository, without weights and images, and back into run folders.

`<table>-<key>.parquet` holds the rows of up to `TOGETHER` runs under a first column `run`; `runs-<key>.parquet` holds
their other records as text, less what belongs to a machine alone: its name, and absolute paths of the command. The key
is a hash of the runs' ids: packing again adds files for the runs that are not there yet, and touches no other.
"""

import hashlib
import json
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from study.records.declaration import FOLDER as DECLARED
from study.records.index import finished
from study.records.schemas import PACKED, RUN_TABLES
from study.records.store import RecordError, name_partial, read, read_json, replace, to_json, write_table
from study.records.timings import FOLDER as TIMINGS
from study.records.timings import MACHINE as MACHINE_FILE

TEXTS = ("*.json", "packages-*.txt", "code-*.diff", "DONE")
MACHINE = ("host", "process")  # in status.json
TOGETHER = 48  # of runs on 119 images and five protocols: half a megabyte
_ABSOLUTE = re.compile(r"(?<![^=])/\S*/")


def pack(results: Path, grid: str, ids: Iterable[str], folder: Path) -> list[str]:
    """Adds finished runs of a grid, what it declared and its timings to a packed folder; returns ids not yet in it.

    Args:
        results: the results folder.
        grid: name of the plan; what it first declared stays, whatever is packed later.
        ids: of finished runs.
        folder: where the packed files lie; made when absent. Curves are thinned as readers do.

    Raises:
        RecordError: a run has not finished, a record is broken, or a run is in the folder with other values.
    """
    runs, ids = results / "runs", sorted(set(ids))
    for name in ids:
        if not finished(runs / name):
            raise RecordError(f"{runs / name} has not finished; finished runs are packed")
    there = set(packed(folder))
    _refuse_other_values(runs, [name for name in ids if name in there], folder)
    new = [name for name in ids if name not in there]
    for start in range(0, len(new), TOGETHER):
        _pack(runs, new[start : start + TOGETHER], folder)
    declared = results / DECLARED / f"{grid}.json"
    if declared.exists() and not (folder / DECLARED / declared.name).exists():
        replace(folder / DECLARED / declared.name, declared.read_bytes())
    for path in (results / TIMINGS / grid).glob("[!.]*"):
        record = to_json(_anonymous(read_json(path))).encode() if path.name == MACHINE_FILE else path.read_bytes()
        replace(folder / TIMINGS / grid / path.name, record)
    return new


def packed(folder: Path) -> list[str]:
    """Ids of the runs of a packed folder."""
    return [str(run) for file in _files(folder) for run in _table(file, PACKED)["run"]]


def unpack(folder: Path, results: Path) -> list[str]:
    """Writes the run folders of a packed folder, what was declared and timed; returns ids that were not there.

    Weights are not among what was packed, so such a run counts as finished for reports and for `study run`, and
    cannot be verified or started from.

    Args:
        folder: as `pack` wrote it.
        results: the results folder; what it holds already stays as it is.

    Raises:
        RecordError: the folder holds no packed runs, a file is broken, or a table of one is missing.
    """
    files = _files(folder)
    if not files:
        raise RecordError(f"{folder} holds no packed runs (runs-….parquet)")
    for declared in (folder / DECLARED).glob("*.json"):
        if not (results / DECLARED / declared.name).exists():
            replace(results / DECLARED / declared.name, declared.read_bytes())
    for timed in (folder / TIMINGS).glob("*/*"):
        if not (results / timed.relative_to(folder)).exists():
            replace(results / timed.relative_to(folder), timed.read_bytes())
    new = []
    for file in files:
        rows = _table(file, PACKED)
        records = {str(run): str(texts) for run, texts in zip(rows["run"], rows["files"], strict=True)}
        fresh = [run for run in records if not (results / "runs" / run).exists()]
        if fresh:
            key = file.stem.removeprefix("runs-")
            tables = {name: dict(iter(_rows(folder, name, key).groupby("run"))) for name in RUN_TABLES}
            for run in fresh:
                own = {name: parts[run] for name, parts in tables.items() if run in parts}
                _restore(results / "runs" / run, json.loads(records[run]), own)
        new += fresh
    return new


def _files(folder: Path) -> list[Path]:
    return sorted(folder.glob("runs-*.parquet"))


def _refuse_other_values(runs: Path, ids: Sequence[str], folder: Path) -> None:
    """Raises `RecordError` where a run that is packed has measured something else since: trained anew, say."""
    if not ids:
        return
    now = {str(run): rows["value"].tolist() for run, rows in read(runs, ids).images.groupby("run", observed=True)}
    for file in _files(folder):
        for run, rows in _rows(folder, "images", file.stem.removeprefix("runs-")).groupby("run"):
            if now.get(str(run), rows["value"].tolist()) != rows["value"].tolist():
                raise RecordError(f"{runs}/{run} has other values than in {folder}; pack into another folder")


def _pack(runs: Path, ids: Sequence[str], folder: Path) -> None:
    key = hashlib.sha256("\n".join(ids).encode()).hexdigest()[:10]
    tables = read(runs, ids)
    texts = [{"run": run, "files": json.dumps(dict(_texts(runs / run)), ensure_ascii=False)} for run in ids]
    for name in RUN_TABLES:
        _write(folder / f"{name}-{key}.parquet", getattr(tables, name), _schema(name))
    _write(folder / f"runs-{key}.parquet", pd.DataFrame(texts), PACKED)  # last


def _texts(run: Path) -> Iterator[tuple[str, str]]:
    """Name and content of every small file of a run."""
    for path in sorted(path for pattern in TEXTS for path in run.glob(pattern)):
        if path.name == "status.json":
            yield path.name, to_json(read_json(path) | dict.fromkeys(MACHINE))
        elif path.name == "provenance.json":
            yield path.name, to_json(_anonymous(read_json(path)))
        else:
            yield path.name, path.read_text(encoding="utf-8")


def _anonymous(record: dict[str, Any]) -> dict[str, Any]:
    """A provenance record without absolute paths in its commands."""
    for one in (record, *record.get("earlier", [])):
        if "command" in one:
            one["command"] = [_ABSOLUTE.sub("…/", word) for word in one["command"]]
    return record


def _restore(run: Path, texts: Mapping[str, str], tables: Mapping[str, pd.DataFrame]) -> None:
    """Writes a run's folder, whole or not at all."""
    draft = name_partial(run)
    try:
        for name, text in texts.items():
            replace(draft / name, text.encode())
        for name, rows in tables.items():
            write_table(draft, name, rows.drop(columns="run").to_dict("records"))  # type: ignore[arg-type]
        files = [name for name in texts.get("DONE", "").split() if (draft / name).exists()]
        replace(draft / "DONE", "\n".join(files).encode())
        draft.rename(run)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _schema(table: str) -> pa.Schema:
    return pa.schema([pa.field("run", pa.string(), nullable=False), *RUN_TABLES[table]])


def _write(path: Path, rows: pd.DataFrame, schema: pa.Schema) -> None:
    sink = pa.BufferOutputStream()
    table = pa.Table.from_pandas(rows, schema, preserve_index=False)
    pq.write_table(table, sink, compression="zstd", compression_level=19, write_page_checksum=True)
    replace(path, sink.getvalue().to_pybytes())


def _rows(folder: Path, table: str, key: str) -> pd.DataFrame:
    return _table(folder / f"{table}-{key}.parquet", _schema(table))


def _table(path: Path, schema: pa.Schema) -> pd.DataFrame:
    try:
        table = pq.read_table(path, page_checksum_verification=True)
    except FileNotFoundError:
        raise RecordError(f"{path} is missing") from None
    except (pa.ArrowException, OSError) as error:
        raise RecordError(f"{path} is not a readable parquet file: {error}") from None
    if not table.schema.equals(schema):
        raise RecordError(f"{path} has columns {table.schema.names}, expected {schema.names}")
    rows: Any = table.to_pandas()
    return rows
