from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from study.data.draws import derived, normal
from study.grid.objectives import Trajectory
from study.objectives.consistency import Path, drawn_index
from study.objectives.trajectory import Views
from tests.objectives.toy import (
    Recorder,
    Small,
    Table,
    batches,
    begun,
    discrete,
    enlarged,
    resumes,
    same,
    toy_batch,
    train,
    trains_the_u_net,
)


def declared(**changes: Any) -> Trajectory:
    plain = {"distance": {"kind": "squared"}, "matching_distance": {"kind": "squared"}}
    return Trajectory.model_validate({**plain, **changes})


def toy(points: int = 4, **changes: Any) -> tuple[Table, Any]:
    """A table at the discrete optimum, and the objective that begins with it."""
    network = Table(points)
    with torch.no_grad():
        network.table.copy_(discrete(points, 0.5)[1:])
    return network, begun(network, declared(**changes))


def an_output(path: Path) -> Tensor:
    return path.clean + 0.3 * normal(torch.arange(len(path.clean)), tuple(path.clean.shape[1:]), torch.float64)


@pytest.mark.parametrize("index", [1, 2, 3])
def test_the_direction_in_closed_form(index: int) -> None:
    network, objective = toy()
    path = objective.path(samples := toy_batch(3), samples.keys)
    output, t = an_output(path), index / 3
    views = objective.views(objective.frozen, path, output, torch.full((3,), t, dtype=torch.float64))
    g = objective.direction(views)
    torch.testing.assert_close(g, network.table[index - 1].detach() * (1 - t) * (output - path.clean))
    assert not g.requires_grad
    assert objective.last["direction_norm"].item() == pytest.approx(g.square().mean(dim=(1, 2, 3)).sqrt().mean().item())


@pytest.mark.parametrize("weighting", ["inverse_error", "none"])
def test_the_gradient_in_closed_form(weighting: str) -> None:
    _, objective = toy(weighting=weighting)
    path = objective.path(samples := toy_batch(3), samples.keys)
    output = an_output(path)
    g = objective.direction(
        objective.views(objective.frozen, path, output, torch.full((3,), 1 / 3, dtype=torch.float64))
    )
    output.requires_grad_()
    (gradient,) = torch.autograd.grad(objective.matching(output, path, g), output)
    errors = (output.detach() - path.clean).abs().flatten(1).mean(dim=1)[:, None, None, None]
    weights = 1 / errors if weighting == "inverse_error" else 1.0
    torch.testing.assert_close(gradient, 2 * weights * g / g.numel())


def test_weights_have_a_floor() -> None:
    _, objective = toy()
    path = objective.path(samples := toy_batch(2), samples.keys)
    offsets = torch.tensor([1e-5, 0.02], dtype=torch.float64)[:, None, None, None]
    g = torch.ones_like(path.clean)
    loss = objective.matching(path.clean + offsets, path, g)
    assert loss.item() == pytest.approx((1 / 1e-3 + 1 / 0.02) / 2)


def test_at_the_hr_image_there_is_no_direction() -> None:
    network = Small(dropout=0.0, dtype=torch.float64)
    objective = begun(network, declared())
    path = objective.path(samples := toy_batch(3), samples.keys)
    when = torch.tensor([1 / 3, 2 / 3, 1], dtype=torch.float64)
    g = objective.direction(objective.views(objective.frozen, path, path.clean.clone(), when))
    assert torch.equal(g, torch.zeros_like(g))


def test_both_paths_share_lr_image_time_and_noise() -> None:
    network = Recorder()
    objective = begun(network, declared())
    samples = toy_batch(3)
    path = objective.path(samples, samples.keys)
    output, when = an_output(path), torch.tensor([1 / 3, 2 / 3, 1 / 3], dtype=torch.float64)
    objective.views(objective.frozen, path, output, when)
    [(seen, t)] = objective.frozen.calls
    assert torch.equal(t, torch.cat([when, when]))
    y, noise = enlarged(samples.lr), normal(derived(samples.keys, "path"), tuple(output.shape[1:]), torch.float64)
    for x, begin in zip(seen.chunk(2), (output, 2 * samples.hr - 1), strict=True):
        time = when[:, None, None, None]
        torch.testing.assert_close(x, (1 - time) * begin + time * (y + noise))


@pytest.mark.parametrize(
    ("points", "time_range", "expected"),
    [
        (4, (0.1, 0.5), [1]),
        (10, (0.1, 0.5), [1, 2, 3, 4]),
        (4, (0.0, 1.0), [1, 2, 3]),
        (20, (0.3, 0.6), list(range(6, 12))),
    ],
)
def test_the_times_that_are_matched(points: int, time_range: tuple[float, float], expected: list[int]) -> None:
    objective = Trajectory(grid_points=(points, points), time_range=time_range)
    assert list(objective.times(points)) == expected
    drawn = drawn_index(toy_batch(200, side=1).keys, "matching", objective.times(points))
    assert drawn.unique().tolist() == expected


