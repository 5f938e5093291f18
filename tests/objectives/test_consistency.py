from itertools import pairwise

import pytest
import torch
from scipy import stats
from torch import Tensor, nn

from study.data.draws import derived, hashed, normal
from study.grid.objectives import Consistency
from study.objectives.consistency import drawn_index, neighbours
from tests.objectives.toy import (
    Recorder,
    Small,
    Table,
    batches,
    begun,
    discrete,
    enlarged,
    exact,
    toy_batch,
    train,
    trains_the_u_net,
    variance,
)

PLAIN = {"kind": "squared"}


def declared(points: int = 4, distance: str = "squared", ema: float = 0.0) -> Consistency:
    return Consistency.model_validate(
        {"grid_points": (points, points), "distance": {"kind": distance}, "target_ema": ema}
    )


def trained(points: int, spread: float, steps: int, distance: str = "squared", ema: float = 0.0) -> Tensor:
    """The table of a network trained on the toy, one factor per grid point."""
    network = Table(points)
    objective = begun(network, declared(points, distance, ema))
    optimiser = torch.optim.Adam(network.parameters(), lr=0.03, betas=(0.0, 0.99))
    train(network, objective, optimiser, batches(32, steps, spread=spread, side=4), anneal=True)
    return torch.cat([torch.ones(1, dtype=torch.float64), network.table.detach()])


@pytest.mark.parametrize("spread", [0.3, 1.0])
def test_the_toys_consistency_function_follows_its_ode(spread: float) -> None:
    def velocity(t: float, z: float) -> float:
        mean = (1 - t) * spread**2 / ((1 - t) ** 2 * spread**2 + t**2) * z  # E[x0 - y | z]
        return (z - mean) / t

    t, z, step = 1.0, 0.7, -1 / 2000
    while t > 1.5 / 2000:  # Runge and Kutta, to just above the 0 / 0 at t = 0
        k1 = velocity(t, z)
        k2 = velocity(t + step / 2, z + step / 2 * k1)
        k3 = velocity(t + step / 2, z + step / 2 * k2)
        z += step / 6 * (k1 + 2 * k2 + 2 * k3 + velocity(t + step, z + step * k3))
        t += step
    start = exact(torch.tensor(1.0, dtype=torch.float64), spread) * 0.7
    assert z == pytest.approx((start / exact(torch.tensor(t, dtype=torch.float64), spread)).item(), rel=1e-7)


def test_the_path_has_the_toys_covariances() -> None:
    samples, spread = toy_batch(64, spread=0.5), 0.5
    path = begun(Table(4), declared()).path(samples, samples.keys)
    early, late = (path.at(torch.full((64,), t, dtype=torch.float64)) - path.low for t in (1 / 3, 2 / 3))
    torch.testing.assert_close((early * late).mean().item(), 2 / 9 * (spread**2 + 1), rtol=0.02, atol=0)
    torch.testing.assert_close(late.var().item(), variance(torch.tensor(2 / 3), spread).item(), rtol=0.02, atol=0)


@pytest.mark.parametrize("spread", [0.3, 1.0, 2.0])
def test_more_grid_points_approach_the_consistency_function_in_first_order(spread: float) -> None:
    errors = []
    for points in (9, 17, 33, 65, 129, 257):
        t = torch.linspace(0, 1, points, dtype=torch.float64)
        errors.append((discrete(points, spread) - exact(t, spread)).abs().max().item())
    ratios = [coarse / fine for coarse, fine in pairwise(errors)]
    assert min(ratios) > 1
    assert ratios[-1] == pytest.approx(2, rel=0.05)


@pytest.mark.parametrize("distance", ["squared", "charbonnier"])
@pytest.mark.parametrize("spread", [0.3, 1.0])
@pytest.mark.parametrize(("points", "steps"), [(4, 200), (7, 300)])
def test_training_finds_the_discrete_optimum(distance: str, spread: float, points: int, steps: int) -> None:
    found = trained(points, spread, steps, distance)
    torch.testing.assert_close(found, discrete(points, spread), rtol=0.02, atol=0)


