import matplotlib as mpl
import pytest
from matplotlib.style import context

from study.analysis.report import REPORTS


@pytest.fixture
def style():
    with mpl.rc_context(), context(["default", REPORTS / "study.mplstyle"]):
        yield
