import pytest
import torch

from study.data.resize import imresize
from study.grid.models import Bicubic as Config
from study.models.bicubic import Bicubic


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_it_is_the_8bit_resize(scale):
    levels = torch.randint(0, 256, (2, 3, 9, 14), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    out = Bicubic(Config(), scale)(levels.float() / 255, torch.zeros(2, dtype=torch.int64))
    assert out.dtype == torch.float32
    assert torch.equal((out * 255).round().byte(), imresize(levels, (9 * scale, 14 * scale)))
    torch.testing.assert_close(out * 255, (out * 255).round(), rtol=0, atol=1e-4)


def test_input_is_rounded_to_8_bits_first():
    levels = torch.randint(1, 255, (1, 3, 8, 8), generator=torch.Generator().manual_seed(0))
    model = Bicubic(Config(), 2)
    assert torch.equal(model((levels + 0.4) / 255), model((levels - 0.4) / 255))
    assert torch.equal(model(torch.full((1, 3, 8, 8), 1.7)), torch.ones(1, 3, 16, 16))


def test_there_is_nothing_to_train():
    assert list(Bicubic(Config(), 4).parameters()) == []
    assert Bicubic(Config(), 4).state_dict() == {}
