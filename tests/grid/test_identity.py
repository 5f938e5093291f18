from pathlib import Path
from typing import Annotated

import pytest
from pydantic import ValidationError

from study.grid.expand import load_plan
from study.grid.fields import Declared, Neutral, NoEffect
from study.grid.identity import Identities, _canonical, inputs, run_id, sources, specification
from study.grid.models import Bicubic, CATANet, External, NoAssignment, Prototypes, Soft
from study.grid.schema import Data, Folder, Optimisation, Run

TRAIN = Folder(path="DIV2K/DIV2K_train_HR")
PRINTS = {source: f"{index:x}" for index, source in enumerate(inputs(Run()))}


def test_id_is_a_slug_and_ten_digits_and_stays_what_it_was() -> None:
    # A change here means that every stored run of every user loses its identity: declare a Neutral value instead.
    assert run_id(Run(), PRINTS) == "catanet-hard-x4-s0-" + run_id(Run(), PRINTS)[-10:]
    assert run_id(Run(model=CATANet(assignment=Soft()), scale=2, seed=3), PRINTS).startswith("catanet-soft-x2-s3-")
    assert run_id(Run(model=Bicubic()), PRINTS).startswith("bicubic-x4-")


def test_what_cannot_change_a_result_is_left_out() -> None:
    quiet = Run(optimisation=Optimisation(checkpoint_every_s=1.0))
    assert specification(quiet) == specification(Run())
    folder = Folder(path="elsewhere")
    moved = Run(data=Data(train=folder))
    prints = dict(PRINTS)
    prints[folder] = prints.pop(TRAIN)
    assert run_id(moved, prints) == run_id(Run(), PRINTS)


def test_what_can_change_a_result_counts() -> None:
    one = run_id(Run(), PRINTS)
    assert run_id(Run(seed=1), PRINTS) != one
    assert run_id(Run(optimisation=Optimisation(steps=7)), PRINTS) != one
    prints = dict(PRINTS)
    prints[TRAIN] = "other content"
    assert run_id(Run(), prints) != one


def test_settings_without_effect_in_a_combination_do_not_count() -> None:
    count = Prototypes(count=(3,))
    none = NoAssignment()
    assert specification(Run(model=CATANet(assignment=none, prototypes=count))) == specification(
        Run(model=CATANet(assignment=none))
    )
    assert specification(Run(model=CATANet(prototypes=count))) != specification(Run())
    learned = [Prototypes(update="learned", iterations=n) for n in (1, 2)]
    assert len({specification(Run(model=CATANet(prototypes=p))) for p in learned}) == 1
    assert specification(Run(model=Bicubic(), seed=4)) == specification(Run(model=Bicubic(), seed=5))


def test_external_weights_count_by_content_and_without_it_by_path() -> None:
    here, there = External(weights="swinir.pth"), External(weights="elsewhere/swinir.pth")
    one, moved = Run(model=here), Run(model=there)
    assert list(sources(one)) == list(one.evaluation.datasets.values())
    assert list(inputs(one)) == [*sources(one), here]
    prints = PRINTS | dict.fromkeys((here, there), "a")
    assert run_id(one, prints) == run_id(moved, prints)
    assert run_id(one, prints).startswith("external-x4-")
    assert run_id(one, prints | dict.fromkeys((here,), "b")) != run_id(moved, prints)
    assert run_id(one.model_copy(update={"seed": 3}), prints) == run_id(one, prints)
    assert run_id(one.model_copy(update={"scale": 2}), prints)[-10:] != run_id(one, prints)[-10:]
    assert specification(one) != specification(moved)
    with pytest.raises(KeyError):
        run_id(one, PRINTS)


def test_a_new_field_at_its_neutral_value_keeps_old_ids() -> None:
    class Before(Declared):
        width: int = 3

    class After(Before):
        depth: Annotated[int, Neutral(1)] = 1
        path: Annotated[str, NoEffect()] = "x"

    assert _canonical(After(), str) == _canonical(Before(), str)
    assert _canonical(After(depth=2), str) == {"width": 3, "depth": 2}


def test_runs_are_frozen() -> None:
    with pytest.raises(ValidationError):
        Run().seed = 3  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.parametrize("path", sorted((Path(__file__).parents[2] / "ablations").glob("*.yaml")), ids=lambda p: p.stem)
def test_ids_of_many_runs_are_those_of_each(path: Path) -> None:
    asked = []

    def fingerprint(item: object) -> str:
        asked.append(item)
        return f"content of {item}"

    identities = Identities(fingerprint)
    runs = [run for _, run in load_plan(path).runs()]
    assert [identities[run] for run in runs] == [
        run_id(run, {item: f"content of {item}" for item in inputs(run)}) for run in runs
    ]
    count = len(asked)
    assert [identities[run] for run in runs] == [identities[run] for run in runs]
    assert len(asked) == count  # nothing is looked at twice
