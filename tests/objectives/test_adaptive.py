import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from study.data.draws import derived, normal
from study.evaluation.metrics import MetricUnavailable
from study.grid.objectives import Adaptive, Trajectory
from study.grid.schema import Optimisation
from study.objectives import adaptive
from study.objectives.adaptive import Reward, advantages
from study.objectives.consistency import drawn_index
from study.objectives.trajectory import Views, norms
from tests.objectives.toy import (
    Recorder,
    Small,
    Table,
    batches,
    begun,
    discrete,
    resumes,
    same,
    toy_batch,
    train,
    trains_the_u_net,
    variance,
)

CPU = torch.device("cpu")
PLAIN: dict[str, Any] = {"distance": {"kind": "squared"}, "matching_distance": {"kind": "squared"}}
OFF: dict[str, Any] = {"split": False, "separate_fake": False, "sharpening": False}
SWITCHES: list[dict[str, Any]] = [
    OFF,
    {**OFF, "split": True},
    {**OFF, "separate_fake": True},
    {**OFF, "separate_fake": True, "sharpening": True},
    {},
]


def declared(**changes: Any) -> Adaptive:
    return Adaptive.model_validate({**PLAIN, "reward": "charbonnier", "draws": 2, **changes})


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def views(count: int = 4) -> Views:
    """Of a fake network that is not far from the real one, as in training."""
    output, fake = (numbers(count, 3, 4, 4, seed=seed) for seed in (0, 1))
    return Views(output, fake, fake + 0.5 * numbers(count, 3, 4, 4, seed=2))


@pytest.mark.parametrize("changes", [{}, {"target_ema": 0.9, "refresh_every": 2}])
def test_with_all_switches_off_it_is_trajectory_matching_to_the_bit(changes: dict[str, Any]) -> None:
    settings = {**PLAIN, **changes}
    trained = []
    for config in (Trajectory.model_validate(settings), Adaptive.model_validate({**settings, **OFF})):
        network = Small()
        objective = begun(network, config)
        optimiser = torch.optim.AdamW(network.parameters(), lr=1e-2)
        train(network, objective, optimiser, batches(3, 5, dtype=torch.float32))
        trained.append((network, objective))
    (network, objective), (other, others) = trained
    assert not torch.equal(network.first.weight, Small().first.weight)
    same(network, other)
    same(objective, others)
    assert objective.diagnostics() == others.diagnostics()


def test_advantages_in_closed_form() -> None:
    rewards = torch.tensor([0.3, 0.1, -5.0, 5.0, 2.0, 2.0], dtype=torch.float64)
    found = advantages(rewards, 2)
    first = 0.1 / (0.1 + 1e-4)  # half the gap over itself and the epsilon
    expected = [first, -first, -5 / (5 + 1e-4), 5 / (5 + 1e-4), 0, 0]
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64))
    four = advantages(torch.tensor([1.0, 2.0, 3.0, 6.0], dtype=torch.float64), 4)
    deviation = math.sqrt((4 + 1 + 0 + 9) / 4) + 1e-4
    torch.testing.assert_close(
        four,
        torch.tensor([-1, -1 / deviation, 0, 1], dtype=torch.float64),  # -2 / 1.87 and 3 / 1.87 are clipped
    )
    assert torch.equal(advantages(torch.full((8,), 0.7), 4), torch.zeros(8))
    torch.testing.assert_close(
        advantages(torch.cat([rewards[:4], 100 + rewards[:4]]), 4)[:4], advantages(rewards[:4], 4)
    )


def test_small_differences_of_rewards_are_no_advantage() -> None:
    found = advantages(torch.tensor([1e-6, -1e-6], dtype=torch.float64), 2)
    torch.testing.assert_close(found, torch.tensor([1 / 101, -1 / 101], dtype=torch.float64))


