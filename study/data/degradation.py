"""Real-ESRGAN's degradation: two stages of blur, resize, noise and JPEG with drawn parameters.

Source: Wang et al., 'Real-ESRGAN', ICCVW 2021; You et al., 'CTMSR', ICCV 2025, whose second stage comes half the time.
What is drawn is equal on every machine; pixels are equal up to the last bit of the libraries used: numpy's logarithm
and cosine, OpenCV's filters and its JPEG codec. Where that bit turns a rounding, a JPEG block may change with it.
"""

import dataclasses
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, Self, TypeVar

import cv2
import numpy as np

from study.data import distortions
from study.data.philox import Purpose, words
from study.grid.schema import RealESRGAN

VERSION = RealESRGAN().version

Kind = Literal[
    "isotropic",
    "anisotropic",
    "generalised_isotropic",
    "generalised_anisotropic",
    "plateau_isotropic",
    "plateau_anisotropic",
]
Interpolation = Literal["area", "bilinear", "bicubic"]
_Name = TypeVar("_Name", bound=str)

_KINDS: dict[Kind, float] = {
    "isotropic": 0.45,
    "anisotropic": 0.25,
    "generalised_isotropic": 0.12,
    "generalised_anisotropic": 0.03,
    "plateau_isotropic": 0.12,
    "plateau_anisotropic": 0.03,
}
_INTERPOLATIONS: dict[Interpolation, float] = dict.fromkeys(("area", "bilinear", "bicubic"), 1 / 3)
_CUTOFF = (np.pi / 3, np.pi)
_QUALITY = (30, 95)
_DRAWS = 64  # more than are used: what is drawn later can be added without moving what is drawn now


@dataclass(frozen=True)
class Bell:
    """A blur kernel that falls from its middle.

    Attributes:
        kind: family, and whether both widths are equal.
        side_px: side of the kernel.
        sigma_px: width along and across `angle`.
        angle: radians, in [0, pi); 0 where isotropic.
        beta: shape of the generalised and plateau kernels; 1 for the Gaussian ones.
    """

    kind: Kind
    side_px: int
    sigma_px: tuple[float, float]
    angle: float
    beta: float

    def weights(self) -> np.ndarray:
        """(side_px, side_px) float64 that sums to one."""
        plateau = self.kind.startswith("plateau")
        family = distortions.plateau_kernel if plateau else distortions.gaussian_kernel
        return family(self.side_px, self.sigma_px, self.angle, self.beta)


@dataclass(frozen=True)
class Sinc:
    """A low-pass kernel with ringing; `cutoff` in radians per pixel."""

    side_px: int
    cutoff: float

    def weights(self) -> np.ndarray:
        """(side_px, side_px) float64 that sums to one."""
        return distortions.sinc_kernel(self.side_px, self.cutoff)


@dataclass(frozen=True)
class Resize:
    """A change of size to `factor` times the HR image's sides (first stage) or the LR image's (second)."""

    factor: float
    interpolation: Interpolation


@dataclass(frozen=True)
class Noise:
    """Noise of one seed.

    Attributes:
        kind: distribution.
        strength: standard deviation in levels of 255 (gaussian), or multiple of the shot noise (poisson).
        grey: the same in all channels.
        seed: of the field, below 2^53, so that any JSON reader keeps it.
    """

    kind: Literal["gaussian", "poisson"]
    strength: float
    grey: bool
    seed: int


@dataclass(frozen=True)
class Stage:
    """Blur (none where it is not drawn), resize, noise."""

    blur: Bell | Sinc | None
    resize: Resize
    noise: Noise


