import numpy as np
import pytest

from study.analysis.archive import Archive, sources
from study.grid.papers import Row
from study.grid.schema import Optimisation, Run
from study.records.store import read_table, write_table
from tests.analysis.test_papers import IMDN, store

EXPECTED = Run(optimisation=Optimisation(steps=1000, batch=8))
EXTERNAL = Run.model_validate({"model": {"kind": "external", "weights": "a.pth", "network": {"kind": "imdn"}}})
TRAINED = Row(method="A", run={})


def trained(steps=1000, seed=0, **changes):
    return EXPECTED.model_copy(update={"optimisation": Optimisation(steps=steps, batch=8, **changes), "seed": seed})


def found(runs, row=TRAINED, expected: Run | None = EXPECTED):
    return sources(Archive(runs), row, 4, expected)


def test_nothing_stored_says_why(tmp_path):
    (one,) = found(tmp_path / "nowhere")
    assert (one.runs, one.trained, one.problem) == ((), True, "not run")
    (one,) = found(tmp_path, Row(method="A", why="no network"), None)
    assert (one.trained, one.problem) == (False, "no network")


def test_seeds_of_one_training_are_one_source_and_its_mean_is_over_images(tmp_path):
    for seed, psnr in enumerate((30.0, 31.0)):
        store(tmp_path, f"s{seed}", trained(seed=seed), psnr)
    archive = Archive(tmp_path)
    (one,) = sources(archive, TRAINED, 4, EXPECTED)
    assert ([run.id for run in one.runs], one.problem, one.name) == (["s0", "s1"], "", "trained here, n = 2")
    means, images = archive.means(one.runs, "Set5", "uint8_y", "psnr")
    assert (means.tolist(), images) == ([30.0, 31.0], 5)
    assert archive.means(one.runs, "Set5", "rgb", "psnr")[1] == 0
    assert archive.parameters(one.runs) == pytest.approx(715.176)
    assert np.isnan(archive.parameters([]))


def test_the_training_nearest_to_the_expected_one_is_taken(tmp_path):
    store(tmp_path, "short", trained(100), 20)
    store(tmp_path, "longer", trained(500), 25)
    (one,) = found(tmp_path)
    assert [run.id for run in one.runs] == ["longer"]
    assert one.problem == "another budget: optimisation.steps 500 for 1000"
    store(tmp_path, "whole", trained(), 30)
    (one,) = found(tmp_path)
    assert ([run.id for run in one.runs], one.problem) == (["whole"], "")


def test_how_a_run_is_watched_and_evaluated_is_not_its_training(tmp_path):
    store(tmp_path, "s0", trained(), 30)
    store(tmp_path, "s1", trained(seed=1, log_every=7), 30)
    (one,) = found(tmp_path)
    assert one.problem == ""


def test_another_scale_network_or_self_ensemble_measures_nothing(tmp_path):
    evaluation = EXPECTED.evaluation.model_copy(update={"self_ensemble": True})
    store(tmp_path, "x2", trained().model_copy(update={"scale": 2}), 30)
    store(tmp_path, "ensemble", trained().model_copy(update={"evaluation": evaluation}), 30)
    store(tmp_path, "imdn", Run.model_validate({"model": {"kind": "imdn"}}), 30)
    assert found(tmp_path)[0].runs == ()


def test_published_weights_are_known_by_their_content_and_stand_beside_a_training(tmp_path):
    row = Row(method="A", run={}, weights={"4": IMDN})
    store(tmp_path, "other", EXTERNAL, 29, "0" * 64)
    assert [one.trained for one in found(tmp_path, row)] == [True]
    store(tmp_path, "published", EXTERNAL, 32, IMDN)
    store(tmp_path, "s0", trained(), 30)
    first, second = found(tmp_path, row)
    assert (first.name, [run.id for run in first.runs]) == ("published weights, run here", ["published"])
    assert (second.trained, [run.id for run in second.runs]) == (True, ["s0"])


def test_an_unfinished_run_is_not_in_the_archive(tmp_path):
    store(tmp_path, "s0", trained(), 30)
    (tmp_path / "s0" / "DONE").unlink()
    assert Archive(tmp_path).stored == []


def test_two_evaluations_of_one_training_are_one_seed(tmp_path):
    store(tmp_path, "one", trained(), 30.0)
    again = trained().model_copy(update={"evaluation": EXPECTED.evaluation.model_copy(update={"protocols": ("rgb",)})})
    store(tmp_path, "two", again, 31.0)
    archive = Archive(tmp_path)
    (source,) = sources(archive, TRAINED, 4, EXPECTED)
    assert source.name == "trained here, n = 1"
    assert archive.means(source.runs, "Set5", "uint8_y", "psnr")[0].tolist() == [30.0]


def test_an_image_without_a_value_leaves_no_mean(tmp_path):
    store(tmp_path, "whole", trained(), 30.0)
    store(tmp_path, "gap", trained(seed=1), 30.0)
    rows = read_table(tmp_path / "gap", "images").to_dict("records")
    write_table(tmp_path / "gap", "images", [row for row in rows if row["image"] != "i3"])
    archive = Archive(tmp_path)
    (source,) = sources(archive, TRAINED, 4, EXPECTED)
    means, images = archive.means(source.runs, "Set5", "uint8_y", "psnr")
    assert images == 5
    assert [run.id for run in source.runs] == ["gap", "whole"]
    assert np.isnan(means).tolist() == [True, False]


def test_published_weights_are_measured_as_their_row_was(tmp_path):
    plus = EXTERNAL.model_copy(update={"evaluation": EXTERNAL.evaluation.model_copy(update={"self_ensemble": True})})
    store(tmp_path, "a-plus", plus, 32.3, IMDN)
    store(tmp_path, "b-plain", EXTERNAL, 32.2, IMDN)
    for method, run in (("IMDN", "b-plain"), ("IMDN+", "a-plus")):
        (one,) = found(tmp_path, Row(method=method, weights={"4": IMDN}), None)
        assert [stored.id for stored in one.runs] == [run]
