import numpy as np
import pytest
import torch

from study.analysis.crops import Tile, read_tiles
from study.analysis.figures import cell_styles
from study.analysis.pictures import save_figure
from study.analysis.spectra import draw_spectra, radial_power, ratios, spectra_caption
from study.evaluation import realism
from tests.analysis.synthetic import arrange, draw_study, points, write_samples

pytestmark = pytest.mark.usefixtures("style")

KEY: tuple[str, str] = "bundled", "image_00"
LUMA_GAIN = 219 / 255  # of a grey picture's levels


def grey(levels):
    return np.repeat(np.asarray(levels, float)[..., None], 3, axis=-1)


def noise(side, sd=20.0, seed=0):
    return 128 + np.random.default_rng(seed).normal(0, sd, (side, side))


def tiles(truth, **cells) -> dict[tuple[str, str], list[Tile]]:
    """One image's tiles from grey pictures."""
    return {KEY: [Tile("LR", "", grey(truth)[::2, ::2]), *(Tile(k, "", grey(v)) for k, v in cells.items()),
                  Tile("HR", "", grey(truth))]}  # fmt: skip


def test_white_noise_is_flat_and_has_its_variance():
    power = np.mean([radial_power(grey(noise(64, seed=seed)), 32) for seed in range(100)], axis=0)
    assert power[2:] == pytest.approx(np.full(30, (20 * LUMA_GAIN) ** 2), rel=0.12)
    assert power[10:20].mean() == pytest.approx(power[20:].mean(), rel=0.02)


@pytest.mark.parametrize("cycles", [(0, 10), (10, 0), (6, 8)])
def test_a_sinusoid_peaks_at_its_frequency(cycles):
    down, across = np.mgrid[:64, :64]
    wave = 128 + 50 * np.sin(2 * np.pi * (cycles[0] * down + cycles[1] * across) / 64)
    power = radial_power(grey(wave), 32)
    assert np.argmax(power) + 1 == 10  # of 64 px: the length of every one of these
    assert power[[*range(6), *range(14, 32)]].max() < 1e-4 * power.max()  # the window keeps it together


def test_a_flat_picture_has_no_power():
    assert radial_power(grey(np.full((48, 64), 77)), 24) == pytest.approx(np.zeros(24), abs=1e-18)


def test_half_the_contrast_is_six_decibels_less():
    truth = noise(64)
    ratio = ratios(tiles(truth, soft=100 + 0.5 * truth)).ratio_db["soft"]
    assert ratio == pytest.approx(np.full(32, 20 * np.log10(0.5)))


def test_a_known_filter_attenuates_as_its_response_says():
    truth = noise(512)
    blurred = (np.roll(truth, 1, axis=1) + 2 * truth + np.roll(truth, -1, axis=1)) / 4
    frequency = np.fft.fftfreq(512)
    response = np.broadcast_to(np.cos(np.pi * frequency) ** 4, (512, 512))  # power; the same for all rows
    ring = np.floor(np.hypot(frequency[:, None], frequency) * 512 + 0.5).astype(int)
    expected = np.array([10 * np.log10(response[ring == k].mean()) for k in range(1, 257)])
    spectra = ratios(tiles(truth, soft=blurred))
    assert spectra.frequency[[0, -1]] == pytest.approx([1 / 512, 0.5])
    assert spectra.ratio_db["soft"][40:] == pytest.approx(expected[40:], abs=0.75)
    assert np.mean(spectra.ratio_db["soft"][40:] - expected[40:]) == pytest.approx(0, abs=0.05)


def test_conventions_are_those_of_the_measures_of_realism():
    rng = np.random.default_rng(3)
    truth = rng.uniform(0, 255, (64, 48, 3))
    output = 60 + 0.5 * truth + rng.normal(0, 3, truth.shape)
    planes = [torch.tensor(part).permute(2, 0, 1)[None] / 255 for part in (output, truth)]
    power, frequency = realism._spectrum(realism._levels(planes[0], "high_band"))
    for ring in (1, 7, 24):
        of_ring = (frequency * 48 + 0.5).floor() == ring
        assert radial_power(output, 24)[ring - 1] == pytest.approx(power[of_ring].mean().item(), rel=1e-9)
    # a gain that is the same at all frequencies is the same in decibels in both
    planes[0] = 0.2 + 0.5 * planes[1]
    ratio = ratios({KEY: [Tile("LR", "", truth), Tile("x", "", 51 + 0.5 * truth), Tile("HR", "", truth)]}).ratio_db["x"]
    assert ratio == pytest.approx(np.full(24, realism.high_band(*planes)))
    assert realism.SMALLEST_SIDE_PX == 32


