"""Draws have the stated frequencies and ranges and never change; `degrade` is a function of its arguments."""

import json
import math
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import cv2
import numpy as np
import pytest
from scipy.ndimage import gaussian_filter
from scipy.stats import binom, kstest

from study.data.degradation import Bell, Noise, Parameters, Resize, Sinc, Stage, degrade, draw_degradation

DRAWS = [draw_degradation(11, n) for n in range(20_000)]
SECOND = [draw.second for draw in DRAWS if draw.second is not None]
STAGES = {"first": [draw.first for draw in DRAWS], "second": SECOND}
RNG = np.random.default_rng(1)
LIGHT = gaussian_filter(RNG.normal(0, 300, (96, 128, 1)), (2, 2, 0))
HR = np.clip(128 + LIGHT + [20, 0, -20], 0, 255).astype(np.uint8)
SILENT = Noise("gaussian", 0.0, False, 0)
KEPT = Stage(None, Resize(1.0, "area"), SILENT)
PLAIN = Parameters(KEPT, 95, None, "area", None, 95, True)
FOURTH = Parameters(
    first=Stage(
        blur=Bell("anisotropic", 21, (0.844848393115109, 0.6164482016825319), 0.7252150094933362, 1.0),
        resize=Resize(1.060752899877636, "bicubic"),
        noise=Noise("gaussian", 24.22316640841368, True, 1841312853992799),
    ),
    jpeg=87,
    second=Stage(
        blur=Bell("anisotropic", 15, (1.3038044748228819, 0.635312519031941), 1.6399240116929499, 1.0),
        resize=Resize(0.6145303657507951, "bilinear"),
        noise=Noise("gaussian", 9.137597093552184, False, 7921632504787157),
    ),
    interpolation="area",
    sinc=None,
    final_jpeg=32,
    jpeg_last=True,
)
FAR = "iso 1.6, down 0.88, gauss 4, jpeg 78 | jpeg 68"


def share(found: Iterable[object], expected: float) -> None:
    """Asserts that the share of the true ones is the probability, within chance (1 in 10,000 on either side)."""
    outcomes = [bool(one) for one in found]
    low, high = binom.ppf([1e-4, 1 - 1e-4], len(outcomes), expected)
    assert low <= sum(outcomes) <= high, (sum(outcomes) / len(outcomes), expected)


def uniform(found: Iterable[float], low: float, high: float) -> None:
    values = np.array(list(found))
    assert low <= values.min() <= values.max() <= high
    assert kstest(values, "uniform", (low, high - low)).pvalue > 1e-4, (values.min(), values.max())


def kernels(stage: str, only: Callable[[Bell], bool]) -> list[Bell]:
    return [one.blur for one in STAGES[stage] if isinstance(one.blur, Bell) and only(one.blur)]


@pytest.mark.parametrize(("stage", "side", "widest"), [("first", 21, 3.0), ("second", 15, 1.5)])
def test_kernels_have_their_frequencies_and_ranges(stage: str, side: int, widest: float) -> None:
    blurs = [one.blur for one in STAGES[stage] if one.blur is not None]
    assert {blur.side_px for blur in blurs} == {side}
    share((isinstance(blur, Sinc) for blur in blurs), 0.1)
    uniform((blur.cutoff for blur in blurs if isinstance(blur, Sinc)), math.pi / 3, math.pi)
    bells = kernels(stage, lambda _: True)
    for kind, chance in {
        "isotropic": 0.45,
        "anisotropic": 0.25,
        "generalised_isotropic": 0.12,
        "generalised_anisotropic": 0.03,
        "plateau_isotropic": 0.12,
        "plateau_anisotropic": 0.03,
    }.items():
        share((bell.kind == kind for bell in bells), chance)
    round_ = kernels(stage, lambda bell: "aniso" not in bell.kind)
    assert all(bell.sigma_px[0] == bell.sigma_px[1] and bell.angle == 0 for bell in round_)
    uniform((bell.sigma_px[0] for bell in round_), 0.2, widest)
    long = kernels(stage, lambda bell: "aniso" in bell.kind)
    for axis in (0, 1):
        uniform((bell.sigma_px[axis] for bell in long), 0.2, widest)
    along, across = np.array([bell.sigma_px for bell in long]).T
    assert abs(np.corrcoef(along, across).ravel()[1]) < 4 / math.sqrt(len(long))
    uniform((bell.angle for bell in long), 0, math.pi)
    uniform((bell.beta for bell in kernels(stage, lambda bell: "generalised" in bell.kind)), 0.5, 4)
    uniform((bell.beta for bell in kernels(stage, lambda bell: "plateau" in bell.kind)), 1, 2)
    assert {bell.beta for bell in kernels(stage, lambda bell: bell.kind in ("isotropic", "anisotropic"))} == {1.0}