def test_a_moving_average_as_target_has_the_same_optimum() -> None:
    torch.testing.assert_close(trained(4, 0.5, 300, ema=0.9), discrete(4, 0.5), rtol=0.02, atol=0)


def test_a_network_of_many_grid_points_is_nearer_to_the_consistency_function() -> None:
    coarse, fine = trained(4, 0.5, 200)[-1].item(), trained(16, 0.5, 600)[-1].item()
    assert coarse == pytest.approx(5 / 17, rel=0.02)  # by hand: 3/4 * 10/17 * 2/3
    assert fine == pytest.approx(0.453, rel=0.02)  # of 1/2


@pytest.mark.parametrize("distance", ["squared", "charbonnier"])
def test_the_gradient_vanishes_at_the_discrete_optimum_alone(distance: str) -> None:
    def gradients(offset: float) -> Tensor:
        network = Table(4)
        objective = begun(network, declared(4, distance))
        with torch.no_grad():
            network.table.copy_(discrete(4, 0.5)[1:] + offset)
        return torch.stack(
            [torch.autograd.grad(objective(network, batch), network.table)[0] for batch in batches(16, 60)]
        )

    at, beside = gradients(0), gradients(0.05)
    assert (at.mean(dim=0).abs() < 4 * at.std(dim=0) / 60**0.5).all()
    assert (beside.mean(dim=0).abs() > 4 * beside.std(dim=0) / 60**0.5).any()


def test_the_loss_by_hand() -> None:
    samples = toy_batch(3)
    network = Small(dropout=0.0, dtype=torch.float64)
    loss = begun(network, declared(5))(network, samples)
    y, x0 = enlarged(samples.lr), 2 * samples.hr - 1
    noise = normal(derived(samples.keys, "path"), tuple(x0.shape[1:]), torch.float64)
    total = 0.0
    for b in range(3):
        index = int(hashed(derived(samples.keys, "interval"), 1)[b, 0]) % 4
        outputs = []
        for t in (index / 4, (index + 1) / 4):
            x_t = x0[b : b + 1] + t * (y - x0)[b : b + 1] + t * noise[b : b + 1]
            outputs.append(network(samples.lr[b : b + 1], at=(x_t, torch.tensor([t], dtype=torch.float64))))
        total += (outputs[0] - outputs[1]).square().mean().item() / 3
    assert loss.item() == pytest.approx(total, rel=1e-12)


def test_both_neighbours_lie_on_one_path() -> None:
    samples = toy_batch(40)
    network = Recorder()
    objective = begun(network, declared(5))
    objective(network, samples)
    (early, t_early), (late, t_late) = network.calls
    torch.testing.assert_close(t_late - t_early, torch.full_like(t_early, 0.25))
    y, x0 = enlarged(samples.lr), 2 * samples.hr - 1
    noise = normal(derived(samples.keys, "path"), tuple(x0.shape[1:]), torch.float64)
    for x_t, t in ((early, t_early[:, None, None, None]), (late, t_late[:, None, None, None])):
        torch.testing.assert_close(x_t, (1 - t) * x0 + t * (y + noise))
    begins = t_early == 0
    assert 0 < begins.sum() < 40
    assert torch.equal(early[begins], x0[begins])


def test_what_a_sample_sees_depends_on_its_key_alone() -> None:
    samples = toy_batch(12)
    order = torch.randperm(12, generator=torch.Generator().manual_seed(0))
    permuted = samples._replace(lr=samples.lr[order], hr=samples.hr[order], keys=samples.keys[order])
    one, two = Recorder(), Recorder()
    losses = [begun(network, declared(6))(network, batch) for network, batch in ((one, samples), (two, permuted))]
    for (x, t), (x_permuted, t_permuted) in zip(one.calls, two.calls, strict=True):
        assert torch.equal(x[order], x_permuted)
        assert torch.equal(t[order], t_permuted)
    torch.testing.assert_close(losses[0], losses[1])
    gradients = [torch.autograd.grad(loss, net.gain)[0] for loss, net in zip(losses, (one, two), strict=True)]
    torch.testing.assert_close(gradients[0], gradients[1])


