from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from study.data.draws import derived, normal
from study.evaluation.inference import super_resolve, tiles


class Local(nn.Module):
    """A network that looks `reach` pixels far, and remembers what it was given."""

    def __init__(self, scale: int, reach: int = 3) -> None:
        super().__init__()
        self.scale = scale
        torch.manual_seed(0)
        self.conv = nn.Conv2d(3, 3 * scale**2, 2 * reach + 1, padding=reach).double()
        self.inputs: list[tuple[int, int]] = []
        self.keys: list[Tensor] = []

    def forward(self, x: Tensor, keys: Tensor) -> Tensor:
        self.inputs.append((x.shape[-2], x.shape[-1]))
        self.keys.append(keys)
        return nn.functional.pixel_shuffle(self.conv(x), self.scale)


def image(height: int, width: int) -> Tensor:
    return torch.rand(1, 3, height, width, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def run(model: nn.Module, lr: Tensor, tile: int = 512, overlap: int = 32, ensemble: bool = False) -> Tensor:
    with torch.inference_mode():
        return super_resolve(model, lr, tile_lr_px=tile, overlap_lr_px=overlap, self_ensemble=ensemble, key=7)


@settings(deadline=None, max_examples=300)
@given(st.integers(64, 200).flatmap(lambda t: st.tuples(st.just(t), st.integers(0, (t - 1) // 2))), st.integers(8, 900))
def test_tiles_cover_align_and_overlap(declared, side):
    tile, overlap = declared
    spans = tiles(side, tile, overlap)
    assert spans[0].start == spans[0].keep_from == 0
    assert spans[-1].stop == spans[-1].keep_to == side
    assert len({span.stop - span.start for span in spans}) == 1
    assert spans[0].stop <= tile or len(spans) == 1
    for one, two in pairwise(spans):
        assert two.start % 8 == 0
        assert one.stop - two.start >= overlap
        assert one.keep_to == two.keep_from
        assert abs((one.stop - one.keep_to) - (two.keep_from - two.start)) <= 1


def test_tiles_are_as_few_as_possible():
    assert len(tiles(512, 512, 32)) == 1
    assert len(tiles(513, 512, 32)) == 2
    assert len(tiles(992, 512, 32)) == 2
    assert len(tiles(993, 512, 32)) == 3


def test_tiles_of_512_px_overlapping_by_64_are_the_published_stride():
    assert [(span.start, span.stop) for span in tiles(960, 512, 64)] == [(0, 512), (448, 960)]
    assert [span.start for span in tiles(1408, 512, 64)] == [0, 448, 896]
    assert [span.keep_to for span in tiles(1408, 512, 64)] == [480, 928, 1408]


@pytest.mark.parametrize("scale", [1, 2, 3, 4])
@pytest.mark.parametrize("size", [(70, 131), (131, 20), (64, 65)])
def test_tiled_equals_whole_for_a_network_that_looks_less_far_than_half_the_overlap(scale, size):
    lr = image(*size)
    whole = run(Local(scale), lr)
    model = Local(scale)
    torch.testing.assert_close(run(model, lr, tile=64, overlap=16), whole, rtol=0, atol=1e-12)
    assert len(model.inputs) > 1
    assert max(max(sides) for sides in model.inputs) <= 64
    assert {tuple(keys.tolist()) for keys in model.keys} == {(7,)}


class Noisy(nn.Module):
    """Its output is the noise it is given, which has as many channels as two draws."""

    def __init__(self, scale: int) -> None:
        super().__init__()
        self.scale = scale
        self.drawn: list[tuple[int, int, int]] = []
        self.calls: list[tuple[int, tuple[int, ...], tuple[int, ...]]] = []

    def noise(self, keys: Tensor, height: int, width: int) -> Tensor:
        self.drawn.append((int(keys), height, width))
        return normal(keys, (6, height, width), torch.float64)

    def forward(self, x: Tensor, keys: Tensor, noise: Tensor) -> Tensor:
        self.calls.append((int(keys), tuple(x.shape), tuple(noise.shape)))
        assert noise.is_contiguous()
        return noise[:, 3:]


@pytest.mark.parametrize("scale", [1, 2, 4])
@pytest.mark.parametrize("size", [(70, 131), (131, 20)])
def test_all_tiles_see_one_noise_field(scale, size):
    lr, model = image(*size), Noisy(scale)
    tiled = run(model, lr, tile=64, overlap=16)
    assert len(model.calls) > 1
    assert model.drawn == [(7, size[0] * scale, size[1] * scale)]
    for key, lr_shape, noise_shape in model.calls:
        assert key == 7
        assert noise_shape == (1, 6, lr_shape[-2] * scale, lr_shape[-1] * scale)
    assert torch.equal(tiled, run(Noisy(scale), lr))
    assert torch.equal(tiled, normal(torch.tensor([7]), (6, *tiled.shape[-2:]), torch.float64)[:, 3:])


def test_every_view_of_the_self_ensemble_has_its_own_noise():
    lr, model = image(70, 90), Noisy(1)
    averaged = run(model, lr, tile=64, overlap=16, ensemble=True)
    assert len({key for key, _, _ in model.drawn}) == len(model.drawn) == 8
    assert {key for key, _, _ in model.calls} == {7}  # of priors that draw
    assert torch.equal(averaged, run(Noisy(1), lr, ensemble=True))
    assert averaged.var().item() == pytest.approx(1 / 8, rel=0.05)
    fields = []
    for turns in range(4):
        for mirrored in (False, True):
            size = (70, 90) if turns % 2 == 0 else (90, 70)
            field = normal(derived(torch.tensor([7]), f"view {turns} {mirrored}"), (6, *size), torch.float64)[:, 3:]
            turned = torch.rot90(field, -turns, (-2, -1))
            fields.append(turned.flip(-1) if mirrored else turned)
    torch.testing.assert_close(averaged, torch.stack(fields).mean(dim=0), rtol=0, atol=1e-15)


def test_tiling_is_seen_where_a_network_looks_further():
    lr = image(70, 131)
    assert not torch.allclose(run(Local(2, reach=12), lr, tile=64, overlap=4), run(Local(2, reach=12), lr))


def test_no_tiling_up_to_the_limit():
    model = Local(2)
    run(model, image(64, 40), tile=64)
    assert model.inputs == [(64, 40)]


def test_self_ensemble_is_equivariant_under_flips_and_turns():
    lr, model = image(20, 31), Local(2)
    plain, averaged = run(model, lr), run(model, lr, ensemble=True)
    assert not torch.allclose(plain, averaged, atol=1e-3)
    torch.testing.assert_close(run(model, lr.flip(-1), ensemble=True), averaged.flip(-1), rtol=0, atol=1e-12)
    turned = run(model, torch.rot90(lr, 1, (-2, -1)), ensemble=True)
    torch.testing.assert_close(turned, torch.rot90(averaged, 1, (-2, -1)), rtol=0, atol=1e-12)


def test_self_ensemble_averages_eight_distinct_views():
    seen = []

    class Recorder(nn.Module):
        scale = 1

        def forward(self, x: Tensor, keys: Tensor) -> Tensor:
            seen.append(x.clone())
            return x

    lr = image(9, 9)
    torch.testing.assert_close(run(Recorder(), lr, ensemble=True), lr, rtol=0, atol=1e-15)
    assert len(seen) == 8
    assert all(not torch.equal(a, b) for i, a in enumerate(seen) for b in seen[:i])


def test_self_ensemble_and_tiles_together():
    lr = image(70, 90)
    model = Local(2)
    tiled = run(model, lr, tile=64, overlap=16, ensemble=True)
    torch.testing.assert_close(tiled, run(Local(2), lr, ensemble=True), rtol=0, atol=1e-12)


@pytest.mark.parametrize("size", [(7, 40), (40, 7)])
def test_a_side_under_8_px_is_refused(size):
    with pytest.raises(ValueError, match=f"{size[0]} x {size[1]} px is too small: every side must have at least 8 px"):
        run(Local(2), image(*size))


def test_a_side_of_8_px_works():
    assert run(Local(3), image(8, 9)).shape == (1, 3, 24, 27)
