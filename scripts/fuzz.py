"""Coverage-guided fuzzing of what reads a user's files; needs `pip install atheris`, which no install asks for.

    python scripts/fuzz.py grid -max_total_time=600          # or image, weights; libFuzzer's options after it

Every input must end in a result or in the one error that names the file. What does not is kept as `crash-…`.
"""

import importlib
import io
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import safetensors.torch
import torch
from PIL import Image

atheris = importlib.import_module("atheris")  # no dependency of the project
with atheris.instrument_imports(include=["study", "yaml", "PIL", "safetensors"]):
    from study.data.decoding import DataError, decode
    from study.grid.expand import load_plan
    from study.grid.loading import GridError
    from study.models.weights import WeightsError, read_state

FOLDER = Path(tempfile.mkdtemp(prefix="fuzz-"))
LARGEST_BYTES = 4096


def try_grid(content: bytes) -> None:
    (FOLDER / "grid.yaml").write_bytes(content)
    _refuses(GridError, FOLDER.name, lambda: load_plan(FOLDER / "grid.yaml"))


def try_image(content: bytes) -> None:
    _refuses(DataError, "x.img: ", lambda: decode(content, "x.img"))


def try_weights(content: bytes) -> None:
    path = FOLDER / f"net.{('pth', 'safetensors')[len(content) % 2]}"
    path.write_bytes(content)
    _refuses(WeightsError, path.name, lambda: read_state(path))


def _refuses(kind: type[Exception], named: str, read: Callable[[], object]) -> None:
    """Any other exception than `kind`, or one that does not name the file, is a find."""
    try:
        read()
    except kind as error:
        if named not in str(error):
            raise RuntimeError(f"the message does not name the file: {error}") from error


TARGETS: dict[str, Callable[[bytes], None]] = {"grid": try_grid, "image": try_image, "weights": try_weights}


def _images() -> Iterator[bytes]:
    pixels = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    for kind in ("PNG", "JPEG", "BMP", "GIF", "TIFF", "WEBP", "PPM"):
        Image.fromarray(pixels).save(file := io.BytesIO(), kind)
        yield file.getvalue()


def _weights() -> Iterator[bytes]:
    """Of a length that sends each to the reader of its kind; both formats of a pickle."""
    state = {"w": torch.arange(6.0).view(2, 3)}
    for kind in (True, False):
        torch.save(state, file := io.BytesIO(), _use_new_zipfile_serialization=kind)
        yield file.getvalue() + b"\0" * (len(file.getvalue()) % 2)
    content = safetensors.torch.save(state)
    yield content + b"\0" * (1 - len(content) % 2)


def _grids() -> Iterator[bytes]:
    for path in (Path(__file__).parents[1] / "ablations").glob("*.yaml"):
        yield path.read_bytes()


SEEDS: dict[str, Callable[[], Iterator[bytes]]] = {"grid": _grids, "image": _images, "weights": _weights}


def main() -> None:
    if len(sys.argv) < 2 or sys.argv[1] not in TARGETS:
        sys.exit(f"python scripts/fuzz.py {'|'.join(TARGETS)} [libFuzzer's options]")
    target = TARGETS[sys.argv[1]]
    seeds = FOLDER / "seeds"  # libFuzzer writes into it, too
    seeds.mkdir()
    for index, content in enumerate(SEEDS[sys.argv[1]]()):
        (seeds / str(index)).write_bytes(content)
    atheris.Setup([sys.argv[0], f"-max_len={LARGEST_BYTES}", *sys.argv[2:], str(seeds)], target)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
