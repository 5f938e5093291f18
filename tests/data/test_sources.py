"""Files are found, matched and refused by name; the bundled photographs are there and disjoint."""

import os
import re
from pathlib import Path

import datasets
import numpy as np
import pytest
from PIL import Image

from study.data.decoding import DataError
from study.data.sources import BUNDLED, find_bundled, find_images, list_files, list_hub, match_pairs
from study.grid.schema import Hub

RNG = np.random.default_rng(0)
PIXELS = [RNG.integers(0, 256, (6, 8, 3), dtype=np.uint8) for _ in range(3)]


def touch(folder: Path, *names: str) -> dict[str, Path]:
    folder.mkdir(exist_ok=True)
    for name in names:
        (folder / name).write_bytes(b"")
    return {Path(name).stem: folder / name for name in names}


def test_the_bundled_photographs_are_there_and_disjoint() -> None:
    test, train = find_bundled("test"), find_bundled("train")
    assert len(test) >= 8
    assert len(train) >= 8
    assert not test.keys() & train.keys()
    assert all(path.is_file() for path in (*test.values(), *train.values()))
    stereo = {"motorcycle_left", "motorcycle_right"}
    assert stereo <= train.keys() or stereo <= test.keys()
    channels = []
    for path in test.values():
        with Image.open(path) as image:
            channels.append(len(image.getbands()))
    assert channels.count(3) == channels.count(1) == 4


def test_every_bundled_training_photograph_holds_the_paper_s_crop() -> None:
    for name, path in find_bundled("train").items():
        with Image.open(path) as image:
            assert min(image.size) // 4 >= 64, name


def test_no_bundled_photograph_is_on_both_sides_in_content() -> None:
    contents = [path.read_bytes() for split in BUNDLED for path in find_bundled(split).values()]
    assert len(set(contents)) == len(contents)


def test_a_photograph_that_is_not_shipped_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(BUNDLED, "test", ("astronaut.png", "unicorn.png"))
    with pytest.raises(DataError, match=r"scikit-image [\d.]+ ships no unicorn\.png; versions 0\.24 to 0\.26 do"):
        find_bundled("test")


def test_a_folder_gives_its_images_sorted_by_stem(tmp_path: Path) -> None:
    touch(tmp_path / "set", "b.PNG", "a-2.png", "a.jpg", "c.bmp", "notes.txt", "._a.png", "Thumbs.db")
    (tmp_path / "set" / "inner.png").mkdir()
    assert list(find_images("set", tmp_path)) == ["a", "a-2", "b", "c"]
    assert find_images(str(tmp_path / "set"), Path("elsewhere")) == find_images("set", tmp_path)


