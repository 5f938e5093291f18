"""Every kind of file becomes 8-bit RGB, or is refused by name."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from study.data.decoding import DataError, decode

RNG = np.random.default_rng(0)
GREY = RNG.integers(0, 256, (7, 9), dtype=np.uint8)
RGB = RNG.integers(0, 256, (7, 9, 3), dtype=np.uint8)
OPAQUE = np.full((7, 9, 1), 255, np.uint8)


def encoded(image: Image.Image, format: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def png16(pixels: np.ndarray) -> bytes:
    """A PNG of 16 bits per channel with 1 to 4 channels, which Pillow cannot write."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    height, width, channels = pixels.shape
    colour = {1: 0, 2: 4, 3: 2, 4: 6}[channels]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    header = struct.pack(">IIBBBBB", width, height, 16, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        [chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b"")]
    )


@pytest.mark.parametrize("format", ["PNG", "BMP", "TIFF", "PPM"])
def test_lossless_formats_agree(format: str) -> None:
    assert np.array_equal(decode(encoded(Image.fromarray(RGB), format), "x"), RGB)


@pytest.mark.parametrize("format", ["PNG", "BMP", "TIFF", "PPM"])
def test_grey_becomes_three_equal_channels(format: str) -> None:
    out = decode(encoded(Image.fromarray(GREY), format), "x")
    assert out.dtype == np.uint8
    assert np.array_equal(out, np.stack([GREY] * 3, axis=-1))


def test_one_bit_becomes_black_and_white() -> None:
    out = decode(encoded(Image.fromarray(GREY > 100)), "x")
    assert np.array_equal(out[..., 1], np.where(GREY > 100, 255, 0))


def test_a_palette_becomes_its_colours() -> None:
    image = Image.new("P", (9, 7))
    image.putdata((GREY % 3).flatten().tolist())
    colours = np.array([[10, 20, 30], [200, 100, 0], [255, 255, 255]], dtype=np.uint8)
    image.putpalette(colours.flatten().tolist())
    assert np.array_equal(decode(encoded(image), "x"), colours[GREY % 3])


def test_an_opaque_alpha_channel_is_dropped() -> None:
    assert np.array_equal(decode(encoded(Image.fromarray(np.concatenate([RGB, OPAQUE], -1))), "x"), RGB)
    grey = np.concatenate([GREY[..., None], OPAQUE], -1)
    assert np.array_equal(decode(encoded(Image.fromarray(grey)), "x")[..., 2], GREY)


def test_transparency_is_refused_by_name() -> None:
    seen_through = OPAQUE.copy()
    seen_through[3, 4] = 254
    for content in (
        encoded(Image.fromarray(np.concatenate([RGB, seen_through], -1))),
        encoded(Image.fromarray(GREY), transparency=int(GREY[0, 0])),
        png16(np.concatenate([RGB, seen_through], -1).astype(np.uint16) * 257),
    ):
        with pytest.raises(DataError, match="logo: partly transparent"):
            decode(content, "logo")


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_16_bits_are_divided_by_257_and_rounded(channels: int) -> None:
    pixels = RNG.integers(0, 65536, (7, 9, channels), dtype=np.uint16)
    pixels[0, :6, 0] = [0, 128, 129, 65406, 65407, 65535]  # on either side of 0.5 and of 254.5
    if channels in (2, 4):
        pixels[..., -1] = 65535
    colours = pixels if channels > 2 else pixels[..., :1].repeat(3, axis=-1)
    expected = np.round(colours[..., :3] / 257).astype(np.uint8)
    assert expected[0, :6, 0].tolist() == [0, 0, 1, 254, 255, 255]
    assert np.array_equal(decode(png16(pixels), "x"), expected)


def test_a_16_bit_grey_tiff_is_read_alike() -> None:
    grey = RNG.integers(0, 65536, (7, 9), dtype=np.uint16)
    out = decode(encoded(Image.fromarray(grey), "TIFF"), "x")
    assert np.array_equal(out[..., 0], np.round(grey / 257))


def test_exif_orientation_is_ignored() -> None:
    exif = Image.Exif()
    exif[274] = 6  # to be shown turned by a quarter
    turned = encoded(Image.fromarray(RGB), "JPEG", quality=95, exif=exif)
    plain = encoded(Image.fromarray(RGB), "JPEG", quality=95)
    assert turned != plain
    assert np.array_equal(decode(turned, "x"), decode(plain, "x"))


@pytest.mark.parametrize("mode", ["CMYK", "F", "I"])
def test_other_colour_modes_are_refused_by_name(mode: str) -> None:
    with pytest.raises(DataError, match=f"scan: colour mode {mode} is not handled; store it as"):
        decode(encoded(Image.new(mode, (4, 4)), "TIFF"), "scan")


@pytest.mark.parametrize("format", ["PNG", "JPEG", "BMP", "TIFF", "WEBP"])
def test_a_truncated_file_is_refused_by_name(format: str) -> None:
    content = encoded(Image.fromarray(RNG.integers(0, 256, (64, 64, 3), dtype=np.uint8)), format)
    for length in (len(content) // 2, len(content) - 40):
        with pytest.raises(DataError, match=r"cut\.img: corrupt, truncated or no image"):
            decode(content[:length], "cut.img")


def test_a_truncated_16_bit_png_is_refused_by_name() -> None:
    content = png16(RNG.integers(0, 65536, (64, 64, 3), dtype=np.uint16))
    for length in (30, len(content) // 2, len(content) - 40):
        with pytest.raises(DataError, match="deep: corrupt, truncated or no image"):
            decode(content[:length], "deep")


@pytest.mark.parametrize("content", [b"", b"no image at all", encoded(Image.fromarray(RGB))[:20]])
def test_what_is_no_image_is_refused_by_name(content: bytes) -> None:
    with pytest.raises(DataError, match="notes: corrupt, truncated or no image"):
        decode(content, "notes")


def test_a_damaged_checksum_is_refused() -> None:
    content = bytearray(encoded(Image.fromarray(RGB)))
    content[content.index(b"IDAT") + 12] ^= 0xFF
    with pytest.raises(DataError, match="corrupt"):
        decode(bytes(content), "x")
