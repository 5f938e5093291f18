"""The distortions that make up a degradation: blur, resize, noise and JPEG, each a function of its arguments alone.

Images are (H, W, 3) float32 RGB in 0 to 255, not clipped unless said; JPEG alone needs whole levels.
"""

from functools import cache

import cv2
import numpy as np

from study.data.philox import Purpose, words

INTERPOLATIONS = {"area": cv2.INTER_AREA, "bilinear": cv2.INTER_LINEAR, "bicubic": cv2.INTER_CUBIC}
_LUMA = np.array([0.299, 0.587, 0.114], dtype=np.float32)


def gaussian_kernel(side_px: int, sigma_px: tuple[float, float], angle: float, beta: float) -> np.ndarray:
    """exp(-q^beta / 2) of q = x' S^-1 x, generalised Gaussian; beta 1 is the Gaussian. See `plateau_kernel`."""
    return _normalised(np.exp(-0.5 * _quadratic(side_px, sigma_px, angle) ** beta))


def plateau_kernel(side_px: int, sigma_px: tuple[float, float], angle: float, beta: float) -> np.ndarray:
    """1 / (1 + q^beta) of q = x' S^-1 x.

    Args:
        side_px: side of the kernel, odd.
        sigma_px: square roots of the eigenvalues of S.
        angle: of the first eigenvector from the x axis towards the y axis, which points down; radians.
        beta: shape.

    Returns:
        (side_px, side_px) float64 that sums to one.
    """
    return _normalised(1 / (1 + _quadratic(side_px, sigma_px, angle) ** beta))


def sinc_kernel(side_px: int, cutoff: float) -> np.ndarray:
    """The ideal circular low-pass, cutoff * J1(cutoff * r) / (2 pi r), cut to (side_px, side_px) and summing to one.

    Args:
        side_px: side of the kernel, odd.
        cutoff: radians per pixel; pi passes every frequency along the axes.
    """
    from scipy.special import j1  # its import is a tenth of the time of a plan, which distorts nothing

    x, y = _grid(side_px)
    radius = np.hypot(x, y)
    away = np.where(radius == 0, 1, radius)
    kernel = np.where(radius == 0, cutoff**2 / (4 * np.pi), cutoff * j1(cutoff * away) / (2 * np.pi * away))
    return _normalised(kernel)


def blur(image: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    """Correlation with a (k, k) kernel, which is symmetric; the image is mirrored about its edge pixels."""
    return cv2.filter2D(image, -1, kernel.astype(np.float32), borderType=cv2.BORDER_REFLECT_101)


def resize(image: np.ndarray, height: int, width: int, interpolation: str) -> np.ndarray:
    """Resizes to (height, width, 3) by `area`, `bilinear` or `bicubic`; the last two alias when they shrink."""
    if image.shape[:2] == (height, width):
        return image
    return cv2.resize(image, (width, height), interpolation=INTERPOLATIONS[interpolation])


def add_gaussian_noise(image: np.ndarray, sigma: float, grey: bool, seed: int) -> np.ndarray:
    """Adds independent normal noise, then clips.

    Args:
        image: (H, W, 3).
        sigma: standard deviation in levels of 255.
        grey: one field for all three channels.
        seed: of the field, 0 <= seed < 2^64.
    """
    height, width, channels = image.shape
    noise = _normals(seed, height * width * (1 if grey else channels)).reshape(height, width, -1)
    return np.clip(image + np.float32(sigma) * noise, 0, 255)


def add_poisson_noise(image: np.ndarray, scale: float, grey: bool, seed: int) -> np.ndarray:
    """Adds scale * (P - v) with P Poisson of mean v, the pixel in whole levels, then clips; the variance is scale^2 v.

    P is drawn by inversion of the exact distribution, at 2^32 quantiles.

    Args:
        image: (H, W, 3).
        scale: 1 is the shot noise of 255 quanta at white.
        grey: one field, that of the luma, for all three channels.
        seed: of the field, 0 <= seed < 2^64.
    """
    light = (image @ _LUMA)[..., None] if grey else image
    levels = np.clip(np.rint(light), 0, 255)
    counts = _poisson(levels.ravel(), seed).reshape(levels.shape)
    return np.clip(image + np.float32(scale) * (counts - levels), 0, 255)


def compress(image: np.ndarray, quality: int) -> np.ndarray:
    """Through baseline JPEG (4:2:0) of a quality from 1 to 100 and back, in whole levels."""
    _, coded = cv2.imencode(".jpg", quantised(image)[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])
    decoded = cv2.imdecode(coded, cv2.IMREAD_COLOR)
    assert decoded is not None
    return decoded[..., ::-1].astype(np.float32)


def quantised(image: np.ndarray) -> np.ndarray:
    """Rounded and clipped to uint8."""
    return np.clip(np.rint(image), 0, 255).astype(np.uint8)


def _grid(side_px: int) -> tuple[np.ndarray, np.ndarray]:
    """Horizontal and vertical place of every tap, in pixels from the middle one."""
    axis = np.arange(side_px) - side_px // 2
    x, y = np.meshgrid(axis, axis)
    return x.astype(float), y.astype(float)


def _quadratic(side_px: int, sigma_px: tuple[float, float], angle: float) -> np.ndarray:
    x, y = _grid(side_px)
    along, across = x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)
    return (along / sigma_px[0]) ** 2 + (across / sigma_px[1]) ** 2


def _normalised(kernel: np.ndarray) -> np.ndarray:
    return kernel / kernel.sum()


def _uniforms(seed: int, count: int) -> np.ndarray:
    """`count` float64 numbers inside (0, 1), two from each word."""
    halves = words(seed, 0, Purpose.NOISE, -(-count // 2)).astype("<u8", copy=False).view("<u4")[:count]
    return (halves + 0.5) * 2.0**-32


def _normals(seed: int, count: int) -> np.ndarray:
    """Standard normal float32 numbers (Box and Muller)."""
    radius, angle = _uniforms(seed, 2 * -(-count // 2)).astype(np.float32).reshape(2, -1)
    radius, angle = np.sqrt(-2 * np.log(radius)), np.float32(2 * np.pi) * angle
    return np.concatenate([radius * np.cos(angle), radius * np.sin(angle)])[:count]


def _poisson(means: np.ndarray, seed: int) -> np.ndarray:
    """Poisson float32 numbers of whole means from 0 to 255."""
    table, starts = _poisson_table()
    # Mean and quantile in one number, so that one search serves all means.
    places = np.searchsorted(table, means.astype(np.float64) + _uniforms(seed, means.size))
    return (places - starts[means.astype(np.intp)]).astype(np.float32)


@cache
def _poisson_table() -> tuple[np.ndarray, np.ndarray]:
    """For all counts k of all means m from 0 to 255 in turn m + P(X <= k | m), and where each mean begins."""
    from scipy.special import pdtr  # late, as above

    rows = []
    for mean in range(256):
        cumulative = pdtr(np.arange(int(mean + 10 * np.sqrt(mean) + 20)), mean)
        # Ends where 32-bit quantiles no longer tell the counts apart.
        last = int(np.searchsorted(cumulative, 1 - 2.0**-34))
        cumulative[last] = 1
        rows.append(mean + cumulative[: last + 1])
    return np.concatenate(rows), np.cumsum([0, *map(len, rows[:-1])])
