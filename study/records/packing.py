"""Finished runs in few small files that go into a repository, without weights and images, and back into run folders.

`<table>-<key>.parquet` holds the rows of up to `TOGETHER` runs under a first column `run`; `runs-<key>.parquet` holds
their records, less what belongs to a machine alone: its name, and the places of folders. The key is a hash of the
runs' ids: packing again adds files for the runs that are not there yet, and touches no other.
"""

import hashlib
import itertools
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from study.records.declaration import FOLDER as DECLARED
from study.records.index import finished
from study.records.schemas import PACKED, RUN_TABLES
from study.records.store import RecordError, read, read_json, replace, to_json, write_table

PLACES = ("--data-root", "--results")
MACHINE = ("host", "process")  # in status.json
TOGETHER = 48  # of runs on 119 images and five protocols: half a megabyte
RECORDS = {"settings": "run.json", "provenance": "provenance.json", "status": "status.json", "digests": "digests.json"}


def pack(results: Path, grid: str, ids: Iterable[str], folder: Path) -> list[str]:
    """Adds finished runs of a grid, and what it declared, to a packed folder; returns ids that were not in it.

    Args:
        results: the results folder.
        grid: name of the plan.
        ids: of finished runs.
        folder: where the packed files lie; made when absent. Curves are thinned as readers do.

    Raises:
        RecordError: a run has not finished, or a record is broken.
    """
    runs = results / "runs"
    new = sorted(set(ids) - set(packed(folder)))
    for name in new:
        if not finished(runs / name):
            raise RecordError(f"{runs / name} has not finished; finished runs are packed")
    for start in range(0, len(new), TOGETHER):
        _pack(runs, new[start : start + TOGETHER], folder)
    declared = results / DECLARED / f"{grid}.json"
    if declared.exists():
        replace(folder / DECLARED / declared.name, declared.read_bytes())
    return new


def packed(folder: Path) -> list[str]:
    """Ids of the runs of a packed folder."""
    files = sorted(folder.glob("runs-*.parquet"))
    return [str(run) for file in files for run in _table(file)["run"]]


def unpack(folder: Path, results: Path) -> list[str]:
    """Writes the run folders of a packed folder, and what was declared; returns ids that were not there.

    Weights are not among what was packed, so such a run counts as finished for reports and for `study run`, and
    cannot be verified or started from.

    Args:
        folder: as `pack` wrote it.
        results: the results folder; what it holds already stays as it is.

    Raises:
        RecordError: the folder holds no packed runs, a file is broken, or a table of one is missing.
    """
    files = sorted(folder.glob("runs-*.parquet"))
    if not files:
        raise RecordError(f"{folder} holds no packed runs (runs-….parquet)")
    for declared in (folder / DECLARED).glob("*.json"):
        if not (results / DECLARED / declared.name).exists():
            replace(results / DECLARED / declared.name, declared.read_bytes())
    runs = results / "runs"
    new = []
    for file in files:
        records = _table(file)
        fresh = [row for row in records.to_dict("records") if not (runs / row["run"] / "run.json").exists()]
        if fresh:
            key = file.stem.removeprefix("runs-")
            tables = {name: dict(iter(_table(folder / f"{name}-{key}.parquet").groupby("run"))) for name in RUN_TABLES}
            for row in fresh:
                _restore(runs / row["run"], row, {name: parts.get(row["run"]) for name, parts in tables.items()})
        new += [str(row["run"]) for row in fresh]
    return new


def _pack(runs: Path, ids: Sequence[str], folder: Path) -> None:
    key = hashlib.sha256("\n".join(ids).encode()).hexdigest()[:10]
    tables = read(runs, ids)
    own = pa.field("run", pa.string(), nullable=False)
    for name, schema in RUN_TABLES.items():
        _write(folder / f"{name}-{key}.parquet", getattr(tables, name), pa.schema([own, *schema]))
    _write(folder / f"runs-{key}.parquet", pd.DataFrame([_record(runs / run) for run in ids]), PACKED)  # last


def _record(run: Path) -> dict[str, Any]:
    texts = {column: (run / name).read_text(encoding="utf-8") for column, name in {**RECORDS, "done": "DONE"}.items()}
    provenance, status = (read_json(run / RECORDS[column]) for column in ("provenance", "status"))
    provenance["command"] = _without_places(provenance["command"])
    texts |= {"provenance": to_json(provenance), "status": to_json(status | dict.fromkeys(MACHINE))}
    lists = {path.name: path.read_text(encoding="utf-8") for path in run.glob("packages-*.txt")}
    return {
        "run": run.name,
        **texts,
        "packages_file": "".join(lists),
        "packages": "".join(lists.values()),
    }


def _without_places(command: Sequence[str]) -> list[str]:
    return [
        "…" if before in PLACES else re.sub(rf"^({'|'.join(PLACES)})=.*", r"\1=…", word)
        for before, word in itertools.pairwise(["", *command])
    ]


def _restore(run: Path, record: dict[str, Any], tables: dict[str, pd.DataFrame | None]) -> None:
    for column, name in RECORDS.items():
        replace(run / name, record[column].encode())
    if record["packages_file"]:
        replace(run / record["packages_file"], record["packages"].encode())
    for name, rows in tables.items():
        if rows is not None:
            write_table(run, name, rows.drop(columns="run").to_dict("records"))
    files = [name for name in record["done"].split() if (run / name).exists()]
    replace(run / "DONE", "\n".join(files).encode())


def _write(path: Path, rows: pd.DataFrame, schema: pa.Schema) -> None:
    sink = pa.BufferOutputStream()
    table = pa.Table.from_pandas(rows, schema, preserve_index=False)
    pq.write_table(table, sink, compression="zstd", compression_level=19, write_page_checksum=True)
    replace(path, sink.getvalue().to_pybytes())


def _table(path: Path) -> pd.DataFrame:
    try:
        return pq.read_table(path, page_checksum_verification=True).to_pandas()
    except FileNotFoundError:
        raise RecordError(f"{path} is missing") from None
    except (pa.ArrowException, OSError) as error:
        raise RecordError(f"{path} is not a readable parquet file: {error}") from None