@pytest.mark.parametrize("among", [range(3), range(1, 2), range(2, 9)])
def test_grid_points_are_drawn_uniformly(among: range) -> None:
    drawn = drawn_index(toy_keys(20_000), "interval", among)
    counts = torch.bincount(drawn, minlength=among.stop)
    assert counts[: among.start].sum() == 0
    assert len(counts) == among.stop
    if len(among) > 1:
        assert stats.chisquare(counts[among.start :].numpy()).pvalue > 0.01


def test_purposes_draw_independent_grid_points() -> None:
    one, two = (drawn_index(toy_keys(20_000), purpose, range(3)) for purpose in ("interval", "matching"))
    table = torch.bincount(3 * one + two, minlength=9).reshape(3, 3).numpy()
    assert float(stats.chi2_contingency(table)[1]) > 0.01  # pyright: ignore[reportArgumentType]


def toy_keys(count: int) -> Tensor:
    return hashed(torch.arange(count), 1)[:, 0]


def interval(index: Tensor, points: int) -> tuple[Tensor, Tensor]:
    """Both ends of intervals of an even grid."""
    return index / (points - 1), (index + 1) / (points - 1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("rho", [1.0, 3.0])
def test_the_grid_ends_at_one_exactly(dtype: torch.dtype, rho: float) -> None:
    objective = begun(Table(4), Consistency.model_validate({"rho": rho, "distance": PLAIN}))
    samples = toy_batch(1, dtype=dtype)
    path = objective.path(samples, samples.keys)
    for points in (2, 3, 4, 11, 200):
        found = objective.time(torch.tensor([0, points - 1, points // 2]), points, path)
        assert found[:2].tolist() == [0, 1]
        assert found[2].item() == pytest.approx((points // 2 / (points - 1)) ** rho)
        assert found.dtype == dtype
    assert objective.time(torch.tensor([1]), 3, path).item() == 0.5**rho


def test_the_number_of_grid_points_moves_linearly_from_first_to_last_step() -> None:
    objective = begun(Table(4), Consistency.model_validate({"grid_points": (4, 3), "distance": PLAIN}))
    found = [objective.points(toy_batch(1, step=step, steps=1000)) for step in range(1000)]
    assert found[0] == 4
    assert found[-1] == 3
    assert sum(points == 4 for points in found) == 500
    growing = begun(Table(4), Consistency.model_validate({"grid_points": (10, 110), "distance": PLAIN}))
    assert [growing.points(toy_batch(1, step=step, steps=101)) for step in (0, 50, 100)] == [10, 60, 110]
    assert growing.points(toy_batch(1, step=0, steps=1)) == 10


def test_the_step_decides_the_grid() -> None:
    network = Recorder()
    objective = begun(network, Consistency.model_validate({"grid_points": (4, 3), "distance": PLAIN}))
    for step, interval in ((0, 1 / 3), (9, 1 / 2)):
        objective(network, toy_batch(5, step=step, steps=10))
        (_, early), (_, late) = network.calls[-2:]
        torch.testing.assert_close(late - early, torch.full_like(early, interval))
        assert objective.diagnostics()["grid_points"] == round(1 / interval) + 1


def test_the_target_is_the_moving_average_in_closed_form() -> None:
    network, ema = Table(3), 0.9
    objective = begun(network, declared(3, ema=ema))
    expected = network.table.detach().clone()
    for step in range(1, 6):
        with torch.no_grad():
            network.table.copy_(torch.tensor([step, -(step**2)], dtype=torch.float64))
        objective.settle(network, step)
    weights = [(1 - ema) * ema ** (5 - step) for step in range(1, 6)]
    sums = [
        sum(w * v for w, v in zip(weights, values, strict=True)) for values in ((1, 2, 3, 4, 5), (-1, -4, -9, -16, -25))
    ]
    torch.testing.assert_close(objective.target.table, ema**5 * expected + torch.tensor(sums, dtype=torch.float64))
    assert not objective.target.table.requires_grad


def test_the_target_says_where_the_network_is_to_go() -> None:
    network, samples = Table(3), toy_batch(2)
    objective = begun(network, declared(3, ema=0.5))
    with torch.no_grad():
        network.table.copy_(torch.tensor([2.0, 3.0]))
        objective.target.table.copy_(torch.tensor([7.0, 8.0]))
    path = objective.path(samples, samples.keys)
    output, aim = neighbours(network, objective.target, path, *interval(torch.tensor([0, 1]), 3))
    middle, end = (path.at(torch.full((2,), t, dtype=torch.float64)) - path.low for t in (0.5, 1.0))
    torch.testing.assert_close(output - path.low, torch.stack([2 * middle[0], 3 * end[1]]))
    torch.testing.assert_close(aim, torch.stack([path.clean[0], path.low[1] + 7 * middle[1]]))
    loss, _ = objective.consistency(network, path, torch.tensor([0, 1]), 3)
    torch.testing.assert_close(loss, (output - aim).square().mean())


def test_without_moving_average_there_is_no_copy() -> None:
    network = Small()
    objective = begun(network, declared())
    assert objective.state_dict() == {}
    assert list(objective.parameters()) == []
    objective.settle(network, 1)
    assert [name.split(".")[0] for name in begun(network, declared(ema=0.9)).state_dict()] == ["target"] * 4


class Dropped(nn.Module):
    """Ignores noisy image and time, so that equal outputs mean equal masks."""

    noise_level = 1.0

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(()))
        self.dropout = nn.Dropout(0.5)

    def upsampled(self, lr: Tensor) -> Tensor:
        return enlarged(lr)

    def forward(self, lr: Tensor, at: tuple[Tensor, Tensor]) -> Tensor:
        return self.gain * self.dropout(enlarged(lr) + 2)


@pytest.mark.parametrize("ema", [0.0, 0.9])
def test_target_and_network_drop_the_same(ema: float) -> None:
    torch.manual_seed(0)
    network, samples = Dropped().train(), toy_batch(3, dtype=torch.float32)
    objective = begun(network, declared(ema=ema))
    path = objective.path(samples, samples.keys)
    target = network if objective.target is None else objective.target
    index = torch.tensor([0, 1, 2])
    output, aim = neighbours(network, target, path, *interval(index, 4))
    assert torch.equal(output, aim)
    assert 0.4 < (output == 0).float().mean() < 0.6
    assert output.requires_grad
    assert not aim.requires_grad
    again, _ = neighbours(network, target, path, *interval(index, 4))
    assert not torch.equal(again, output)  # the next masks are others
    assert objective(network, samples).item() == 0


def test_the_gradient_passes_through_the_later_output_alone() -> None:
    network, samples = Small(dropout=0.0, dtype=torch.float64), toy_batch(4)
    objective = begun(network, declared())
    loss = objective(network, samples)
    loss.backward()
    path = objective.path(samples, samples.keys)
    output, aim = neighbours(network, network, path, *interval(drawn_index(samples.keys, "interval", range(3)), 4))
    expected = torch.autograd.grad((output - aim.clone()).square().mean(), list(network.parameters()))
    for parameter, gradient in zip(network.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.grad, gradient)


def test_autocast_leaves_every_parameter_its_gradient() -> None:
    network = Small()
    objective = begun(network, declared())
    with torch.autocast("cpu", torch.bfloat16):
        loss = objective(network, toy_batch(4, dtype=torch.float32))
    assert loss.dtype == torch.float32
    loss.backward()
    for parameter in network.parameters():
        assert parameter.grad is not None
        assert parameter.grad.abs().sum() > 0


def test_it_trains_every_parameter_of_the_u_net() -> None:
    trains_the_u_net(declared(4, "charbonnier", ema=0.9))