def test_the_split_by_hand() -> None:
    objective = begun(Small(), declared(strength=0.4))
    seen, advantage = views(), torch.tensor([-0.5, 0.0, 0.5, 0.25], dtype=torch.float64)
    assert seen.real is not None
    g = objective._leaning(seen, advantage)
    clipped = []
    for b, a in enumerate(advantage.tolist()):
        push, pull = seen.fake[b] - seen.output[b], seen.real[b] - seen.output[b]
        expected = (1 - 0.4 * a) * push - (1 + 0.4 * a) * pull
        longest = 2 * (seen.fake[b] - seen.real[b]).norm()
        clipped.append(bool(expected.norm() > longest))
        if clipped[-1]:
            expected = expected * longest / expected.norm()
        torch.testing.assert_close(g[b], expected)
    assert objective.diagnostics()["clipped_share"] == sum(clipped) / 4
    assert objective.diagnostics()["forbidden_share"] == 0.25
    assert objective.diagnostics()["advantage_std"] == pytest.approx(advantage.std(correction=0).item())


def test_poor_draws_lean_on_the_push_and_good_ones_on_the_pull() -> None:
    objective = begun(Small(), declared())
    output = torch.zeros(2, 3, 4, 4, dtype=torch.float64)
    push, pull = torch.zeros_like(output), torch.zeros_like(output)
    push[:, 0], pull[:, 1] = 1, 1  # at right angles
    g = objective._leaning(Views(output, push, pull), torch.tensor([-1.0, 1.0], dtype=torch.float64))
    torch.testing.assert_close(g[:, 0, 0, 0], torch.tensor([1.5, 0.5], dtype=torch.float64))
    torch.testing.assert_close(g[:, 1, 0, 0], torch.tensor([-0.5, -1.5], dtype=torch.float64))
    assert objective.diagnostics()["push_norm"] == pytest.approx((1.5 + 0.5) / 2 / 3**0.5)
    assert objective.diagnostics()["pull_norm"] == pytest.approx((0.5 + 1.5) / 2 / 3**0.5)
    assert objective.diagnostics()["clipped_share"] == 0


def test_what_is_split_is_clipped_to_twice_its_length() -> None:
    objective = begun(Small(), declared())
    output = torch.zeros(3, 3, 4, 4, dtype=torch.float64)
    push = torch.ones_like(output)
    # g = 0.1 without advantage; with 1 it is 0.5 - 1.5 * 0.9 = -0.85, with 0.1 it is 0.95 - 1.05 * 0.9 = 0.005
    g = objective._leaning(Views(output, push, 0.9 * push), torch.tensor([1.0, 0.1, -1.0], dtype=torch.float64))
    torch.testing.assert_close(g[:, 0, 0, 0], torch.tensor([-0.2, 0.005, 0.2], dtype=torch.float64))
    assert objective.diagnostics()["clipped_share"] == pytest.approx(2 / 3)
    nothing = objective._leaning(Views(output, output, output), torch.zeros(3, dtype=torch.float64))
    assert torch.equal(nothing, output)
    assert objective.diagnostics()["clipped_share"] == 0


def test_without_advantage_and_with_one_network_it_is_the_direction_of_dtm() -> None:
    network, samples = Small(dropout=0.0, dtype=torch.float64), toy_batch(3)
    objective, plain = begun(network, declared()), begun(network, Trajectory.model_validate(PLAIN))
    path = plain.path(samples, samples.keys)
    output, when = path.clean + 0.2 * numbers(*path.clean.shape), torch.tensor([1 / 3, 2 / 3, 0.5], dtype=torch.float64)
    g = plain.direction(plain.views(plain.frozen, path, output, when))
    assert objective.fake is not objective.frozen
    seen = objective.views(objective.fake, path, output, when)
    torch.testing.assert_close(objective._leaning(seen, torch.zeros(3, dtype=torch.float64)), g)
    torch.testing.assert_close(objective._leaning(seen, None), g)
    assert norms(g).min() > 0.01


