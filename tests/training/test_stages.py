"""Runs that start from other runs."""

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from study import StudyError
from study.evaluation import metrics
from study.evaluation.metrics import MetricUnavailable
from study.grid.expand import load_plan
from study.records.index import status
from study.records.location import settle
from study.records.store import RecordError, read_table
from study.training import execution, runner
from study.training.runner import run_grid
from study.training.trainer import Diverged, Trainer
from tests.training.test_runner import DONE_FILES, folders, in_process, output, run, wait_for

Write = Callable[..., Path]

UNET = (
    "model: {kind: unet, width: 8, multipliers: [1], blocks: 1, window: 4, attention_width: 8, heads: 2, mlp_ratio: 1}"
)
CATANET = """\
model:
    {kind: catanet, width: 8, blocks: 1, qk_width: 8, mlp_width: 8, heads: 2, windows: [8],
     prototypes: {count: [4]}, assignment: {kind: hard, group_sizes: [16]}}
"""
CT = (CATANET, UNET + "\n  objective: {kind: consistency, distance: {kind: charbonnier}, target_ema: 0.9}\n")
PLAIN = "distance: {kind: charbonnier}, matching_distance: {kind: squared}, refresh_every: 3"
STAGES = f"""\
variants:
  hard: {{}}
  matched:
    start: hard
    objective: {{kind: trajectory, {PLAIN}}}
    optimisation.steps: 6
  adapted:
    start: hard
    objective: {{kind: adaptive, reward: charbonnier, draws: 2, {PLAIN}}}
    optimisation: {{steps: 8, ema_decay: 0.9}}
  twice: {{start: matched, model.inference_steps: 2, optimisation.steps: 0}}"""
