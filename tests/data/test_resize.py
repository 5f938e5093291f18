"""MATLAB's bicubic: its own files bit for bit, the field's figures, closed forms and symmetries."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor

from study.data.resize import imresize
from tests.shared import shared

SCALES = (2, 3, 4)
sides = st.integers(1, 12)
scales = st.sampled_from(SCALES)
seeds = st.integers(0, 2**32 - 1)


def load(path: Path) -> Tensor:
    """(3, H, W) or, for a grey file, (1, H, W) uint8."""
    with Image.open(path) as image:
        pixels = torch.from_numpy(np.array(image))
    return pixels.permute(2, 0, 1) if pixels.ndim == 3 else pixels[None]


def cut(image: Tensor, scale: int) -> Tensor:
    height, width = image.shape[-2:]
    return image[..., : height // scale * scale, : width // scale * scale]


def shrink(image: Tensor, scale: int) -> Tensor:
    return imresize(image, (image.shape[-2] // scale, image.shape[-1] // scale))


def enlarge(image: Tensor, scale: int) -> Tensor:
    return imresize(image, (image.shape[-2] * scale, image.shape[-1] * scale))


def luma(image: Tensor) -> Tensor:
    """BT.601 Y rounded to 8 bits, as MATLAB's rgb2ycbcr; a grey image is its own."""
    if image.shape[0] == 1:
        return image[0].double()
    red, green, blue = image.double()
    return (16.5 + (65.481 * red + 128.553 * green + 24.966 * blue) / 255).floor()


def random_image(seed: int, *shape: int) -> Tensor:
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("scale", SCALES)
def test_equals_matlab_bit_for_bit(scale: int) -> None:
    names = ("baby", "bird", "butterfly", "head", "woman")
    for name in names:
        hr = cut(load(shared(f"data/Set5/HR/{name}.png")), scale)
        (lr,) = shared(f"data/Set5/LR_bicubic/X{scale}").glob(f"{name}*")
        assert torch.equal(shrink(hr, scale), load(lr)), name


@pytest.mark.parametrize(
    ("dataset", "published_db"),
    [("Set5", (33.64, 30.39, 28.42)), ("Set14", (30.22, 27.53, 25.99))],
)
def test_enlarging_after_shrinking_gives_the_field_s_psnr(dataset: str, published_db: tuple[float, ...]) -> None:
    images = [load(path) for path in sorted(shared(f"data/{dataset}/HR").iterdir())]
    for scale, expected_db in zip(SCALES, published_db, strict=True):
        values = []
        for image in images:
            hr = cut(image, scale)
            error = (luma(enlarge(shrink(hr, scale), scale)) - luma(hr))[scale:-scale, scale:-scale]
            values.append(10 * np.log10(255**2 / error.square().mean().item()))
        # Set5 x3 and x4 lie at 30.385 and 28.416: half a unit of the last printed digit, and no more.
        assert np.mean(values) == pytest.approx(expected_db, abs=0.00501)


def test_shrinking_an_impulse_gives_the_antialiased_kernel() -> None:
    # a = -0.5 at the eight distances 1/4, 3/4, 5/4, 7/4 (each side), halved: dyadic, so exact.
    impulse = torch.zeros(1, 16, dtype=torch.float64)
    expected = torch.zeros(8, dtype=torch.float64)
    impulse[0, 7] = 256
    expected[2:6] = torch.tensor([-9.0, 111.0, 29.0, -3.0], dtype=torch.float64)
    torch.testing.assert_close(imresize(impulse, (1, 8))[0], expected, atol=0, rtol=0)


def test_enlarging_an_impulse_gives_keys_kernel() -> None:
    impulse = torch.zeros(16, 1, dtype=torch.float64)
    impulse[8] = 128
    expected = torch.tensor([-3.0, -9.0, 29.0, 111.0, 111.0, 29.0, -9.0, -3.0], dtype=torch.float64)
    torch.testing.assert_close(imresize(impulse, (32, 1))[13:21, 0], expected, atol=0, rtol=0)


@given(seed=seeds, height=sides, width=sides, out_height=sides, out_width=sides)
@settings(max_examples=50, deadline=None)
def test_a_constant_stays(seed: int, height: int, width: int, out_height: int, out_width: int) -> None:
    level = seed % 256
    out = imresize(torch.full((2, height, width), level, dtype=torch.uint8), (out_height, out_width))
    assert out.shape == (2, out_height, out_width)
    assert (out == level).all()