def test_the_fake_loss_moves_the_fake_network_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    network, samples = Small(dropout=0.0), toy_batch(3, dtype=torch.float32)
    objective = begun(network, declared())
    begin = {name: value.clone() for name, value in objective.fake.named_parameters()}
    objective(network, samples).backward()
    gradients = [parameter.grad for parameter in network.parameters()]
    for name, parameter in objective.fake.named_parameters():
        assert torch.equal(parameter, begin[name])
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name
    objective.settle(network, 1)
    assert not objective.fake.training
    for name, parameter in objective.fake.named_parameters():
        assert not torch.equal(parameter, begin[name])
        assert parameter.grad is None
        assert not torch.equal(parameter, dict(objective.frozen.named_parameters())[name])

    network.zero_grad(set_to_none=True)
    without = begun(network, declared())
    monkeypatch.setattr(without, "_fake_loss", lambda *_: torch.zeros(()))
    without(network, samples).backward()
    for gradient, parameter in zip(gradients, network.parameters(), strict=True):
        assert gradient is not None
        assert parameter.grad is not None
        assert torch.equal(gradient, parameter.grad)
    assert all(parameter.grad is None for parameter in without.fake.parameters())


def test_the_fake_network_learns_the_outputs_consistency_function() -> None:
    network, spread = Table(4), 0.5
    with torch.no_grad():
        network.table.copy_(discrete(4, spread)[1:])
    steps, objective = 250, begun(network, declared(**{**OFF, "separate_fake": True}))
    chosen = {"kind": "adamw", "lr": 0.03, "betas": [0.0, 0.99]}
    objective.begin(network, Optimisation.model_validate({"optimiser": chosen}))
    for batch in batches(32, steps, side=4):
        objective.fake_optimiser.param_groups[0]["lr"] = 0.03 * (1 - batch.step / steps)
        objective(network, batch).backward()
        objective.settle(network, batch.step + 1)
    # outputs less y are Gaussian at each of the three later times, and least squares sees their mean variance alone
    t = torch.linspace(0, 1, 4, dtype=torch.float64)[1:]
    spread_of_outputs = (network.table.detach().square() * variance(t, spread)).mean().sqrt().item()
    expected = discrete(4, spread_of_outputs)[1:]
    torch.testing.assert_close(objective.fake.table.detach(), expected, rtol=0.03, atol=0)
    assert (expected / network.table.detach()).max() < 0.9  # which is another function than the network's


def test_the_fake_network_sees_outputs_on_paths_of_their_own() -> None:
    network, samples = Recorder(), toy_batch(6)
    objective = begun(network, declared(draws=3, time_range=(0.0, 1.0)))
    objective(network, samples)
    (_, early), (late, t_late), *_ = network.calls
    # a direction's view, then early and late on the path from the outputs, which are what the recorder was given
    (_, when), (fake_early, t_fake), (fake_late, t_fake_late) = objective.fake.calls
    torch.testing.assert_close(t_fake_late - t_fake, torch.full((18,), 1 / 3, dtype=torch.float64))
    time = t_fake_late[:, None, None, None]
    y = network.upsampled(samples.lr).repeat_interleave(3, dim=0)
    noise = (fake_late - (1 - time) * late) / time - y
    torch.testing.assert_close(fake_early, late + t_fake[:, None, None, None] * (y + noise - late))
    assert noise.mean().abs() < 4 / noise.numel() ** 0.5
    assert noise.std().item() == pytest.approx(1, abs=0.03)
    clean = (2 * samples.hr - 1).repeat_interleave(3, dim=0)
    own = (late - (1 - t_late[:, None, None, None]) * clean) / t_late[:, None, None, None] - y
    assert (own * noise).mean().abs() < 4 / noise.numel() ** 0.5
    # all times are the image's, not the draw's
    for drawn in (early, t_late, when, t_fake):
        assert (drawn.unflatten(0, (6, 3)) == drawn.unflatten(0, (6, 3))[:, :1]).all()
    assert (t_fake != early).any()
    assert len(when.unique()) > 1