ONE_SEED = ("seeds: 2", "seeds: 1")


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Timing inference takes most of so short a run."""
    monkeypatch.setattr(execution, "measure_costs", lambda *_: [])


@pytest.mark.slow
def test_killed_inside_each_stage_and_between_them_it_goes_on_to_the_same_bits(write_grid: Write) -> None:
    grid = write_grid(STAGES, CT, ONE_SEED, ("steps: 12", "steps: 30"))
    process = run(grid, "quiet")
    assert process.returncode == 0, output(process)
    quiet = folders(grid, "quiet")
    runs = grid.parent / "killed" / "runs"
    for cell in ("hard", "adapted"):
        state = runs / quiet[cell, 0].name / "state" / "latest.pt"
        process = run(grid, "killed", wait=False)
        wait_for(state.exists)
        os.kill(process.pid, signal.SIGKILL)
        process.communicate(timeout=60)
        assert not (state.parents[1] / "DONE").exists()
    assert (runs / quiet["hard", 0].name / "DONE").exists()
    process = run(grid, "killed")
    assert process.returncode == 0, output(process)
    for key, folder in folders(grid, "killed").items():
        for name in DONE_FILES:
            assert (folder / name).read_bytes() == (quiet[key] / name).read_bytes(), (key, name)


@pytest.mark.slow
def test_stages_packed_on_one_device_wait_for_one_another(write_grid: Write) -> None:
    grid = write_grid(STAGES, CT)
    for results, how in (("alone", ()), ("packed", ("--placement", "packed:2"))):
        process = run(grid, results, *how)
        assert process.returncode == 0, output(process)
    alone = folders(grid, "alone")
    for key, folder in folders(grid, "packed").items():
        for name in DONE_FILES:
            assert (folder / name).read_bytes() == (alone[key] / name).read_bytes(), (key, name)


def test_what_starts_from_a_run_begins_with_its_weights_and_it_is_trained_once(
    write_grid: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    grid = write_grid(STAGES, CT, ONE_SEED)
    fitted: list[str] = []
    fit = Trainer.fit

    def noted(trainer: Trainer) -> dict[str, float]:
        fitted.append(trainer.run.objective.kind)
        if trainer.run.start is not None:
            start = folders(grid, "results")["hard", 0] / "weights.safetensors"
            execution.load_weights(reference := execution.build(trainer.run), start)
            for name, value in trainer.network.state_dict().items():
                assert value.equal(reference.state_dict()[name])
        return fit(trainer)

    monkeypatch.setattr(Trainer, "fit", noted)
    assert set(run_grid(load_plan(grid), in_process(grid)).values()) == {"done"}
    assert fitted == ["consistency", "trajectory", "adaptive"]
    runs = folders(grid, "results")
    assert (runs["twice", 0] / "weights.safetensors").read_bytes() == (
        runs["matched", 0] / "weights.safetensors"
    ).read_bytes()
    assert read_table(runs["twice", 0], "scalars").empty
    one, two = (read_table(runs[cell, 0], "images").value for cell in ("matched", "twice"))
    assert not one.equals(two)
    names = set(read_table(runs["adapted", 0], "scalars").name)
    assert {"consistency", "matching", "fake_loss", "pull_norm", "push_norm", "clipped_share"} <= names


def test_when_a_start_fails_what_follows_fails_with_the_reason_and_the_next_launch_tries_both(
    write_grid: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    grid = write_grid(STAGES, CT, ONE_SEED)

    def diverge(trainer: Trainer) -> None:
        raise Diverged("the loss is nan")

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "fit", diverge)
        assert set(run_grid(load_plan(grid), in_process(grid)).values()) == {"failed"}
    runs = folders(grid, "results")
    reasons = {cell: status(folder.parent, folder.name)["reason"] for (cell, _), folder in runs.items()}
    assert reasons == {"hard": "the loss is nan"}  # what never began has no folder that says what it would be
    assert set(run_grid(load_plan(grid), in_process(grid)).values()) == {"done"}


def test_a_finished_run_is_a_start_by_its_id(write_grid: Write) -> None:
    grid = write_grid("variants: {hard: {}}", CT, ONE_SEED)
    run_grid(load_plan(grid), in_process(grid))
    (folder,) = folders(grid, "results").values()
    named = write_grid(STAGES.replace("start: hard", f"start: {folder.name}"), CT, ("steps: 12", "steps: 14"), ONE_SEED)
    options = in_process(named)
    plan = settle(load_plan(named), options.results / "runs")
    ended = run_grid(plan, options)
    assert set(ended.values()) == {"done"}
    by_name = write_grid(STAGES, CT, ONE_SEED)
    images = runner.ImageSets(options.data_root, options.results / "cache")
    assert {images.identify(run) for _, run in load_plan(by_name).runs()} - {folder.name} < set(ended)


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("0123456789", "0123456789", "holds no run 'unet-hard-x2-s0-0123456789'"),
        ("unet-hard-x2-s0-0123456789", "FINISHED", "has not finished"),
        ("optimisation.steps: 6", "model.width: 16", "its model.width is 8, here it is 16"),
        ("optimisation.steps: 6", "scale: 3", "it is of scale 2, this run of scale 3"),
    ],
)
def test_a_start_that_cannot_be_used_is_refused_by_name_before_training(
    write_grid: Write, old: str, new: str, said: str
) -> None:
    grid = write_grid("variants: {hard: {}}", CT, ONE_SEED)
    run_grid(load_plan(grid), in_process(grid))
    (folder,) = folders(grid, "results").values()
    stages = STAGES.replace("start: matched", "start: hard").replace(
        "start: hard", "start: unet-hard-x2-s0-0123456789", 1
    )
    if old != "0123456789":
        stages = stages.replace("unet-hard-x2-s0-0123456789", folder.name)
    if new == "FINISHED":
        (folder / "DONE").unlink()
    else:
        stages = stages.replace(old, new, 1)
    with pytest.raises(RecordError) as refused:
        settle(load_plan(write_grid(stages, CT, ONE_SEED)), folder.parent)
    assert said in str(refused.value)
    assert "'matched'" in str(refused.value)


def test_a_start_whose_images_have_changed_is_refused_before_training(write_grid: Write) -> None:
    grid = write_grid("variants: {hard: {}}", CT, ONE_SEED)
    run_grid(load_plan(grid), in_process(grid))
    (folder,) = folders(grid, "results").values()
    named = write_grid(STAGES.replace("start: hard", f"start: {folder.name}"), CT, ("steps: 12", "steps: 14"), ONE_SEED)
    (grid.parent / "images" / "train" / "2.png").unlink()
    options = in_process(named)
    with pytest.raises(StudyError, match=r"starts from unet-x2-s0-\w+, which is not finished"):
        run_grid(settle(load_plan(named), folder.parent), options)


@pytest.mark.slow
def test_ddp_gives_the_losses_of_one_process_in_both_stages(write_grid: Write) -> None:
    precise = ("steps: 12, batch: 4, log_every: 2", "steps: 12, batch: 4, log_every: 1, precision: fp64")
    grid = write_grid(STAGES, (CT[0], CT[1].replace("mlp_ratio: 1}", "mlp_ratio: 1, dropout: 0}")), ONE_SEED, precise)
    process = run(grid, "one")
    assert process.returncode == 0, output(process)
    process = run(grid, "two", "--placement", "ddp", launcher=("-m", "torch.distributed.run", "--nproc-per-node", "2"))
    assert process.returncode == 0, output(process)
    both = folders(grid, "two")
    for key, folder in folders(grid, "one").items():
        one, two = (read_table(path, "scalars") for path in (folder, both[key]))
        losses = [table[table.name == "loss"].value.tolist() for table in (one, two)]
        assert losses[1] == pytest.approx(losses[0], abs=1e-9)


@pytest.mark.parametrize("part", ["distance: {kind: lpips}", "distance: {kind: mixture}"])
def test_a_distance_without_its_weights_is_refused_before_anything_starts(
    write_grid: Write, monkeypatch: pytest.MonkeyPatch, part: str
) -> None:
    def refuse(metric: str) -> None:
        raise MetricUnavailable(f"not computed: weights of {metric} missing")

    metrics.perceptual.cache_clear()
    monkeypatch.setattr(metrics, "_find_weights", refuse)
    grid = write_grid("variants: {hard: {}}", (CT[0], CT[1].replace("distance: {kind: charbonnier}", part)), ONE_SEED)
    with pytest.raises(MetricUnavailable, match="weights of lpips-vgg missing"):
        run_grid(load_plan(grid), in_process(grid))
    assert not (grid.parent / "results" / "runs").exists()