@pytest.mark.parametrize(
    ("stage", "chances", "factors", "gaussian", "poisson"),
    [
        ("first", (0.2, 0.7, 0.1), (0.15, 1.5), (1, 30), (0.05, 3)),
        ("second", (0.3, 0.4, 0.3), (0.3, 1.2), (1, 25), (0.05, 2.5)),
    ],
)
def test_resize_and_noise_have_their_frequencies_and_ranges(
    stage: str,
    chances: tuple[float, float, float],
    factors: tuple[float, float],
    gaussian: tuple[float, float],
    poisson: tuple[float, float],
) -> None:
    changes = [one.resize.factor for one in STAGES[stage]]
    up, down, keep = chances
    share((factor > 1 for factor in changes), up)
    share((factor < 1 for factor in changes), down)
    share((factor == 1 for factor in changes), keep)
    uniform((factor for factor in changes if factor > 1), 1, factors[1])
    uniform((factor for factor in changes if factor < 1), factors[0], 1)
    for name in ("area", "bilinear", "bicubic"):
        share((one.resize.interpolation == name for one in STAGES[stage]), 1 / 3)
    noises = [one.noise for one in STAGES[stage]]
    share((noise.kind == "gaussian" for noise in noises), 0.5)
    share((noise.grey for noise in noises), 0.4)
    uniform((noise.strength for noise in noises if noise.kind == "gaussian"), *gaussian)
    uniform((noise.strength for noise in noises if noise.kind == "poisson"), *poisson)
    assert len({noise.seed for noise in noises}) == len(noises)
    assert all(0 <= noise.seed < 2**53 for noise in noises)


def test_the_rest_has_its_frequencies_and_ranges() -> None:
    assert all(draw.first.blur is not None for draw in DRAWS)
    share((draw.second is not None for draw in DRAWS), 0.5)
    share((stage.blur is not None for stage in SECOND), 0.8)
    share((draw.sinc is not None for draw in DRAWS), 0.8)
    share((draw.jpeg_last for draw in DRAWS), 0.5)
    uniform((draw.sinc.cutoff for draw in DRAWS if draw.sinc), math.pi / 3, math.pi)
    assert {draw.sinc.side_px for draw in DRAWS if draw.sinc} == {21}
    for name in ("area", "bilinear", "bicubic"):
        share((draw.interpolation == name for draw in DRAWS), 1 / 3)
    for qualities in ([draw.jpeg for draw in DRAWS], [draw.final_jpeg for draw in DRAWS]):
        assert set(qualities) == set(range(30, 96))
        for quality in (30, 61, 95):
            share((one == quality for one in qualities), 1 / 66)


def test_a_draw_never_changes() -> None:
    # Pinned: a change here changes every run, so it needs a new degradation version.
    assert draw_degradation(0, 4) == FOURTH
    assert draw_degradation(7, 10**12).describe() == FAR


def test_draws_differ_by_seed_and_number() -> None:
    assert len({draw_degradation(seed, n) for seed in range(30) for n in range(30)}) == 900


def test_parameters_survive_json() -> None:
    for draw in DRAWS[:300]:
        assert Parameters.from_dict(draw.as_dict()) == draw
        again = Parameters.from_dict(json.loads(json.dumps(draw.as_dict())))
        assert again == draw
        assert hash(again) == hash(draw)
    with pytest.raises(KeyError):
        Parameters.from_dict({})
    with pytest.raises(TypeError, match="colour"):
        Parameters.from_dict(PLAIN.as_dict() | {"colour": 1})


def test_a_description_names_what_was_drawn() -> None:
    bell = Bell("generalised_anisotropic", 21, (1.31, 0.4), 1.0, 2.0)
    first = Stage(bell, Resize(0.614, "area"), Noise("gaussian", 12.2, True, 0))
    second = Stage(Sinc(15, 2.04), Resize(1.0, "area"), Noise("poisson", 0.31, False, 0))
    drawn = Parameters(first, 71, second, "area", Sinc(21, 1.5), 40, True)
    assert drawn.describe() == (
        "gen-aniso 1.3/0.4, down 0.61, grey gauss 12, jpeg 71 | sinc 2.0, poisson 0.3 | sinc 1.5, jpeg 40"
    )
    assert replace(drawn, second=None, jpeg_last=False).describe().endswith("jpeg 71 | jpeg 40, sinc 1.5")
    assert replace(drawn, sinc=None).describe().endswith("| jpeg 40")