def test_a_missing_folder_names_the_data_root_and_how_to_set_it(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        find_images("DIV2K/HR", tmp_path)
    for part in (str(tmp_path / "DIV2K/HR"), str(tmp_path), "'DIV2K/HR'", "--data-root", "STUDY_DATA"):
        assert part in str(caught.value)


def test_a_folder_without_images_is_named(tmp_path: Path) -> None:
    touch(tmp_path / "empty")
    with pytest.raises(DataError, match=r"empty has no images \(\.bmp, .*\)$"):
        find_images("empty", tmp_path)
    touch(tmp_path / "empty" / "HR", "a.png")
    with pytest.raises(DataError, match=r"empty has no images .*; its subfolders are not searched: HR"):
        find_images("empty", tmp_path)


def test_two_files_with_one_stem_are_named(tmp_path: Path) -> None:
    touch(tmp_path / "set", "baby.png", "baby.bmp")
    with pytest.raises(DataError, match=r"baby\.bmp and baby\.png would both be image 'baby'"):
        find_images("set", tmp_path)


def test_pairs_match_by_stem_with_or_without_the_scale(tmp_path: Path) -> None:
    hr = touch(tmp_path / "hr", "baby.png", "box2.png", "boxx2.png", "0801.png")
    lr = touch(tmp_path / "lr", "babyx3.png", "box2.png", "boxx2.bmp", "0801x4.png")
    matched = match_pairs(hr, lr)
    assert {name: path.name for name, path in matched.items()} == {
        "baby": "babyx3.png",
        "box2": "box2.png",
        "boxx2": "boxx2.bmp",
        "0801": "0801x4.png",
    }
    assert list(matched) == list(hr)


@pytest.mark.parametrize(
    ("hr", "lr", "message"),
    [
        (["a.png", "b.png"], ["a.png"], r"hr/b\.png has no LR image 'b' \(or 'bx2'\) in .*lr"),
        (["a.png"], ["a.png", "b.png"], r"lr/b\.png has no HR image 'b' in .*hr"),
        (["a.png"], ["ax2.png", "ax3.png"], r"ax2\.png and ax3\.png are both LR images of 'a'"),
        (["a.png"], ["ax8.png"], r"ax8\.png has no HR image 'ax8'"),
    ],
)
def test_unmatched_pairs_are_named(tmp_path: Path, hr: list[str], lr: list[str], message: str) -> None:
    with pytest.raises(DataError, match=message):
        match_pairs(touch(tmp_path / "hr", *hr), touch(tmp_path / "lr", *lr))


def test_the_entry_follows_path_size_and_time(tmp_path: Path) -> None:
    files = touch(tmp_path / "set", "a.png", "b.png")
    entries = [list_files(files).entry]
    assert list_files(find_images("set", tmp_path)).entry == entries[0]
    files["a"].write_bytes(b"longer")
    entries.append(list_files(files).entry)
    (tmp_path / "set").rename(tmp_path / "other")
    entries.append(list_files(find_images("other", tmp_path)).entry)
    assert len(set(entries)) == 3


def test_a_dangling_link_is_named_not_passed_over(tmp_path: Path) -> None:
    touch(tmp_path / "set", "a.png")
    (tmp_path / "set" / "b.png").symlink_to("gone.png")
    with pytest.raises(DataError, match=r"set/b\.png cannot be read: No such file"):
        list_files(find_images("set", tmp_path))


def save(folder: Path, images: list[object], *, column: str = "image", split: str | None = None) -> None:
    dataset = datasets.Dataset.from_dict({column: images, "label": list(range(len(images)))})
    dataset = dataset.cast_column(column, datasets.Image())
    (dataset if split is None else datasets.DatasetDict({split: dataset})).save_to_disk(str(folder))


def files_of(folder: Path, names: list[str]) -> list[object]:
    folder.mkdir(exist_ok=True)
    for name, pixels in zip(names, PIXELS, strict=False):
        Image.fromarray(pixels).save(folder / name)
    return [str(folder / name) for name in names]


def test_a_saved_dataset_is_read_under_its_files_stems(tmp_path: Path) -> None:
    save(tmp_path / "set", files_of(tmp_path / "png", ["b.png", "a.png", "c.png"]))
    listing = list_hub(Hub(name="set"), tmp_path)
    found = list(listing.read())
    assert listing.count == 3
    assert [name for name, _ in found] == ["b", "a", "c"]
    for (_, pixels), expected in zip(found, PIXELS, strict=True):
        assert np.array_equal(pixels, expected)
    assert list_hub(Hub(name="set"), tmp_path).entry == listing.entry


def test_rows_without_distinct_stems_are_numbered(tmp_path: Path) -> None:
    save(tmp_path / "set", [Image.fromarray(PIXELS[index % 3]) for index in range(11)])
    names = [name for name, _ in list_hub(Hub(name="set"), tmp_path).read()]
    assert names == [f"{row:02d}" for row in range(11)]
    twice = files_of(tmp_path / "one", ["a.png"]) + files_of(tmp_path / "two", ["a.png"])
    save(tmp_path / "twice", twice)
    assert [name for name, _ in list_hub(Hub(name="twice"), tmp_path).read()] == ["0", "1"]


def test_split_and_column_are_chosen(tmp_path: Path) -> None:
    save(tmp_path / "set", files_of(tmp_path / "png", ["a.png"]), column="hr", split="validation")
    listing = list_hub(Hub(name="set", split="validation", column="hr"), tmp_path)
    assert np.array_equal(next(listing.read())[1], PIXELS[0])


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (Hub(name="parts", split="test", column="hr"), "dataset 'parts' has no split 'test'; it has train"),
        (Hub(name="parts"), "dataset 'parts' has no image column 'image'; image columns: hr"),
        (Hub(name="whole", column="label"), "dataset 'whole' has no image column 'label'; image columns: image"),
        (Hub(name="junk"), "dataset 'junk': .*junk is not written by save_to_disk"),
        (Hub(name="gap"), "dataset 'gap': row '1' has no image in column 'image'"),
        (Hub(name="bad"), "dataset 'bad', image 'bad': corrupt, truncated or no image"),
    ],
)
def test_an_unusable_dataset_is_named(tmp_path: Path, source: Hub, message: str) -> None:
    image = files_of(tmp_path / "png", ["a.png"])[0]
    if source.name == "parts":
        save(tmp_path / "parts", [image], column="hr", split="train")
    elif source.name == "junk":
        touch(tmp_path / "junk", "a.txt")
    elif source.name == "bad":
        (tmp_path / "bad.png").write_bytes(b"no image")
        save(tmp_path / "bad", [str(tmp_path / "bad.png")])
    else:
        save(tmp_path / source.name, {"whole": [image], "gap": [image, None]}[source.name])
    with pytest.raises(DataError, match=message):
        list(list_hub(source, tmp_path).read())