def test_draws_share_image_and_times_but_not_their_noise() -> None:
    network, samples = Recorder(), toy_batch(5)
    objective = begun(network, declared(**{**OFF, "split": True}, draws=4))
    objective(network, samples)
    late, t = network.calls[1]
    index = drawn_index(samples.keys, "interval", range(3))
    assert torch.equal(t, (1 + index).double().repeat_interleave(4) / 3)
    time = t[:, None, None, None]
    clean, y = ((part).repeat_interleave(4, dim=0) for part in (2 * samples.hr - 1, network.upsampled(samples.lr)))
    noise = ((late - (1 - time) * clean) / time - y).unflatten(0, (5, 4))
    keys = torch.stack([samples.keys, *(derived(samples.keys, f"draw {k}") for k in (1, 2, 3))], dim=1)
    expected = normal(derived(keys.flatten(), "path"), tuple(clean.shape[1:]), torch.float64).unflatten(0, (5, 4))
    torch.testing.assert_close(noise, expected)
    rows = noise.flatten(2).flatten(0, 1)
    assert (rows.corrcoef() - torch.eye(20, dtype=torch.float64)).abs().max() < 4.5 / rows.shape[1] ** 0.5


def test_poor_outputs_weigh_more_in_the_fake_loss() -> None:
    network = Small(dropout=0.0, dtype=torch.float64)
    objective = begun(network, declared(sharpness=0.7))
    samples = toy_batch(4)
    path = objective.path(samples, samples.keys)
    index, advantage = torch.tensor([0, 1, 2, 0]), torch.tensor([1.0, -1.0, 0.2, -0.4], dtype=torch.float64)
    alone = torch.stack(
        [
            objective._fake_loss(
                type(path)(*(part[b : b + 1] for part in (path.lr, path.clean, path.low, path.noise))),
                index[b : b + 1],
                4,
                None,
            )
            for b in range(4)
        ]
    )
    weights = torch.exp(-0.7 * advantage)
    weights = weights / weights.mean()
    assert weights.argsort().tolist() == advantage.argsort(descending=True).tolist()
    torch.testing.assert_close(objective._fake_loss(path, index, 4, advantage), (weights * alone).mean())
    assert objective.diagnostics()["fake_loss"] == pytest.approx((weights * alone).mean().item())
    torch.testing.assert_close(objective._fake_loss(path, index, 4, torch.full((4,), 0.3).double()), alone.mean())
    plain = begun(network, declared(sharpening=False))
    torch.testing.assert_close(plain._fake_loss(path, index, 4, advantage), alone.mean())


def test_each_switch_is_its_own() -> None:
    network, samples = Small(dropout=0.0, dtype=torch.float64), toy_batch(3)
    everywhere = {"consistency", "matching", "direction_norm", "grid_points"}
    judged, split = {"advantage_std", "forbidden_share"}, {"push_norm", "pull_norm", "clipped_share"}
    for switches, expected in zip(
        SWITCHES,
        (set(), judged | split, {"fake_loss"}, judged | {"fake_loss"}, judged | split | {"fake_loss"}),
        strict=True,
    ):
        objective = begun(network, declared(**switches))
        objective(network, samples)
        found = objective.diagnostics()
        assert set(found) == everywhere | expected
        assert all(isinstance(value, float | int) and math.isfinite(value) for value in found.values())
        assert hasattr(objective, "fake") == ("fake_loss" in expected)
        total = found["consistency"] + 0.8 * found["matching"] + found.get("fake_loss", 0)
        assert objective(network, samples).item() == pytest.approx(total)
    assert 0 <= found["clipped_share"] <= 1
    assert found["forbidden_share"] == 0.5  # of two draws one


