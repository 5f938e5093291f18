import os
import sys
import time

import pytest

from study.analysis.forks import Forks
from study.analysis.pictures import save_figure, writing_beside

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="forks on Linux only")


def test_work_runs_in_other_processes_and_no_more_than_allowed_at_once(tmp_path):
    def work(index):
        begun = time.monotonic()
        time.sleep(0.1)
        (tmp_path / f"{index}").write_text(f"{os.getpid()} {begun} {time.monotonic()}")

    with Forks(2) as forks:
        for index in range(5):
            forks.start(lambda index=index: work(index))
    spans = [tuple(map(float, (tmp_path / f"{index}").read_text().split())) for index in range(5)]
    assert len({pid for pid, _, _ in spans}) == 5
    assert os.getpid() not in {pid for pid, _, _ in spans}
    for _, begun, _ in spans:
        assert sum(start <= begun < end for _, start, end in spans) <= 2


def fail():
    raise OSError("no space left")


def test_what_fails_there_fails_here(capfd):
    with pytest.raises(OSError, match="no space left"), Forks(2) as forks:
        forks.start(fail)
    capfd.readouterr()


def test_an_earlier_failure_is_not_hidden(capfd):
    def both():
        with Forks(2) as forks:
            forks.start(fail)
            raise ValueError("first")

    with pytest.raises(ValueError, match="first"):
        both()
    capfd.readouterr()


@pytest.mark.usefixtures("style")
def test_figures_written_beside_have_the_same_bytes(tmp_path):
    from matplotlib.figure import Figure

    def draw():
        figure = Figure(figsize=(3, 2))
        figure.subplots().plot([1, 2, 4])
        return figure

    at_once = save_figure(draw(), tmp_path / "a", "one", "")
    with writing_beside():
        beside = [save_figure(draw(), tmp_path / "b", name, "") for name in ("one", "two", "three")]
    assert {picture.svg for picture in beside} == {at_once.svg}
    for ending, path in at_once.paths.items():
        assert all(picture.paths[ending].read_bytes() == path.read_bytes() for picture in beside)