def test_published_defaults_match_one_time() -> None:
    published = Trajectory()
    assert list(published.times(4)) == [1]
    assert published.matching_weight == 0.5 * 1.6
    assert published.matching_distance.kind == "lpips"
    with pytest.raises(ValidationError, match="holds no time of a grid of 3"):
        Trajectory(grid_points=(4, 3))


def test_score_distillation_pulls_to_the_frozen_networks_output() -> None:
    network, objective = toy(matching="sds")
    path = objective.path(samples := toy_batch(3), samples.keys)
    output, t = an_output(path), 1 / 3
    views = objective.views(objective.frozen, path, output, torch.full((3,), t, dtype=torch.float64))
    assert views.real is None
    noisy = (1 - t) * output + t * (path.low + path.noise)
    denoised = path.low + network.table[0].detach() * (noisy - path.low)
    g = objective.direction(views)
    torch.testing.assert_close(g, output - denoised)
    # so the output is moved onto it
    assert objective.matching(output, path, g).item() == pytest.approx(
        ((output - denoised).square().flatten(1).mean(dim=1) / (output - path.clean).abs().flatten(1).mean(dim=1))
        .mean()
        .item()
    )


def test_the_total_is_consistency_and_weighted_matching() -> None:
    samples = toy_batch(4)
    totals = {}
    for weight in (0.8, 2.0):
        network, objective = toy(matching_weight=weight)
        totals[weight] = objective(network, samples).item()
        found = objective.diagnostics()
        assert set(found) == {"consistency", "matching", "direction_norm", "grid_points"}
        assert totals[weight] == pytest.approx(found["consistency"] + weight * found["matching"])
        assert found["matching"] > 0
    # the output at the later time of the consistency loss, and t = 1/3
    path = objective.path(samples, samples.keys)
    index = drawn_index(samples.keys, "interval", range(3))
    late = (index + 1).double() / 3
    output = network(samples.lr, at=(path.at(late), late)).detach()
    g = objective.frozen.table[0] * (2 / 3) * (output - path.clean)
    weights = 1 / (output - path.clean).abs().flatten(1).mean(dim=1)
    assert found["matching"] == pytest.approx((weights * g.square().flatten(1).mean(dim=1)).mean().item())


def test_the_frozen_network_is_refreshed_and_otherwise_stays() -> None:
    network = Small()
    objective = begun(network, declared(refresh_every=3))
    begin = Small()
    same(objective.frozen, begin)
    optimiser = torch.optim.AdamW(network.parameters(), lr=1e-2)
    for step in range(7):
        train(network, objective, optimiser, batches(2, 7, begin=step, end=step + 1, dtype=torch.float32))
        if step + 1 in (3, 6):
            same(objective.frozen, network)
        else:
            assert not torch.equal(objective.frozen.first.weight, network.first.weight)
        if step < 2:
            same(objective.frozen, begin)
    assert all(parameter.grad is None for parameter in objective.parameters())
    assert not any(parameter.requires_grad for parameter in objective.parameters())
    assert not objective.frozen.training


def test_the_frozen_networks_output_takes_no_gradient() -> None:
    network = Small(dropout=0.0, dtype=torch.float64)
    objective, samples = begun(network, declared()), toy_batch(3)
    found = torch.autograd.grad(objective(network, samples), list(network.parameters()))
    path = objective.path(samples, samples.keys)
    index = drawn_index(samples.keys, "interval", range(3))
    loss, output = objective.consistency(network, path, index, 4)
    seen = objective.path(samples, derived(samples.keys, "matching"))
    assert not torch.equal(seen.noise, path.noise)
    views = objective.views(objective.frozen, seen, output.detach(), torch.full((3,), 1 / 3, dtype=torch.float64))
    assert isinstance(views, Views)
    aim = (output - (views.fake - views.real)).detach()  # pyright: ignore[reportOperatorIssue]
    weights = (1 / (output - path.clean).abs().flatten(1).mean(dim=1)).detach()
    matching = (weights * (output - aim).square().flatten(1).mean(dim=1)).mean()
    expected = torch.autograd.grad(loss + 0.8 * matching, list(network.parameters()))
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("changes", [{"refresh_every": 2}, {"refresh_every": 4, "target_ema": 0.9}])
def test_resumed_training_is_the_same_to_the_bit(changes: dict[str, Any]) -> None:
    resumes(declared(**changes))


def test_what_is_saved_is_the_frozen_network_and_the_target() -> None:
    objective = begun(Small(), declared(target_ema=0.9))
    assert {name.split(".")[0] for name in objective.state_dict()} == {"frozen", "target"}


@pytest.mark.parametrize("matching", ["dtm", "sds"])
def test_it_trains_every_parameter_of_the_u_net(matching: str) -> None:
    trains_the_u_net(declared(matching=matching))
