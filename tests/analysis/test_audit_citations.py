import pandas as pd
import pytest

from study.analysis.audit_citations import cite_audit, tell_apart
from study.analysis.published import load_published
from study.grid.schema import Run

NUMBERS = load_published()
IMDN = Run.model_validate({"model": {"kind": "imdn"}, "scale": 4})
CFSR = Run.model_validate({"model": {"kind": "cfsr"}, "scale": 4})
LEVELS = {("Set5", "psnr"): 32.2096, ("Set5", "ssim"): 0.89481, ("Set14", "psnr"): 28.58}
PRINTED = {("imdn", "Set5", "psnr"): 32.21, ("imdn", "Set5", "ssim"): 0.8948, ("imdn", "Set14", "psnr"): 28.58}
COUNTS = {"Set5": 5, "Set14": 14, "B100": 100}


def frame(levels=LEVELS, name="imdn", role="model", setting="plain", protocol="uint8_y", counts=COUNTS) -> pd.DataFrame:
    return pd.DataFrame(
        [
            {"role": role, "network": name, "dataset": dataset, "image": f"i{i}", "setting": setting}
            | {"protocol": protocol, "metric": metric, "value": level}
            for (dataset, metric), level in levels.items()
            for i in range(counts[dataset])
        ]
    )


def test_weights_that_give_the_published_digits_are_the_published_ones():
    assert cite_audit(frame(), {"model": IMDN}, NUMBERS) == (PRINTED, [])


def test_one_number_that_they_miss_is_shown_beside_those_they_give():
    levels = {("Set5", "psnr"): 32.33, ("B100", "psnr"): 27.6361}
    cited, notes = cite_audit(frame(levels, "cfsr"), {"model": CFSR}, NUMBERS)
    assert cited == {("cfsr", "Set5", "psnr"): 32.33, ("cfsr", "B100", "psnr"): 27.63}
    assert notes == []


def test_other_weights_of_the_published_size_are_not():
    levels = {**LEVELS, ("Set5", "psnr"): 32.3, ("Set14", "psnr"): 28.6}
    cited, (note,) = cite_audit(frame(levels), {"model": IMDN}, NUMBERS)
    assert cited == {}
    assert note == (
        "What was published of IMDN is not shown: the weights of imdn give 1 of 3 numbers to the last digit, so they "
        "are others."
    )


def test_a_part_of_an_image_set_is_not_compared():
    cited, (note,) = cite_audit(frame(counts={"Set5": 3, "Set14": 14}), {"model": IMDN}, NUMBERS)
    assert cited == {("imdn", "Set14", "psnr"): 28.58}
    assert note == "What was published of IMDN on Set5 is not shown: another image set: 3 images, Set5 has 5."


@pytest.mark.parametrize(
    "change",
    [{"setting": "self-ensemble"}, {"protocol": "matlab_y"}],
)
def test_only_the_plain_output_under_the_printed_protocol_decides(change):
    assert cite_audit(frame(**change), {"model": IMDN}, NUMBERS) == ({}, [])
    wrong = frame({place: level - 1 for place, level in LEVELS.items()}, **change)
    assert cite_audit(pd.concat([frame(), wrong]), {"model": IMDN}, NUMBERS) == (PRINTED, [])


@pytest.mark.parametrize(
    "run",
    [
        IMDN.model_copy(update={"scale": 3}),
        Run.model_validate({"model": {"kind": "imdn", "width": 16}}),
        Run.model_validate({"model": {"kind": "bicubic"}}),
    ],
)
def test_another_scale_size_or_kind_does_not_borrow_the_numbers(run):
    cited, _ = cite_audit(frame(), {"model": run}, NUMBERS)
    assert cited == {}


def test_a_role_that_was_trained_here_has_nothing_cited():
    assert cite_audit(frame(), {}, NUMBERS) == ({}, [])


def test_two_of_one_kind_are_told_apart():
    other = frame({("Set5", "psnr"): 32.0}, role="reference")
    both = tell_apart(pd.concat([frame(), other]))
    assert set(both.network) == {"imdn (model)", "imdn (reference)"}
    cited, notes = cite_audit(both, {"model": IMDN, "reference": IMDN}, NUMBERS)
    assert cited == {("imdn (model)", *place[1:]): value for place, value in PRINTED.items()}
    assert len(notes) == 1
    assert "imdn (reference) give 0 of 1" in notes[0]
    apart = pd.concat([frame(), frame(name="cfsr", role="reference")])
    assert list(tell_apart(apart).network) == list(apart.network)