@pytest.mark.parametrize("scale", [1, 2, 3, 4])
def test_sizes_are_those_of_the_lr_image(scale: int) -> None:
    for number, (height, width) in enumerate([(96, 128), (31, 50), (33, 8), (scale, 2 * scale)]):
        for n in range(3):
            lr = degrade(HR[:height, :width], DRAWS[3 * number + n], scale)
            assert lr.shape == (height // scale, width // scale, 3)
            assert lr.dtype == np.uint8


def test_degrade_depends_on_its_arguments_alone() -> None:
    before, threads = HR.copy(), cv2.getNumThreads()
    once = [degrade(HR, draw, 4) for draw in DRAWS[:12]]
    assert all(np.array_equal(degrade(HR, DRAWS[n], 4), once[n]) for n in reversed(range(12)))
    strided = np.ascontiguousarray(HR[::-1].transpose(1, 0, 2)).transpose(1, 0, 2)[::-1]
    assert all(np.array_equal(degrade(strided, DRAWS[n], 4), once[n]) for n in range(12))
    np.random.default_rng(3).normal()
    with ThreadPoolExecutor(1) as pool:
        assert all(map(np.array_equal, pool.map(lambda draw: degrade(HR, draw, 4), DRAWS[:12]), once))
    assert np.array_equal(HR, before)
    assert cv2.getNumThreads() == threads
    assert len({image.tobytes() for image in once}) == 12


def test_rows_beyond_a_multiple_of_the_scale_do_not_count() -> None:
    for draw in DRAWS[:4]:
        assert np.array_equal(degrade(HR[:94, :127], draw, 4), degrade(HR[:92, :124], draw, 4))


def test_a_flat_image_stays_flat_without_noise() -> None:
    for level in (0, 90, 255):
        image = np.full((64, 64, 3), level, np.uint8)
        for draw in DRAWS[:40]:
            first = replace(draw.first, noise=SILENT)
            second = draw.second and replace(draw.second, noise=SILENT)
            lr = degrade(image, replace(draw, first=first, second=second), 2)
            assert np.ptp(lr, axis=(0, 1)).max() <= 1
            assert np.abs(lr.astype(int) - level).max() <= 4  # quality 30 keeps a block's mean to within 1.7


def test_without_blur_or_noise_degrade_is_reduction_and_jpeg() -> None:
    expected = HR.reshape(24, 4, 32, 4, 3).mean((1, 3))
    errors = [np.abs(degrade(HR, replace(PLAIN, final_jpeg=quality), 4) - expected).mean() for quality in (95, 30)]
    assert errors[0] < 3
    assert errors[1] > 1.5 * errors[0]


def test_what_is_drawn_is_done_in_the_drawn_place() -> None:
    def detail(parameters: Parameters) -> float:
        return float(np.abs(np.diff(degrade(HR, parameters, 2).astype(float), axis=1)).mean())

    wide = Bell("isotropic", 15, (1.5, 1.5), 0.0, 1.0)
    loud = Stage(None, KEPT.resize, Noise("gaussian", 25.0, False, 4))
    small = Stage(None, Resize(0.3, "area"), SILENT)
    assert detail(replace(PLAIN, first=replace(KEPT, blur=wide))) < 0.9 * detail(PLAIN)
    assert detail(replace(PLAIN, second=replace(KEPT, blur=wide))) < 0.9 * detail(PLAIN)
    assert detail(replace(PLAIN, second=small, interpolation="bilinear")) < 0.9 * detail(PLAIN)
    # Noise of the first stage is averaged by the reduction, four pixels to one; that of the second is not.
    clean = degrade(HR, PLAIN, 2).astype(float)
    noise = [
        (degrade(HR, noisy, 2) - clean).std() for noisy in (replace(PLAIN, first=loud), replace(PLAIN, second=loud))
    ]
    assert noise[0] / noise[1] == pytest.approx(0.5, abs=0.1)
    # A low-pass after JPEG takes away its errors; before, it does not.
    rough = replace(PLAIN, sinc=Sinc(21, math.pi / 3), final_jpeg=30, second=loud)
    last = [replace(rough, jpeg_last=order) for order in (True, False)]
    green = [degrade(HR, one, 2)[..., 1] * np.hanning(64) for one in last]
    high = [np.abs(np.fft.rfft(image))[:, 20:].mean() for image in green]
    assert high[1] < 0.5 * high[0]
