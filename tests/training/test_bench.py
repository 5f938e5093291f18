"""What the bench prints, from rows whose answer is known; and one short real measurement."""

from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from rich.console import Console

from study.evaluation.complexity import multiply_adds
from study.grid.models import CFSR, IMDN, CATANet, Hard, Soft
from study.grid.schema import Data, Optimisation, Run
from study.models import attention, depthwise, layers, support
from study.records.store import read_json, read_table
from study.training import bench
from study.training.bench import AS_IT_IS, headline, measure, save, standard, summarise, tables


def rows() -> pd.DataFrame:
    body = []
    for repeat, (plain, off, other) in enumerate([(2.0, 5.0, 4.0), (3.0, 6.0, 4.0), (2.5, 4.0, 5.0)]):
        rate = 1e9 * (1 + repeat)
        for model, variant, seconds in (
            ("catanet, hard", AS_IT_IS, plain),
            ("catanet, hard", "x off", off),
            ("spin", AS_IT_IS, other),
        ):
            body.append((model, "inference", variant, repeat, seconds, 1e9, rate))
    columns = ["model", "phase", "variant", "repeat", "seconds", "operations", "matrix_rate"]
    return pd.DataFrame(body, columns=columns)


def test_ratios_are_paired_by_repeat() -> None:
    summary = summarise(rows()).set_index(["model", "variant"])
    own = summary.loc[("catanet, hard", AS_IT_IS)]
    assert (own["ratio"], own["ratio_low"], own["ratio_high"]) == (6, 2, 7.5)  # 2 · 1, 3 · 2, 2.5 · 3
    assert own["seconds"] == 2.5
    assert own["floor_s"] == 0.5
    off = summary.loc[("catanet, hard", "x off")]
    assert (off["against"], off["against_low"], off["against_high"]) == (2, 1.6, 2.5)


def test_the_headline_compares_repeat_by_repeat() -> None:
    assert headline(rows()) == "CATANet's inference takes 0.50 of SPIN's time (range 0.50 to 0.75, 3 repeats)"
    assert headline(rows().query("model == 'spin'")) == ""


def test_tables_hold_every_row() -> None:
    console = Console(width=160, record=True)
    for view in tables(rows()):
        console.print(view)
    text = console.export_text()
    assert "6.00 (2.00 - 7.50)" in text
    assert "2.00 (1.60 - 2.50)" in text
    assert "matrix rate 2 GFLOP/s" in text


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: dict[str, Any] = {"width": 8, "blocks": 1, "qk_width": 8, "mlp_width": 8, "heads": 2, "windows": (8,)}
    models = {
        "catanet, hard": CATANet(**sizes, assignment=Hard(group_sizes=(16,))),
        "sparsemax": CATANet(**sizes, assignment=Soft(support="sparsemax")),
        "imdn": IMDN(width=8, blocks=1),
        "cfsr": CFSR(width=8, layers=1, blocks=1, mlp_width=16),
    }
    monkeypatch.setattr(bench, "MODELS", models)
    monkeypatch.setattr(bench, "TRAINING_LR_PX", 16)
    monkeypatch.setattr(bench, "INFERENCE_LR_PX", 24)
    monkeypatch.setattr(bench, "MATRIX_PX", {"cpu": 64})


def test_a_measurement(small: None, tmp_path: Path) -> None:
    places = [(attention, "_in_blocks"), (layers, "convolve_shuffled")]
    before = [getattr(*place) for place in places]
    found = measure(standard(["catanet, hard", "imdn"]), cpu=True, repeats=2, switches=True)
    assert before == [getattr(*place) for place in places]
    assert attention._ALIGNMENT == {"cpu": 2, "cuda": 8}
    counts = found.groupby(["model", "phase", "variant"]).size()
    assert set(counts) == {2}
    assert set(counts.loc["imdn", "training"].index) == {AS_IT_IS, "bf16"}
    assert {AS_IT_IS, "bf16", "all of it off"} < set(counts.loc["catanet, hard", "training"].index)
    run = Run(scale=4, model=bench.MODELS["catanet, hard"])
    forward = 2 * multiply_adds(run, (16, 16), products=True)
    step = found[(found["model"] == "catanet, hard") & (found["phase"] == "training")]
    assert set(step["operations"]) == {3 * 4 * forward}
    save(found, tmp_path, cpu=True)
    pd.testing.assert_frame_equal(read_table(tmp_path, "bench"), found)
    assert read_json(tmp_path / "provenance.json")["device"].startswith("cpu")