def test_decibels_are_averaged_over_crops_of_any_size():
    one, other = noise(64), noise(96, seed=1)
    both = tiles(one, soft=10 + 0.5 * one) | {("Set5", "baby"): tiles(other, soft=other)[KEY]}
    spectra = ratios(both)
    assert spectra.crops == {"soft": 2}
    assert spectra.ratio_db["soft"] == pytest.approx(np.full(32, 10 * np.log10(0.5)))
    assert "over 2 kept crops (" in spectra_caption(both, 2)
    assert "0.125 cycles per HR px" in spectra_caption(tiles(one, soft=one), 4)
    assert "over 1 kept crop (" in spectra_caption(tiles(one, soft=one), 4)


def test_crops_that_are_small_or_of_another_scale_are_left_out():
    assert draw_spectra(tiles(noise(31), soft=noise(31)), {}, 2) is None
    assert draw_spectra({}, {}, 2) is None
    assert list(ratios(tiles(noise(64), soft=noise(64), x4=noise(128))).ratio_db) == ["soft"]


def test_no_power_at_all_is_the_floor():
    ratio = ratios(tiles(noise(64), flat=np.full((64, 64), 9.0))).ratio_db["flat"]
    assert ratio == pytest.approx(10 * np.log10(1e-3 / radial_power(grey(noise(64)), 32)))


def test_every_cell_has_its_line_and_the_lr_nyquist_frequency_is_marked(tmp_path):
    study = draw_study(tmp_path)
    write_samples(study)
    results = arrange(study)
    found, styles = read_tiles(results, study.runs), cell_styles(results)
    figure = draw_spectra(found, styles, 2)
    assert figure is not None
    left, right = figure.axes
    lines = {line.get_label(): line for line in left.lines}
    trained = [name for name in results.cells if name != "bicubic"]
    assert [name for name in lines if not str(name).startswith("_")] == [*trained, "bicubic"]
    for name in trained:
        assert lines[name].get_color() == styles[name]["color"]
        assert points(lines[name])[1] == pytest.approx(ratios(found).ratio_db[name])
    assert points(left.lines[1])[0].tolist() == [0.25, 0.25]
    assert left.get_xlabel() == "spatial frequency (cycles per HR px)"
    assert left.get_xlim() == (0, 0.5)
    drawn = [points(line)[1] for line in right.lines[2:]]
    assert len(drawn) == len(trained)
    assert np.mean(drawn, axis=0) == pytest.approx(np.zeros(32), abs=1e-9)
    assert min(left.get_ylim()) >= -40


def test_equal_figures_have_equal_bytes(tmp_path):
    truth = noise(64)
    style = {"color": "#0173b2", "marker": "o", "linestyle": "-"}
    figures = [draw_spectra(tiles(truth, soft=truth), {"soft": style}, 2) for _ in range(2)]
    one, other = (save_figure(figure, tmp_path, "spectra", "").svg for figure in figures if figure is not None)
    assert one == other


def test_one_cell_has_one_panel():
    truth = noise(64)
    style = {"color": "#0173b2", "marker": "o", "linestyle": "-"}
    figure = draw_spectra(tiles(truth, bicubic=truth, soft=truth), {"soft": style}, 2)
    assert figure is not None
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["against HR"]


def test_a_line_far_below_leaves_the_panel():
    truth = noise(64)
    style = {"color": "#0173b2", "marker": "o", "linestyle": "-"}
    figure = draw_spectra(tiles(truth, soft=100 + 1e-3 * truth), {"soft": style}, 2)
    assert figure is not None
    assert figure.axes[0].get_ylim()[0] == -40