@given(scale=scales, lr_px=st.integers(6, 12), up=st.booleans())
@settings(max_examples=30, deadline=None)
def test_a_ramp_keeps_its_slope_inside(scale: int, lr_px: int, up: bool) -> None:
    step = 1 / scale if up else scale
    in_px, out_px = (lr_px, lr_px * scale) if up else (lr_px * scale, lr_px)
    ramp = torch.arange(in_px, dtype=torch.float64).expand(3, in_px)
    out = imresize(ramp, (3, out_px))[1]
    inside = slice(2 * scale, -2 * scale) if up else slice(2, -2)
    expected = (torch.arange(out_px, dtype=torch.float64) + 0.5) * step - 0.5
    torch.testing.assert_close(out[inside], expected[inside], atol=1e-9, rtol=0)


@given(seed=seeds, height=sides, width=sides, out_height=sides, out_width=sides)
@settings(max_examples=100, deadline=None)
def test_flipping_commutes_exactly(seed: int, height: int, width: int, out_height: int, out_width: int) -> None:
    image = random_image(seed, 3, height, width)
    size = out_height, out_width
    for axes in ([-1], [-2], [-2, -1]):
        assert torch.equal(imresize(image.flip(axes), size), imresize(image, size).flip(axes))


def test_flipping_commutes_where_float64_misses_a_tie() -> None:
    row = torch.tensor([[159, 6, 137, 214, 164, 248, 178]], dtype=torch.uint8)
    assert torch.equal(imresize(row.flip(-1), (1, 5)), imresize(row, (1, 5)).flip(-1))


@given(seed=seeds, height=sides, width=sides, scale=scales)
@settings(max_examples=50, deadline=None)
def test_transposing_commutes_before_rounding(seed: int, height: int, width: int, scale: int) -> None:
    image = random_image(seed, height * scale, width * scale).double()
    torch.testing.assert_close(shrink(image.mT, scale), shrink(image, scale).mT, atol=1e-9, rtol=0)


@pytest.mark.parametrize("scale", [2, 4])
@pytest.mark.parametrize("level", [0, 127, 254])
def test_ties_are_rounded_up(scale: int, level: int) -> None:
    # An edge through the middle of output pixel 3: the kernel is symmetric, so its value is level + 1/2 exactly.
    row = torch.full((scale, 8 * scale), level, dtype=torch.uint8)
    row[:, 3 * scale + scale // 2 :] = level + 1
    assert shrink(row, scale)[0, 3] == level + 1
    assert shrink(row.flip(-1), scale)[0, 4] == level + 1


def test_8_bits_are_rounded_between_the_passes_and_clipped() -> None:
    image = random_image(0, 24, 24)
    image[:, ::7] = 255
    tall = imresize(image.double(), (6, 24)).add(0.5).floor().clamp(0, 255)
    expected = imresize(tall, (6, 6)).add(0.5).floor().clamp(0, 255).byte()
    assert torch.equal(imresize(image, (6, 6)), expected)
    step = torch.tensor([0, 0, 0, 0, 255, 255, 255, 255], dtype=torch.uint8)[None]
    floating = imresize(step.double(), (1, 32))
    assert floating.min() < -5
    assert floating.max() > 260
    assert torch.equal(imresize(step, (1, 32))[0].unique()[[0, -1]], torch.tensor([0, 255], dtype=torch.uint8))


def test_floating_images_keep_type_shape_and_gradient() -> None:
    image = torch.rand(2, 3, 6, 8, generator=torch.Generator().manual_seed(1))
    out = imresize(image, (3, 5))
    assert out.dtype == torch.float32
    assert out.shape == (2, 3, 3, 5)
    leaf = image[0, 0].double().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: imresize(x, (4, 3)), leaf)


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64, torch.bool])
def test_other_types_are_refused(dtype: torch.dtype) -> None:
    with pytest.raises(TypeError, match=f"uint8 or floating-point images, not {dtype}"):
        imresize(torch.zeros(4, 4, dtype=dtype), (2, 2))


@pytest.mark.parametrize(("shape", "size"), [((4,), (2, 2)), ((0, 4), (2, 2)), ((4, 4), (0, 2))])
def test_empty_sides_are_refused(shape: tuple[int, ...], size: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="cannot make"):
        imresize(torch.zeros(shape), size)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("size", [(50, 60), (67, 80), (400, 480), (81, 33)])
def test_cuda_gives_the_same_bits(size: tuple[int, int]) -> None:
    for image in (random_image(3, 3, 200, 240), random_image(3, 3, 200, 240).double() / 255):
        assert torch.equal(imresize(image.cuda(), size).cpu(), imresize(image, size))