@pytest.mark.parametrize("switches", SWITCHES[1:])
def test_resumed_training_is_the_same_to_the_bit(switches: dict[str, Any]) -> None:
    resumes(declared(**switches, refresh_every=2))


def test_the_fake_networks_optimiser_is_saved() -> None:
    network, optimiser = Small(), torch.optim.SGD([nn.Parameter(torch.zeros(1))])
    objective = begun(network, declared())
    train(network, objective, optimiser, batches(2, 3, dtype=torch.float32))
    other = begun(network, declared())
    other.load_state_dict(objective.state_dict())
    mine, others = (part.fake_optimiser.state_dict()["state"] for part in (objective, other))
    assert mine[0]["step"] == 3
    for index, values in mine.items():
        for name, value in values.items():
            assert torch.equal(value, others[index][name])
    assert begun(network, declared(**OFF)).get_extra_state() == {}


def test_autocast_leaves_both_networks_their_gradients() -> None:
    network = Small()
    objective = begun(network, declared())
    with torch.autocast("cpu", torch.bfloat16):
        loss = objective(network, toy_batch(3, dtype=torch.float32))
    loss.backward()
    for parameter in [*network.parameters(), *objective.fake.parameters()]:
        assert parameter.grad is not None
        assert parameter.grad.abs().sum() > 0


def test_rewards_are_higher_for_better_outputs(monkeypatch: pytest.MonkeyPatch) -> None:
    clean = (2 * torch.rand(3, 3, 4, 4, generator=torch.Generator().manual_seed(0)) - 1).double()
    output = clean + torch.tensor([0.1, 0.0, -0.4], dtype=torch.float64)[:, None, None, None]
    found = Reward(declared(), CPU, torch.float64)(output, clean)
    torch.testing.assert_close(found, -torch.tensor([0.1, 1e-6, 0.4], dtype=torch.float64), atol=1e-10, rtol=1e-6)

    class Stub(nn.Module):
        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            assert min(x.min(), y.min()) >= 0
            assert max(x.max(), y.max()) <= 1
            return (x - y).abs().mean(dim=(1, 2, 3))

    monkeypatch.setattr(adaptive, "perceptual", lambda device, dtype: Stub())
    found = Reward(declared(reward="lpips"), CPU, torch.float64)(output.requires_grad_(), clean)
    assert not found.requires_grad
    assert found.argsort().tolist() == [2, 0, 1]


def test_metrics_without_reference_judge_each_output_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(adaptive, "require", lambda metrics, device: asked.extend(metrics))
    monkeypatch.setattr(adaptive, "score", lambda metric, sr, hr: sr.mean().item())
    output = torch.tensor([-1.0, 0.0, 3.0])[:, None, None, None].expand(3, 3, 2, 2)
    expected = torch.tensor([0.0, 0.5, 1.0])
    torch.testing.assert_close(Reward(declared(reward="musiq"), CPU, torch.float32)(output, output), expected)
    torch.testing.assert_close(Reward(declared(reward="niqe"), CPU, torch.float32)(output, output), -expected)
    assert asked == ["musiq", "niqe"]


@pytest.mark.parametrize("reward", ["lpips", "musiq"])
def test_a_reward_without_its_weights_is_refused(reward: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def unavailable(*_: Any) -> None:
        raise MetricUnavailable("not computed")

    monkeypatch.setattr(adaptive, "perceptual", unavailable)
    monkeypatch.setattr(adaptive, "require", unavailable)
    with pytest.raises(MetricUnavailable):
        begun(Small(), declared(reward=reward))
    begun(Small(), Adaptive.model_validate({**PLAIN, **OFF, "reward": reward}))  # nothing is judged


@pytest.mark.parametrize("switches", SWITCHES[1:])
def test_it_trains_every_parameter_of_the_u_net(switches: dict[str, Any]) -> None:
    trains_the_u_net(declared(**switches))
