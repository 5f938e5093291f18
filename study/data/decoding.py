"""From the bytes of an image file to 8-bit RGB."""

import io
import warnings

import numpy as np
from PIL import Image

from study import StudyError

_PNG = b"\x89PNG\r\n\x1a\n"
_PNG_BIT_DEPTH_AT = 24  # byte of the IHDR chunk, which is always first


class DataError(StudyError):
    """Images are missing or not what they should be; the message names the file or the folder."""


def decode(content: bytes, name: str) -> np.ndarray:
    """Decodes an image file as (H, W, 3) uint8 RGB.

    Grey becomes three equal channels, a palette its colours, 16 bits become 8 by round(value / 257). A fully opaque
    alpha channel is dropped. EXIF orientation, ICC profiles and gamma are ignored: the stored pixels are the image.

    Args:
        content: the file's bytes.
        name: what messages call it.

    Raises:
        DataError: the file is corrupt, truncated, partly transparent, or neither grey nor RGB.
    """
    try:
        with warnings.catch_warnings():
            # Pillow warns of damaged metadata and of large images; neither touches the pixels.
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(content)) as image:  # which refuses absurd sizes
                if content.startswith(_PNG) and content[_PNG_BIT_DEPTH_AT : _PNG_BIT_DEPTH_AT + 1] == b"\x10":
                    return _opaque(_decode_png16(content), name)
                image.load()
                return _opaque(_as_array(image, name), name)
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as error:
        raise DataError(f"{name}: corrupt, truncated or no image ({error})") from None


def _as_array(image: Image.Image, name: str) -> np.ndarray:
    """Pixels as (H, W, 3) or, where there is transparency, (H, W, 4) uint8."""
    if image.mode.startswith("I;16"):
        grey = _eight_bits(np.asarray(image).astype(np.uint16))
        return np.repeat(grey[..., None], 3, axis=-1)
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        return np.asarray(image.convert("RGBA"))
    if image.mode in ("1", "L", "P", "RGB"):
        return np.asarray(image.convert("RGB"))
    raise DataError(f"{name}: colour mode {image.mode} is not handled; store it as 8- or 16-bit grey or RGB")


def _decode_png16(content: bytes) -> np.ndarray:
    """A PNG of 16 bits per channel, as (H, W, 3 or 4) uint8; Pillow would cut its low bytes off instead of rounding."""
    import cv2  # comes with pyiqa; slow to import, seldom needed

    try:
        pixels = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_UNCHANGED)
    except cv2.error as error:
        raise ValueError(f"unreadable 16-bit PNG: {error}") from None
    if pixels is None or pixels.dtype != np.uint16:
        raise ValueError("unreadable 16-bit PNG")
    if pixels.ndim == 2:
        return np.repeat(_eight_bits(pixels)[..., None], 3, axis=-1)
    return _eight_bits(pixels)[..., [2, 1, 0, 3][: pixels.shape[-1]]]


def _eight_bits(values: np.ndarray) -> np.ndarray:
    return ((values.astype(np.uint32) + 128) // 257).astype(np.uint8)


def _opaque(pixels: np.ndarray, name: str) -> np.ndarray:
    """Drops an alpha channel that says nothing."""
    if pixels.shape[-1] == 4 and pixels[..., 3].min() < 255:
        raise DataError(f"{name}: partly transparent; an SR image needs a colour at every pixel: flatten it first")
    return np.ascontiguousarray(pixels[..., :3])
