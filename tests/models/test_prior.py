"""Descriptors of images whose answer is known."""

import math

import pytest
import torch
from torch import Tensor

from study.grid.models import Hard, NoAssignment, Soft
from study.models.prior import (
    dct_energies,
    descriptor,
    gaussian,
    hashed,
    laplacian_energies,
    local_variance,
    wavelet_energies,
)

ENERGIES = {"dct": dct_energies, "wavelet": wavelet_energies, "laplacian": laplacian_energies}
TRANSFORMS = list(ENERGIES)


def soft(kind: str, **options: object) -> Soft:
    return Soft.model_validate({"prior": {"kind": kind, **options}})


def grating(cycles_per_px: float, side: int = 64, diagonal: bool = False) -> Tensor:
    x = torch.arange(side, dtype=torch.float64)
    phase = x + x[:, None] if diagonal else x.expand(side, side)
    return 0.25 * torch.sin(2 * math.pi * cycles_per_px * phase + 0.3)[None]


def describe(assignment: Soft, image: Tensor, keys: Tensor | None = None) -> Tensor:
    found = descriptor(assignment, image, keys)
    assert found is not None
    return found


def rgb(luminance: Tensor) -> Tensor:
    return (luminance[:, None] + 0.5).expand(-1, 3, -1, -1)


@pytest.mark.parametrize(
    ("transform", "cycles_per_px", "diagonal", "band"),
    [
        ("dct", 1 / 16, False, 0),  # u = 1
        ("dct", 2.5 / 16, False, 1),
        ("dct", 5.5 / 16, False, 2),
        ("dct", 6 / 16, True, 3),  # u + v = 12
        ("wavelet", 1 / 24, False, 0),  # level 4: a thirty-second to a sixteenth
        ("wavelet", 1 / 12, False, 1),
        ("wavelet", 1 / 6, False, 2),
        ("wavelet", 0.45, False, 3),
        ("laplacian", 1 / 28, False, 0),
        ("laplacian", 1 / 12, False, 1),
        ("laplacian", 1 / 7, False, 2),
        ("laplacian", 0.45, False, 3),
    ],
)
def test_a_grating_lies_in_its_octave(transform: str, cycles_per_px: float, diagonal: bool, band: int) -> None:
    energies = ENERGIES[transform](grating(cycles_per_px, diagonal=diagonal), 4)[0, :, 16:48, 16:48].mean(dim=(1, 2))
    assert int(energies.argmax()) == band


@pytest.mark.parametrize("transform", TRANSFORMS)
def test_texture_beside_nothing_is_found_at_its_place(transform: str) -> None:
    image = torch.randn(1, 64, 64, generator=torch.Generator().manual_seed(0), dtype=torch.float64) / 10
    image[..., :32] = 0
    found = describe(soft("frequency", transform=transform), rgb(image))
    for band in (2, 3):
        energy = found[0, :, band].unflatten(0, (64, 64))
        assert energy[8:-8, 40:-8].min() > energy[8:-8, 8:24].max() + 0.5


@pytest.mark.parametrize("transform", TRANSFORMS)
def test_a_step_is_found_at_its_place(transform: str) -> None:
    image = torch.zeros(1, 48, 48, dtype=torch.float64)
    image[..., 24:] = 0.5
    found = describe(soft("frequency", transform=transform), rgb(image))
    # A vertical step has no oblique part, which alone is in the DCT's last band.
    highest = found[0, :, 2 if transform == "dct" else 3].unflatten(0, (48, 48))[24].argmax()
    assert 20 <= int(highest) <= 27


