"""Samples are a function of (seed, n) alone, drawn uniformly, and aligned under every symmetry."""

import pickle
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.stats import chisquare
from torch.utils.data import DataLoader

from study.data.crops import Crop, Patches, draw
from study.data.decoding import DataError
from study.data.degradation import degrade, draw_degradation
from study.data.images import ImageSet, open_images
from study.data.resize import imresize
from study.grid.schema import Folder, RealESRGAN

SIZES = [(20, 30), (16, 16), (40, 17)]
SIDE = 12
DRAWN = [
    Crop(image=2, top=25, left=3, symmetry=4, key=106500010600983629),
    Crop(image=0, top=8, left=7, symmetry=0, key=7501867102099269819),
    Crop(image=1, top=0, left=0, symmetry=0, key=7511823885658883584),
]
FAR = Crop(image=0, top=5, left=1, symmetry=0, key=1312702251303583272)


@pytest.fixture
def images(tmp_path: Path) -> ImageSet:
    """Three random images of different sizes, none a multiple of every scale."""
    rng = np.random.default_rng(0)
    folder = tmp_path / "hr"
    folder.mkdir()
    for index, (height, width) in enumerate([(80, 121), (96, 64), (64, 82)]):
        noise = torch.from_numpy(rng.integers(0, 256, (3, height // 4, width // 4), dtype=np.uint8))
        pixels = imresize(noise, (height, width)).permute(1, 2, 0).numpy()
        Image.fromarray(pixels).save(folder / f"image{index}.png")
    return open_images(Folder(path="hr"), root=tmp_path, cache=tmp_path / "cache")


def equal(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor]) -> bool:
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


def test_a_draw_never_changes() -> None:
    # Pinned: a change here changes every run, so it needs a new schema version.
    assert [draw(0, n, SIZES, SIDE, True) for n in range(3)] == DRAWN
    assert draw(7, 10**12, SIZES, SIDE, True) == FAR


def test_seed_and_number_change_the_draw() -> None:
    keys = {draw(seed, n, SIZES, SIDE, True).key for seed in range(20) for n in range(200)}
    assert len(keys) == 4000
    assert all(0 <= key < 2**63 for key in keys)


def test_each_epoch_has_every_image_once_in_another_order() -> None:
    sizes = [(16, 16)] * 10
    epochs = [tuple(draw(3, 10 * epoch + place, sizes, 8, True).image for place in range(10)) for epoch in range(50)]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert len(set(epochs)) == 50


def test_draws_are_uniform() -> None:
    crops = [draw(5, n, SIZES, SIDE, True) for n in range(12_000)]
    wide = [crop for crop in crops if crop.image == 0]
    counts = {
        "top": (Counter(crop.top for crop in wide), 9),
        "left": (Counter(crop.left for crop in wide), 19),
        "symmetry": (Counter(crop.symmetry for crop in crops), 8),
        "place": (Counter((crop.top, crop.symmetry) for crop in wide), 72),
        "first of its epoch": (Counter(crop.image for crop in crops[::3]), 3),
        "key": (Counter(crop.key % 16 for crop in crops), 16),
    }
    for name, (counter, categories) in counts.items():
        assert len(counter) == categories, name
        assert chisquare(list(counter.values())).pvalue > 1e-3, name


def test_without_augmentation_only_the_symmetry_goes() -> None:
    for n in range(50):
        assert draw(1, n, SIZES, SIDE, False) == draw(1, n, SIZES, SIDE, True)._replace(symmetry=0)


def test_samples_do_not_depend_on_order_or_workers(images: ImageSet) -> None:
    patches = Patches(images, scale=4, lr_patch_px=8, augment=True, seed=2)
    numbers = list(range(24))
    forward = {n: patches[n] for n in numbers}
    fresh = Patches(images, scale=4, lr_patch_px=8, augment=True, seed=2)
    assert all(equal(fresh[n], forward[n]) for n in reversed(numbers))
    assert all(equal(pickle.loads(pickle.dumps(patches))[n], forward[n]) for n in (0, 23))
    batches = list(DataLoader(patches, batch_sampler=[numbers[:8], numbers[8:16], numbers[16:]], num_workers=2))
    assert all(torch.equal(batches[n // 8]["hr"][n % 8], forward[n]["hr"]) for n in numbers)


def test_a_sample_has_the_declared_form(images: ImageSet) -> None:
    sample = Patches(images, scale=2, lr_patch_px=10, augment=True, seed=0)[17]
    assert sample["lr"].shape == (3, 10, 10)
    assert sample["hr"].shape == (3, 20, 20)
    assert sample["lr"].dtype == sample["hr"].dtype == torch.float32
    assert sample["key"].dtype == torch.int64
    assert sample["key"].shape == ()
    assert sample["hr"].is_contiguous()
    assert 0 <= sample["hr"].min() < sample["hr"].max() <= 1


@pytest.mark.parametrize("scale", [1, 2, 3, 4])
def test_crops_are_cut_where_drawn(images: ImageSet, scale: int) -> None:
    patches = Patches(images, scale=scale, lr_patch_px=9, augment=False, seed=4)
    for n in range(12):
        crop = draw(4, n, patches.lr_sizes, 9, False)
        lr, hr = images.pair(crop.image, scale)
        top, left, side = crop.top * scale, crop.left * scale, 9 * scale
        expected = lr[crop.top : crop.top + 9, crop.left : crop.left + 9], hr[top : top + side, left : left + side]
        for name, pixels in zip(("lr", "hr"), expected, strict=True):
            assert np.array_equal(patches[n][name].mul(255).round().permute(1, 2, 0).numpy(), pixels)


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_lr_and_hr_stay_aligned_under_all_symmetries(images: ImageSet, scale: int) -> None:
    patches = Patches(images, scale=scale, lr_patch_px=12, augment=True, seed=9)
    seen = set()
    for n in range(60):
        symmetry = draw(9, n, patches.lr_sizes, 12, True).symmetry
        seen.add(symmetry)
        lr, hr = (patches[n][name].mul(255).round().byte() for name in ("lr", "hr"))
        if symmetry & 4:  # the passes and the rounding between them belong to the image as it was
            lr, hr = lr.mT, hr.mT
        inside = slice(2, -2)  # nearer to the edge the crop's own mirrored surroundings count
        assert torch.equal(imresize(hr, (12, 12))[:, inside, inside], lr[:, inside, inside]), symmetry
    assert seen == set(range(8))


def test_the_eight_symmetries_differ(images: ImageSet, monkeypatch: pytest.MonkeyPatch) -> None:
    patches = Patches(images, scale=2, lr_patch_px=8, augment=True, seed=0)
    samples = []
    for symmetry in range(8):
        monkeypatch.setattr("study.data.crops.draw", lambda *_, s=symmetry: Crop(0, 1, 2, s, 0))
        samples.append(patches[0]["hr"])
    assert len({sample.numpy().tobytes() for sample in samples}) == 8
    turned = [flipped.rot90(turns, (1, 2)) for flipped in (samples[0], samples[0].flip(2)) for turns in range(4)]
    assert {sample.numpy().tobytes() for sample in samples} == {
        sample.contiguous().numpy().tobytes() for sample in turned
    }


@pytest.mark.parametrize("scale", [1, 4])
def test_a_degraded_sample_is_made_of_the_same_hr_crop(images: ImageSet, scale: int) -> None:
    plain = Patches(images, scale, 16, True, seed=3)
    degraded = Patches(images, scale, 16, True, seed=3, degradation=RealESRGAN())
    for n in range(12):
        one, other = plain[n], degraded[n]
        assert torch.equal(one["hr"], other["hr"])
        assert torch.equal(one["key"], other["key"])
        hr = one["hr"].mul(255).round().byte().permute(1, 2, 0).numpy()
        lr = other["lr"].mul(255).round().byte().permute(1, 2, 0).numpy()
        assert np.array_equal(lr, degrade(hr, draw_degradation(3, n), scale))
        assert not torch.equal(one["lr"], other["lr"])


def test_degraded_samples_do_not_depend_on_order_or_workers(images: ImageSet) -> None:
    degraded = Patches(images, 4, 16, True, seed=1, degradation=RealESRGAN())
    alone = {n: degraded[n] for n in reversed(range(8))}
    batches = list(DataLoader(degraded, batch_sampler=[[0, 1, 2, 3], [4, 5, 6, 7]], num_workers=2))
    for n, sample in alone.items():
        assert all(torch.equal(batches[n // 4][name][n % 4], sample[name]) for name in sample)


def test_degraded_samples_need_no_bicubic_images(images: ImageSet, tmp_path: Path) -> None:
    before = set((tmp_path / "cache").iterdir())
    assert Patches(images, 4, 16, True, seed=1, degradation=RealESRGAN())[5]["lr"].shape == (3, 16, 16)
    assert set((tmp_path / "cache").iterdir()) == before
    with pytest.raises(DataError, match=r"image 'image1' of hr has 24 × 16 LR px at x4, .* lr_patch_px 17"):
        Patches(images, 4, 17, True, seed=1, degradation=RealESRGAN())


def test_a_sample_is_described_by_image_and_degradation(images: ImageSet) -> None:
    name = images.names[draw(3, 5, [(80, 121), (96, 64), (64, 82)], 16, True).image]
    assert Patches(images, 1, 16, True, seed=3).describe(5) == name
    described = Patches(images, 1, 16, True, seed=3, degradation=RealESRGAN()).describe(5)
    assert described == f"{name} | {draw_degradation(3, 5).describe()}"


def test_an_image_smaller_than_the_crop_is_refused(images: ImageSet) -> None:
    with pytest.raises(DataError, match=r"image 'image1' of hr has 24 × 16 LR px at x4, .* lr_patch_px 17"):
        Patches(images, scale=4, lr_patch_px=17, augment=True, seed=0)
    assert Patches(images, scale=4, lr_patch_px=16, augment=True, seed=0)[0]["lr"].shape == (3, 16, 16)


def test_images_smaller_than_the_crop_are_left_out_where_that_is_asked_for(images: ImageSet) -> None:
    with pytest.raises(DataError, match=r"data\.smaller: leave_out trains without such images"):
        Patches(images, scale=4, lr_patch_px=17, augment=True, seed=0)
    patches = Patches(images, scale=4, lr_patch_px=17, augment=True, seed=0, smaller="leave_out")
    assert patches.left_out
    assert patches.left_out + [images.names[index] for index in patches.kept] == sorted(
        images.names, key=lambda name: name not in patches.left_out
    )
    assert {patches.describe(n) for n in range(40)} == set(images.names) - set(patches.left_out)
    assert patches[3]["lr"].shape == (3, 17, 17)
    with pytest.raises(DataError, match=r"lr_patch_px 90, and so has every other"):
        Patches(images, scale=4, lr_patch_px=90, augment=True, seed=0, smaller="leave_out")
    whole, asked = (Patches(images, 4, 16, True, seed=0, smaller=word) for word in ("refuse", "leave_out"))
    assert all(torch.equal(whole[n]["lr"], asked[n]["lr"]) for n in range(6))


def test_a_negative_number_is_refused(images: ImageSet) -> None:
    with pytest.raises(IndexError, match="-1"):
        Patches(images, scale=4, lr_patch_px=8, augment=True, seed=0)[-1]
