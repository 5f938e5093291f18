"""The given images, golden pairs and weights, which are not part of the project: tests that need them skip without."""

from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parents[2] / "shared"


def shared(name: str) -> Path:
    """Path of a given file or folder; skips the calling test where it is absent."""
    path = FOLDER / name
    if not path.exists():
        pytest.skip(f"needs {name} of the folder shared/, which is not here")
    return path
