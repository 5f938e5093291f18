import hashlib

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from study.data.draws import derived, hashed, normal, uniform


def keys(count: int) -> Tensor:
    return torch.arange(count) * 1_000_003 - 17


def digest(numbers: Tensor) -> str:
    return hashlib.sha256(numbers.numpy().astype("<i8").tobytes()).hexdigest()[:16]


def test_words_are_those_of_splitmix64() -> None:
    mask = (1 << 64) - 1

    def mix(z: int) -> int:
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
        return z ^ (z >> 31)

    golden = 0x9E3779B97F4A7C15
    for key in (0, 5, -1, 2**63 - 1, -(2**63)):
        state = mix((key + golden) & mask)
        expected = [mix((state + index * golden) & mask) for index in (1, 2, 3)]
        assert hashed(torch.tensor([key]), 3)[0].numpy().astype(np.uint64).tolist() == expected


def test_words_stay_what_they_are() -> None:
    assert hashed(torch.tensor([0]), 2).tolist() == [[-6411193824288604561, -5511663747979980962]]
    assert digest(hashed(keys(100), 50)) == "dc6717aae630d36b"
    assert derived(torch.tensor([0, 1]), "path").tolist() == [4314170406515778686, -403122797690940488]
    torch.testing.assert_close(
        normal(torch.tensor([0, 1]), (2,), torch.float64),
        torch.tensor(
            [[-0.2920317057478688, 0.8767916882996422], [-1.354984722180118, 0.4029036770504153]], dtype=torch.float64
        ),
        rtol=1e-13,
        atol=0,
    )


def test_a_longer_draw_begins_with_a_shorter_one() -> None:
    assert torch.equal(hashed(keys(9), 20)[:, :7], hashed(keys(9), 7))


def test_uniform_numbers_are_uniform_and_stay_inside() -> None:
    numbers = uniform(hashed(keys(200), 1000))
    assert numbers.dtype == torch.float64
    assert stats.kstest(numbers.flatten().numpy(), "uniform").pvalue > 0.01
    assert numbers.mean().item() == pytest.approx(0.5, abs=4 / (12 * numbers.numel()) ** 0.5)
    assert numbers.var().item() == pytest.approx(1 / 12, rel=0.01)
    ends = uniform(torch.tensor([0, -1]))
    assert 0 < ends[0] < 1e-15
    assert 1 - 1e-15 < ends[1] <= 1


def test_normal_numbers_are_normal() -> None:
    numbers = normal(keys(200), (1000,), torch.float64)
    flat, count = numbers.flatten(), numbers.numel()
    assert stats.kstest(flat.numpy(), "norm").pvalue > 0.01
    assert flat.mean().abs() < 4 / count**0.5
    for power, moment, spread in ((2, 1, 2), (3, 0, 15), (4, 3, 96)):  # moments, and variances of their estimates
        assert (flat**power).mean().item() == pytest.approx(moment, abs=4 * (spread / count) ** 0.5)


def test_neither_neighbours_nor_keys_are_correlated() -> None:
    numbers = normal(keys(400), (1000,), torch.float64)
    for lag in (1, 2, 100):
        uncorrelated(numbers[:, lag:] * numbers[:, :-lag])
        uncorrelated(numbers[lag:] * numbers[:-lag])
    # the two halves share the radii of Box and Muller
    uncorrelated(numbers[:, :500] * numbers[:, 500:])
    uncorrelated(numbers[:, :500] ** 2 * numbers[:, 500:] ** 2 - 1)


def uncorrelated(products: Tensor) -> None:
    """Their mean is zero within four standard errors."""
    assert products.mean().abs() < 4 * products.std() / products.numel() ** 0.5


def test_purposes_are_independent_of_each_other_and_of_the_key_itself() -> None:
    own = keys(300)
    of = {purpose: derived(own, purpose) for purpose in ("path", "interval", "matching", "draw 1", "draw 2")}
    streams = [own, *of.values(), derived(of["draw 1"], "path"), derived(of["path"], "draw 1")]
    assert len(torch.cat(streams).unique()) == 300 * len(streams)
    numbers = torch.stack([normal(stream, (500,), torch.float64).flatten() for stream in streams])
    off_diagonal = numbers.corrcoef() - torch.eye(len(streams), dtype=torch.float64)
    assert off_diagonal.abs().max() < 4.5 / numbers.shape[1] ** 0.5


def test_numbers_depend_on_the_key_alone() -> None:
    own = keys(37)
    order = torch.randperm(37, generator=torch.Generator().manual_seed(0))
    for shape in ((3, 5, 7), (1,), (2, 8)):
        whole = normal(own, shape, torch.float64)
        assert torch.equal(normal(own[order], shape, torch.float64), whole[order])
        assert torch.equal(normal(own[5:6], shape, torch.float64)[0], whole[5])
    assert torch.equal(derived(own[order], "path"), derived(own, "path")[order])


def test_single_precision_is_double_precision_but_for_rounding() -> None:
    double = normal(keys(5), (3, 4, 4), torch.float64)
    assert double.shape == (5, 3, 4, 4)
    torch.testing.assert_close(normal(keys(5), (3, 4, 4), torch.float32), double.float(), rtol=2e-6, atol=2e-6)
