import pytest
import torch

from study.evaluation.protocols import PROTOCOLS, luma, prepare, round_8bit
from study.grid.schema import Evaluation


def images(seed: int = 0, side: int = 24) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    hr = torch.randint(0, 256, (1, 3, side, side + 5), generator=generator, dtype=torch.float64) / 255
    sr = hr + 0.1 * torch.randn(hr.shape, generator=generator, dtype=torch.float64)
    return sr, hr


def test_every_declared_protocol_exists():
    assert tuple(PROTOCOLS) == Evaluation().protocols


@pytest.mark.parametrize(
    ("rgb", "expected"),
    [((0, 0, 0), 16), ((1, 1, 1), 235), ((1, 0, 0), 81.481), ((0, 1, 0), 144.553), ((0, 0, 1), 40.966)],
)
def test_luma_is_bt601(rgb, expected):
    pixel = torch.tensor(rgb, dtype=torch.float64).view(1, 3, 1, 1)
    assert luma(pixel).item() * 255 == pytest.approx(expected, abs=1e-12)


def test_luma_agrees_with_pyiqa():
    from study.evaluation import metrics

    metrics.require(["psnr"], torch.device("cpu"))  # imports pyiqa without its warnings
    from pyiqa.utils.color_util import to_y_channel

    _, hr = images()
    torch.testing.assert_close(luma(hr), to_y_channel(hr, 1.0, "ycbcr"), rtol=0, atol=1e-7)


def test_rounding_is_half_up_and_clamped():
    levels = torch.tensor([-3.0, 0.49, 0.5, 1.5, 2.5, 254.6, 400.0], dtype=torch.float64)
    assert (round_8bit(levels / 255) * 255).round().tolist() == [0, 0, 1, 2, 3, 255, 255]


def test_stored_images_are_left_alone():
    levels = torch.arange(256, dtype=torch.float64) / 255
    assert torch.equal(round_8bit(levels), levels)


def test_protocols_do_what_the_table_says():
    sr, hr = images()
    out = {name: prepare(sr, hr, name, 4) for name in PROTOCOLS}
    inner = sr[..., 4:-4, 4:-4]
    assert torch.equal(out["float_y"][0], luma(inner))
    assert torch.equal(out["clamped_y"][0], luma(inner.clamp(0, 1)))
    assert torch.equal(out["uint8_y"][0], luma(out["rgb"][0]))
    eight_bit_y = out["matlab_y"][0] * 255
    assert torch.allclose(eight_bit_y, eight_bit_y.round(), rtol=0, atol=1e-9)
    assert (eight_bit_y / 255 - out["uint8_y"][0]).abs().max() <= 0.5 / 255 + 1e-9
    assert out["float_y"][0].max() > out["clamped_y"][0].max()
    for name in ("uint8_y", "clamped_y", "float_y"):
        torch.testing.assert_close(out[name][1], luma(hr[..., 4:-4, 4:-4]), rtol=0, atol=1e-15)
    assert out["rgb"][0].shape == (1, 3, 16, 21)
    assert all(pair[0].dtype == torch.float64 for pair in out.values())


def test_float32_input_gives_the_same_8bit_values():
    sr, hr = images()
    one, two = prepare(sr, hr, "rgb", 2)[0], prepare(sr.float(), hr.float(), "rgb", 2)[0]
    assert torch.equal(one, two)


def test_grey_images_are_scored_as_rgb():
    grey = torch.rand(1, 1, 20, 20, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    sr, _ = prepare(grey.expand(-1, 3, -1, -1), grey.expand(-1, 3, -1, -1), "float_y", 0)
    torch.testing.assert_close(sr, (16 + 219 * grey) / 255, rtol=0, atol=1e-12)


def test_refusals_name_the_sizes():
    sr, hr = images(side=8)
    with pytest.raises(ValueError, match=r"8 x 13 px has nothing inside a border of 4 px"):
        prepare(sr, hr, "rgb", 4)
    with pytest.raises(ValueError, match=r"\(1, 3, 8, 12\) and HR \(1, 3, 8, 13\) differ"):
        prepare(sr[..., 1:], hr, "rgb", 1)
