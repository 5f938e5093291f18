"""Words are functions of their arguments; no purpose shares words with another."""

import numpy as np

from study.data.philox import Purpose, words

SAMPLE = [5705853004827290377, 6584680345644299050]
LAST = [14296657285305637467]


def test_words_never_change() -> None:
    assert words(1, 2, Purpose.SAMPLE, 2).tolist() == SAMPLE
    assert words(2**64 - 1, 2**64 - 1, Purpose.NOISE, 1).tolist() == LAST


def test_purposes_and_keys_do_not_meet() -> None:
    drawn = [words(seed, n, purpose, 500) for seed in (0, 1) for n in (0, 1) for purpose in Purpose]
    assert len(np.unique(np.concatenate(drawn))) == 500 * len(drawn)


def test_a_longer_draw_begins_with_a_shorter_one() -> None:
    assert np.array_equal(words(3, 4, Purpose.ORDER, 9)[:5], words(3, 4, Purpose.ORDER, 5))
