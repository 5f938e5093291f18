import numpy as np
import pytest
from scipy import stats

from study.analysis.published import load_published, select
from study.analysis.reproduction import cite, method_of, reproduce, reproduce_weights
from study.grid.schema import Run

NUMBERS = load_published()
(CITED,) = select(NUMBERS, method="IMDN", paper="CATANet", scale=4, dataset="Set5", metric="psnr")


def run(**model) -> Run:
    return Run.model_validate({"model": model})


@pytest.mark.parametrize(
    ("mean", "verdict"), [(32.2096, "reproduced"), (32.2149, "reproduced"), (32.216, "not reproduced")]
)
def test_given_weights_are_equal_to_the_last_digit_or_not(mean, verdict):
    assert reproduce(np.array([mean]), CITED, trained=False).verdict == verdict


def test_the_interval_is_that_of_one_further_run():
    means = np.array([32.20, 32.24, 32.19])
    found = reproduce(means, CITED, trained=True, tolerance=0.05)
    half = stats.t.ppf(0.975, 2) * means.std(ddof=1) * np.sqrt(4 / 3)
    assert (found.high - found.low) / 2 == pytest.approx(half)
    assert found.difference == pytest.approx(0.0)
    assert found.verdict == "inconclusive"


@pytest.mark.parametrize(
    ("means", "verdict"),
    [
        ([32.21, 32.211, 32.209], "reproduced"),
        ([31.0, 31.001, 31.002], "not reproduced"),
        ([32.21], "inconclusive"),
        ([], "not run"),
    ],
)
def test_verdicts_on_trainings(means, verdict):
    assert reproduce(np.array(means), CITED, trained=True, tolerance=0.05).verdict == verdict


def test_another_budget_is_not_comparable():
    found = reproduce(np.array([32.21, 32.21]), CITED, trained=True, problem="another budget", tolerance=0.05)
    assert (found.verdict, found.reason) == ("not comparable", "another budget")


def test_only_networks_of_the_published_size_have_a_name():
    assert method_of(run(kind="imdn")) == "IMDN"
    assert method_of(run(kind="imdn", width=32)) is None
    assert method_of(run(kind="external", weights="x.pth", network={"kind": "cfsr"})) == "CFSR"
    assert method_of(run(kind="external", weights="x.pth")) is None


def test_the_surest_number_is_cited():
    assert cite(NUMBERS, "CFSR", 4, "B100", "psnr").confidence == "primary"  # pyright: ignore[reportOptionalMemberAccess]
    assert cite(NUMBERS, "Clustered Attention", 2, "Set5", "psnr") is None  # contradicts its neighbours


def test_published_weights_under_their_own_protocol_alone():
    model = run(kind="imdn")
    found = reproduce_weights(model, "Set5", "uint8_y", "psnr", 32.2096, 5, NUMBERS)
    assert found is not None
    assert found.verdict == "reproduced"
    assert reproduce_weights(model, "Set5", "float_y", "psnr", 32.2124, 5, NUMBERS) is None
    other = reproduce_weights(model, "Set5", "uint8_y", "psnr", 32.2096, 3, NUMBERS)
    assert other is not None
    assert other.verdict == "not comparable"


@pytest.mark.parametrize("trained", [True, False])
def test_a_mean_that_is_not_finite_is_no_finding(trained):
    found = reproduce(np.array([32.21, np.nan]), CITED, trained=trained, tolerance=0.05)
    assert (found.verdict, found.reason) == ("not comparable", "an image's value is absent or not finite")


def test_without_a_tolerance_a_training_is_not_judged():
    found = reproduce(np.array([32.21, 32.22]), CITED, trained=True)
    assert (found.verdict, found.reason) == ("not comparable", "no tolerance is declared for this metric")
