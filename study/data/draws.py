"""Random numbers as functions of a sample's key alone, the same on every device."""

import hashlib
import math

import torch
from torch import Tensor


def hashed(keys: Tensor, count: int) -> Tensor:
    """Uniform 64-bit integers from each key and a counter (splitmix64), the same on every device.

    Args:
        keys: int64 (B,).
        count: numbers per key.

    Returns:
        int64 (B, count).
    """
    golden = -7046029254386353131  # 0x9E3779B97F4A7C15 as a signed number; products wrap
    counter = torch.arange(1, count + 1, device=keys.device)
    return _mix(_mix(keys[:, None] + golden) + counter * golden)


def _mix(z: Tensor) -> Tensor:
    z = (z ^ _shift(z, 30)) * -4658895280553007687  # 0xBF58476D1CE4E5B9
    z = (z ^ _shift(z, 27)) * -7723592293110705685  # 0x94D049BB133111EB
    return z ^ _shift(z, 31)


def _shift(z: Tensor, bits: int) -> Tensor:
    """Logical shift to the right; torch's own keeps the sign."""
    return (z >> bits) & ((1 << (64 - bits)) - 1)


def uniform(words: Tensor) -> Tensor:
    """Uniform float64 numbers in (0, 1] from 64-bit integers."""
    return (_shift(words, 11).double() + 0.5) * 2.0**-53


def normal(keys: Tensor, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Standard normal numbers from each key (Box and Muller), (B, *shape), none beyond 6.7.

    Args:
        keys: int64 (B,).
        shape: of what is drawn for one key.
        dtype: of the result, and of the arithmetic where it is float64; of smaller ones it is float32.
    """
    count = math.prod(shape)
    words = hashed(keys, -(-count // 2))  # of each both halves are used
    working = torch.promote_types(dtype, torch.float32)
    radius = ((_shift(words, 32).to(working) + 0.5) * 2.0**-32).log_().mul_(-2).sqrt_()
    angle = (words & 0xFFFFFFFF).to(working).mul_(2 * math.pi * 2.0**-32)
    values = torch.cat([radius * angle.cos(), radius * angle.sin_()], dim=1)[:, :count]
    return values.to(dtype).unflatten(1, shape)


def derived(keys: Tensor, purpose: str) -> Tensor:
    """Keys for another purpose, independent of the numbers drawn from `keys` themselves; int64 (B,)."""
    salt = int.from_bytes(hashlib.sha256(purpose.encode()).digest()[:8], "big", signed=True)
    return hashed(keys ^ salt, 1)[:, 0]