@dataclass(frozen=True)
class Parameters:
    """One degradation, for an image of any size and any scale.

    Attributes:
        first: stage.
        jpeg: quality after the first stage.
        second: stage, where drawn.
        interpolation: of the resize to the LR image's size.
        sinc: filter at the LR image's size, where drawn.
        final_jpeg: quality at the LR image's size.
        jpeg_last: whether the final JPEG comes after the sinc filter.
    """

    first: Stage
    jpeg: int
    second: Stage | None
    interpolation: Interpolation
    sinc: Sinc | None
    final_jpeg: int
    jpeg_last: bool

    def as_dict(self) -> dict[str, Any]:
        """Plain numbers, strings, tuples and dictionaries, for JSON."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, body: Mapping[str, Any]) -> Self:
        """The inverse of `as_dict`, also after JSON; `KeyError` or `TypeError` where entries are missing or unknown."""
        sinc = _kernel(body["sinc"])
        parts = {"first": _stage(body["first"]), "second": body["second"] and _stage(body["second"]), "sinc": sinc}
        return cls(**{**body, **parts})

    def describe(self) -> str:
        """The stages in short, parted by bars, such as `aniso 1.3/0.4, down 0.61, gauss 12, jpeg 71 | jpeg 40`."""
        parts = [f"{_words_of(self.first)}, jpeg {self.jpeg}"]
        parts += [_words_of(self.second)] if self.second else []
        ends = [f"sinc {self.sinc.cutoff:.1f}"] if self.sinc else []
        ends.insert(len(ends) if self.jpeg_last else 0, f"jpeg {self.final_jpeg}")
        return " | ".join([*parts, ", ".join(ends)])


def _kernel(body: Mapping[str, Any] | None) -> Any:
    if body is None:
        return None
    return Sinc(**body) if "cutoff" in body else Bell(**{**body, "sigma_px": tuple(body["sigma_px"])})


def _stage(body: Mapping[str, Any]) -> Stage:
    parts = {"blur": _kernel(body["blur"]), "resize": Resize(**body["resize"]), "noise": Noise(**body["noise"])}
    return Stage(**{**body, **parts})


def _words_of(stage: Stage) -> str:
    parts = []
    if isinstance(stage.blur, Sinc):
        parts.append(f"sinc {stage.blur.cutoff:.1f}")
    elif stage.blur is not None:
        kind = stage.blur.kind.replace("isotropic", "iso").replace("generalised_", "gen-").replace("plateau_", "plat-")
        widths = [f"{sigma:.1f}" for sigma in stage.blur.sigma_px]
        parts.append(f"{kind} {'/'.join(widths if 'aniso' in kind else widths[:1])}")
    if stage.resize.factor != 1:
        parts.append(f"{'up' if stage.resize.factor > 1 else 'down'} {stage.resize.factor:.2f}")
    noise = stage.noise
    strength = f"{noise.strength:.0f}" if noise.kind == "gaussian" else f"{noise.strength:.1f}"
    return ", ".join([*parts, f"{'grey ' if noise.grey else ''}{noise.kind.replace('ian', '')} {strength}"])


@dataclass(frozen=True)
class _Ranges:
    """What a stage is drawn from: probabilities and closed intervals."""

    blur: float
    side_px: int
    sigma_px: tuple[float, float]
    resize: Mapping[str, float]
    factor: tuple[float, float]
    gaussian: tuple[float, float]
    poisson: tuple[float, float]


_FIRST = _Ranges(1.0, 21, (0.2, 3), {"up": 0.2, "down": 0.7, "keep": 0.1}, (0.15, 1.5), (1, 30), (0.05, 3))
_SECOND = _Ranges(0.8, 15, (0.2, 1.5), {"up": 0.3, "down": 0.4, "keep": 0.3}, (0.3, 1.2), (1, 25), (0.05, 2.5))


def draw_degradation(seed: int, n: int) -> Parameters:
    """Draws the degradation of sample `n` of `seed`, both from 0 to 2^64 - 1; it depends on nothing else.

    Every number is drawn whether it is used or not, so that a probability can change without moving other draws.
    """
    draws = iter(((words(seed, n, Purpose.DEGRADATION, _DRAWS) >> np.uint64(11)) * 2.0**-53).tolist())
    first, jpeg = _draw_stage(draws, _FIRST), _whole(draws, _QUALITY)
    twice, second = next(draws) < 0.5, _draw_stage(draws, _SECOND)
    filtered, sinc = next(draws) < 0.8, Sinc(21, _between(draws, _CUTOFF))
    return Parameters(
        first=first,
        jpeg=jpeg,
        second=second if twice else None,
        interpolation=_choice(draws, _INTERPOLATIONS),
        sinc=sinc if filtered else None,
        final_jpeg=_whole(draws, _QUALITY),
        jpeg_last=next(draws) < 0.5,
    )


def _draw_stage(draws: Iterator[float], ranges: _Ranges) -> Stage:
    blurred, kernel = next(draws) < ranges.blur, _draw_kernel(draws, ranges)
    low, high = ranges.factor
    change = _choice(draws, ranges.resize)
    factor = _between(draws, (1, high) if change == "up" else (low, 1))
    resize = Resize(1.0 if change == "keep" else factor, _choice(draws, _INTERPOLATIONS))
    gaussian = next(draws) < 0.5
    strength = _between(draws, ranges.gaussian if gaussian else ranges.poisson)
    grey, seed = next(draws) < 0.4, int(next(draws) * 2**53)
    return Stage(
        kernel if blurred else None, resize, Noise("gaussian" if gaussian else "poisson", strength, grey, seed)
    )


def _draw_kernel(draws: Iterator[float], ranges: _Ranges) -> Bell | Sinc:
    ringing, sinc = next(draws) < 0.1, Sinc(ranges.side_px, _between(draws, _CUTOFF))
    kind = _choice(draws, _KINDS)
    along, across = _between(draws, ranges.sigma_px), _between(draws, ranges.sigma_px)
    angle, shape = next(draws) * np.pi, next(draws)
    if kind.endswith("_isotropic") or kind == "isotropic":
        across, angle = along, 0.0
    beta = 0.5 + 3.5 * shape if "generalised" in kind else 1 + shape if "plateau" in kind else 1.0
    return sinc if ringing else Bell(kind, ranges.side_px, (along, across), angle, beta)


def _between(draws: Iterator[float], limits: tuple[float, float]) -> float:
    return float(limits[0] + (limits[1] - limits[0]) * next(draws))


def _whole(draws: Iterator[float], limits: tuple[int, int]) -> int:
    return int(limits[0] + (limits[1] - limits[0] + 1) * next(draws))


def _choice(draws: Iterator[float], chances: Mapping[_Name, float]) -> _Name:
    """One of the names, whose probabilities add up to one."""
    names, bounds = list(chances), np.cumsum(list(chances.values())[:-1])
    return names[int(np.searchsorted(bounds, next(draws), side="right"))]


def degrade(hr: np.ndarray, parameters: Parameters, scale: int) -> np.ndarray:
    """The LR image of an HR image.

    Blur, resize, noise, JPEG; perhaps blur, resize, noise again; then the LR size, and there sinc filter and JPEG in
    the drawn order. The factors of the second stage are of the LR image's sides: of what the first stage leaves, the
    smallest would be a twentieth of the HR image.

    Args:
        hr: (H, W, 3) uint8 RGB; rows and columns beyond a multiple of the scale are cut off.
        parameters: as drawn.
        scale: HR pixels per LR pixel, at most the shorter side.

    Returns:
        (H // scale, W // scale, 3) uint8.
    """
    height, width = hr.shape[0] // scale, hr.shape[1] // scale
    image = hr[: height * scale, : width * scale].astype(np.float32, order="C")
    with _one_thread():
        image = _apply(parameters.first, image, *image.shape[:2])
        image = distortions.compress(image, parameters.jpeg)
        if parameters.second is not None:
            image = _apply(parameters.second, image, height, width)
        image = distortions.resize(image, height, width, parameters.interpolation)
        if not parameters.jpeg_last:
            image = distortions.compress(image, parameters.final_jpeg)
        if parameters.sinc is not None:
            image = distortions.blur(image, parameters.sinc.weights())
        if parameters.jpeg_last:
            image = distortions.compress(image, parameters.final_jpeg)
    return distortions.quantised(image)


def _apply(stage: Stage, image: np.ndarray, height: int, width: int) -> np.ndarray:
    """Blurs, resizes to the stage's factor of (height, width), adds noise."""
    if stage.blur is not None:
        image = distortions.blur(image, stage.blur.weights())
    rows, columns = (max(1, round(side * stage.resize.factor)) for side in (height, width))
    image = distortions.resize(image, rows, columns, stage.resize.interpolation)
    noise = stage.noise
    add = distortions.add_gaussian_noise if noise.kind == "gaussian" else distortions.add_poisson_noise
    return add(image, noise.strength, noise.grey, noise.seed)


@contextmanager
def _one_thread() -> Iterator[None]:
    """Keeps OpenCV to the caller's thread: each worker has one core, and its pool does not survive a fork."""
    before = cv2.getNumThreads()
    cv2.setNumThreads(1)
    try:
        yield
    finally:
        cv2.setNumThreads(before)
