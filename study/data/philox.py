"""Random words as functions of (seed, number, purpose) alone, on the CPU (Philox 4x64; Salmon et al. 2011).

Raw words are used, not numpy's Generator: only the bit generators are promised to stay the same between versions.
"""

from enum import IntEnum

import numpy as np


class Purpose(IntEnum):
    """What words are for. Each counts in its own part of Philox's counter, so that no two ever meet."""

    SAMPLE = 0
    ORDER = 1
    DEGRADATION = 2
    NOISE = 3


def words(seed: int, n: int, purpose: Purpose, count: int) -> np.ndarray:
    """`count` random uint64 words that depend on nothing but the arguments, 0 <= seed, n < 2^64.

    A longer draw begins with the words of a shorter one.
    """
    key = np.array([seed, n], dtype=np.uint64)
    return np.random.Philox(key=key, counter=[0, 0, 0, int(purpose)]).random_raw(count)
