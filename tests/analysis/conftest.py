import matplotlib as mpl
import pytest
from matplotlib.style import context

from study.analysis.rendering import REPORTS
from study.analysis.report import build_report
from tests.analysis.hostile import draw_hostile


@pytest.fixture
def style():
    with mpl.rc_context(), context(["default", REPORTS / "study.mplstyle"]):
        yield


@pytest.fixture(scope="session")
def hostile(tmp_path_factory):
    """The report of a study of hostile names: file name -> path."""
    folder = tmp_path_factory.mktemp("hostile")
    study = draw_hostile(folder)
    return build_report(
        study.plan, study.ids, study.records, study.statuses, study.runs, folder / "out", "study report 'a b' $x \\y"
    )