def test_what_cannot_be_done_is_left_out_and_said(small: None, capsys: pytest.CaptureFixture[str]) -> None:
    runs = standard(["imdn"])
    half = {"optimisation": runs["imdn"].optimisation.model_copy(update={"precision": "fp16"})}
    found = measure({"half": runs["imdn"].model_copy(update=half), **runs}, cpu=True, repeats=1)
    assert list(zip(found["model"], found["phase"], strict=True)) == [
        ("half", "inference"),
        ("imdn", "training"),
        ("imdn", "inference"),
    ]
    assert "not timed: half, training: optimisation.precision: fp16 needs a GPU" in capsys.readouterr().err


SWITCHED = {
    "catanet, hard": (
        "last convolution after the shuffle",
        "heads as wide as they are",
        "gradient of wide kernels at once",
    ),
    "sparsemax": ("attention by the fused kernel", "sparsemax by a sort", "all of it off"),
    "cfsr": ("gradient of wide kernels at once",),
    "imdn": (),
}


@pytest.mark.parametrize("name", SWITCHED)
def test_switches_change_the_way_and_not_the_result(small: None, name: str) -> None:
    torch.manual_seed(0)
    run = Run(scale=4, model=bench.MODELS[name], optimisation=Optimisation(batch=1), data=Data(lr_patch_px=16))
    network = bench.build(run)
    image = torch.rand(1, 3, 24, 24)
    settings = bench._settings(torch.device("cpu"), run.model)
    assert set(SWITCHED[name]) <= set(settings)

    def compute() -> list[torch.Tensor]:
        network.zero_grad()
        out = network(image)
        out.square().mean().backward()
        return [out.detach(), *(p.grad.clone() for p in network.parameters() if p.grad is not None)]

    network(image)  # first prototypes
    network.eval()
    plain = compute()
    for setting in settings.values():
        with setting():
            torch.testing.assert_close(compute(), plain, atol=1e-5, rtol=1e-3)


def test_what_is_switched_off_was_used(small: None, monkeypatch: pytest.MonkeyPatch) -> None:
    used: list[str] = []
    for place, name in ((depthwise, "_of_kernel"), (support, "threshold_by_search"), (attention, "_attend_in_blocks")):
        real = getattr(place, name)
        monkeypatch.setattr(place, name, lambda *given, real=real, name=name: used.append(name) or real(*given))
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    run = standard(["sparsemax"])["sparsemax"]
    step = bench._training(run, torch.device("cpu"))
    step()
    assert set(used) == {"_of_kernel", "threshold_by_search", "_attend_in_blocks"}
    settings = bench._settings(torch.device("cpu"), run.model)
    for variant, gone in (
        ("gradient of wide kernels at once", "_of_kernel"),
        ("sparsemax by a sort", "threshold_by_search"),
        ("attention by the fused kernel", "_attend_in_blocks"),
    ):
        used.clear()
        with settings[variant]():
            step()
        assert used
        assert gone not in used
    used.clear()
    with settings["all of it off"]():
        step()
    assert not used


def test_compiled_variants_on_a_gpu(small: None, monkeypatch: pytest.MonkeyPatch) -> None:
    modes: list[str | None] = []
    # that a compiled network does the same is tested elsewhere, and takes long
    monkeypatch.setattr(torch.nn.Module, "compile", lambda _, *, mode: modes.append(mode))
    run, cpu = standard(["catanet, hard"])["catanet, hard"], torch.device("cpu")
    assert bench._otherwise(cpu) == [("bf16",)]
    variants = bench._otherwise(torch.device("cuda"))
    assert variants[-1] == ("bf16", "compiled", "CUDA graphs")
    for make in (bench._training, bench._inference):
        for parts in variants:
            make(run, cpu, parts)()
    assert modes == [None, "reduce-overhead"] * 4
