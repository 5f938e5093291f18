"""A cache entry is made once, whole or not at all, and says what it holds."""

import io
import json
import pickle
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from study.data import cache as cache_module
from study.data.cache import stored
from study.data.decoding import DataError

RNG = np.random.default_rng(0)
IMAGES = {"one": (5, 4), "two": (3, 8), "twin": (3, 8)}
PIXELS = {name: RNG.integers(0, 256, (*size, 3), dtype=np.uint8) for name, size in IMAGES.items()}
PIXELS["twin"] = PIXELS["two"]


def images() -> Iterator[tuple[str, np.ndarray]]:
    yield from PIXELS.items()


def left_behind(cache: Path) -> list[str]:
    return sorted(path.name for path in cache.iterdir() if path.name != ".lock")


def test_what_is_stored_comes_back(tmp_path: Path) -> None:
    stack = stored(tmp_path, "set", images, 3, "decoding")
    assert stack.names == tuple(PIXELS)
    assert stack.sizes == tuple(IMAGES.values())
    assert len(stack) == 3
    for index, pixels in enumerate(PIXELS.values()):
        assert np.array_equal(stack[index], pixels)
    with pytest.raises(ValueError, match="read-only"):
        stack[0][0, 0, 0] = 1
    assert left_behind(tmp_path) == ["set"]


def test_a_stored_entry_is_not_made_again(tmp_path: Path) -> None:
    first = stored(tmp_path, "set", images, 3, "decoding")
    again = stored(tmp_path, "set", lambda: pytest.fail("made again"), 3, "decoding")
    assert again == first
    assert np.array_equal(again[2], first[2])


def test_the_fingerprint_is_of_names_sizes_and_bytes(tmp_path: Path) -> None:
    pixels = PIXELS["two"]
    other = pixels.copy()
    other[0, 0, 0] ^= 1
    variants = {
        "same": [("a", pixels), ("b", pixels)],
        "renamed": [("a", pixels), ("c", pixels)],
        "shaped": [("a", pixels), ("b", pixels.reshape(8, 3, 3))],
        "changed": [("a", pixels), ("b", other)],
        "fewer": [("a", pixels)],
        "turned": [("a", pixels), ("b", np.ascontiguousarray(pixels[::-1]))],
        "again": [("a", pixels[:, ::-1][:, ::-1]), ("b", np.asfortranarray(pixels))],
    }
    prints = {key: stored(tmp_path, key, lambda v=value: v, 2, "x").fingerprint for key, value in variants.items()}
    assert prints["same"] == prints.pop("again")
    assert len(set(prints.values())) == len(prints) == 6


def test_a_failure_leaves_nothing(tmp_path: Path) -> None:
    def broken() -> Iterator[tuple[str, np.ndarray]]:
        yield "one", PIXELS["one"]
        raise DataError("two.png: corrupt")

    with pytest.raises(DataError, match=r"two\.png: corrupt"):
        stored(tmp_path, "set", broken, 3, "decoding")
    assert left_behind(tmp_path) == []
    assert len(stored(tmp_path, "set", images, 3, "decoding")) == 3


def test_an_entry_appears_by_its_rename_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, target: Path) -> None:
        assert sorted(file.name for file in path.iterdir()) == ["index.json", "pixels.u8"]
        assert not target.exists()
        raise OSError("disk full")

    monkeypatch.setattr(Path, "rename", full)
    with pytest.raises(DataError, match="cannot be written: disk full"):
        stored(tmp_path, "set", images, 3, "decoding")
    assert left_behind(tmp_path) == []


def test_what_a_killed_process_left_is_removed_by_the_next(tmp_path: Path) -> None:
    mine = tmp_path / f".partial-{socket.gethostname()}-999999"
    elsewhere = tmp_path / ".partial-another.host-7"
    for folder in (mine, elsewhere):
        folder.mkdir()
        (folder / "pixels.u8").write_bytes(b"half")
    stored(tmp_path, "set", images, 3, "decoding")
    assert left_behind(tmp_path) == [elsewhere.name, "set"]


def test_many_at_once_make_it_once(tmp_path: Path) -> None:
    made, stacks = [], []

    def slow() -> Iterator[tuple[str, np.ndarray]]:
        made.append(1)
        for image in PIXELS.items():
            time.sleep(0.02)
            yield image

    def work() -> None:
        stacks.append(stored(tmp_path, "set", slow, 3, "decoding"))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 1
    assert len(stacks) == 4
    assert len(set(stacks)) == 1


@pytest.mark.parametrize("damage", ["short", "no index", "no pixels", "bad index"])
def test_damage_is_named(tmp_path: Path, damage: str) -> None:
    stored(tmp_path, "set", images, 3, "decoding")
    entry = tmp_path / "set"
    if damage == "short":
        (entry / "pixels.u8").write_bytes(b"123")
    elif damage == "bad index":
        (entry / "index.json").write_text(json.dumps({"names": []}))
    else:
        (entry / {"no index": "index.json", "no pixels": "pixels.u8"}[damage]).unlink()
    with pytest.raises(DataError, match=r"set is damaged \(.*\): delete it, and it is made again"):
        stored(tmp_path, "set", images, 3, "decoding")


def test_an_unwritable_cache_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=r"image cache .*file.* cannot be written"):
        stored(tmp_path / "file", "set", images, 3, "decoding")


def test_a_pickled_stack_carries_no_pixels(tmp_path: Path) -> None:
    big = np.zeros((500, 500, 3), np.uint8)
    stack = stored(tmp_path, "set", lambda: [("big", big)], 1, "decoding")
    assert stack[0].shape == (500, 500, 3)
    content = pickle.dumps(stack)
    assert len(content) < 1000
    assert np.array_equal(pickle.loads(content)[0], big)


def test_progress_is_shown_only_when_it_takes_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shown = {}
    for patience_s in (0.0, 100.0):
        screen = io.StringIO()
        monkeypatch.setattr(cache_module, "_PATIENCE_S", patience_s)
        monkeypatch.setattr(
            cache_module, "Console", lambda s=screen, **_: Console(file=s, force_terminal=True, width=80)
        )
        stored(tmp_path, f"set{patience_s}", images, 3, "Set5: decoding")
        shown[patience_s] = screen.getvalue()
    assert "Set5: decoding" in shown[0.0]
    assert shown[100.0] == ""
