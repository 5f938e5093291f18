"""A run's identity: a hash of everything that can change its result, and of nothing else."""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from typing import Any

from study.grid.fields import Declared, Neutral, NoEffect
from study.grid.schema import SCHEMA_VERSION, Bundled, Folder, Hub, Pairs, Run, Source

SOURCES = (Bundled, Folder, Pairs, Hub)


@cache
def _fields(cls: type[Declared]) -> tuple[tuple[str, Neutral | None], ...]:
    """The fields of a class that can change a result, each with the value at which it does not count."""
    kept = []
    for name, field in cls.model_fields.items():
        marks = field.metadata
        if not any(isinstance(mark, NoEffect) for mark in marks):
            kept.append((name, next((mark for mark in marks if isinstance(mark, Neutral)), None)))
    return tuple(kept)


def _canonical(value: Any, source: Callable[[Source], str | None]) -> Any:
    if isinstance(value, SOURCES):
        return source(value)
    if isinstance(value, Declared):
        drop = value.ineffective()
        body = {}
        for name, neutral in _fields(type(value)):
            item = getattr(value, name)
            if name not in drop and not (neutral and item == neutral.value):
                body[name] = _canonical(item, source)
        return body
    if isinstance(value, tuple | list):
        return [_canonical(item, source) for item in value]
    if isinstance(value, dict):  # as pairs: the order counts, since the first dataset is the one validated on
        return [[key, _canonical(item, source)] for key, item in value.items()]
    return value


def specification(run: Run, fingerprints: Mapping[Source, str] | None = None) -> str:
    """Canonical JSON of all that can change the run's result.

    Args:
        run: the resolved run.
        fingerprints: content hash of every image set the run uses; without it the images stay out, and two runs
            are equal when they differ in nothing but their data.
    """
    body = _canonical(run, (lambda _: None) if fingerprints is None else fingerprints.__getitem__)
    return json.dumps({"schema": SCHEMA_VERSION, "run": body}, sort_keys=True, separators=(",", ":"))


def sources(run: Run) -> Iterator[Source]:
    """The image sets that the run's result depends on."""
    if "data" not in run.ineffective():
        yield run.data.train
    yield from run.evaluation.datasets.values()


def run_id(run: Run, fingerprints: Mapping[Source, str]) -> str:
    """The run's folder name: a readable slug and ten hexadecimal digits, such as `catanet-soft-x2-s0-0123456789`.

    Args:
        run: the resolved run.
        fingerprints: content hash of every source of `sources(run)`; `KeyError` where one is absent.
    """
    digest = hashlib.sha256(specification(run, fingerprints).encode()).hexdigest()[:10]
    assignment = getattr(run.model, "assignment", None)
    parts = [run.model.kind, assignment.kind if assignment else "", f"x{run.scale}"]
    parts.append("" if "seed" in run.ineffective() else f"s{run.seed}")
    return "-".join([part for part in parts if part] + [digest])
