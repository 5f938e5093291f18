"""Damaged image files: each is decoded, or refused in one message that names it."""

import io
import struct
import zlib

import cv2
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from study.data.decoding import DataError, decode

QUICK = settings(
    max_examples=300, deadline=None, derandomize=True, database=None, suppress_health_check=[HealthCheck.too_slow]
)
FORMATS = ("PNG", "JPEG", "BMP", "GIF", "TIFF", "WEBP", "PPM", "PNG16")


def encode(format: str) -> bytes:
    pixels = np.random.default_rng(0).integers(0, 256, (9, 13, 3), dtype=np.uint8)
    if format == "PNG16":
        return cv2.imencode(".png", pixels.astype(np.uint16) * 257)[1].tobytes()
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format)
    return file.getvalue()


@st.composite
def damaged(draw: st.DrawFn, content: bytes) -> bytes:
    """The bytes with some replaced, left out or put in, and perhaps cut off."""
    spoilt = bytearray(content)
    for _ in range(draw(st.integers(1, 6))):
        at = draw(st.integers(0, min(len(spoilt), 80)) | st.integers(0, len(spoilt)))
        spoilt[at : at + draw(st.integers(0, 4))] = draw(st.binary(max_size=4))
    return bytes(spoilt[: draw(st.integers(0, len(spoilt)) | st.just(len(spoilt)))])


@QUICK
@given(data=st.data())
def test_damaged_files(data: st.DataObject) -> None:
    content = data.draw(damaged(encode(data.draw(st.sampled_from(FORMATS)))))
    found = attempt(content)
    if isinstance(found, str):
        assert found.startswith("x.img: ")
    else:
        assert found.dtype == np.uint8
        assert found.shape[2:] == (3,)


def attempt(content: bytes) -> np.ndarray | str:
    try:
        return decode(content, "x.img")
    except DataError as error:
        return str(error)


def header(width: int, height: int, depth: int) -> bytes:
    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    head = struct.pack(">IIBBBBB", width, height, depth, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize("depth", [8, 16])
@pytest.mark.parametrize("side", [100_000, 2**31 - 1])
def test_a_small_file_that_claims_an_absurd_size(depth: int, side: int) -> None:
    with pytest.raises(DataError, match=r"^bomb\.png: corrupt, truncated or no image"):
        decode(header(side, side, depth), "bomb.png")


@pytest.mark.parametrize("depth", [8, 16])
def test_a_header_without_its_pixels(depth: int) -> None:
    with pytest.raises(DataError, match=r"^short\.png: "):
        decode(header(500, 400, depth), "short.png")
