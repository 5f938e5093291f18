"""Every declared source opens as LR and HR pairs; the fingerprint is of the content alone."""

import os
import pickle
from collections.abc import Callable
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from PIL import Image

from study.data import sources
from study.data.degradation import degrade, draw_degradation
from study.data.images import TESTED, DataError, ImageSet, open_images
from study.data.resize import imresize
from study.grid.schema import Bundled, Degraded, Folder, Hub, Pairs, Source
from tests.shared import shared

RNG = np.random.default_rng(0)
PIXELS = {
    "cat": RNG.integers(0, 256, (25, 34, 3), dtype=np.uint8),
    "dog": RNG.integers(0, 256, (24, 24, 3), dtype=np.uint8),
    "grey": np.repeat(RNG.integers(0, 256, (30, 28, 1), dtype=np.uint8), 3, axis=-1),
}


def write(folder: Path, images: dict[str, np.ndarray], ending: str = "png", mark: str = "") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, pixels in images.items():
        Image.fromarray(pixels).save(folder / f"{name}{mark}.{ending}")


def reduced(pixels: np.ndarray, scale: int) -> np.ndarray:
    height, width = pixels.shape[0] // scale, pixels.shape[1] // scale
    hr = torch.from_numpy(pixels[: height * scale, : width * scale].copy()).permute(2, 0, 1)
    return imresize(hr, (height, width)).permute(1, 2, 0).numpy()


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write(tmp_path / "hr", PIXELS)
    return tmp_path


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the images decoded so far."""
    names: list[str] = []
    decode = sources.decode

    def counting(content: bytes, name: str) -> np.ndarray:
        names.append(name)
        return decode(content, name)

    monkeypatch.setattr(sources, "decode", counting)
    return names


def entries(root: Path) -> set[str]:
    return {path.name for path in (root / "cache").iterdir() if path.name != ".lock"}


def opened(root: Path, source: Source) -> ImageSet:
    return open_images(source, root=root, cache=root / "cache")


@pytest.mark.parametrize("scale", [1, 2, 3, 4])
def test_a_folder_gives_cut_hr_and_bicubic_lr(root: Path, scale: int) -> None:
    images = opened(root, Folder(path="hr"))
    assert images.name == "hr"
    assert images.names == ("cat", "dog", "grey")
    assert len(images) == 3
    for index, pixels in enumerate(PIXELS.values()):
        lr, hr = images.pair(index, scale)
        height, width = pixels.shape[0] // scale, pixels.shape[1] // scale
        assert np.array_equal(hr, pixels[: height * scale, : width * scale])
        assert np.array_equal(lr, reduced(pixels, scale))
        assert lr.dtype == hr.dtype == np.uint8


def test_given_and_made_lr_of_set5_agree(tmp_path: Path) -> None:
    root = shared("data/Set5")
    made = open_images(Folder(path="HR"), root=root, cache=tmp_path)
    for scale in (2, 3, 4):
        given = open_images(Pairs(hr="HR", lr=f"LR_bicubic/X{scale}"), root=root, cache=tmp_path)
        assert given.names == made.names
        for index in range(5):
            for one, two in zip(given.pair(index, scale), made.pair(index, scale), strict=True):
                assert np.array_equal(one, two)


def test_the_second_opening_decodes_nothing(root: Path, decoded: list[str]) -> None:
    first = opened(root, Folder(path="hr"))
    first.pair(0, 2)
    assert len(decoded) == 3
    before = entries(root)
    again = opened(root, Folder(path="hr"))
    assert again.fingerprint == first.fingerprint
    assert np.array_equal(again.pair(1, 2)[0], first.pair(1, 2)[0])
    assert len(decoded) == 3
    assert entries(root) == before


def test_a_changed_file_is_decoded_again(root: Path, decoded: list[str]) -> None:
    before = opened(root, Folder(path="hr"))
    changed = PIXELS["dog"].copy()
    changed[3, 3, 0] ^= 1
    write(root / "hr", {"dog": changed})
    path = root / "hr" / "dog.png"
    os.utime(path, ns=(0, path.stat().st_mtime_ns + 10**9))
    after = opened(root, Folder(path="hr"))
    assert len(decoded) == 6
    assert after.fingerprint != before.fingerprint
    assert np.array_equal(after.pair(1, 1)[1], changed)


def test_the_fingerprint_knows_neither_path_nor_format(root: Path) -> None:
    write(root / "elsewhere" / "bmp", PIXELS, "bmp")
    write(root / "renamed", {name.upper(): pixels for name, pixels in PIXELS.items()})
    write(root / "fewer", {name: PIXELS[name] for name in ("cat", "dog")})
    dataset = datasets.Dataset.from_dict({"image": [str(root / "hr" / f"{name}.png") for name in PIXELS]})
    dataset.cast_column("image", datasets.Image()).save_to_disk(str(root / "saved"))
    of = {
        path: opened(root, source).fingerprint
        for path, source in {
            "hr": Folder(path="hr"),
            "bmp": Folder(path="elsewhere/bmp"),
            "saved": Hub(name="saved"),
            "renamed": Folder(path="renamed"),
            "fewer": Folder(path="fewer"),
        }.items()
    }
    assert of["hr"] == of["bmp"] == of["saved"]
    assert len(set(of.values())) == 3
    assert int(of["hr"], 16) >= 0


def test_equal_images_under_two_names_are_fine(tmp_path: Path) -> None:
    write(tmp_path / "hr", {"t36": PIXELS["cat"], "t65": PIXELS["cat"]})
    images = opened(tmp_path, Folder(path="hr"))
    assert np.array_equal(images.pair(0, 2)[0], images.pair(1, 2)[0])


def test_grey_files_equal_their_three_channel_copies(tmp_path: Path) -> None:
    write(tmp_path / "three", {"grey": PIXELS["grey"]})
    write(tmp_path / "one", {"grey": PIXELS["grey"][..., 0]})
    prints = [opened(tmp_path, Folder(path=path)).fingerprint for path in ("one", "three")]
    assert prints[0] == prints[1]


@pytest.mark.parametrize("mark", ["", "x2"])
def test_pairs_give_the_lr_that_is_there(root: Path, mark: str) -> None:
    given = {name: 255 - reduced(pixels, 2) for name, pixels in PIXELS.items()}
    write(root / "lr", given, mark=mark)
    images = opened(root, Pairs(hr="hr", lr="lr"))
    assert images.names == tuple(PIXELS)
    for index, (name, pixels) in enumerate(PIXELS.items()):
        lr, hr = images.pair(index, 2)
        assert np.array_equal(lr, given[name])
        assert np.array_equal(hr, pixels[: 2 * lr.shape[0], : 2 * lr.shape[1]])


def test_the_given_lr_enters_the_fingerprint(root: Path) -> None:
    given = {name: reduced(pixels, 2) for name, pixels in PIXELS.items()}
    for path, change in (("lr", 0), ("other", 1)):
        write(root / path, {name: pixels ^ np.uint8(change) for name, pixels in given.items()}, mark="x2")
    write(root / "unmarked", given, "bmp")
    prints = {path: opened(root, Pairs(hr="hr", lr=path)).fingerprint for path in ("lr", "other", "unmarked")}
    assert prints["lr"] == prints["unmarked"]
    assert len({*prints.values(), opened(root, Folder(path="hr")).fingerprint}) == 3


def test_pairs_refuse_another_scale(root: Path) -> None:
    write(root / "lr", {name: reduced(pixels, 2) for name, pixels in PIXELS.items()})
    with pytest.raises(DataError, match=r"LR images of hr \+ lr are of scale 2; asked for 4"):
        opened(root, Pairs(hr="hr", lr="lr")).pair(0, 4)


def test_an_lr_image_of_a_wrong_size_is_named(root: Path) -> None:
    given = {name: reduced(pixels, 2) for name, pixels in PIXELS.items()}
    write(root / "lr", given | {"cat": given["cat"][:-1]})
    expected = r"lr/cat\.png has 11 × 17 px \(height × width\); its HR image of 25 × 34 needs .*12 × 17 \(x2\), 8 × 11"
    with pytest.raises(DataError, match=expected):
        opened(root, Pairs(hr="hr", lr="lr"))
    write(root / "mixed", given | {"dog": reduced(PIXELS["dog"], 3)})
    expected = r"mixed/dog\.png has 8 × 8 px .* needs 12 × 12 \(x2\), the scale of the images before it"
    with pytest.raises(DataError, match=expected):
        opened(root, Pairs(hr="hr", lr="mixed"))


def damage(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-30])


@pytest.mark.parametrize("harm", [damage, lambda path: path.write_bytes(b"text")])
def test_a_bad_file_is_named_and_nothing_stays(root: Path, harm: Callable[[Path], object]) -> None:
    harm(root / "hr" / "grey.png")
    with pytest.raises(DataError, match=r"hr/grey\.png: corrupt, truncated or no image"):
        opened(root, Folder(path="hr"))
    assert entries(root) == set()
    write(root / "hr", PIXELS)
    assert len(opened(root, Folder(path="hr"))) == 3


def test_an_image_smaller_than_the_scale_is_named(tmp_path: Path) -> None:
    write(tmp_path / "hr", {"big": PIXELS["cat"], "dot": PIXELS["cat"][:3, :9]})
    images = opened(tmp_path, Folder(path="hr"))
    assert images.pair(1, 3)[0].shape == (1, 3, 3)
    before = entries(tmp_path)
    with pytest.raises(DataError, match="image 'dot' of hr has 3 × 9 px: too small for scale 4"):
        images.pair(0, 4)
    assert entries(tmp_path) == before


@pytest.mark.parametrize("scale", [1, 4])
def test_a_degraded_set_has_degraded_lr_images(root: Path, scale: int) -> None:
    images = opened(root, Degraded(of=Folder(path="hr"), seed=5))
    plain = opened(root, Folder(path="hr"))
    assert images.name == "hr, degraded 5"
    assert images.names == plain.names
    for index in range(3):
        lr, hr = images.pair(index, scale)
        assert np.array_equal(hr, plain.pair(index, scale)[1])
        assert np.array_equal(lr, degrade(hr, draw_degradation(5, TESTED + index), scale))
        assert not np.array_equal(lr, plain.pair(index, scale)[0])


def test_degraded_lr_images_are_made_once(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = opened(root, Degraded(of=Folder(path="hr"))).pair(1, 2)[0].copy()
    before = entries(root)
    monkeypatch.setattr("study.data.images.degrade", None)
    again = opened(root, Degraded(of=Folder(path="hr")))
    assert np.array_equal(pickle.loads(pickle.dumps(again)).pair(1, 2)[0], first)
    assert entries(root) == before


def test_a_degraded_set_is_told_by_content_seed_and_version(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(root / "again", PIXELS, "bmp")
    write(root / "fewer", {name: PIXELS[name] for name in ("cat", "dog")})

    def fingerprint(path: str, seed: int) -> str:
        return opened(root, Degraded(of=Folder(path=path), seed=seed)).fingerprint

    prints = [fingerprint("hr", 0), fingerprint("hr", 1), fingerprint("fewer", 0)]
    assert fingerprint("again", 0) == prints[0]
    opened(root, Degraded(of=Folder(path="hr"))).pair(0, 2)
    before = entries(root)
    monkeypatch.setattr("study.data.images.VERSION", 10**6)
    assert len({*prints, fingerprint("hr", 0), opened(root, Folder(path="hr")).fingerprint}) == 5
    opened(root, Degraded(of=Folder(path="hr"))).pair(0, 2)
    assert len(entries(root) - before) == 1


def test_a_missing_folder_is_named_for_both_of_a_pair(root: Path) -> None:
    for source in (
        Folder(path="gone"),
        Degraded(of=Folder(path="gone")),
        Pairs(hr="gone", lr="hr"),
        Pairs(hr="hr", lr="gone"),
    ):
        with pytest.raises(DataError, match=r"no folder .*gone: .*--data-root .* STUDY_DATA"):
            opened(root, source)


def test_the_bundled_photographs_open_without_a_data_root(tmp_path: Path) -> None:
    images = open_images(Bundled(split="test"), root=tmp_path / "absent", cache=tmp_path / "cache")
    assert images.name == "bundled/test"
    assert "astronaut" in images.names
    lr, hr = images.pair(images.names.index("camera"), 4)
    assert hr.shape == (512, 512, 3)
    assert lr.shape == (128, 128, 3)
    assert (hr[..., 0] == hr[..., 2]).all()


def test_a_set_can_be_sent_to_another_process(root: Path) -> None:
    images = opened(root, Folder(path="hr"))
    expected = images.pair(2, 2)
    content = pickle.dumps(images)
    assert len(content) < 2000
    for one, two in zip(pickle.loads(content).pair(2, 2), expected, strict=True):
        assert np.array_equal(one, two)


def test_several_folders_are_one_set(tmp_path: Path) -> None:
    names = list(PIXELS)
    write(tmp_path / "one", {name: PIXELS[name] for name in names[1:]})
    write(tmp_path / "two", {names[0]: PIXELS[names[0]]})
    images = opened(tmp_path, Folder(path=("one", "two")))
    assert (images.name, list(images.names)) == ("one + two", [*sorted(names[1:]), names[0]])
    assert np.array_equal(images.whole(2), PIXELS[names[0]])
    assert opened(tmp_path, Folder(path=("one",))).fingerprint == opened(tmp_path, Folder(path="one")).fingerprint
    write(tmp_path / "three", {names[1]: PIXELS[names[0]]})
    with pytest.raises(DataError, match=rf"one/{names[1]}.png and .*three/{names[1]}.png would both be image"):
        opened(tmp_path, Folder(path=("one", "three")))
    with pytest.raises(DataError, match=r"no folder .*gone"):
        opened(tmp_path, Folder(path=("one", "gone")))


def test_an_image_that_two_sets_share_is_found(tmp_path: Path) -> None:
    write(tmp_path / "one", PIXELS)
    near = PIXELS["dog"].copy()
    near[0, 0, 0] ^= 1  # the middle row is the same
    write(tmp_path / "near", {"puppy": near, "wide": PIXELS["dog"][:, :20]})
    write(tmp_path / "same", {"puppy": near, "hound": PIXELS["dog"]}, ending="bmp")
    one, near_set, same = (opened(tmp_path, Folder(path=name)) for name in ("one", "near", "same"))
    assert one.shared(near_set) is None
    assert one.shared(same) == ("dog", "hound")
    assert same.shared(one) == ("hound", "dog")
