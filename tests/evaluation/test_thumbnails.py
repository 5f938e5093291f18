from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from study.data.images import ImageSet, open_images
from study.evaluation.thumbnails import LONGEST_NAME_BYTES, save_thumbnails
from study.grid.models import Bicubic
from study.grid.schema import Evaluation, Folder, Run
from study.records.store import read_json
from study.training.execution import Machine, Status, execute
from study.training.image_sets import ImageSets


def opened(folder: Path, *names: str, side: tuple[int, int] = (240, 120)) -> ImageSet:
    (folder / "HR").mkdir()
    for index, name in enumerate(names):
        Image.new("RGB", side, (40 * index, 200, 90)).save(folder / "HR" / f"{name}.png")
    return open_images(Folder(path="HR"), root=folder, cache=folder / "cache")


def files(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def test_a_picture_of_every_image_under_the_sets_fingerprint(tmp_path):
    images = opened(tmp_path, "bird", "a.b")
    save_thumbnails(images, tmp_path / "thumbnails")
    folder = tmp_path / "thumbnails"
    assert files(folder) == [f"{images.fingerprint}/a.b.jpg", f"{images.fingerprint}/bird.jpg"]
    with Image.open(folder / images.fingerprint / "bird.jpg") as picture:
        assert (picture.format, picture.size, picture.mode) == ("JPEG", (96, 48), "RGB")
        assert np.abs(np.asarray(picture).astype(int) - (0, 200, 90)).max() <= 3


def test_small_images_are_not_enlarged(tmp_path):
    images = opened(tmp_path, "dot", side=(20, 30))
    save_thumbnails(images, tmp_path)
    with Image.open(tmp_path / images.fingerprint / "dot.jpg") as picture:
        assert picture.size == (20, 30)


def test_only_what_is_missing_is_written(tmp_path):
    images = opened(tmp_path, "one", "two")
    folder = tmp_path / images.fingerprint
    folder.mkdir()
    (folder / "one.jpg").write_bytes(b"kept")
    save_thumbnails(images, tmp_path)
    assert (folder / "one.jpg").read_bytes() == b"kept"
    assert (folder / "two.jpg").read_bytes()[:2] == b"\xff\xd8"


def test_a_name_too_long_for_a_file_has_no_picture(tmp_path):
    long, longest = "é" * (LONGEST_NAME_BYTES // 2) + "x", "é" * (LONGEST_NAME_BYTES // 2)
    images = opened(tmp_path, long, longest)
    save_thumbnails(images, tmp_path / "out")
    assert files(tmp_path / "out") == [f"{images.fingerprint}/{longest}.jpg"]


def test_what_cannot_be_written_raises(tmp_path):
    images = opened(tmp_path, "one")
    (tmp_path / "out").write_text("a file where a folder must be")
    with pytest.raises(OSError, match="out"):
        save_thumbnails(images, tmp_path / "out")


def test_a_run_leaves_them_beside_the_runs_and_names_their_folder(tmp_path):
    opened(tmp_path, "bird", side=(32, 32))
    evaluation = Evaluation(datasets={"Set1": Folder(path="HR")}, metrics=("psnr",), samples=0, cost_lr_px=8)
    run = Run(model=Bicubic(), scale=2, evaluation=evaluation)
    folder = tmp_path / "results" / "runs" / "bicubic"
    machine = Machine(ImageSets(tmp_path, tmp_path / "cache"), cpu=True, workers=0, stop=lambda: False)
    execute(run, folder, machine, Status(folder, run))
    fingerprint = read_json(folder / "provenance.json")["data"]["evaluation.Set1"]
    assert files(tmp_path / "results" / "thumbnails") == [f"{fingerprint}/bird.jpg"]
