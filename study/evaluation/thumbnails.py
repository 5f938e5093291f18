"""Small pictures of the images that networks are evaluated on, for the report's figures."""

import io
import os
from pathlib import Path

from PIL import Image

from study.data.images import ImageSet
from study.records.store import replace

SIDE_PX = 96
QUALITY = 80
LONGEST_NAME_BYTES = 200  # a file name holds 255, of which a partial file's own signs take some


def save_thumbnails(images: ImageSet, folder: Path) -> None:
    """Writes every HR image as `folder`/<fingerprint of the set>/<image>.jpg, longest side `SIDE_PX`.

    What is there already is left alone, so that several processes may write the same set. An image whose name is too
    long for a file is left out.
    """
    for index, name in enumerate(images.names):
        path = folder / images.fingerprint / f"{name}.jpg"
        if len(os.fsencode(name)) <= LONGEST_NAME_BYTES and not path.exists():
            replace(path, _jpeg(Image.fromarray(images.whole(index))))


def _jpeg(image: Image.Image) -> bytes:
    image.thumbnail((SIDE_PX, SIDE_PX), Image.Resampling.LANCZOS)
    sink = io.BytesIO()
    image.save(sink, format="JPEG", quality=QUALITY)
    return sink.getvalue()