def test_a_dataset_that_cannot_be_had_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(name: str, split: str) -> None:
        raise ConnectionError(f"cannot reach the hub for {name}, {split}")

    monkeypatch.setattr(datasets, "load_dataset", refuse)
    expected = f"no folder {tmp_path / 'someone/div2k'}, nor a hub id (ConnectionError: cannot reach"
    with pytest.raises(DataError, match=re.escape(expected)):
        list_hub(Hub(name="someone/div2k"), tmp_path)


def test_an_empty_dataset_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    empty = datasets.Dataset.from_dict({"image": []}, features=datasets.Features({"image": datasets.Image()}))
    monkeypatch.setattr(datasets, "load_dataset", lambda name, split: empty)
    with pytest.raises(DataError, match="dataset 'someone/void', split 'train', has no images"):
        list_hub(Hub(name="someone/void"), tmp_path)


def test_a_hub_id_is_loaded_by_the_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path / "saved", files_of(tmp_path / "png", ["a.png", "b.png"]))
    asked = []

    def load(name: str, split: str) -> object:
        asked.append((name, split))
        return datasets.load_from_disk(str(tmp_path / "saved"))

    monkeypatch.setattr(datasets, "load_dataset", load)
    found = list(list_hub(Hub(name="someone/div2k", split="train"), tmp_path).read())
    assert asked == [("someone/div2k", "train")]
    assert [name for name, _ in found] == ["a", "b"]


def test_images_that_a_dataset_only_names_are_part_of_its_entry(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "outside.png"
    named = datasets.Dataset.from_dict({"image": [str(path)]}).cast_column("image", datasets.Image())
    monkeypatch.setattr(datasets, "load_dataset", lambda name, split: named)
    entries = set()
    for shade in (10, 20):
        Image.new("RGB", (8, 8), (shade,) * 3).save(path)
        os.utime(path, (shade, shade))
        listing = list_hub(Hub(name="someone/set"), tmp_path)
        ((_, pixels),) = listing.read()
        assert (pixels == shade).all()
        entries.add(listing.entry)
    assert len(entries) == 2


def test_datasets_held_in_memory_are_told_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.IN_MEMORY_MAX_SIZE", 10**9)
    entries = set()
    for shade in (10, 20):
        image = Image.new("RGB", (8, 8), (shade,) * 3)
        made = datasets.Dataset.from_dict({"image": [image]}, features=datasets.Features({"image": datasets.Image()}))
        monkeypatch.setattr(datasets, "load_dataset", lambda name, split, made=made: made)
        entries.add(list_hub(Hub(name="someone/set"), tmp_path).entry)
    assert len(entries) == 2


def test_a_home_of_nobody_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="'~nosuchuser/set': "):
        find_images("~nosuchuser/set", tmp_path)