@pytest.mark.parametrize("kind", ["frequency", "shuffled", "variance"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_flat_image_says_nothing(kind: str, dtype: torch.dtype) -> None:
    options = [{"transform": transform} for transform in TRANSFORMS] if kind != "variance" else [{}]
    for option in options:
        found = describe(soft(kind, **option), torch.full((2, 3, 9, 13), 0.37, dtype=dtype))
        assert found.shape == (2, 117, 4)
        assert found.dtype == dtype
        assert found.abs().max() < 1e-4


@pytest.mark.parametrize("bands", range(2, 7))
@pytest.mark.parametrize("kind", ["frequency", "variance", "noise"])
def test_standardised_at_every_number_of_bands_and_size(bands: int, kind: str) -> None:
    image = torch.rand(2, 3, 8, 11, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    options = [{"transform": transform} for transform in TRANSFORMS] if kind == "frequency" else [{}]
    for option in options:
        found = describe(soft(kind, bands=bands, **option), image)
        assert found.shape == (2, 88, bands)
        assert torch.isfinite(found).all()
        if kind != "noise":
            assert found.mean(dim=1).abs().max() < 1e-9
            assert found.std(dim=1, correction=0).max() < 1
            assert found.std(dim=1, correction=0)[:, -1].min() > 0.9


def test_dct_keeps_the_energy_of_every_block() -> None:
    generator = torch.Generator().manual_seed(0)
    luminance = torch.randn(1, 20, 20, generator=generator, dtype=torch.float64)
    members = torch.tensor([2, 3 + 4, 5 + 6 + 7 + 8, 7 + 6 + 5 + 4 + 3 + 2 + 1], dtype=torch.float64)
    total = (dct_energies(luminance, 4) * members[:, None, None]).sum(dim=1)
    torch.testing.assert_close(total[0, 3:15, 3:15], 64 * local_variance(luminance)[0, 3:15, 3:15])
    block = luminance[0, 5:13, 5:13]
    torch.testing.assert_close(local_variance(luminance)[0, 8, 8], block.var(correction=0))


def test_haar_details_keep_the_energy() -> None:
    luminance = torch.zeros(1, 64, 64, dtype=torch.float64)
    luminance[0, 32, 32] = 1
    finest = wavelet_energies(luminance, 1)
    # Three details of amplitude 1/4 at each of four places, averaged over the details; box filtering keeps the sum.
    assert float(finest.sum()) == pytest.approx(4 / 16)


def test_colours_count_as_their_luminance() -> None:
    image = torch.rand(2, 3, 16, 18, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    luminance = 0.299 * image[:, 0] + 0.587 * image[:, 1] + 0.114 * image[:, 2]
    torch.testing.assert_close(describe(soft("frequency"), image), describe(soft("frequency"), rgb(luminance)))


def test_variance_says_the_same_in_every_band() -> None:
    found = describe(soft("variance"), torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(0)))
    assert torch.equal(found, found[..., :1].expand_as(found))


def test_shuffled_is_a_permutation_by_key() -> None:
    image = torch.rand(1, 3, 16, 18, generator=torch.Generator().manual_seed(0)).expand(4, -1, -1, -1)
    keys = torch.tensor([7, 7, 8, 0])
    true, shuffled = describe(soft("frequency"), image), describe(soft("shuffled"), image, keys)
    for i in range(4):
        rows, others = (sorted(part[i].tolist()) for part in (true, shuffled))
        assert rows == others
        assert not torch.equal(true[i], shuffled[i])
    assert torch.equal(shuffled[0], shuffled[1])
    assert not torch.equal(shuffled[0], shuffled[2])
    assert torch.equal(describe(soft("shuffled"), image)[0], shuffled[3])


def test_hash_is_splitmix64() -> None:
    def reference(state: int) -> int:
        z = state % 2**64
        z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
        z = (z ^ (z >> 27)) * 0x94D049BB133111EB % 2**64
        return z ^ (z >> 31)

    golden = 0x9E3779B97F4A7C15
    keys = [0, 1, -5, 2**62 + 12345]
    found = hashed(torch.tensor(keys), 9)
    for key, row in zip(keys, found.tolist(), strict=True):
        start = reference(key + golden)
        assert [value % 2**64 for value in row] == [reference(start + (k + 1) * golden) for k in range(9)]


def test_noise_is_standard_normal_and_fresh_for_each_key() -> None:
    drawn = gaussian(torch.arange(8), 5000, 4)
    assert drawn.mean().abs() < 0.02
    assert abs(float(drawn.var()) - 1) < 0.02
    assert abs(float((drawn**4).mean()) - 3) < 0.1
    assert torch.corrcoef(drawn.flatten(1)).fill_diagonal_(0).abs().max() < 0.03
    assert torch.corrcoef(drawn[0].T).fill_diagonal_(0).abs().max() < 0.06


def test_nothing_is_described_where_nothing_is_guided() -> None:
    image = torch.rand(1, 3, 8, 8)
    assert [descriptor(assignment, image) for assignment in (Hard(), NoAssignment(), Soft())] == [None] * 3
